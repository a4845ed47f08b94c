package bench

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/internal/faults"
)

const (
	// far is what every answer of the zone takes longer.
	far = time.Millisecond
	// aheadRounds is how often each way to start is measured.
	aheadRounds = 12
	// recordedStarts are those that a trace is merged from.
	recordedStarts = 3
)

// aheadNumbers are those of --stats-json that prefetching shows in.
type aheadNumbers struct {
	Chunks   struct{ Cache, Zone, Origin int64 }
	Prefetch struct{ Chunks, Bytes, Used int64 }
}

// BenchmarkPrefetch compares starts with an empty worker cache, with and without
// a trace of earlier ones, and starts with a full cache: how much of the time
// that is lost to an empty cache does prefetching win back, and how much of what
// it fetches is never read?
func BenchmarkPrefetch(b *testing.B) {
	asRoot(b)
	for image, argv := range map[string][]string{
		"python": {"python3", "-c", `import numpy; print("ready", flush=True)`},
		"node":   {"node", "-e", `console.log("ready")`},
	} {
		b.Run(image, func(b *testing.B) { benchPrefetch(b, image, argv) })
	}
}

// farZone gives the --zone of five nodes, each behind a slow line of its own.
func farZone(b *testing.B, p *place) string {
	cmd := exec.Command(p.thaw, p.args("zone", "--dev", "5", "--flash-size", "256MiB")...)
	out, err := cmd.StdoutPipe()
	try(b, err, cmd.Start())
	b.Cleanup(func() {
		try(b, cmd.Process.Signal(syscall.SIGTERM))
		_ = cmd.Wait() // by the signal
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	try(b, err)
	var members []string
	for node := range strings.SplitSeq(strings.TrimSpace(line), ",") {
		proxy, err := faults.NewProxy(node, 1)
		try(b, err)
		b.Cleanup(func() { try(b, proxy.Close()) })
		proxy.Set(faults.Link{Delay: far})
		members = append(members, proxy.Addr())
	}
	return strings.Join(members, ",")
}

// aheadStarts is what starts of one kind took.
type aheadStarts struct {
	ready                   milliseconds
	fetched, fetchedAndRead int64 // chunks, of all starts
	asked                   int64 // chunks that reads had to wait for
}

func benchPrefetch(b *testing.B, image string, argv []string) {
	p := newPlace(b)
	b.Setenv("THAW_ZONE", farZone(b, p))
	timed(b, p.thaw, p.args("convert", "oci:"+corpus(b, image), "--name", image, "--prime")...)
	stats := filepath.Join(b.TempDir(), "stats.json")
	fromOrigin := int64(0)
	start := func(s *aheadStarts, empty bool, flags ...string) {
		if empty {
			try(b, os.RemoveAll(filepath.Join(p.state, "cache")))
		}
		args := append(append([]string{"run", "--stats-json", stats}, flags...), image)
		r := begin(b, p.thaw, p.args(append(args, argv...)...)...)
		r.end(b)
		var n aheadNumbers
		readJSON(b, stats, &n)
		s.ready.add(r.took)
		s.fetched += n.Prefetch.Chunks
		s.fetchedAndRead += n.Prefetch.Used
		s.asked += n.Chunks.Zone + n.Chunks.Origin
		fromOrigin += n.Chunks.Origin
	}
	for range recordedStarts {
		start(new(aheadStarts), true, "--ready", "ready")
	}
	var cold, ahead, warm aheadStarts
	var won Ratios
	for range aheadRounds {
		start(&cold, true, "--no-prefetch")
		start(&warm, false, "--no-prefetch")
		start(&ahead, true)
		c, w, a := last(cold.ready), last(warm.ready), last(ahead.ready)
		won = append(won, (c-a)/(c-w))
	}
	say("prefetch, %s, empty cache, %v to the zone: ready after %v; without %v; with a full cache %v; wins back %v of the difference, of medians %.2f",
		image, far, ahead.ready, cold.ready, warm.ready, won, (cold.ready.median()-ahead.ready.median())/(cold.ready.median()-warm.ready.median()))
	wasted := float64(ahead.fetched-ahead.fetchedAndRead) / float64(max(ahead.fetched, 1))
	say("prefetch, %s: of %d chunks fetched ahead %.1f %% were never read; reads waited for %.1f chunks a start, without for %.1f",
		image, ahead.fetched, 100*wasted, float64(ahead.asked)/aheadRounds, float64(cold.asked)/aheadRounds)
	if fromOrigin > 0 {
		say("prefetch, %s: %d chunks came from the origin, not from the zone: no fair comparison", image, fromOrigin)
	}
	b.ReportMetric((cold.ready.median()-ahead.ready.median())/(cold.ready.median()-warm.ready.median()), "of-difference")
	b.ReportMetric(wasted, "wasted")
}

func last(m milliseconds) float64 { return m[len(m)-1] }
