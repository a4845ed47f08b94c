package device

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"thaw/internal/testoci"
)

// TestRanges waits for what overlaps, in order of arrival, and for nothing else.
func TestRanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r ranges
		lock := func(ctx context.Context, from, to int64, exclusive bool) chan *held {
			c := make(chan *held, 1)
			go func() {
				h, err := r.lock(ctx, from, to, exclusive)
				if err != nil {
					h = &held{}
				}
				c <- h
			}()
			synctest.Wait()
			return c
		}
		a, b := <-lock(t.Context(), 0, 10, false), <-lock(t.Context(), 5, 15, false)
		ctx, cancel := context.WithCancel(t.Context())
		writer := lock(ctx, 9, 12, true)
		reader := lock(t.Context(), 11, 13, false) // behind the writer, though b is shared
		beside := <-lock(t.Context(), 15, 20, true)
		r.unlock(a)
		if synctest.Wait(); len(writer) > 0 || len(reader) > 0 {
			t.Fatal("a lock was granted over another")
		}
		cancel()
		if synctest.Wait(); len(writer) != 1 || len(reader) != 1 {
			t.Fatal("one that gave up still stands in the way")
		}
		next := lock(t.Context(), 0, 20, true)
		for _, h := range []*held{b, beside, <-reader} {
			if len(next) > 0 {
				t.Fatal("a lock was granted over another")
			}
			r.unlock(h)
			synctest.Wait()
		}
		r.unlock(<-next)
		if len(r.queue) > 0 {
			t.Errorf("%d locks are left", len(r.queue))
		}
	})
}

// TestWaitsForBase lets a write of a part of a page wait for the base: others
// use the page meanwhile, and what they write is not lost.
func TestWaitsForBase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTwin(t, 4*pageSize, 4*pageSize)
		arrive := make(chan struct{})
		w.base.read = func(ctx context.Context) error {
			select {
			case <-arrive:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		gone, late := make(chan error, 1), make(chan error, 1)
		go func() { gone <- w.WriteAt(ctx, []byte("never"), 2*pageSize+1) }()
		go func() { late <- w.WriteAt(t.Context(), []byte("late"), pageSize+4) }()
		synctest.Wait()
		if err := w.write(t, testoci.Noise(1, 2*pageSize), pageSize); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want what the context says", err)
		}
		close(arrive)
		if err := <-late; err != nil {
			t.Error(err)
		}
		copy(w.want[pageSize+4:], "late")
		wantBytes(t, w, w.want)
	})
}
