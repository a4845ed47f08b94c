package bench

import (
	"runtime"
	"strconv"
	"testing"
)

const (
	// together is how many instances start at once and are alive at once, and
	// togetherHold how long each handler sleeps, so that the last has started
	// before the first ends.
	together     = 200
	togetherHold = 120
	// aloneStarts are starts of one instance each, for comparison.
	aloneStarts = 10
)

// BenchmarkTogether starts many instances at once, each held by its handler, and
// compares with starts of one alone.
func BenchmarkTogether(b *testing.B) {
	asRoot(b)
	p := newPlace(b)
	p.platform(b)
	row := func(more ...string) coldRow {
		return p.coldstarts(b, append([]string{"--small", "oci:" + corpus(b, "fn-go"), "--rows", "small", "--start", "partial"}, more...)...)[0]
	}
	alone := row("--parallel", "1", "--rounds", strconv.Itoa(aloneStarts), "--hold", "0s")
	all := row("--parallel", strconv.Itoa(together), "--hold", strconv.Itoa(togetherHold)+"s")
	wall := all.Total.Max - togetherHold*1000
	ideal := together * alone.CPU / float64(runtime.NumCPU())
	say("%d starts at once, each held: %d instances together (at least %d), %d failed; init p95 %.0f ms, %.2f × the median of one alone (at most 3)",
		together, all.Cold, together-1, all.Failed, all.Init.P95, all.Init.P95/alone.Init.Median)
	say("%d starts at once: %.1f s until the last was done, %.2f × their processor time alone, %.0f ms each, over the cores (at most 1.3)", together, wall/1000, wall/ideal, alone.CPU)
	if all.Cold < together-1 {
		b.Errorf("%d of %d events had an instance of their own", all.Cold, together)
	}
	b.ReportMetric(wall/ideal, "wall/ideal")
}
