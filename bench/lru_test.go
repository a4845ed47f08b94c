package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"

	"thaw/lru"
)

// policy is a cache in a simulation: use tells of a use, and answers whether it hit.
type policy interface {
	use(key uint32, now time.Time) bool
}

// lruK is lru as its users have it.
type lruK struct{ *lru.Cache[uint32] }

func (l lruK) use(key uint32, now time.Time) bool {
	if l.Hit(key, now) {
		return true
	}
	l.Add(key, weight(key), now)
	return false
}

// fifo evicts what came first.
type fifo struct {
	limit, used int64
	queue       []uint32
	resident    map[uint32]bool
}

func (f *fifo) use(key uint32, _ time.Time) bool {
	if f.resident[key] {
		return true
	}
	for f.used+weight(key) > f.limit {
		first := f.queue[0]
		f.queue = f.queue[1:]
		f.used -= weight(first)
		delete(f.resident, first)
	}
	f.queue = append(f.queue, key)
	f.used += weight(key)
	f.resident[key] = true
	return false
}

// tinyLFU is otter's W-TinyLFU. It does its work later and elsewhere unless it is
// told otherwise: here at once and in the caller, after each use. Its sketch is
// seeded at random, so its rates vary from run to run.
type tinyLFU struct{ *otter.Cache[uint32, struct{}] }

func newTinyLFU(limit int64) tinyLFU {
	return tinyLFU{otter.Must(&otter.Options[uint32, struct{}]{
		MaximumWeight: uint64(limit),
		Weigher:       func(key uint32, _ struct{}) uint32 { return uint32(weight(key)) },
		Executor:      func(work func()) { work() },
	})}
}

func (t tinyLFU) use(key uint32, _ time.Time) bool {
	_, hit := t.GetIfPresent(key)
	if !hit {
		t.Set(key, struct{}{})
	}
	t.CleanUp()
	return hit
}

// rates are the hits among the uses of a trace's second half, when caches have
// filled, in per cent.
type rates struct{ objects, bytes float64 }

func simulate(t *trace, p policy) rates {
	var hits, uses, hitBytes, bytes int64
	begin := time.Unix(1_700_000_000, 0)
	for i, u := range t.uses {
		hit := p.use(u.key, begin.Add(u.at))
		if i < len(t.uses)/2 {
			continue
		}
		w := weight(u.key)
		uses, bytes = uses+1, bytes+w
		if hit {
			hits, hitBytes = hits+1, hitBytes+w
		}
	}
	return rates{100 * float64(hits) / float64(uses), 100 * float64(hitBytes) / float64(bytes)}
}

// contest is a policy by its name; chunks is how many fit, about.
type contest struct {
	name string
	make func(limit int64, chunks int) policy
}

func byLRU(o lru.Options) func(int64, int) policy {
	return func(limit int64, _ int) policy {
		o.Limit = limit
		return lruK{lru.New[uint32](o)}
	}
}

func theFIFO() contest {
	return contest{"FIFO", func(limit int64, _ int) policy {
		return &fifo{limit: limit, resident: map[uint32]bool{}}
	}}
}

func contests() []contest {
	return []contest{
		{"LRU-2", byLRU(lru.Options{})},
		{"LRU-2, 10 s correlated", byLRU(lru.Options{Correlated: 10 * time.Second})},
		{"LRU-2, 4 x the history", func(limit int64, chunks int) policy {
			return lruK{lru.New[uint32](lru.Options{Limit: limit, History: 4 * chunks})}
		}},
		{"LRU-2, no history", byLRU(lru.Options{History: -1})},
		{"LRU-3", byLRU(lru.Options{K: 3})},
		{"W-TinyLFU", func(limit int64, _ int) policy { return newTinyLFU(limit) }},
		{"LRU", byLRU(lru.Options{K: 1})},
		theFIFO(),
	}
}

const seeds = 3

// sizes are the caches simulated, in per cent of what a trace's chunks weigh.
func sizes() []int { return []int{1, 5, 10, 20} }

// mixes are the traces, the last two of which suit LRU-k badly.
func mixes() []mix {
	return []mix{
		{"cron: 70 % a hot set, Zipf 0.9, 30 % scans", cronTrace},
		{"worker: starts of functions on shared bases, 30 % of them daily", workerTrace},
		{"shift: a fifth of the hot set is replaced each hour", shiftTrace},
		{"deploy: each chunk is read three times within 5 minutes", deployTrace},
	}
}

type mix struct {
	name string
	make func(seed uint64) *trace
}

// TestEviction holds lru to what it is there for: scans by functions that run
// once an hour or a day cost it less than they cost LRU and FIFO, whatever the
// size of the cache.
func TestEviction(t *testing.T) {
	for seed := range uint64(seeds) {
		trace := cronTrace(seed)
		bytes, chunks := trace.footprint()
		for _, size := range sizes() {
			run := func(c contest) rates {
				return simulate(trace, c.make(bytes*int64(size)/100, chunks*size/100))
			}
			ours := run(contest{"LRU-2", byLRU(lru.Options{})})
			for _, other := range []contest{{"LRU", byLRU(lru.Options{K: 1})}, theFIFO()} {
				if o := run(other); ours.objects <= o.objects || ours.bytes <= o.bytes {
					t.Errorf("seed %d, a cache of %d %%: %.1f %% of uses and %.1f %% of bytes hit, %s has %.1f and %.1f",
						seed, size, ours.objects, ours.bytes, other.name, o.objects, o.bytes)
				}
			}
		}
	}
}

// TestTraces holds the traces to what is said of them.
func TestTraces(t *testing.T) {
	trace := cronTrace(1)
	scans := 0
	for i, u := range trace.uses {
		if u.key >= hotChunks {
			scans++
		}
		if i > 0 && u.at < trace.uses[i-1].at {
			t.Fatal("not in the order of time")
		}
	}
	if share := float64(scans) / float64(len(trace.uses)); share < 0.29 || share > 0.31 {
		t.Errorf("%.3f of the uses are scans, want 0.3", share)
	}
	if again := cronTrace(1); !slices.Equal(trace.uses, again.uses) {
		t.Error("one seed gives two traces")
	}
}

// BenchmarkEviction prints the hit rates of each policy on each mix, at each size:
// per cent of the uses and of the bytes, the median of the seeds.
func BenchmarkEviction(b *testing.B) {
	for b.Loop() {
		for _, m := range mixes() {
			compete(m)
		}
	}
}

func compete(m mix) {
	var traces []*trace
	for seed := range uint64(seeds) {
		traces = append(traces, m.make(seed))
	}
	bytes, chunks := traces[0].footprint()
	say("eviction: %s: %d uses of %d chunks, %d MiB; caches of %v %% of that; uses / bytes that hit, median of %d seeds (most apart)",
		m.name, len(traces[0].uses), chunks, bytes/mib, sizes(), seeds)
	for _, c := range contests() {
		line, apart := "", 0.0
		for _, size := range sizes() {
			var objects, weights []float64
			for _, t := range traces {
				bytes, chunks := t.footprint()
				r := simulate(t, c.make(bytes*int64(size)/100, chunks*size/100))
				objects, weights = append(objects, r.objects), append(weights, r.bytes)
			}
			slices.Sort(objects)
			slices.Sort(weights)
			apart = max(apart, objects[seeds-1]-objects[0], weights[seeds-1]-weights[0])
			line += fmt.Sprintf("  %.1f / %.1f", objects[seeds/2], weights[seeds/2])
		}
		say("eviction: %-22s%s  (%.1f)", c.name, line, apart)
	}
}
