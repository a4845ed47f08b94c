package chunktest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"thaw/chunk"
)

// fullSource makes a Source and gives the one chunk in it.
type fullSource = func(t *testing.T) (chunk.Source, chunk.Sealed)

// readers is how many Gets of one chunk run at a time: enough to overlap, few
// enough for a store on a disk.
const readers = 8

// sourceSuite holds for every Source, whether it takes chunks or not.
func sourceSuite(t *testing.T, setup fullSource) {
	t.Helper()
	run(t, setup, []testCase[fullSource]{
		{"gives the bytes", testGet},
		{"missing is not found", testNotFound},
		{"the slice is the caller's", testOwnSlice},
		{"concurrent reads", testConcurrentGet},
		{"ended context", testEndedRead},
	})
}

// testGet reads twice, since reading must change nothing.
func testGet(t *testing.T, setup fullSource) {
	s, want := setup(t)
	checkHolds(t, s, want)
	checkHolds(t, s, want)
}

// testNotFound asks for names that are close to the stored one, too.
func testNotFound(t *testing.T, setup fullSource) {
	s, want := setup(t)
	near := want.Name // differs in the last bit only
	near[len(near)-1] ^= 1
	for _, name := range []chunk.Name{{}, near, Sample(2, 1).Name} {
		if got, err := s.Get(t.Context(), name); !errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrCorrupt) || got != nil {
			t.Errorf("Get of a missing chunk: %d bytes, %v; want nil, ErrNotFound", len(got), err)
		}
		if st, ok := s.(chunk.Statter); ok {
			if _, err := st.Stat(t.Context(), name); !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("Stat of a missing chunk: %v, want ErrNotFound", err)
			}
		}
	}
}

// testOwnSlice writes over what Get gave, as chunk.Open does, up to the
// slice's capacity.
func testOwnSlice(t *testing.T, setup fullSource) {
	s, want := setup(t)
	got, err := s.Get(t.Context(), want.Name)
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Get(t.Context(), want.Name)
	if err != nil {
		t.Fatal(err)
	}
	clear(got[:cap(got)])
	if !bytes.Equal(other, want.Data) {
		t.Error("two Gets gave the same memory")
	}
	checkHolds(t, s, want)
}

// testConcurrentGet opens in place what each of several readers got.
func testConcurrentGet(t *testing.T, setup fullSource) {
	s, want := setup(t)
	var wg sync.WaitGroup
	for range readers {
		wg.Go(func() {
			got, err := s.Get(t.Context(), want.Name)
			if err != nil {
				t.Errorf("Get: %v", err)
				return
			}
			if plain, err := chunk.Open(got, want.Name, want.Key); err != nil || len(plain) != len(want.Data) {
				t.Errorf("Open of what Get gave: %v", err)
			}
		})
	}
	wg.Wait()
}

// testEndedRead holds that an ended context fails with its own error, which
// must not pass for a missing or a damaged chunk.
func testEndedRead(t *testing.T, setup fullSource) {
	s, want := setup(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, want.Name)
	checkEnded(t, "Get", err)
	if st, ok := s.(chunk.Statter); ok {
		_, err := st.Stat(ctx, want.Name)
		checkEnded(t, "Stat", err)
	}
	checkHolds(t, s, want) // with a live context it still works
}

// checkEnded wants the context's error and none of the package's own.
func checkEnded(t *testing.T, call string, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) || errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("%s with an ended context: %v, want context.Canceled", call, err)
	}
}

// checkOverLong wants ErrCorrupt for an object longer than any chunk.
func checkOverLong(t *testing.T, s chunk.Source, name chunk.Name) {
	t.Helper()
	got, err := s.Get(t.Context(), name)
	if !errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrNotFound) || got != nil {
		t.Errorf("Get of an over-long object: %d bytes, %v; want nil, ErrCorrupt", len(got), err)
	}
}
