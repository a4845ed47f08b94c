package verify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/manifest"
)

// cut seals a device into a store, as a conversion does.
func cut(t testing.TB, device []byte, size int) (*manifest.Manifest, *chunktest.Memory) {
	t.Helper()
	m := &manifest.Manifest{Kind: manifest.Image, Size: int64(len(device)), ChunkSize: size}
	store := &chunktest.Memory{}
	for index := 0; index*size < len(device); index++ {
		piece := device[index*size : min(len(device), (index+1)*size)]
		s := chunk.Seal(chunk.Salt{}, bytes.Clone(piece))
		if len(s.Data) == 0 {
			continue
		}
		if _, err := store.Put(t.Context(), s.Name, s.Data); err != nil {
			t.Fatal(err)
		}
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(index), Size: uint32(len(s.Data)), Name: s.Name, Key: s.Key})
	}
	return m, store
}

// sparse gives a device of noise with zeros between.
func sparse(size int) []byte {
	b := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{7})
	for at := 0; at < size; at += 3 * chunk.MinSize {
		_, _ = rnd.Read(b[at:min(size, at+chunk.MinSize+1000)])
	}
	return b
}

// TestChunks counts good chunks, and tells missing, damaged and cut ones apart.
func TestChunks(t *testing.T) {
	m, store := cut(t, sparse(5<<20+1234), 128<<10)
	var told atomic.Int64
	r, err := Chunks(t.Context(), m, store, func(n int64) { told.Add(n) })
	if err != nil || len(r.Bad) != 0 || r.Chunks != len(m.Chunks) || r.Bytes == 0 || told.Load() != r.Bytes {
		t.Fatalf("%+v, %v, progress of %d bytes", r, err, told.Load())
	}
	good := r.Bytes
	plant := func(n int, data []byte) int64 {
		if err := store.Plant(t.Context(), m.Chunks[n].Name, data); err != nil {
			t.Fatal(err)
		}
		return int64(m.Chunks[n].Size)
	}
	lost := plant(9, make([]byte, m.Chunks[9].Size)) + plant(3, []byte("short")) + plant(5, make([]byte, chunk.MaxSize+1)) + int64(m.Chunks[7].Size)
	m.Chunks[7].Name[0]++ // a name that the store does not have
	r, err = Chunks(t.Context(), m, store, nil)
	if err != nil || r.Chunks != len(m.Chunks) || r.Bytes != good-lost || len(r.Bad) != 4 {
		t.Fatalf("%+v, %v", r, err)
	}
	for n, want := range []struct {
		at   int
		kind error
	}{{3, chunk.ErrCorrupt}, {5, chunk.ErrCorrupt}, {7, chunk.ErrNotFound}, {9, chunk.ErrCorrupt}} {
		if b := r.Bad[n]; b.Index != m.Chunks[want.at].Index || b.Name != m.Chunks[want.at].Name || !errors.Is(b.Err, want.kind) {
			t.Errorf("got %+v, want chunk %d: %v", b, want.at, want.kind)
		}
	}
}

// sourceFunc is a Source made of a function.
type sourceFunc func(ctx context.Context, name chunk.Name) ([]byte, error)

func (f sourceFunc) Get(ctx context.Context, name chunk.Name) ([]byte, error) { return f(ctx, name) }

// TestChunksStoreFails ends with the store's error, and soon.
func TestChunksStoreFails(t *testing.T) {
	m, store := cut(t, sparse(8<<20), chunk.MinSize)
	wrong, calls := errors.New("store is away"), atomic.Int64{}
	r, err := Chunks(t.Context(), m, sourceFunc(func(ctx context.Context, name chunk.Name) ([]byte, error) {
		if calls.Add(1) > 5 {
			return nil, wrong
		}
		return store.Get(ctx, name)
	}), nil)
	if !errors.Is(err, wrong) || len(r.Bad) != 0 || calls.Load() > 5+2*parallelChunks {
		t.Errorf("%+v, %v after %d calls", r, err, calls.Load())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Chunks(ctx, m, store, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestChunksIsBounded never has more than four requests on their way.
func TestChunksIsBounded(t *testing.T) {
	m, store := cut(t, sparse(8<<20), chunk.MinSize)
	var now, most atomic.Int64
	_, err := Chunks(t.Context(), m, sourceFunc(func(ctx context.Context, name chunk.Name) ([]byte, error) {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		return store.Get(ctx, name)
	}), nil)
	if err != nil || most.Load() > parallelChunks {
		t.Errorf("%d at once, %v", most.Load(), err)
	}
}

// TestDevice reads the device's bytes back, zeros and the end included.
func TestDevice(t *testing.T) {
	for _, size := range []int{chunk.MinSize, chunk.DefaultSize, chunk.MaxSize} {
		want := sparse(5<<20 + 1234)
		m, store := cut(t, want, size)
		r := Device(m, store)
		if got, err := io.ReadAll(io.NewSectionReader(r, 0, m.Size)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("chunks of %d: %d bytes, %v", size, len(got), err)
		}
		got := make([]byte, 10)
		if n, err := r.ReadAt(got, m.Size-4); n != 4 || err != io.EOF || !bytes.Equal(got[:4], want[len(want)-4:]) {
			t.Errorf("at the end: %d bytes, %v", n, err)
		}
		if n, err := r.ReadAt(got, m.Size); n != 0 || err != io.EOF {
			t.Errorf("behind the end: %d bytes, %v", n, err)
		}
		if _, err := r.ReadAt(got, -1); err == nil {
			t.Error("in front of the start: no error")
		}
	}
	small := sparse(3*chunk.MinSize + 100) // it is read byte by byte
	m, store := cut(t, small, chunk.MinSize)
	if err := iotest.TestReader(io.NewSectionReader(Device(m, store), 0, m.Size), small); err != nil {
		t.Error(err)
	}
}

// TestDeviceCache fetches a chunk once while it is in use, and keeps no more
// than it may.
func TestDeviceCache(t *testing.T) {
	device := make([]byte, 40<<20)
	_, _ = rand.NewChaCha8([32]byte{8}).Read(device)
	m, store := cut(t, device, chunk.DefaultSize)
	gets := 0
	r := Device(m, sourceFunc(func(ctx context.Context, name chunk.Name) ([]byte, error) {
		gets++
		return store.Get(ctx, name)
	}))
	buf := make([]byte, 4096)
	for at := int64(0); at < m.Size; at += 16 << 10 {
		for _, off := range []int64{at, 0} { // the first chunk stays, as it is used
			if _, err := r.ReadAt(buf, off); err != nil {
				t.Fatal(err)
			}
		}
		if r.bytes > readerCache {
			t.Fatalf("%d bytes kept", r.bytes)
		}
	}
	if gets != len(m.Chunks) {
		t.Errorf("%d fetches of %d chunks", gets, len(m.Chunks))
	}
}

// TestDeviceErrors tells missing from damaged from failing, through Tree too.
func TestDeviceErrors(t *testing.T) {
	image := images(t)["sums"]
	m, store := cut(t, image, chunk.MinSize)
	if r, err := Tree(t.Context(), Device(m, store), m.Size, hostileLayers(t)); err != nil || r.Total != 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	wrong := errors.New("store is away")
	for _, want := range []error{chunk.ErrNotFound, chunk.ErrCorrupt, wrong} {
		bad := Device(m, sourceFunc(func(ctx context.Context, name chunk.Name) ([]byte, error) {
			if name == m.Chunks[0].Name {
				return nil, want
			}
			return store.Get(ctx, name)
		}))
		if _, err := bad.ReadAt(make([]byte, 10), 0); !errors.Is(err, want) {
			t.Errorf("read: got %v, want %v", err, want)
		}
		if _, err := Tree(t.Context(), bad, m.Size, hostileLayers(t)); !errors.Is(err, want) {
			t.Errorf("tree: got %v, want %v", err, want)
		}
	}
	if err := store.Plant(t.Context(), m.Chunks[0].Name, make([]byte, m.Chunks[0].Size)); err != nil {
		t.Fatal(err)
	}
	if _, err := Device(m, store).ReadAt(make([]byte, 10), 0); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("damaged: got %v", err)
	}
}
