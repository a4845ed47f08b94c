package oci

import (
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// sample is the image that all sources are tried with: each compression, a
// layer that comes twice, one of several ring blocks, and an empty one.
func sample(t testing.TB) *fixture {
	t.Helper()
	base := tarOf(t, file{name: "etc/os", body: "base"}, file{name: "big", body: noise(1, 3*ringBlocks*ringBlock+17)})
	app := tarOf(t, file{name: "app", body: noise(2, 100_000)})
	none := make([]byte, 1024)
	return newFixture(t,
		gzipLayer(t, base),
		fixLayer{app, zstdOf(t, app), types.OCILayerZStd},
		fixLayer{none, none, types.OCIUncompressedLayer},
		gzipLayer(t, base),
	)
}

// hermetic keeps a developer's own registry credentials out.
func hermetic(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	for _, v := range []string{"HOME", "DOCKER_CONFIG", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(v, dir)
	}
	t.Setenv("REGISTRY_AUTH_FILE", "")
}

// ggcrImage reads the sample back with the library, which knows nothing of
// this package's code.
func ggcrImage(t *testing.T, f *fixture) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath(f.layout(t))
	check(t, err)
	img, err := index.Image(f.manifestDesc.Digest)
	check(t, err)
	return img
}

// sources puts one image everywhere. The first part of the key is the kind.
func sources(t *testing.T, f *fixture) map[string]string {
	t.Helper()
	img := ggcrImage(t, f)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/lib/debian"
	tag, err := name.NewTag(ref + ":12")
	check(t, err)
	check(t, remote.Write(tag, img))

	byLibrary := filepath.Join(t.TempDir(), "image.tar")
	saved, err := name.NewTag("debian:12")
	check(t, err)
	check(t, tarball.WriteToFile(byLibrary, saved, img))

	dir := f.layoutOf(t, named(f.manifestDesc, "12"))
	return map[string]string{
		"registry tag":             "docker://" + ref + ":12",
		"registry bare":            ref + ":12",
		"registry digest":          ref + "@" + f.manifestDesc.Digest.String(),
		"registry tag and digest":  ref + ":12@" + f.manifestDesc.Digest.String(),
		"layout":                   "oci:" + dir,
		"layout tag":               "oci:" + dir + ":12",
		"layout number":            "oci:" + dir + ":@0",
		"layout archive":           "oci-archive:" + tarDir(t, dir, "layout.tar"),
		"layout archive tag":       "oci-archive:" + tarDir(t, dir, "layout.tar") + ":12",
		"docker archive, library":  "docker-archive:" + byLibrary,
		"docker archive, legacy":   "docker-archive:" + f.legacyArchive(t) + ":debian:12",
		"docker archive, modern":   "docker-archive:" + f.modernArchive(t) + ":debian",
		"docker archive, number":   "docker-archive:" + f.modernArchive(t) + ":@0",
		"layout, path with colons": "oci:" + f.layoutIn(t, filepath.Join(t.TempDir(), "a:b:c"), named(f.manifestDesc, "1")) + ":1",
	}
}

// TestSources is the conformance table: whatever the source, one image.
func TestSources(t *testing.T) {
	hermetic(t)
	f := sample(t)
	for kind, source := range sources(t, f) {
		t.Run(kind, func(t *testing.T) {
			img := open(t, source, Options{Platform: "linux/amd64", PlainHTTP: true})
			if got, want := img.ConfigDigest(), f.manifest.Config.Digest.String(); got != want || digestOf(img.Config()) != want {
				t.Errorf("config digest %s, want %s", got, want)
			}
			if len(img.Layers()) != len(f.layers) {
				t.Fatalf("%d layers, want %d", len(img.Layers()), len(f.layers))
			}
			for i, want := range f.layers {
				conformLayer(t, img, i, want, !strings.HasPrefix(kind, "docker archive"))
			}
			if _, err := img.OpenLayer(t.Context(), len(f.layers), nil); err == nil {
				t.Error("opened a layer past the last")
			}
		})
	}
}

// conformLayer reads one layer in several ways.
func conformLayer(t *testing.T, img *Image, i int, want fixLayer, exact bool) {
	t.Helper()
	l := img.Layers()[i]
	if l.DiffID != digestOf(want.tar) {
		t.Errorf("layer %d: diff id %s", i, l.DiffID)
	}
	if exact && (l.Digest != digestOf(want.stored) || l.Size != int64(len(want.stored)) || l.MediaType != string(want.typ)) {
		t.Errorf("layer %d is described as %+v", i, l)
	}
	told := int64(0)
	got, err := readLayer(img, i, func(n int64) { told += n })
	if err != nil || !bytes.Equal(got, want.tar) {
		t.Errorf("layer %d: %d bytes, %v; want %d", i, len(got), err, len(want.tar))
	}
	if told != l.Size {
		t.Errorf("layer %d: progress told of %d of %d bytes", i, told, l.Size)
	}
	r, err := img.OpenLayer(t.Context(), i, nil)
	check(t, err)
	if len(want.tar) <= 1<<17 { // it reads byte by byte
		if err := iotest.TestReader(r, want.tar); err != nil {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	check(t, r.Close())
	check(t, r.Close())
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("layer %d: read after close: %v", i, err)
	}
}

func TestLayersAreIndependent(t *testing.T) {
	f := sample(t)
	img := open(t, "oci-archive:"+tarDir(t, f.layout(t), "a.tar"), Options{})
	a, err := img.OpenLayer(t.Context(), 0, nil)
	check(t, err)
	defer a.Close()
	b, err := img.OpenLayer(t.Context(), 3, nil)
	check(t, err)
	defer b.Close()
	for range 5 {
		x, y := make([]byte, 100_000), make([]byte, 100_000)
		_, err := io.ReadFull(a, x)
		check(t, err)
		_, err = io.ReadFull(b, y)
		check(t, err)
		if !bytes.Equal(x, y) {
			t.Fatal("two readers of one layer differ")
		}
	}
}

func TestImageWithoutLayers(t *testing.T) {
	f := newFixture(t)
	f.config["rootfs"] = map[string]any{"type": "layers"}
	f.seal(t)
	if n := len(open(t, "oci:"+f.layout(t), Options{}).Layers()); n != 0 {
		t.Errorf("%d layers", n)
	}
}

func TestDefaultName(t *testing.T) {
	f := newFixture(t)
	dir := f.layoutIn(t, filepath.Join(t.TempDir(), "base"), named(f.manifestDesc, "v1"))
	for source, want := range map[string]string{
		"oci:" + dir:         "base",
		"oci:" + dir + "/":   "base",
		"oci:" + dir + "/.":  "base",
		"oci:" + dir + ":v1": "base:v1",
		"oci:" + dir + ":@0": "base",
	} {
		if got := open(t, source, Options{}).DefaultName(); got != want {
			t.Errorf("%s is called %q, want %q", source, got, want)
		}
	}
	t.Chdir(dir)
	if got := open(t, "oci:.", Options{}).DefaultName(); got != "base" {
		t.Errorf("oci:. is called %q", got)
	}
	for in, want := range map[string]string{"docker://debian:12": "debian:12", "debian:12": "debian:12", "docker-archive:/x/y.tar:debian:12": "debian:12", "docker-archive:/x/y.tar:debian": "debian",
		"docker-archive:/x/y.tar": "y.tar", "oci-archive:/x/y.tar:v1": "y.tar:v1", "oci-archive:/x/y.tar:team/app:v1": "team/app:v1",
		"oci:/x/.my app+é:v1": "my-app--:v1", "oci:/x/…": "image", "oci:/:v1": "image:v1"} {
		src, err := parseSource(in)
		check(t, err)
		if src.name() != want {
			t.Errorf("%s is called %q, want %q", in, src.name(), want)
		}
	}
}

// TestErrorsAreOneLine feeds text that would act upon a terminal or a log.
func TestErrorsAreOneLine(t *testing.T) {
	f := newFixture(t)
	f.manifest.Layers = []v1.Descriptor{f.add(t, "evil\n\x1b[2Jtype\u0085", []byte("x"))}
	f.setDiffIDs(digestOf(nil))
	f.seal(t)
	_, err := Open(t.Context(), "oci:"+f.layout(t), Options{})
	if !errors.Is(err, ErrUnsupported) || strings.ContainsAny(err.Error(), "\n\x1b\u0085") || !strings.Contains(err.Error(), "evil [2Jtype") {
		t.Errorf("got %q", err)
	}
	if s := oneLine(strings.Repeat("x", 1000)); len(s) > 310 {
		t.Errorf("%d bytes in one line", len(s))
	}
	var js any
	if err := unmarshal([]byte("null"), &js, "it"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("null: %v", err)
	}
}
