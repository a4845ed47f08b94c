package convert

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/internal/faults"
	"thaw/internal/testoci"
	"thaw/manifest"
)

// What is written in pieces of any length comes out of the chunks again, with
// nothing for those that were skipped or are zero.
func TestChunkerCutsAnyPieces(t *testing.T) {
	const size, chunks = chunk.MinSize, 40
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, size*chunks)
		store := &chunktest.Memory{}
		u := newUploader(t.Context(), store, chunk.Salt{}, size)
		into := &table{}
		w := &chunker{u: u, into: into}
		for off := 0; off < len(want); {
			n := min(1+rng.IntN(3*size), len(want)-off)
			if rng.IntN(3) > 0 {
				copy(want[off:off+n], testoci.Noise(rng.Uint64(), n))
			}
			if done, err := w.WriteAt(want[off:off+n], int64(off)); done != n || err != nil {
				t.Fatal(done, err)
			}
			off += n
			if rng.IntN(4) == 0 {
				off += min(rng.IntN(3*size), len(want)-off) // a hole
			}
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		entries, err := into.finish(u)
		if err := errors.Join(err, u.close()); err != nil {
			t.Fatal(err)
		}
		if got := assemble(t, store, entries, len(want)); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: other bytes came out", seed)
		}
	}
}

func assemble(t *testing.T, src chunk.Source, entries []manifest.Entry, size int) []byte {
	t.Helper()
	got := make([]byte, size)
	last := -1
	for _, e := range entries {
		if int(e.Index) <= last {
			t.Fatalf("chunk %d after %d", e.Index, last)
		}
		last = int(e.Index)
		sealed, err := src.Get(t.Context(), e.Name)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := chunk.Open(sealed, e.Name, e.Key)
		if err != nil || len(plain) != int(e.Size) {
			t.Fatalf("chunk %d: %d bytes, %v", e.Index, len(plain), err)
		}
		copy(got[int(e.Index)*chunk.MinSize:], plain)
	}
	return got
}

// failing is a store that fails at some calls.
type failing struct {
	chunktest.Memory
	calls faults.Calls
}

func (f *failing) Put(ctx context.Context, name chunk.Name, sealed []byte) (bool, error) {
	if err := f.calls.Next(); err != nil {
		return false, err
	}
	return f.Memory.Put(ctx, name, sealed)
}

// A failed put ends the writer, whatever waits, and is what close tells.
func TestUploaderStopsAtTheFirstFailure(t *testing.T) {
	broken := errors.New("broken")
	for _, at := range []int64{1, 7, 1000} {
		store := &failing{calls: faults.Calls{From: at, To: at + 5000, Err: broken}}
		u := newUploader(t.Context(), store, chunk.Salt{}, chunk.MaxSize)
		into := &table{}
		w := &chunker{u: u, into: into}
		var err error
		for i := int64(0); err == nil && i < 100_000; i++ {
			_, err = w.WriteAt([]byte{1, byte(i), byte(i >> 8)}, i*chunk.MaxSize)
		}
		if !errors.Is(err, broken) {
			t.Fatalf("the writer got %v", err)
		}
		if _, err := into.finish(u); !errors.Is(err, broken) {
			t.Fatalf("the table got %v", err)
		}
		if err := u.close(); !errors.Is(err, broken) {
			t.Fatalf("close gave %v", err)
		}
		if n := store.Len(); int64(n) >= at {
			t.Fatalf("%d chunks stored before call %d", n, at)
		}
	}
}

func TestUploaderEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	u := newUploader(ctx, &chunktest.Memory{}, chunk.Salt{}, chunk.MinSize)
	w := &chunker{u: u, into: &table{}}
	if _, err := w.WriteAt([]byte{1}, 0); err != nil {
		t.Fatal(err)
	}
	cancel()
	var err error
	for i := int64(1); err == nil && i < 1_000_000; i++ {
		_, err = w.WriteAt([]byte{1}, i*chunk.MinSize)
	}
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("the writer got %v", err)
	}
	if err := u.close(); !errors.Is(err, context.Canceled) {
		t.Fatalf("close gave %v", err)
	}
}
