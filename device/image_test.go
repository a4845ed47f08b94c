package device

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"thaw/chunk"
	"thaw/convert"
	"thaw/internal/testoci"
	"thaw/keys"
	"thaw/manifest"
	"thaw/origin"
	"thaw/verify"
)

// fetched finds chunks in an origin, and checks them.
type fetched struct{ chunk.Source }

func (f fetched) Find(ctx context.Context, name chunk.Name, size int) (chunk.Verified, error) {
	b, err := f.Get(ctx, name)
	if err == nil {
		err = chunk.Check(b, name)
	}
	if err != nil {
		return nil, err
	}
	return (&memory{chunks: map[chunk.Name][]byte{name: b}}).Find(ctx, name, size)
}

// converted gives the manifest of a small image, and its chunks.
func converted(t *testing.T) (*manifest.Manifest, chunk.Source) {
	t.Helper()
	dir, ctx := t.TempDir(), t.Context()
	o, err := origin.Open(ctx, "file://"+dir+"/origin")
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Open(ctx, "file://"+dir+"/keys/acme")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.Close(), key.Close()); err != nil {
			t.Error(err)
		}
	})
	source := testoci.Layout(t, dir+"/layout", nil,
		testoci.Tar(t, testoci.Dir("etc"), testoci.File("etc/os", []byte("small\n")), testoci.File("big", testoci.Noise(1, 3<<20))),
		testoci.Tar(t, testoci.File("etc/new", testoci.Noise(2, 70_000))))
	c := convert.Converter{Origin: o, Tenant: "acme", Keeper: key, KeyURL: key.URL(), Warn: func(string, ...any) {}}
	res, err := c.Convert(ctx, convert.Options{Source: source, Name: "sample", Free: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	data, err := o.Manifests("r1", "acme").Get(ctx, res.Image)
	if err != nil {
		t.Fatal(err)
	}
	s, err := manifest.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Open(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	return m, o.Chunks("r1")
}

// TestImage reads a converted image in full, and compares with the reader that
// opens whole chunks. It reads again through an overlay, after a write.
func TestImage(t *testing.T) {
	m, chunks := converted(t)
	d, err := New(m, fetched{chunks})
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != m.Size || len(m.Chunks) < 7 {
		t.Fatalf("%d bytes, %d chunks", d.Size(), len(m.Chunks))
	}
	o, err := NewOverlay(d, newFile(1<<20), d.Size())
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("written by an instance")
	if err := o.WriteAt(t.Context(), secret, 70_000); err != nil {
		t.Fatal(err)
	}
	other, want := verify.Device(m, chunks), make([]byte, 1<<20)
	for off := int64(0); off < m.Size; off += int64(len(want)) {
		want = want[:min(int64(len(want)), m.Size-off)]
		if _, err := other.ReadAt(want, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mustRead(t, d, off, len(want)), want) {
			t.Fatalf("differs behind %d", off)
		}
		if off == 0 {
			copy(want[70_000:], secret)
		}
		if !bytes.Equal(mustRead(t, o, off, len(want)), want) {
			t.Fatalf("differs behind %d, through an overlay", off)
		}
	}
}
