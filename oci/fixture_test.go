package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"thaw/internal/testleak"
)

func TestMain(m *testing.M) { testleak.Main(m) }

// file is an entry of a tar made in a test.
type file struct {
	name, body string
	typ        byte
	link       string
}

func tarOf(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		if f.typ == 0 {
			f.typ = tar.TypeReg
		}
		check(t, w.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.typ, Linkname: f.link, Size: int64(len(f.body)), Mode: 0o644}))
		_, err := io.WriteString(w, f.body)
		check(t, err)
	}
	check(t, w.Close())
	return buf.Bytes()
}

// noise gives n bytes that compress by about half and are the same each time.
func noise(seed byte, n int) string {
	b := make([]byte, n/2+1)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return hex.EncodeToString(b)[:n]
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(b)
	check(t, err)
	check(t, w.Close())
	return buf.Bytes()
}

func zstdOf(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, opts...)
	check(t, err)
	_, err = w.Write(b)
	check(t, err)
	check(t, w.Close())
	return buf.Bytes()
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fixLayer is a layer of a fixture: its tar, and how it is stored.
type fixLayer struct {
	tar, stored []byte
	typ         types.MediaType
}

func gzipLayer(t testing.TB, b []byte) fixLayer { return fixLayer{b, gzipOf(t, b), types.OCILayer} }

// fixture is an image, taken apart so that tests can spoil any piece.
type fixture struct {
	config       map[string]any
	layers       []fixLayer
	manifest     v1.Manifest
	blobs        map[string][]byte // by digest
	manifestDesc v1.Descriptor
}

// newFixture makes a good image for linux/amd64 of these layers.
func newFixture(t testing.TB, layers ...fixLayer) *fixture {
	ids := []string{}
	f := &fixture{layers: layers, blobs: map[string][]byte{}}
	f.manifest = v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Layers: []v1.Descriptor{}}
	for _, l := range layers {
		ids = append(ids, digestOf(l.tar))
		f.manifest.Layers = append(f.manifest.Layers, f.add(t, l.typ, l.stored))
	}
	f.config = map[string]any{
		"os": "linux", "architecture": "amd64",
		"rootfs":  map[string]any{"type": "layers", "diff_ids": ids},
		"history": []any{map[string]any{"created_by": "ENV A=B", "empty_layer": true}},
	}
	return f.seal(t)
}

// add puts a blob in and describes it.
func (f *fixture) add(t testing.TB, typ types.MediaType, b []byte) v1.Descriptor {
	t.Helper()
	h, err := v1.NewHash(digestOf(b))
	check(t, err)
	f.blobs[h.String()] = b
	return v1.Descriptor{MediaType: typ, Size: int64(len(b)), Digest: h}
}

func (f *fixture) addJSON(t testing.TB, typ types.MediaType, v any) v1.Descriptor {
	t.Helper()
	b, err := json.Marshal(v)
	check(t, err)
	return f.add(t, typ, b)
}

// seal makes config and manifest blobs of what the fixture says now.
func (f *fixture) seal(t testing.TB) *fixture {
	t.Helper()
	f.manifest.Config = f.addJSON(t, types.OCIConfigJSON, f.config)
	f.manifestDesc = f.addJSON(t, types.OCIManifestSchema1, f.manifest)
	return f
}

func (f *fixture) setDiffIDs(ids ...string) {
	f.config["rootfs"] = map[string]any{"type": "layers", "diff_ids": ids}
}

// layoutOf writes a layout whose index has these entries.
func (f *fixture) layoutOf(t testing.TB, entries ...v1.Descriptor) string {
	t.Helper()
	return f.layoutIn(t, t.TempDir(), entries...)
}

func (f *fixture) layoutIn(t testing.TB, dir string, entries ...v1.Descriptor) string {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	for digest, b := range f.blobs {
		check(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:")), b, 0o644))
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644))
	check(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return dir
}

// layout writes a layout with the fixture's image alone.
func (f *fixture) layout(t testing.TB) string {
	t.Helper()
	return f.layoutOf(t, named(f.manifestDesc, "latest"))
}

func named(d v1.Descriptor, tag string) v1.Descriptor {
	d.Annotations = map[string]string{refName: tag}
	return d
}

func forPlatform(d v1.Descriptor, platform string) v1.Descriptor {
	p, err := v1.ParsePlatform(platform)
	if err != nil {
		panic(err)
	}
	d.Platform = p
	return d
}

// tarDir packs a folder as oci-archives are.
func tarDir(t testing.TB, dir, name string) string {
	t.Helper()
	var files []file
	check(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		files = append(files, file{name: "./" + filepath.ToSlash(rel), body: string(b)})
		return err
	}))
	return writeFile(t, name, tarOf(t, files...))
}

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = filepath.Join(t.TempDir(), name)
	}
	check(t, os.WriteFile(name, b, 0o644))
	return name
}

// legacyArchive writes what docker save wrote before version 25: a folder per
// layer, and a link where a layer comes again.
func (f *fixture) legacyArchive(t testing.TB) string {
	t.Helper()
	config := f.blobs[f.manifest.Config.Digest.String()]
	saved := savedImage{Config: f.manifest.Config.Digest.Hex + ".json", RepoTags: []string{"debian:12"}}
	files := []file{{name: saved.Config, body: string(config)}}
	first := map[string]string{}
	for i, l := range f.layers {
		name := fmt.Sprintf("%064d/layer.tar", i)
		if was, ok := first[digestOf(l.tar)]; ok {
			files = append(files, file{name: name, typ: tar.TypeSymlink, link: "../" + was})
		} else {
			files = append(files, file{name: name, body: string(l.tar)})
			first[digestOf(l.tar)] = name
		}
		saved.Layers = append(saved.Layers, name)
	}
	return writeFile(t, "legacy.tar", tarOf(t, append(files, savedJSON(t, saved))...))
}

// modernArchive writes what docker save writes now: a layout with a
// manifest.json beside its index.
func (f *fixture) modernArchive(t testing.TB) string {
	t.Helper()
	saved := savedImage{Config: "blobs/sha256/" + f.manifest.Config.Digest.Hex, RepoTags: []string{"debian:12", "debian:latest"}}
	for _, d := range f.manifest.Layers {
		saved.Layers = append(saved.Layers, "blobs/sha256/"+d.Digest.Hex)
	}
	var files []file
	for _, digest := range slices.Sorted(maps.Keys(f.blobs)) {
		files = append(files, file{name: "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:"), body: string(f.blobs[digest])})
	}
	return writeFile(t, "modern.tar", tarOf(t, append(files, savedJSON(t, saved))...))
}

func savedJSON(t testing.TB, images ...savedImage) file {
	t.Helper()
	b, err := json.Marshal(images)
	check(t, err)
	return file{name: "manifest.json", body: string(b)}
}

// open opens an image and closes it at the test's end.
func open(t testing.TB, source string, opt Options) *Image {
	t.Helper()
	img, err := Open(t.Context(), source, opt)
	if err != nil {
		t.Fatalf("Open(%s): %v", source, err)
	}
	t.Cleanup(func() { check(t, img.Close()) })
	return img
}

// readLayer reads a layer to its end or error.
func readLayer(img *Image, i int, progress func(int64)) ([]byte, error) {
	r, err := img.OpenLayer(context.Background(), i, progress)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
