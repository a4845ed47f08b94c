package bench

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"time"
)

// use is one use of a chunk in a trace.
type use struct {
	at  time.Duration // since the trace began
	key uint32
}

// trace is what a cache is asked for, in the order of time. Chunks weigh as much as
// devices have it: cut to their last non-zero 64 KiB, most are full.
type trace struct {
	uses   []use
	chunks uint32 // names given out, used or not
	random *rand.Rand
}

func newTrace(seed uint64) *trace { return &trace{random: rand.New(rand.NewPCG(seed, 4))} }

// weight depends on nothing but the chunk: three of five are full.
func weight(key uint32) int64 {
	h := (uint64(key) + 1) * 0x9e3779b97f4a7c15 >> 32
	if h%5 < 3 {
		return 512 << 10
	}
	return int64(h/5%7+1) * 64 << 10
}

// footprint is what the chunks that are used weigh, and how many there are.
func (t *trace) footprint() (weights int64, chunks int) {
	seen := make([]bool, t.chunks)
	for _, u := range t.uses {
		if !seen[u.key] {
			seen[u.key] = true
			weights += weight(u.key)
			chunks++
		}
	}
	return weights, chunks
}

// fresh gives chunks that were not given out yet.
func (t *trace) fresh(n int) []uint32 {
	keys := make([]uint32, n)
	for i := range keys {
		keys[i] = t.chunks
		t.chunks++
	}
	return keys
}

func (t *trace) use(at time.Duration, key uint32) { t.uses = append(t.uses, use{at, key}) }

// scan uses chunks one after the other, 2 ms apart.
func (t *trace) scan(at time.Duration, keys []uint32) {
	for i, key := range keys {
		t.use(at+time.Duration(i)*2*time.Millisecond, key)
	}
}

func (t *trace) sorted() *trace {
	slices.SortStableFunc(t.uses, func(a, b use) int { return int(a.at - b.at) })
	return t
}

// during gives a moment of an hour.
func (t *trace) during(hour int, within time.Duration) time.Duration {
	return time.Duration(hour)*time.Hour + time.Duration(t.random.Int64N(int64(within)))
}

// zipf draws ranks 0 to n-1, rank r with a probability of 1/(r+1)^s; math/rand has
// it only for s above 1.
func (t *trace) zipf(s float64, n int) func() int {
	sums := make([]float64, n)
	sum := 0.0
	for i := range sums {
		sum += math.Pow(float64(i+1), -s)
		sums[i] = sum
	}
	return func() int { return sort.SearchFloat64s(sums, t.random.Float64()*sum) }
}

// What a day of the cron mix is made of: 7 of 10 uses are of the hot set.
const (
	hotChunks  = 5000
	hotPerHour = 3500
	cronHourly = 5  // functions that run at each full hour
	cronDaily  = 35 // functions that run at one hour of a day each, for every hour
	cronChunks = 37 // that each of them reads, none of them anyone else's
	days       = 2
)

// cronTrace has a hot set as Zipf has it with 0.9, used evenly, and scans at the full
// hours that are 30 % of all uses: functions started once an hour, an eighth of
// them, or once a day, within 5 minutes.
func cronTrace(seed uint64) *trace {
	t := newTrace(seed)
	hot, draw := t.fresh(hotChunks), t.zipf(0.9, hotChunks)
	cron := make([][]uint32, cronHourly+24*cronDaily)
	for i := range cron {
		cron[i] = t.fresh(cronChunks)
	}
	for hour := range 24 * days {
		for range hotPerHour {
			t.use(t.during(hour, time.Hour), hot[draw()])
		}
		daily := cronHourly + hour%24*cronDaily
		for _, keys := range slices.Concat(cron[:cronHourly], cron[daily:daily+cronDaily]) {
			t.scan(t.during(hour, 5*time.Minute), keys)
		}
	}
	return t.sorted()
}

// shiftTrace has a hot set like that of cronTrace, no scans, and a fifth of the set is
// other chunks each hour: what was used often is used no more.
func shiftTrace(seed uint64) *trace {
	t := newTrace(seed)
	hot, draw := t.fresh(hotChunks), t.zipf(0.9, hotChunks)
	for hour := range 24 * days {
		for _, i := range t.random.Perm(hotChunks)[:hotChunks/5] {
			hot[i] = t.fresh(1)[0]
		}
		for range hotPerHour {
			t.use(t.during(hour, time.Hour), hot[draw()])
		}
	}
	return t.sorted()
}

// deployTrace has nothing that lasts: a new version of a function comes every 90 s, its
// 60 chunks are read by its first start and by two more within the next
// 5 minutes, and never again.
func deployTrace(seed uint64) *trace {
	t := newTrace(seed)
	for at := time.Duration(0); at < 24*days*time.Hour; at += 90 * time.Second {
		keys := t.fresh(60)
		t.scan(at, keys)
		for range 2 {
			t.scan(at+time.Duration(t.random.Int64N(int64(5*time.Minute))), keys)
		}
	}
	return t.sorted()
}

// What the mix of a worker is made of.
const (
	workerBases     = 6
	workerFunctions = 800
	workerStarts    = 49 // an hour, of those functions
	workerDaily     = 21 // an hour, of others
)

// workerTrace is what the cache of one worker is asked for: starts of functions, as
// Zipf has it with 0.9, each reading 40 chunks of one of the bases and 12 of
// its own; a start does not ask for what an instance has read within 10
// minutes. 30 % of the starts are of functions that run once a day, all of an
// hour within 5 minutes.
func workerTrace(seed uint64) *trace {
	t := newTrace(seed)
	base, draw := t.zipf(1.5, workerBases), t.zipf(0.9, workerFunctions)
	var bases [workerBases][]uint32
	for i := range bases {
		bases[i] = t.fresh(40)
	}
	functions := make([][]uint32, workerFunctions+24*workerDaily)
	for i := range functions {
		functions[i] = slices.Concat(bases[base()], t.fresh(12))
	}
	read := map[int]time.Duration{}
	for hour := range 24 * days {
		starts := make([]time.Duration, workerStarts)
		for i := range starts {
			starts[i] = t.during(hour, time.Hour)
		}
		slices.Sort(starts)
		for _, at := range starts {
			f := draw()
			if last, ok := read[f]; !ok || at > last+10*time.Minute {
				read[f] = at
				t.scan(at, functions[f])
			}
		}
		daily := workerFunctions + hour%24*workerDaily
		for _, chunks := range functions[daily : daily+workerDaily] {
			t.scan(t.during(hour, 5*time.Minute), chunks)
		}
	}
	return t.sorted()
}
