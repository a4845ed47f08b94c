// Package trace keeps the order in which starts of an image first touch its
// chunks, so that later starts have them fetched before they ask.
//
// A trace is one image's, merged over its last runs. Integers are big-endian;
// offsets and lengths are bytes. What is stored is sealed for the tenant:
//
//	offset  length
//	     0       8  magic, "thaw tr\n"
//	     8       2  version of this format: 1
//	    10      12  nonce, random
//	    22   8 + 5N AES-256-GCM of the table under the trace key, with the bytes
//	                0 … 9 and the image's id, 32 bytes, as additional data
//	30 + 5N      16 its tag
//
// where the trace key is HMAC-SHA-256(data key, "thaw trace key v1\x00" ‖ id),
// of the data key of the image's manifest: who may open the manifest may open
// and seal its traces, and rotating the tenant's key leaves them as they are.
// The table is
//
//	0       1  R, runs remembered: 1 … 8
//	1       3  zero
//	4       4  N, number of chunks: 1 … 32768
//	8      5N  chunks, in the order of their first touches: index 4, runs 1:
//	           bit i is set if the run i runs ago touched the chunk, of
//	           which one at least did; bits from R on are zero
//
// No index occurs twice. A trace is a hint: whoever cannot use one starts
// without, and a store that brings back an older one costs time only.
package trace

import (
	"cmp"
	"errors"
	"fmt"
	"math/bits"
	"slices"
)

var (
	// ErrCorrupt says that the bytes are no trace of this image, sealed under
	// its manifest's data key.
	ErrCorrupt = errors.New("trace corrupt")
	// ErrVersion says that a newer version of this format was met.
	ErrVersion = errors.New("trace is of a newer version")
)

const (
	// MaxChunks bounds a trace: 16 GiB in default chunks, more than any start
	// may fetch ahead.
	MaxChunks = 1 << 15
	// maxRuns is how many runs are remembered: as many as bits of a byte. What
	// changed in an image's use is forgotten after as many.
	maxRuns = 8
	// wasteShare bounds what a plan may expect to waste: one chunk in so many.
	// It leaves room below the 15 % that are promised, for starts that are
	// unlike those before.
	wasteShare = 10
)

// Chunk is one chunk of a trace.
type Chunk struct {
	Index uint32 // in the device
	Runs  uint8  // bit i: touched by the run i runs ago
}

// Trace is what the last runs of an image touched, in order. The zero Trace is
// that of no run.
type Trace struct {
	runs   int
	chunks []Chunk
}

// Runs gives how many runs are remembered, 0 … 8.
func (t *Trace) Runs() int { return t.runs }

// Len gives how many chunks those runs touched.
func (t *Trace) Len() int { return len(t.chunks) }

// Merge gives the trace with one more run, the latest: the indexes of the chunks
// that it touched, in order. Indexes that come again and those past MaxChunks
// are passed over; a run that touched nothing changes nothing.
//
// A chunk's place is the mean of its places, the older weighted by the runs they
// stand for. What the last run did not touch keeps its place in the list, while
// others move up: what is touched seldom drifts to the end. What none of the
// last runs touched is forgotten.
func (t *Trace) Merge(run []uint32) *Trace {
	run = distinct(run)
	if len(run) == 0 {
		return t
	}
	next := &Trace{runs: min(t.runs+1, maxRuns)}
	type placed struct {
		Chunk
		place float64
	}
	at := make(map[uint32]int, len(run)) // in all
	all := make([]placed, 0, len(t.chunks)+len(run))
	for i, c := range t.chunks {
		at[c.Index] = len(all)
		all = append(all, placed{Chunk{c.Index, c.Runs << 1}, float64(i)})
	}
	for i, index := range run {
		if known, ok := at[index]; ok {
			c := &all[known]
			c.Runs |= 1
			c.place = (c.place*float64(t.runs) + float64(i)) / float64(t.runs+1)
			continue
		}
		all = append(all, placed{Chunk{index, 1}, float64(i)})
	}
	all = slices.DeleteFunc(all, func(c placed) bool { return c.Runs == 0 })
	slices.SortFunc(all, func(a, b placed) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(bits.OnesCount8(b.Runs), bits.OnesCount8(a.Runs)), cmp.Compare(a.Index, b.Index))
	})
	for _, c := range all[:min(len(all), MaxChunks)] {
		next.chunks = append(next.chunks, c.Chunk)
	}
	return next
}

// distinct gives the first MaxChunks different indexes, in order.
func distinct(run []uint32) []uint32 {
	seen := make(map[uint32]bool, len(run))
	var out []uint32
	for _, index := range run {
		if !seen[index] && len(out) < MaxChunks {
			seen[index] = true
			out = append(out, index)
		}
	}
	return out
}

// Plan gives the chunks to fetch ahead, in order: of those that at least half of
// the runs touched the likeliest, as long as no more than a tenth of them all is
// expected to stay untouched, if the next start is like the last ones.
func (t *Trace) Plan() []uint32 {
	var with [maxRuns + 1]int // chunks by the number of runs that touched them
	for _, c := range t.chunks {
		with[bits.OnesCount8(c.Runs)]++
	}
	// Chunks of one likelihood are taken in order, as many as there is room for.
	var take [maxRuns + 1]int
	taken, missed := 0, 0 // missed: untouched ones expected, times runs
	for n := t.runs; n > 0 && 2*n >= t.runs; n-- {
		miss := t.runs - n
		take[n] = with[n]
		if spare := wasteShare*miss - t.runs; spare > 0 { // each takes more room than it gives
			take[n] = min(with[n], max(0, (t.runs*taken-wasteShare*missed)/spare))
		}
		taken, missed = taken+take[n], missed+take[n]*miss
	}
	plan := make([]uint32, 0, taken)
	for _, c := range t.chunks {
		if n := bits.OnesCount8(c.Runs); take[n] > 0 {
			take[n]--
			plan = append(plan, c.Index)
		}
	}
	return plan
}

// String gives a line without indexes.
func (t *Trace) String() string {
	return fmt.Sprintf("trace{%d runs, %d chunks}", t.runs, len(t.chunks))
}
