package flatten

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// descriptor is one of an OCI layout.
type descriptor struct {
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"`
}

// corpusLayers gives the gzipped layers of a corpus image, base first. Without
// the image the test is skipped.
func corpusLayers(t testing.TB, name string) (paths []string) {
	t.Helper()
	dir := os.Getenv("THAW_CORPUS")
	if dir == "" {
		dir = "../out/corpus"
	}
	dir = filepath.Join(dir, name)
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
