package device

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"thaw/chunk"
	"thaw/internal/testoci"
)

// Each chunk is told of once, in order, and before it is looked for; zeros are
// no chunks.
func TestOnTouch(t *testing.T) {
	plain := testoci.Noise(1, 6*chunk.MinSize)
	clear(plain[3*chunk.MinSize : 4*chunk.MinSize])
	d, f := newDevice(t, plain)
	var told []uint32
	d.OnTouch(func(index uint32) { told = append(told, index) })
	f.find = func(context.Context, chunk.Name) error {
		if int64(len(told)) == 0 {
			t.Error("a chunk was looked for that nobody was told of")
		}
		return nil
	}
	for _, read := range [][2]int{{4, 1}, {1, 2}, {4, 1}, {3, 1}, {0, 6}, {0, 6}} {
		got := mustRead(t, d, int64(read[0]*chunk.MinSize)+10, read[1]*chunk.MinSize-20)
		if !slices.Equal(got, plain[read[0]*chunk.MinSize+10:(read[0]+read[1])*chunk.MinSize-10]) {
			t.Errorf("%v: other bytes", read)
		}
	}
	if want := []uint32{4, 1, 2, 0, 5}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}

// A chunk that cannot be had was touched all the same.
func TestOnTouchOfFailures(t *testing.T) {
	d, f := newDevice(t, testoci.Noise(2, chunk.MinSize))
	told := 0
	d.OnTouch(func(uint32) { told++ })
	f.find = func(context.Context, chunk.Name) error { return chunk.ErrNotFound }
	for range 2 {
		if err := d.ReadAt(t.Context(), make([]byte, 1), 0); !errors.Is(err, chunk.ErrNotFound) {
			t.Error(err)
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

func TestOnTouchConcurrent(t *testing.T) {
	const chunks = 200
	d, _ := newDevice(t, testoci.Noise(3, chunks*chunk.MinSize))
	var mu sync.Mutex
	told := map[uint32]int{}
	d.OnTouch(func(index uint32) {
		mu.Lock()
		defer mu.Unlock()
		told[index]++
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range int64(chunks) {
				if err := d.ReadAt(t.Context(), make([]byte, 8), i*chunk.MinSize); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range uint32(chunks) {
		if told[i] != 1 {
			t.Errorf("chunk %d was told of %d times", i, told[i])
		}
	}
}
