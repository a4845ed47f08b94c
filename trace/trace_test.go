package trace

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"
)

// merged gives the trace of runs, the oldest first.
func merged(runs ...[]uint32) *Trace {
	t := new(Trace)
	for _, run := range runs {
		t = t.Merge(run)
	}
	return t
}

func indexes(t *Trace) []uint32 {
	var all []uint32
	for _, c := range t.chunks {
		all = append(all, c.Index)
	}
	return all
}

func TestMerge(t *testing.T) {
	for name, c := range map[string]struct {
		runs [][]uint32
		want []Chunk
		of   int
	}{
		"nothing":           {nil, nil, 0},
		"runs of nothing":   {[][]uint32{{}, nil}, nil, 0},
		"one run":           {[][]uint32{{7, 3, 9}}, []Chunk{{7, 1}, {3, 1}, {9, 1}}, 1},
		"again and again":   {[][]uint32{{7, 3, 7, 7, 9, 3}}, []Chunk{{7, 1}, {3, 1}, {9, 1}}, 1},
		"equal runs":        {[][]uint32{{7, 3}, {7, 3}}, []Chunk{{7, 3}, {3, 3}}, 2},
		"nothing in a run":  {[][]uint32{{7, 3}, {}, {7}}, []Chunk{{7, 3}, {3, 2}}, 2},
		"other order":       {[][]uint32{{1, 2, 3}, {3, 1, 2}}, []Chunk{{1, 3}, {3, 3}, {2, 3}}, 2},
		"older runs weigh":  {[][]uint32{{1, 2}, {1, 2}, {2, 1}}, []Chunk{{1, 7}, {2, 7}}, 3},
		"seldom drifts":     {[][]uint32{{5, 1, 2}, {1, 2}, {1, 2}}, []Chunk{{5, 4}, {1, 7}, {2, 7}}, 3},
		"new between":       {[][]uint32{{1, 2}, {1, 9, 2}}, []Chunk{{1, 3}, {9, 1}, {2, 3}}, 2},
		"likelier first":    {[][]uint32{{1}, {9, 1}, {1}}, []Chunk{{9, 2}, {1, 7}}, 3},
		"equal places, too": {[][]uint32{{2}, {1}}, []Chunk{{1, 1}, {2, 2}}, 2},
	} {
		got := merged(c.runs...)
		if !slices.Equal(got.chunks, c.want) || got.Runs() != c.of || got.Len() != len(c.want) {
			t.Errorf("%s: %d runs, %v; want %d, %v", name, got.Runs(), got.chunks, c.of, c.want)
		}
	}
}

// What has not been touched in all the runs that are remembered is forgotten.
func TestMergeForgets(t *testing.T) {
	tr := merged([]uint32{1, 2})
	for n := range maxRuns {
		if tr.Len() != 2 {
			t.Fatalf("after %d runs it is %v", n, tr.chunks)
		}
		tr = tr.Merge([]uint32{2})
	}
	if want := []Chunk{{2, 255}}; !slices.Equal(tr.chunks, want) || tr.Runs() != maxRuns {
		t.Errorf("%d runs, %v; want %v", tr.Runs(), tr.chunks, want)
	}
}

func TestMergeIsBounded(t *testing.T) {
	var run []uint32
	for i := range uint32(MaxChunks + 10) {
		run = append(run, 2*i)
	}
	tr := merged(run)
	if tr.Len() != MaxChunks || !slices.Equal(tr.Plan(), run[:MaxChunks]) {
		t.Errorf("it holds %d chunks", tr.Len())
	}
	for i := range run {
		run[i]++
	}
	if tr = tr.Merge(run); tr.Len() != MaxChunks || tr.Runs() != 2 {
		t.Errorf("it holds %d chunks of %d runs", tr.Len(), tr.Runs())
	}
	if n := len(tr.Plan()); n > MaxChunks {
		t.Errorf("%d chunks are planned", n)
	}
}

// Merge changes neither what it is given nor what it is called on.
func TestMergeKeeps(t *testing.T) {
	run, next := []uint32{4, 2, 4}, []uint32{2, 4, 2}
	tr := merged(run)
	tr.Merge(next)
	if !slices.Equal(indexes(tr), []uint32{4, 2}) || !slices.Equal(run, []uint32{4, 2, 4}) || !slices.Equal(next, []uint32{2, 4, 2}) {
		t.Errorf("%v, %v, %v", tr.chunks, run, next)
	}
}

func TestPlan(t *testing.T) {
	long := func(from, to uint32) (run []uint32) {
		for i := from; i < to; i++ {
			run = append(run, i)
		}
		return run
	}
	for name, c := range map[string]struct {
		runs [][]uint32
		want []uint32
	}{
		"nothing":                   {nil, []uint32{}},
		"one run":                   {[][]uint32{{3, 1, 2}}, []uint32{3, 1, 2}},
		"no chunk twice":            {[][]uint32{{1}, {2}, {3}}, []uint32{}},
		"every other, and no room":  {[][]uint32{{1, 2, 9}, {1, 2}}, []uint32{1, 2}},
		"every other, room for one": {[][]uint32{{1, 2, 3, 4, 8, 9}, {1, 2, 3, 4}}, []uint32{1, 2, 3, 4, 8}},
		"one of three, and room":    {[][]uint32{append(long(0, 50), 99), long(0, 50), long(0, 50)}, long(0, 50)},
	} {
		if got := merged(c.runs...).Plan(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// expected gives what a plan is expected to waste, in chunks times runs.
func expected(t *Trace, plan []uint32) (waste int) {
	for _, c := range t.chunks {
		if slices.Contains(plan, c.Index) {
			waste += t.runs - bits.OnesCount8(c.Runs)
		}
	}
	return waste
}

// The plan against its definition, on random traces: in order, within the bound,
// with nothing likelier left out, and with no room left that a chunk would fit.
func TestPlanModel(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		tr := new(Trace)
		for range 1 + rnd.IntN(12) {
			var run []uint32
			for i := range uint32(60) {
				if always := i < 25; always || rnd.IntN(60) > int(i) {
					run = append(run, i)
				}
			}
			rnd.Shuffle(min(5, len(run)), func(i, j int) { run[i], run[j] = run[j], run[i] })
			tr = tr.Merge(run)
		}
		plan := tr.Plan()
		left := slices.DeleteFunc(indexes(tr), func(i uint32) bool { return slices.Contains(plan, i) })
		if inOrder := slices.DeleteFunc(indexes(tr), func(i uint32) bool { return slices.Contains(left, i) }); !slices.Equal(plan, inOrder) {
			t.Fatalf("seed %d: %v is not in the order of %v", seed, plan, tr.chunks)
		}
		if waste := expected(tr, plan); waste*wasteShare > len(plan)*tr.runs {
			t.Errorf("seed %d: %d chunks are planned, %d/%d wasted", seed, len(plan), waste, tr.runs)
		}
		least := tr.runs
		runsOf := map[uint32]int{}
		for _, c := range tr.chunks {
			runsOf[c.Index] = bits.OnesCount8(c.Runs)
		}
		for _, i := range plan {
			least = min(least, runsOf[i])
		}
		for _, i := range left {
			if runsOf[i] > least {
				t.Errorf("seed %d: chunk %d of %d runs is left out, one of %d is not", seed, i, runsOf[i], least)
			}
			more := append(slices.Clone(plan), i)
			if 2*runsOf[i] >= tr.runs && runsOf[i] == least && expected(tr, more)*wasteShare <= len(more)*tr.runs {
				t.Errorf("seed %d: there is room for chunk %d", seed, i)
			}
		}
	}
}

// Starts that differ by chance: what is planned after each is touched by the
// next, but for the promised share.
func TestWasteOfStartsThatVary(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		start := func() (run []uint32) {
			for i := range uint32(400) {
				likely := 100
				if i%10 == 0 { // one in ten is touched now and then
					likely = int(i / 4)
				}
				if rnd.IntN(100) < likely {
					run = append(run, i)
				}
			}
			return run
		}
		tr := merged(start())
		planned, wasted, missed, touched := 0, 0, 0, 0
		for range 50 {
			plan, run := tr.Plan(), start()
			planned, touched = planned+len(plan), touched+len(run)
			for _, i := range plan {
				if !slices.Contains(run, i) {
					wasted++
				}
			}
			for _, i := range run {
				if !slices.Contains(plan, i) {
					missed++
				}
			}
			tr = tr.Merge(run)
		}
		if wasted*100 > planned*15 || missed*100 > touched*10 {
			t.Errorf("seed %d: of %d planned %d wasted, of %d touched %d missed", seed, planned, wasted, touched, missed)
		}
	}
}
