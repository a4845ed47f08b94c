package flatten

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testmount"

	"github.com/klauspost/compress/gzip"
	"github.com/masahiro331/go-ext4-filesystem/ext4"
)

// descriptor is one of an OCI layout.
type descriptor struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
}

// corpusImage is the folder of a corpus image.
func corpusImage(name string) string {
	return filepath.Join(cmp.Or(os.Getenv("THAW_CORPUS"), "../out/corpus"), name)
}

// corpusLayers gives the gzipped layers of a corpus image, base first. Without
// the image the test is skipped.
func corpusLayers(t testing.TB, name string) (paths []string) {
	t.Helper()
	dir := corpusImage(name)
	blob := func(d descriptor) string {
		return filepath.Join(dir, "blobs", strings.Replace(d.Digest, ":", "/", 1))
	}
	read := func(path string, v any) {
		b, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			t.Skipf("NOT TESTED on real layers: no image %s: `make corpus` builds it, THAW_CORPUS says where it is", dir)
		}
		if err == nil {
			err = json.Unmarshal(b, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index struct{ Manifests []descriptor }
	var manifest struct{ Layers []descriptor }
	read(filepath.Join(dir, "index.json"), &index)
	read(blob(index.Manifests[0]), &manifest)
	for _, d := range manifest.Layers {
		if !strings.HasSuffix(d.MediaType, "gzip") {
			t.Fatalf("%s: a layer of type %s", dir, d.MediaType)
		}
		paths = append(paths, blob(d))
	}
	return paths
}

// unzip opens a gzipped layer until the test's end.
func unzip(t testing.TB, path string) *gzip.Reader {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// corpusPacked gives the layers of a corpus image packed.
func corpusPacked(t testing.TB, name string) (all []packed) {
	t.Helper()
	for _, path := range corpusLayers(t, name) {
		p := packed{data: image{}}
		var err error
		if p.Layer, err = Pack(unzip(t, path), p.data, nil); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

// A real image of three layers: e2fsck, umoci's unpacking, the kernel's view of
// the device and a second reader of ext4 agree.
func TestRealImage(t *testing.T) {
	const name = "fn-shell"
	m, _, s := mustBuild(t, corpusPacked(t, name)...)
	t.Logf("%d entries, %d bytes of files", s.Entries, s.Bytes)
	path := m.file(t, s.Size)
	fsck(t, path)
	got, _ := testmount.Ext4(t, path, "ro")
	want := filepath.Join(t.TempDir(), "unpacked")
	if out, err := exec.Command("umoci", "raw", "unpack", "--image", corpusImage(name)+":latest", want).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, out)
	}
	tree := snapshot(t, want)
	if len(tree) < 5000 {
		t.Errorf("umoci unpacked %d files", len(tree))
	}
	sameTree(t, snapshot(t, got), tree)
	if files := secondReader(t, m, s.Size, want); files != len(tree) {
		t.Errorf("the second reader finds %d files, want %d", files, len(tree))
	}
}

// secondReader counts the files that it finds in the device, and compares some
// with those of the same path below dir: it goes from the root to each, slowly.
func secondReader(t *testing.T, m image, size int64, dir string) (files int) {
	fsys, err := ext4.NewFS(*io.NewSectionReader(m, 0, size), nil)
	if err != nil {
		t.Fatal(err)
	}
	var walk func(string)
	walk = func(path string) { // fs.WalkDir would ask for the root's own entry, which this reader does not have
		files++
		list, err := fsys.ReadDir(path)
		if err != nil {
			t.Errorf("second reader: %v", err)
		}
		for _, e := range list {
			sub := filepath.Join(path, e.Name())
			if e.IsDir() {
				walk(sub)
				continue
			}
			if files++; files%40 == 0 {
				sameContent(t, fsys, sub, dir)
			}
		}
	}
	walk(".")
	return files
}

// sameContent compares a file or a symbolic link of fsys with the one below dir.
func sameContent(t *testing.T, fsys *ext4.FileSystem, path, dir string) {
	var got, want string
	var err, gotErr error
	st, _ := os.Lstat(filepath.Join(dir, path))
	switch {
	case st != nil && st.Mode().IsRegular():
		var g, w []byte
		g, gotErr = fs.ReadFile(fsys, path)
		w, err = os.ReadFile(filepath.Join(dir, path))
		got, want = string(g), string(w)
	case st != nil && st.Mode().Type() == fs.ModeSymlink:
		got, gotErr = fsys.ReadLink(path)
		want, err = os.Readlink(filepath.Join(dir, path))
	}
	if err = errors.Join(err, gotErr); err != nil || got != want {
		t.Errorf("second reader, %q: %d bytes, want %d; %v", path, len(got), len(want), err)
	}
}
