package top

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"thaw/cache"
	"thaw/host"
	"thaw/latency"
	"thaw/zone/node"
)

// at is a moment of the tests.
func at(seconds int) time.Time {
	return time.Date(2026, 1, 2, 3, 4, seconds, 0, time.UTC)
}

// agent is one that has given so many chunks from each tier.
func agent(name string, pid int, chunks [3]int64) host.ImageNumbers {
	n := host.ImageNumbers{Asked: host.Asked{Key: "key of " + name, PID: pid}, ID: "0123", Name: name, Mounted: true}
	for i, c := range []*cache.Count{&n.Stats.Cache, &n.Stats.Zone, &n.Stats.Origin} {
		var h latency.Histogram
		for range chunks[i] {
			h.Observe(time.Duration(i+1) * time.Millisecond)
		}
		*c = cache.Count{Chunks: chunks[i], Bytes: chunks[i] << 19, Hits: 2 * chunks[i], Latency: h.Snapshot()}
	}
	return n
}

func silent(n host.ImageNumbers) host.ImageNumbers {
	n.Err, n.Stats = errors.New("hangs"), cache.Stats{}
	return n
}

// given is how many chunks each tier gave, in the report of these agents.
func given(w *Watcher, second int, agents ...host.ImageNumbers) [3]int64 {
	r := w.Report(Sample{At: at(second), Numbers: host.Numbers{Images: agents}})
	return [3]int64{r.Tiers[0].Chunks, r.Tiers[1].Chunks, r.Tiers[2].Chunks}
}

// What happened is what agents counted, whoever comes, hangs, goes, or takes
// another's place.
func TestWatcher(t *testing.T) {
	var w Watcher
	for i, step := range []struct {
		why    string
		agents []host.ImageNumbers
		want   [3]int64
	}{
		{"the first report is of all", []host.ImageNumbers{agent("a", 1, [3]int64{10, 20, 30})}, [3]int64{10, 20, 30}},
		{"then what was added", []host.ImageNumbers{agent("a", 1, [3]int64{15, 20, 31})}, [3]int64{5, 0, 1}},
		{"a new one, and one that hangs from its start", []host.ImageNumbers{agent("a", 1, [3]int64{15, 20, 31}), agent("b", 2, [3]int64{1, 2, 3}), silent(agent("c", 3, [3]int64{}))}, [3]int64{1, 2, 3}},
		{"what the one that hung did is of no moment", []host.ImageNumbers{agent("a", 1, [3]int64{15, 20, 31}), silent(agent("b", 2, [3]int64{})), agent("c", 3, [3]int64{1000, 1000, 1000})}, [3]int64{}},
		{"what one did while it hung is told later", []host.ImageNumbers{agent("b", 2, [3]int64{2, 2, 3}), agent("c", 3, [3]int64{1000, 1000, 1001})}, [3]int64{1, 0, 1}},
		{"another in the place of one begins at zero", []host.ImageNumbers{agent("b", 4, [3]int64{1, 1, 1}), agent("c", 3, [3]int64{1000, 1000, 1001})}, [3]int64{1, 1, 1}},
		{"all gone", nil, [3]int64{}},
	} {
		if got := given(&w, i, step.agents...); got != step.want {
			t.Errorf("%s: %v, want %v", step.why, got, step.want)
		}
	}
}

// sample is a machine with some of all.
func sample(second int, more int64) Sample {
	a := agent("app\n\x1b[31m", 1, [3]int64{90 + more, 8 + more, 2})
	a.Stats.Prefetched, a.Stats.PrefetchUsed = cache.Amount{Chunks: 12}, cache.Amount{Chunks: 9}
	killed := agent("dead", 2, [3]int64{})
	killed.Err = os.ErrProcessDone
	f := host.FetcherNumbers{Asked: host.Asked{Key: "f"}, Origin: "s3://bucket"}
	f.Stats.Folder = cache.FolderStats{Used: 3 << 20, Limit: 10 << 30, Evicted: 4}
	f.Stats.LastTier = cache.QueueStats{Limit: 64, Busy: 5, Waiting: 6, GaveUp: 7, SlowDowns: 8}
	hangs := host.FetcherNumbers{Asked: host.Asked{Key: "g", Err: errors.New("no answer")}}
	var s node.Stats
	s.State, s.Memory.Used, s.Memory.Limit, s.Memory.Stripes = "up", 1<<20, 8<<20, 3
	s.Gets.Memory, s.Gets.Missed = 3, 1
	return Sample{
		At:      at(second),
		Numbers: host.Numbers{Images: []host.ImageNumbers{a, killed}, Fetchers: []host.FetcherNumbers{f, hangs}},
		Nodes:   []Node{{Node: "127.0.0.1:7070", State: "up", Stats: &s}, {Node: "127.0.0.1:7071", State: "down", Error: "refused"}},
	}
}

func TestTable(t *testing.T) {
	var w Watcher
	var b strings.Builder
	if err := w.Report(sample(0, 0)).Write(&b); err != nil {
		t.Fatal(err)
	}
	const first = `TIER    HITS  CHUNKS  BYTES     P50     P99     HIT RATE  ERRORS
cache   180   90      45.0 MiB  1.0 ms  1.0 ms  90.0 %    0
zone    16    8       4.0 MiB   2.0 ms  2.0 ms  80.0 %    0
origin  4     2       1.0 MiB   4.1 ms  4.1 ms  -         0

IMAGE       INSTANCES  CHUNKS  BYTES     CACHE  ZONE  ORIGIN  AHEAD  IN VAIN
app; ?[31m  0          100     50.0 MiB  90     8     2       12     3

ORIGIN       IN FLIGHT  WAITING  GAVE UP  SLOW-DOWNS  CACHE                EVICTED
s3://bucket  5 of 64    6        7        8           3.0 MiB of 10.0 GiB  4

NODE            STATE  MEMORY              FLASH  STRIPES  GETS  HITS
127.0.0.1:7070  up     1.0 MiB of 8.0 MiB  none   3        4     75.0 %
127.0.0.1:7071  down   refused

agent of image dead was killed
fetcher g does not answer: no answer
`
	if got := b.String(); got != first {
		t.Errorf("got\n%swant\n%s", got, first)
	}
	lines := w.Report(sample(2, 10)).lines()
	if want := "TIER    HITS/S  CHUNKS/S  BYTES/S  P50     P99     HIT RATE  ERRORS/S"; lines[0] != want {
		t.Errorf("%q", lines[0])
	}
	if want := "cache   10.0    5.0       2.5 MiB  1.0 ms  1.0 ms  50.0 %    0.0"; lines[1] != want {
		t.Errorf("%q", lines[1])
	}
	if lines[3] != "origin  0.0     0.0       0 B      -       -       -         0.0" {
		t.Errorf("%q", lines[3])
	}
}

func TestJSON(t *testing.T) {
	var w Watcher
	w.Report(sample(0, 0))
	text, err := json.Marshal(w.Report(sample(2, 10)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"time":"2026-01-02T03:04:02Z","seconds":2,`, `{"tier":"cache","hits":20,"chunks":10,"bytes":5242880,"errors":0,"p50_ms":1.024,"p99_ms":1.024,"hit_rate":0.5}`,
		`"waiting":6`, `"prefetched":12,"prefetch_used":9`, `"silent":["agent of image dead was killed",`, `{"node":"127.0.0.1:7071","state":"down","error":"refused"}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	if text, err = json.Marshal(new(Watcher).Report(Sample{At: at(0)})); err != nil || !strings.Contains(string(text), `"images":[],"fetchers":[]}`) {
		t.Errorf("%s, %v", text, err)
	}
}

func TestDigits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{short(0), "-"}, {short(0.064), "64 µs"}, {short(2.84), "2.8 ms"}, {short(512), "512 ms"}, {short(60_000), "60 s"},
		{cut("µs and more", 2), "µs"}, {cut("short", 80), "short"}, {cut("x", 0), ""},
	} {
		if c.got != c.want {
			t.Errorf("%q, want %q", c.got, c.want)
		}
	}
}

// A report of all zeros has no rates, and asks nobody.
func TestNothing(t *testing.T) {
	var w Watcher
	var b strings.Builder
	if err := w.Report(Sample{At: at(0)}).Write(&b); err != nil {
		t.Fatal(err)
	}
	const want = `TIER    HITS  CHUNKS  BYTES  P50  P99  HIT RATE  ERRORS
cache   0     0       0 B    -    -    -         0
zone    0     0       0 B    -    -    -         0
origin  0     0       0 B    -    -    -         0
`
	if b.String() != want {
		t.Errorf("%s", b.String())
	}
}

// A tier's failures are told with its corrupt answers, and no tier's with
// another's.
func TestErrors(t *testing.T) {
	a := agent("a", 1, [3]int64{})
	a.Stats.Cache.Corrupt, a.Stats.Zone.Errors, a.Stats.Origin.Errors, a.Stats.Origin.Corrupt = 1, 2, 3, 4
	var w Watcher
	r := w.Report(Sample{At: at(0), Numbers: host.Numbers{Images: []host.ImageNumbers{a}}})
	if r.Tiers[0].Errors != 1 || r.Tiers[1].Errors != 2 || r.Tiers[2].Errors != 7 {
		t.Errorf("%+v", r.Tiers)
	}
}

// An image that is about to be mounted counts, and is not listed.
func TestUnmounted(t *testing.T) {
	a := agent("a", 1, [3]int64{1, 2, 3})
	a.Mounted = false
	var w Watcher
	r := w.Report(Sample{At: at(0), Numbers: host.Numbers{Images: []host.ImageNumbers{a}}})
	if len(r.Images) != 0 || r.Tiers[2].Chunks != 3 {
		t.Errorf("%+v", r)
	}
}
