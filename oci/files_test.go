package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestArchiveIndex(t *testing.T) {
	name := writeFile(t, "a.tar", tarOf(t,
		file{name: "./a", body: "first"},
		file{name: "dir/", typ: tar.TypeDir},
		file{name: "dir/link", typ: tar.TypeSymlink, link: "../a"},
		file{name: "hard", typ: tar.TypeLink, link: "./dir/link"},
		file{name: "a", body: "second, which counts"},
		file{name: "abs", typ: tar.TypeSymlink, link: "/a"},
		file{name: "out", typ: tar.TypeSymlink, link: "../../a"},
		file{name: "../up", body: "escapes"},
		file{name: "loop1", typ: tar.TypeSymlink, link: "loop2"},
		file{name: "loop2", typ: tar.TypeSymlink, link: "loop1"},
		file{name: "dangling", typ: tar.TypeSymlink, link: "nowhere"},
		file{name: "fifo", typ: tar.TypeFifo},
		file{name: strings.Repeat("d/", 3000) + "long", body: "x"},
		file{name: "empty"},
	))
	a, err := openArchive(t.Context(), name)
	check(t, err)
	defer a.Close()
	for file, want := range map[string]string{
		"a": "second, which counts", "./a": "second, which counts", "dir/link": "second, which counts",
		"hard": "second, which counts", "empty": "",
	} {
		if got, err := readFile(a, file); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
	for _, file := range []string{"dir", "abs", "out", "../up", "up", "dangling", "nowhere", "fifo", "", strings.Repeat("d/", 3000) + "long"} {
		if _, err := readFile(a, file); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", file, err)
		}
	}
	if _, err := readFile(a, "loop1"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("loop: %v", err)
	}
}

func TestArchiveRefused(t *testing.T) {
	good := tarOf(t, file{name: "manifest.json", body: noise(1, 5000)})
	fifo := filepath.Join(t.TempDir(), "fifo")
	check(t, syscall.Mkfifo(fifo, 0o600))
	for name, want := range map[string]error{
		writeFile(t, "empty", nil):                   ErrCorrupt,
		writeFile(t, "cut", good[:3000]):             ErrCorrupt,
		writeFile(t, "noise", []byte(noise(1, 999))): ErrCorrupt,
		writeFile(t, "gzip", gzipOf(t, good)):        ErrUnsupported,
		writeFile(t, "zstd", zstdOf(t, good)):        ErrUnsupported,
		fifo:                                         ErrUnsupported,
		"/dev/null":                                  ErrUnsupported,
		t.TempDir():                                  ErrUnsupported,
	} {
		for _, kind := range []string{"oci-archive:", "docker-archive:"} {
			if _, err := Open(t.Context(), kind+name, Options{}); !errors.Is(err, want) {
				t.Errorf("%s: %v", filepath.Base(name), err)
			}
		}
	}
}

func TestArchiveBounds(t *testing.T) {
	header := tarOf(t, file{name: "d/", typ: tar.TypeDir})[:512]
	many := bytes.Repeat(header, maxEntries+1)
	if _, err := scanArchive(t.Context(), bytes.NewReader(many)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := scanArchive(ctx, bytes.NewReader(many)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSparseEntryIsLeftOut(t *testing.T) {
	hdr := &tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 10, PAXRecords: map[string]string{"GNU.sparse.major": "1"}}
	if _, _, ok := indexed(hdr, 512); ok {
		t.Error("a sparse file was indexed as if it lay in one piece")
	}
}

// TestDockerArchiveRefused spoils what manifest.json says.
func TestDockerArchiveRefused(t *testing.T) {
	f := newFixture(t, gzipLayer(t, tarOf(t, file{name: "a", body: "b"})))
	config := string(f.blobs[f.manifest.Config.Digest.String()])
	layer := file{name: "l/layer.tar", body: string(f.layers[0].tar)}
	good := savedImage{Config: "c.json", RepoTags: []string{"a:1"}, Layers: []string{layer.name}}
	other := good
	other.RepoTags = []string{"b:2", "reg:5000/c:3"}
	lying := good
	lying.Config = strings.Repeat("ab", 32) + ".json"
	two := good
	two.Layers = []string{layer.name, layer.name}
	for _, c := range []struct {
		name   string
		files  []file
		tag    string
		want   error
		says   string
		config string
	}{
		{"good", []file{savedJSON(t, good)}, "", nil, "", config},
		{"good by tag", []file{savedJSON(t, good, other)}, ":reg:5000/c:3", nil, "", config},
		{"no manifest", nil, "", ErrNotFound, "manifest.json", config},
		{"bad manifest", []file{{name: "manifest.json", body: "[{"}}, "", ErrCorrupt, "manifest.json is not JSON", config},
		{"manifest too long", []file{{name: "manifest.json", body: strings.Repeat(" ", maxDocument+1)}}, "", ErrUnsupported, "more than", config},
		{"no images", []file{{name: "manifest.json", body: "[]"}}, "", ErrNotFound, "no image", config},
		{"several", []file{savedJSON(t, good, other)}, "", ErrNotFound, "a:1, b:2, reg:5000/c:3", config},
		{"number past the end", []file{savedJSON(t, good)}, ":@1", ErrNotFound, "@1", config},
		{"lying config name", []file{savedJSON(t, lying), {name: lying.Config, body: config}}, "", ErrCorrupt, "digest", config},
		{"bad config", []file{savedJSON(t, good)}, "", ErrCorrupt, "config is not JSON", "{"},
		{"too many layers", []file{savedJSON(t, two)}, "", ErrCorrupt, "2 layers", config},
		{"missing layer", []file{savedJSON(t, savedImage{Config: "c.json", Layers: []string{"nope"}})}, "", ErrNotFound, "layer 0", config},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := writeFile(t, "a.tar", tarOf(t, append(c.files, layer, file{name: "c.json", body: c.config})...))
			img, err := Open(t.Context(), "docker-archive:"+name+c.tag, Options{})
			if !errors.Is(err, c.want) || c.want != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v", err)
			}
			if err == nil {
				check(t, img.Close())
			}
		})
	}
}

// FuzzScanArchive feeds headers. What is indexed must lie within the file, or
// read short; nothing may lead out, hang or panic.
func FuzzScanArchive(f *testing.F) {
	fix := newFixture(f, gzipLayer(f, tarOf(f, file{name: "a", body: "b"})))
	for _, name := range []string{fix.legacyArchive(f), fix.modernArchive(f), tarDir(f, fix.layout(f), "l.tar")} {
		file, _, err := openFile(name)
		check(f, err)
		b, err := io.ReadAll(file)
		check(f, err)
		check(f, file.Close())
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := scanArchive(t.Context(), bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("neither corrupt nor unsupported: %v", err)
			}
			return
		}
		for name, e := range entries {
			if strings.HasPrefix(name, "../") || strings.HasPrefix(name, "/") || strings.HasPrefix(e.link, "../") || strings.HasPrefix(e.link, "/") {
				t.Errorf("%q → %q leads out", name, e.link)
			}
			if e.link == "" && (e.offset < 0 || e.size < 0 || e.offset+e.size > int64(len(b))) {
				t.Errorf("%q lies at %d+%d of %d bytes", name, e.offset, e.size, len(b))
			}
		}
	})
}
