package chunktest

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"thaw/chunk"
)

// emptyStore makes a new Store.
type emptyStore = func(t *testing.T) chunk.Store

// putters is how many writers race for one name: enough to overlap on two
// cores, few enough for a store on a disk.
const putters = 32

// storeSuite starts from an empty Store each time.
func storeSuite(t *testing.T, setup emptyStore) {
	t.Helper()
	run(t, setup, []testCase[emptyStore]{
		{"put if absent", testPutTwice},
		{"every length", testLengths},
		{"the caller keeps the slice", testPutKeeps},
		{"one of many putters adds", testConcurrentPut},
		{"readers see a whole chunk or none", testReadWhilePut},
		{"ended context on put", testEndedPut},
	})
}

// plantSuite needs a Store that is a Planter.
func plantSuite(t *testing.T, setup emptyStore) {
	t.Helper()
	run(t, setup, []testCase[emptyStore]{
		{"wrong length is replaced", testReplace},
		{"same length is left", testLeave},
		{"over-long object is corrupt and replaced", testOverLong},
	})
}

// testPutTwice: the second Put of a name writes nothing.
func testPutTwice(t *testing.T, setup emptyStore) {
	s, one, two := setup(t), Sample(1, chunk.DefaultSize), Sample(2, chunk.DefaultSize)
	put(t, s, one, true)
	put(t, s, one, false)
	put(t, s, two, true)
	checkHolds(t, s, one)
	checkHolds(t, s, two)
}

// testLengths goes through the lengths at which a trimmed chunk can end.
func testLengths(t *testing.T, setup emptyStore) {
	s := setup(t)
	for i, size := range []int{1, chunk.Grain - 1, chunk.Grain, chunk.DefaultSize, chunk.MaxSize} {
		c := Sample(byte(i), size)
		put(t, s, c, true)
		checkHolds(t, s, c)
	}
}

// testPutKeeps writes over the caller's slice after Put has returned.
func testPutKeeps(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.Grain)
	given := bytes.Clone(c.Data)
	if _, err := s.Put(t.Context(), c.Name, given); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(given, c.Data) {
		t.Error("Put changed the caller's bytes")
	}
	clear(given)
	checkHolds(t, s, c)
}

// testConcurrentPut lets all putters go at the same moment.
func testConcurrentPut(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.DefaultSize)
	var wg sync.WaitGroup
	var added atomic.Int32
	start := make(chan struct{})
	for range putters {
		wg.Go(func() {
			<-start
			ok, err := s.Put(t.Context(), c.Name, c.Data)
			if err != nil {
				t.Errorf("Put: %v", err)
			}
			if ok {
				added.Add(1)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := added.Load(); n != 1 {
		t.Errorf("%d of %d putters of one name added it, want 1", n, putters)
	}
	checkHolds(t, s, c)
}

// testReadWhilePut reads a name while it is written: what a reader gets must
// be the whole chunk.
func testReadWhilePut(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.MaxSize)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				got, err := s.Get(t.Context(), c.Name)
				if err == nil && !bytes.Equal(got, c.Data) {
					t.Errorf("Get during Put: %d bytes that are not the chunk's", len(got))
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	_, err := s.Put(t.Context(), c.Name, c.Data)
	close(done)
	wg.Wait()
	if err != nil {
		t.Fatalf("Put: %v", err)
	}
	checkHolds(t, s, c)
}

// testEndedPut: a Put that failed leaves nothing in the way of the next.
func testEndedPut(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.DefaultSize)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	added, err := s.Put(ctx, c.Name, c.Data)
	checkEnded(t, "Put", err)
	if added {
		t.Error("Put with an ended context says that it added")
	}
	put(t, s, c, true)
	checkHolds(t, s, c)
}

func plant(t *testing.T, s chunk.Store, name chunk.Name, data []byte) {
	t.Helper()
	if err := s.(Planter).Plant(t.Context(), name, data); err != nil {
		t.Fatalf("Plant: %v", err)
	}
}

// testReplace plants what a cut write or a wrong copy leaves behind.
func testReplace(t *testing.T, setup emptyStore) {
	c := Sample(1, chunk.Grain)
	for _, damage := range [][]byte{{}, c.Data[:1], c.Data[:len(c.Data)-1], append(bytes.Clone(c.Data), 0)} {
		s := setup(t)
		plant(t, s, c.Name, damage)
		checkStat(t, s, c.Name, int64(len(damage)))
		put(t, s, c, true)
		checkHolds(t, s, c)
		put(t, s, c, false)
	}
}

// testLeave holds that Put never overwrites an object of the right length:
// finding other bytes in it is the reader's part.
func testLeave(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.Grain)
	damaged := bytes.Clone(c.Data)
	damaged[0] ^= 1
	plant(t, s, c.Name, damaged)
	put(t, s, c, false)
	checkHolds(t, s, chunk.Sealed{Name: c.Name, Data: damaged})
}

// testOverLong: what cannot be a chunk is no reason to refuse the real one.
func testOverLong(t *testing.T, setup emptyStore) {
	s, c := setup(t), Sample(1, chunk.Grain)
	plant(t, s, c.Name, make([]byte, chunk.MaxSize+1))
	checkOverLong(t, s, c.Name)
	put(t, s, c, true)
	checkHolds(t, s, c)
}
