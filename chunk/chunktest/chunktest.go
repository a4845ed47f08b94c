// Package chunktest holds implementations of chunk.Source, chunk.Store and
// chunk.Statter to their contracts, and has a Store in memory for the tests of
// other packages.
//
// A suite asks an implementation what else it can do: one that is a
// chunk.Statter or a Planter is tested as such too.
package chunktest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"thaw/chunk"
)

// Planter puts any bytes under a name, as damage would: past all checks, in
// place of what is there. A test wraps its store in one, so that the suite can
// see what the store makes of objects of a wrong length.
type Planter interface {
	Plant(ctx context.Context, name chunk.Name, data []byte) error
}

// Source tests a chunk.Source that cannot be written to. setup gives one that
// holds these objects and nothing else, each time another; it cleans up by
// t.Cleanup.
func Source(t *testing.T, setup func(t *testing.T, objects map[chunk.Name][]byte) chunk.Source) {
	t.Helper()
	sourceSuite(t, func(t *testing.T) (chunk.Source, chunk.Sealed) {
		want := Sample(1, chunk.DefaultSize)
		return setup(t, map[chunk.Name][]byte{want.Name: bytes.Clone(want.Data)}), want
	})
	t.Run("over-long object is corrupt", func(t *testing.T) {
		name := Sample(1, chunk.MaxSize).Name
		long := make([]byte, chunk.MaxSize+1)
		checkOverLong(t, setup(t, map[chunk.Name][]byte{name: long}), name)
	})
}

// Store tests a chunk.Store. setup gives an empty one, each time another; it
// cleans up by t.Cleanup.
func Store(t *testing.T, setup func(t *testing.T) chunk.Store) {
	t.Helper()
	sourceSuite(t, func(t *testing.T) (chunk.Source, chunk.Sealed) {
		s, want := setup(t), Sample(1, chunk.DefaultSize)
		put(t, s, want, true)
		return s, want
	})
	storeSuite(t, setup)
	if _, ok := setup(t).(Planter); ok {
		plantSuite(t, setup)
	}
}

// Sample gives the same chunk for the same seed, sealed under a zero salt from
// size bytes of noise.
func Sample(seed byte, size int) chunk.Sealed {
	plain := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(plain) // never fails
	return chunk.Seal(chunk.Salt{}, plain)
}

// run makes a subtest of each case.
func run[S any](t *testing.T, setup S, cases []testCase[S]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.test(t, setup) })
	}
}

type testCase[S any] struct {
	name string
	test func(t *testing.T, setup S)
}

func put(t *testing.T, s chunk.Store, c chunk.Sealed, wantAdded bool) {
	t.Helper()
	added, err := s.Put(t.Context(), c.Name, bytes.Clone(c.Data))
	if err != nil {
		t.Fatalf("Put: %v", err)
	}
	if added != wantAdded {
		t.Fatalf("Put: added %v, want %v", added, wantAdded)
	}
}

func checkHolds(t *testing.T, s chunk.Source, want chunk.Sealed) {
	t.Helper()
	got, err := s.Get(t.Context(), want.Name)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if !bytes.Equal(got, want.Data) {
		t.Fatalf("Get: %d bytes that are not the %d stored", len(got), len(want.Data))
	}
	checkStat(t, s, want.Name, int64(len(want.Data)))
}

// checkStat does nothing for a source that is no Statter.
func checkStat(t *testing.T, s chunk.Source, name chunk.Name, want int64) {
	t.Helper()
	st, ok := s.(chunk.Statter)
	if !ok {
		return
	}
	if got, err := st.Stat(t.Context(), name); err != nil || got != want {
		t.Fatalf("Stat: %d bytes, %v; want %d", got, err, want)
	}
}
