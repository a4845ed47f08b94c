package oci

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// spoil is a way to make a layer wrong, and what must be said of it.
type spoil struct {
	name string
	typ  types.MediaType
	pack func(t testing.TB, b []byte) []byte
	// damage changes the stored bytes after their digest was taken.
	damage func(b []byte) []byte
	diffID string // replaces the right one
	want   error  // nil: reads well
	says   string
}

func plainOf(_ testing.TB, b []byte) []byte { return b }

func zstdDefault(t testing.TB, b []byte) []byte { return zstdOf(t, b) }

func spoils() []spoil {
	flip := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 0x40; return b }
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	grow := func(b []byte) []byte { return append(bytes.Clone(b), 0) }
	tail := func(pack func(testing.TB, []byte) []byte, more string) func(testing.TB, []byte) []byte {
		return func(t testing.TB, b []byte) []byte { return append(pack(t, b), more...) }
	}
	members := func(pack func(testing.TB, []byte) []byte) func(testing.TB, []byte) []byte {
		return func(t testing.TB, b []byte) []byte {
			return append(append(pack(t, b[:1000]), pack(t, nil)...), pack(t, b[1000:])...)
		}
	}
	wide := func(t testing.TB, b []byte) []byte { return zstdOf(t, b, zstd.WithWindowSize(128<<20)) }
	const none = ""
	return []spoil{
		{"plain", types.OCIUncompressedLayer, plainOf, nil, none, nil, ""},
		{"nondistributable", types.OCIRestrictedLayer, gzipOf, nil, none, nil, ""},
		{"docker foreign", types.DockerForeignLayer, gzipOf, nil, none, nil, ""},
		{"docker zstd", dockerZstdLayer, zstdDefault, nil, none, nil, ""},
		{"gzip members", types.DockerLayer, members(gzipOf), nil, none, nil, ""},
		{"zstd frames", types.OCILayerZStd, members(zstdDefault), nil, none, nil, ""},
		{"zstd skippable frame", types.OCILayerZStd, tail(zstdDefault, "\x50\x2a\x4d\x18\x03\x00\x00\x00abc"), nil, none, nil, ""},

		{"plain flipped", types.OCIUncompressedLayer, plainOf, flip, none, ErrCorrupt, "diff id"},
		{"gzip flipped", types.OCILayer, gzipOf, flip, none, ErrCorrupt, ""},
		{"gzip header flipped", types.OCILayer, gzipOf, func(b []byte) []byte { b = bytes.Clone(b); b[4] ^= 1; return b }, none, ErrCorrupt, "stored bytes have digest"},
		{"zstd flipped", types.OCILayerZStd, zstdDefault, flip, none, ErrCorrupt, ""},
		{"plain cut", types.OCIUncompressedLayer, plainOf, cut, none, ErrCorrupt, "bytes, not"},
		{"gzip cut", types.OCILayer, gzipOf, cut, none, ErrCorrupt, "bytes, not"},
		{"grown", types.OCILayer, gzipOf, grow, none, ErrCorrupt, "bytes, not"},
		{"gzip cut by its author", types.OCILayer, func(t testing.TB, b []byte) []byte { return cut(gzipOf(t, b)) }, nil, none, ErrCorrupt, "no clean"},
		{"zstd cut by its author", types.OCILayerZStd, func(t testing.TB, b []byte) []byte { return cut(zstdOf(t, b)) }, nil, none, ErrCorrupt, "no clean"},
		{"gzip with garbage", types.OCILayer, tail(gzipOf, "garbage after the end"), nil, none, ErrCorrupt, "no clean"},
		{"gzip with zeros", types.OCILayer, tail(gzipOf, strings.Repeat("\x00", 512)), nil, none, ErrCorrupt, "no clean"},
		{"gzip with one byte", types.OCILayer, tail(gzipOf, "\x1f"), nil, none, ErrCorrupt, "no clean"},
		{"zstd with garbage", types.OCILayerZStd, tail(zstdDefault, "garbage after the end"), nil, none, ErrCorrupt, "no clean"},
		{"zstd with one byte", types.OCILayerZStd, tail(zstdDefault, "\x28"), nil, none, ErrCorrupt, "no clean"},
		{"tar called gzip", types.OCILayer, plainOf, nil, none, ErrCorrupt, "no clean application/vnd.oci.image.layer.v1.tar+gzip"},
		{"gzip called tar", types.OCIUncompressedLayer, gzipOf, nil, none, ErrCorrupt, "diff id"},
		{"nothing called gzip", types.OCILayer, func(testing.TB, []byte) []byte { return nil }, nil, none, ErrCorrupt, "no clean"},
		{"nothing called zstd", types.OCILayerZStd, func(testing.TB, []byte) []byte { return nil }, nil, none, ErrCorrupt, ""},
		{"wide zstd window", types.OCILayerZStd, wide, nil, none, ErrUnsupported, "window"},
		{"diff id", types.OCILayer, gzipOf, nil, digestOf([]byte("other")), ErrCorrupt, "diff id"},
		{"plain diff id", types.OCIUncompressedLayer, plainOf, nil, digestOf([]byte("other")), ErrCorrupt, "diff id"},
	}
}

func TestLayerVerification(t *testing.T) {
	tarball := tarOf(t, file{name: "f", body: noise(3, 2*ringBlock)})
	for _, s := range spoils() {
		t.Run(s.name, func(t *testing.T) {
			stored := s.pack(t, tarball)
			f := newFixture(t, fixLayer{tarball, stored, s.typ})
			if s.diffID != "" {
				f.setDiffIDs(s.diffID)
				f.seal(t)
			}
			dir := f.layout(t)
			if s.damage != nil {
				name := strings.TrimPrefix(digestOf(stored), "sha256:")
				check(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", name), s.damage(stored), 0o644))
			}
			got, err := readLayer(open(t, "oci:"+dir, Options{}), 0, nil)
			if !errors.Is(err, s.want) || s.want == nil && (err != nil || !bytes.Equal(got, tarball)) {
				t.Fatalf("%d bytes and %v, want %v", len(got), err, s.want)
			}
			if s.want != nil && (!strings.Contains(err.Error(), digestOf(stored)) || !strings.Contains(err.Error(), s.says)) {
				t.Errorf("error does not name the layer or say %q: %v", s.says, err)
			}
		})
	}
}

// TestShortAndLong has the length wrong where no layout checks it beforehand.
func TestShortAndLong(t *testing.T) {
	tarball := tarOf(t, file{name: "f", body: noise(3, 5000)})
	for _, typ := range []types.MediaType{types.OCILayer, types.OCIUncompressedLayer} {
		stored := tarball
		if typ == types.OCILayer {
			stored = gzipOf(t, tarball)
		}
		for off, says := range map[int64]string{-1: "more than", +1: "stored bytes"} {
			l := Layer{DiffID: digestOf(tarball), Digest: digestOf(stored), MediaType: string(typ), Size: int64(len(stored)) + off}
			_, err := io.ReadAll(layerFrom(t, l, bytes.NewReader(stored)))
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), says) {
				t.Errorf("%s, %+d: %v", typ, off, err)
			}
		}
	}
}

// layerFrom reads a layer from any stored bytes.
func layerFrom(t testing.TB, l Layer, stored io.Reader) *layerReader {
	ctx, cancel := context.WithCancel(t.Context())
	r := newLayerReader(ctx, cancel, l, io.NopCloser(stored), nil)
	t.Cleanup(func() { r.Close() })
	return r
}

type brokenDisk struct{ io.Reader }

var errDisk = errors.New("disk broke")

func (b brokenDisk) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = errDisk
	}
	return n, err
}

// TestReadFailureIsNotCorruption keeps the two apart: one is worth a retry.
func TestReadFailureIsNotCorruption(t *testing.T) {
	tarball := tarOf(t, file{name: "f", body: noise(3, 50_000)})
	for _, typ := range []types.MediaType{types.OCILayer, types.OCIUncompressedLayer, types.OCILayerZStd} {
		stored := tarball
		switch typ {
		case types.OCILayer:
			stored = gzipOf(t, tarball)
		case types.OCILayerZStd:
			stored = zstdOf(t, tarball)
		}
		l := Layer{DiffID: digestOf(tarball), Digest: digestOf(stored), MediaType: string(typ), Size: int64(len(stored))}
		_, err := io.ReadAll(layerFrom(t, l, brokenDisk{bytes.NewReader(stored[:len(stored)/2])}))
		if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", typ, err)
		}
	}
}

// silent is a connection on which nothing comes any more.
type silent struct{ ctx context.Context }

func (s silent) Read([]byte) (int, error) { <-s.ctx.Done(); return 0, s.ctx.Err() }

func TestCancelEndsRead(t *testing.T) {
	tarball := tarOf(t, file{name: "f", body: noise(3, 50_000)})
	stored := gzipOf(t, tarball)
	cause := errors.New("user went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	inner, stop := context.WithCancel(ctx)
	l := Layer{DiffID: digestOf(tarball), MediaType: string(types.OCILayer), Size: int64(len(stored))}
	r := newLayerReader(inner, stop, l, io.NopCloser(io.MultiReader(bytes.NewReader(stored[:1000]), silent{ctx})), nil)
	defer r.Close()
	failed := make(chan error)
	go func() {
		_, err := io.ReadAll(r)
		failed <- err
	}()
	cancel(cause)
	if err := <-failed; !errors.Is(err, cause) || errors.Is(err, ErrCorrupt) {
		t.Errorf("read ended with %v", err)
	}
}

// TestCloseEarly leaves readers at every stage; TestMain sees to it that no
// goroutine stays behind.
func TestCloseEarly(t *testing.T) {
	f := sample(t)
	img := open(t, "oci:"+f.layout(t), Options{})
	for i := range f.layers {
		for _, n := range []int64{0, 1, 512, 2 * ringBlock} {
			r, err := img.OpenLayer(t.Context(), i, nil)
			check(t, err)
			_, err = io.CopyN(io.Discard, r, n)
			if err != nil && err != io.EOF {
				t.Fatal(err)
			}
			check(t, r.Close())
		}
	}
}

func TestMissingLayer(t *testing.T) {
	f := sample(t)
	dir := f.layout(t)
	digest := f.manifest.Layers[1].Digest
	check(t, os.Remove(filepath.Join(dir, "blobs", "sha256", digest.Hex)))
	_, err := readLayer(open(t, "oci:"+dir, Options{}), 1, nil)
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), digest.Hex) {
		t.Errorf("got %v", err)
	}
}

// BenchmarkLayer compares OpenLayer with the bare decompressor.
func BenchmarkLayer(b *testing.B) {
	tarball := tarOf(b, file{name: "f", body: noise(5, 32<<20)})
	f := newFixture(b, gzipLayer(b, tarball))
	img, err := Open(context.Background(), "oci:"+f.layout(b), Options{})
	check(b, err)
	defer img.Close()
	b.Run("verified", func(b *testing.B) {
		b.SetBytes(int64(len(tarball)))
		for b.Loop() {
			r, err := img.OpenLayer(context.Background(), 0, nil)
			check(b, err)
			_, err = io.Copy(io.Discard, r)
			check(b, err)
			check(b, r.Close())
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.SetBytes(int64(len(tarball)))
		for b.Loop() {
			z, err := gzip.NewReader(bytes.NewReader(f.layers[0].stored))
			check(b, err)
			_, err = io.Copy(io.Discard, z)
			check(b, err)
		}
	})
}
