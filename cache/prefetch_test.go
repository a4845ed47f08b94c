package cache

import (
	"context"
	"errors"
	"os"
	"testing"

	"thaw/chunk"
)

// TestPrefetch: what is not there is brought into the folder, once, and counted
// as used when it is read.
func TestPrefetch(t *testing.T) {
	r := newRig(t, 4, 1<<20)
	filled(t, r.folder, r.chunks[0])
	for range 2 {
		for _, c := range r.chunks[:3] {
			if err := r.client.Prefetch(t.Context(), c.Name, small); err != nil {
				t.Fatal(err)
			}
			if !r.folder.has(c.Name) {
				t.Errorf("chunk %s is not in the folder", c.Name)
			}
		}
	}
	s := r.client.Stats()
	if s.Prefetched != (Amount{2, 2 * small}) || s.PrefetchUsed != (Amount{}) || s.Cache.Chunks+s.Origin.Chunks != 0 {
		t.Errorf("before any read: %+v", s)
	}
	for range 2 {
		for _, c := range []chunk.Sealed{r.chunks[0], r.chunks[1], r.chunks[3]} {
			r.read(t, c)
		}
	}
	if err := r.client.Prefetch(t.Context(), r.chunks[3].Name, small); err != nil { // was found before
		t.Error(err)
	}
	s = r.client.Stats()
	if s.Prefetched != (Amount{2, 2 * small}) || s.PrefetchUsed != (Amount{1, small}) || s.Cache.Chunks != 2 || s.Origin.Chunks != 1 {
		t.Errorf("after reads of one prefetched, one other and one missing chunk: %+v", s)
	}
	if n := r.origin.gets.Load(); n != 3 {
		t.Errorf("the origin was asked %d times, want 3", n)
	}
	checkFolder(t, r.folder)
}

// What was prefetched is not hashed again, unless its file has changed since.
func TestPrefetchIsTrusted(t *testing.T) {
	r := newRig(t, 2, 1<<20)
	for _, c := range r.chunks {
		if err := r.client.Prefetch(t.Context(), c.Name, small); err != nil {
			t.Fatal(err)
		}
	}
	r.read(t, r.chunks[1])
	if n := r.client.Stats().Hash.Count(); n != 0 {
		t.Errorf("%d files hashed", n)
	}
	c := r.chunks[0]
	path := chunkPath(r.folder.dir, c.Name)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, small), 0o600); err != nil {
		t.Fatal(err)
	}
	r.read(t, c)
	if s := r.client.Stats(); s.Cache.Corrupt != 1 || s.Origin.Chunks != 1 {
		t.Errorf("its file has changed: %+v", s)
	}
}

// TestPrefetchFails says so, and leaves it to a read to try again.
func TestPrefetchFails(t *testing.T) {
	r := newRig(t, 1, small-1)
	if err := r.client.Prefetch(t.Context(), r.chunks[0].Name, small); !errors.Is(err, errInternal) {
		t.Errorf("a chunk that is too large for the folder: %v", err)
	}
	if err := r.client.Prefetch(t.Context(), sample(9, small).Name, small); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("a chunk that is nowhere: %v", err)
	}
	if err := r.client.Prefetch(t.Context(), r.chunks[0].Name, 0); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("a chunk of no bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.origin.first(func(ctx context.Context, _ chunk.Name) error { cancel(); <-ctx.Done(); return ctx.Err() })
	if err := r.client.Prefetch(ctx, r.chunks[0].Name, small); !errors.Is(err, context.Canceled) {
		t.Errorf("one whose context ended: %v", err)
	}
	r.origin.first(nil)
	r.read(t, r.chunks[0])
	if s := r.client.Stats(); s.Prefetched.Chunks != 0 || s.Origin.Chunks != 1 {
		t.Errorf("stats %+v", s)
	}
}
