package lru_test

import (
	"container/list"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"thaw/lru"
)

// ticking gives times a second apart.
func ticking() func() time.Time {
	now := epoch()
	return func() time.Time {
		now = now.Add(time.Second)
		return now
	}
}

// drain evicts everything, in the cache's order.
func drain[K comparable](c *lru.Cache[K]) (order []K) {
	for {
		key, ok := c.Evict()
		if !ok {
			return order
		}
		order = append(order, key)
	}
}

func want[T any](t *testing.T, what string, got, want T, equal func(T, T) bool) {
	t.Helper()
	if !equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// A scan of things used once displaces nothing that was used twice, and names
// used once go by their last use.
func TestScan(t *testing.T) {
	c, now := lru.New[int](lru.Options{Limit: 10}), ticking()
	for key := range 9 {
		c.Add(key, 1, now())
		c.Hit(key, now())
	}
	for key := 100; key < 1000; key++ {
		c.Add(key, 1, now())
	}
	c.Hit(0, now())
	c.Hit(0, now())
	want(t, "order", drain(c), []int{999, 1, 2, 3, 4, 5, 6, 7, 8, 0}, slices.Equal)
}

// With k = 1 the order is that of the last uses, and the scan wins.
func TestLeastRecentlyUsed(t *testing.T) {
	c, now := lru.New[int](lru.Options{Limit: 3, K: 1}), ticking()
	for key := range 3 {
		c.Add(key, 1, now())
	}
	c.Hit(0, now())
	if evicted, _ := c.Add(3, 1, now()); !slices.Equal(evicted, []int{1}) {
		t.Errorf("%v was evicted, want 1", evicted)
	}
	want(t, "order", drain(c), []int{2, 0, 3}, slices.Equal)
}

// A name that comes back has its use of before: it is not new.
func TestComesBack(t *testing.T) {
	for history, comes := range map[int][]int{-1: {2, 1}, 1: {1, 2}} {
		c, now := lru.New[int](lru.Options{Limit: 2, History: history}), ticking()
		c.Add(1, 2, now())
		c.Add(2, 1, now())
		c.Hit(2, now())
		if c.Hit(1, now()) {
			t.Error("1 is still resident")
		}
		c.Add(1, 1, now())
		if history < 0 {
			slices.Reverse(comes)
		}
		want(t, "order", drain(c), comes, slices.Equal)
	}
}

// The miss and the Add that follows are one use; two misses before it are two.
func TestMissIsOneUse(t *testing.T) {
	c, now := lru.New[int](lru.Options{Limit: 1, K: 3}), ticking()
	c.Add(1, 1, now())
	c.Evict()
	c.Hit(1, now())
	c.Add(1, 1, now())
	want(t, "uses", len(c.Uses(1)), 2, func(a, b int) bool { return a == b })
	c.Evict()
	c.Add(1, 1, now())
	want(t, "uses", len(c.Uses(1)), 3, func(a, b int) bool { return a == b })
}

// Many starts at once are one use, and what they bring stays for them.
func TestCorrelated(t *testing.T) {
	c := lru.New[int](lru.Options{Limit: 80, Correlated: 10 * time.Second})
	now := ticking()
	for key := range 80 {
		c.Add(key, 1, now())
		if c.Hit(key, now()) != true || len(c.Uses(key)) != 1 {
			t.Fatalf("%d: uses %v, want one", key, c.Uses(key))
		}
	}
	for range 10 {
		now()
	}
	for key := range 80 {
		c.Hit(key, now())
	}
	// All were used twice; a new one is kept while it is new, then goes first.
	if evicted, _ := c.Add(100, 1, now()); !slices.Equal(evicted, []int{0}) {
		t.Errorf("%v was evicted, want 0", evicted)
	}
	if evicted, _ := c.Add(101, 1, now()); !slices.Equal(evicted, []int{1}) {
		t.Errorf("%v was evicted, want 1", evicted)
	}
	for range 10 {
		now()
	}
	if evicted, _ := c.Add(102, 1, now()); !slices.Equal(evicted, []int{100}) {
		t.Errorf("%v was evicted, want 100", evicted)
	}
}

// A flood within the correlated time holds an eighth of the limit and no more.
func TestCorrelatedFlood(t *testing.T) {
	c, now := lru.New[int](lru.Options{Limit: 80, Correlated: time.Hour}), ticking()
	for key := range 80 {
		c.Add(key, 1, now())
	}
	for range 3600 {
		now()
	}
	for key := range 80 {
		c.Hit(key, now())
	}
	for key := 100; key < 1000; key++ {
		c.Add(key, 1, now())
	}
	kept := 0
	for key := range 80 {
		if c.Contains(key) {
			kept++
		}
	}
	if kept < 69 || kept > 70 {
		t.Errorf("%d of 80 were kept, want all but an eighth", kept)
	}
}

func TestHeavy(t *testing.T) {
	c, now := lru.New[int](lru.Options{Limit: 10}), ticking()
	c.Add(1, 5, now())
	c.Add(2, 5, now())
	if evicted, admitted := c.Add(3, 11, now()); evicted != nil || admitted {
		t.Errorf("heavier than the limit: %v evicted, admitted %v", evicted, admitted)
	}
	if evicted, admitted := c.Add(3, 10, now()); len(evicted) != 2 || !admitted || c.Weight() != 10 {
		t.Errorf("as heavy as the limit: %v evicted, admitted %v, weight %d", evicted, admitted, c.Weight())
	}
	if evicted, admitted := c.Add(3, 11, now()); !slices.Equal(evicted, []int{3}) || admitted || c.Weight() != 0 {
		t.Errorf("grown beyond the limit: %v evicted, admitted %v, weight %d", evicted, admitted, c.Weight())
	}
	c.Add(4, -7, now())
	if c.Weight() != 1 {
		t.Errorf("weight %d of what has none, want 1", c.Weight())
	}
}

// After a restart the order is the same, in whatever order names are restored.
func TestRestore(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	old, now := lru.New[int](lru.Options{Limit: 1000}), ticking()
	for range 5000 {
		key := int(random.ExpFloat64() * 300)
		if !old.Hit(key, now()) {
			old.Add(key, 1, now())
		}
	}
	c := lru.New[int](lru.Options{Limit: 1000})
	for _, key := range random.Perm(10000) {
		if old.Contains(key) {
			c.Restore(key, 1, old.Uses(key))
		}
	}
	order := drain(old)
	if len(order) < 500 {
		t.Fatalf("only %d names", len(order))
	}
	want(t, "order", drain(c), order, slices.Equal)
	c.Restore(1, 1001, nil)
	if key, ok := c.Victim(); c.Weight() != 1001 || key != 1 || !ok {
		t.Errorf("restored beyond the limit: weight %d, victim %d", c.Weight(), key)
	}
	if evicted, _ := c.Add(2, 1, now()); !slices.Equal(evicted, []int{1}) {
		t.Errorf("the next Add evicted %v, want 1", evicted)
	}
}

// The order holds among many names, of which any may be taken out.
func TestOrderOfMany(t *testing.T) {
	for seed := range uint64(5) {
		random := rand.New(rand.NewPCG(seed, 3))
		c, now := lru.New[int](lru.Options{Limit: 1 << 40, K: 3}), ticking()
		for key := range 5000 {
			c.Add(key, 1, now())
		}
		for range 20000 {
			c.Hit(random.IntN(5000), now())
		}
		for range 2000 {
			c.Remove(random.IntN(5000))
		}
		rank := map[int][2]int64{}
		for key := range 5000 {
			if uses := c.Uses(key); len(uses) == 3 {
				rank[key] = [2]int64{uses[2].UnixNano(), uses[0].UnixNano()}
			} else if len(uses) > 0 {
				rank[key] = [2]int64{-1, uses[0].UnixNano()}
			}
		}
		order := drain(c)
		if len(order) != len(rank) || !slices.IsSortedFunc(order, func(a, b int) int {
			x, y := rank[a], rank[b]
			return slices.Compare(x[:], y[:])
		}) {
			t.Errorf("seed %d: %d of %d names, or out of order", seed, len(order), len(rank))
		}
	}
}

// The history has as many names as are resident, not below 128.
func TestHistoryBound(t *testing.T) {
	for _, room := range []int{10, 3000} {
		c, now := lru.New[int](lru.Options{Limit: int64(room), K: 3}), ticking()
		for key := range 10000 {
			c.Add(key, 1, now())
		}
		known := 0
		for key := range 10000 - room {
			c.Add(key, 1, now()) // the oldest first: each is forgotten before it would push out one we ask for
			if len(c.Uses(key)) > 1 {
				known++
			}
			c.Remove(key)
		}
		if bound := max(room, 128); known < bound-2 || known > bound {
			t.Errorf("room for %d: %d were remembered, want %d", room, known, bound)
		}
	}
}

// Pages, hash table and heap together keep below what the package comment says.
func TestBytesPerName(t *testing.T) {
	for name, room := range map[string]int{"resident": 200_000, "half of them remembered": 100_000} {
		before := heapBytes()
		c := filled(room, 200_000)
		if per := float64(heapBytes()-before) / 200_000; per > 120 {
			t.Errorf("%s: %.0f bytes a name, want at most 120", name, per)
		} else {
			t.Logf("%s: %.0f bytes a name", name, per)
		}
		runtime.KeepAlive(c)
	}
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// name is like that of a chunk: 32 bytes.
func name(i int) (n [32]byte) {
	binary.LittleEndian.PutUint64(n[:], uint64(i)*0x9e3779b97f4a7c15)
	return n
}

// filled has seen so many names twice, and has room for some.
func filled(room, names int) *lru.Cache[[32]byte] {
	c, now := lru.New[[32]byte](lru.Options{Limit: int64(room) << 17, History: max(names-room, 1)}), ticking()
	for i := range names {
		c.Add(name(i), 1<<17, now())
		c.Hit(name(i), now())
	}
	return c
}

// popular are names below a number as Zipf has it.
func popular(names int) [][32]byte {
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 1)), 1.01, 1, uint64(names-1))
	keys := make([][32]byte, 1<<16)
	for i := range keys {
		keys[i] = name(int(zipf.Uint64()))
	}
	return keys
}

// BenchmarkMapAndList is what BenchmarkHit is compared with: LRU as one writes it,
// which knows one use of a name and nothing of what was evicted.
func BenchmarkMapAndList(b *testing.B) {
	const names = 400_000
	before := heapBytes()
	order, elements := list.New(), map[[32]byte]*list.Element{}
	for i := range names {
		elements[name(i)] = order.PushBack(name(i))
	}
	held := float64(heapBytes()-before) / names
	keys := popular(names)
	for i := 0; b.Loop(); i++ {
		order.MoveToBack(elements[keys[i%len(keys)]])
	}
	b.ReportMetric(held, "bytes/name")
}

// BenchmarkHit uses resident names.
func BenchmarkHit(b *testing.B) {
	const names = 400_000
	c, keys := filled(names, names), popular(names)
	now := epoch().Add(24 * 365 * time.Hour)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if now = now.Add(time.Microsecond); !c.Hit(keys[i%len(keys)], now) {
			b.Fatal("a miss")
		}
	}
}

// BenchmarkScan adds names never seen before to a full cache, each of which
// displaces one.
func BenchmarkScan(b *testing.B) {
	const names = 400_000
	c := filled(names, names)
	now := epoch().Add(24 * 365 * time.Hour)
	b.ReportAllocs()
	for i := names; b.Loop(); i++ {
		now = now.Add(time.Microsecond)
		c.Hit(name(i), now)
		c.Add(name(i), 1<<17, now)
	}
}

// BenchmarkComeBack adds names that the history has: each sinks in the heap,
// whose top goes.
func BenchmarkComeBack(b *testing.B) {
	const names = 400_000
	c := filled(names, 2*names)
	now := epoch().Add(24 * 365 * time.Hour)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		now = now.Add(time.Microsecond)
		c.Hit(name(i%(2*names)), now)
		c.Add(name(i%(2*names)), 1<<17, now)
	}
}
