package metrics

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"thaw/cache"
	"thaw/host"
	"thaw/latency"
	"thaw/zone"
	"thaw/zone/node"
)

var update = flag.Bool("update", false, "write the golden file anew")

// fill sets each number in v to one of its own, so that none can stand for
// another.
func fill(v reflect.Value, next *int) {
	*next++
	switch {
	case v.Type() == reflect.TypeFor[latency.Snapshot]():
		v.Set(reflect.ValueOf(latency.Snapshot{Counts: []uint64{1, uint64(*next), 2}, Sum: time.Duration(*next) * time.Millisecond}))
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case v.CanInt():
		v.SetInt(int64(*next))
	case v.CanUint():
		v.SetUint(uint64(*next))
	case v.CanFloat():
		v.SetFloat(float64(*next))
	}
}

// full is a machine with one of each, all of whose numbers differ.
func full(t *testing.T) host.Numbers {
	t.Helper()
	since := time.Unix(1_700_000_000, 0)
	f := host.FetcherNumbers{Asked: host.Asked{Key: "f1", Since: since}, Origin: "s3://bucket/x", Cache: "/cache"}
	i := host.ImageNumbers{Asked: host.Asked{Key: "i1", Since: since}, ID: "abc", Name: "app\xff\n\"x\"", Mounted: true}
	z := zone.Stats{Nodes: []zone.NodeStats{{}}}
	next := 100
	fill(reflect.ValueOf(&f.Stats).Elem(), &next)
	fill(reflect.ValueOf(&i.Stats).Elem(), &next)
	fill(reflect.ValueOf(&z).Elem(), &next)
	fill(reflect.ValueOf(&z.Nodes[0]).Elem(), &next)
	z.Nodes[0].Addr = "127.0.0.1:7070"
	i.Stats.Prefetched = cache.Amount{Chunks: 1000, Bytes: 100000}
	more, err := json.Marshal(map[string]any{"zone": z})
	if err != nil {
		t.Fatal(err)
	}
	f.Stats.More = more
	return host.Numbers{Fetchers: []host.FetcherNumbers{f}, Images: []host.ImageNumbers{i}}
}

func of(n host.Numbers) *Exporter {
	return New(func(context.Context) (host.Numbers, error) { return n, nil })
}

// text is that of one scrape, parsed back and without a fault.
func text(t *testing.T, e *Exporter) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	var b bytes.Buffer
	if err := e.Write(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(b.Bytes())).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
	return b.String(), families
}

// The text is the golden one, which people's dashboards and alerts stand on.
func TestGolden(t *testing.T) {
	got, _ := text(t, of(full(t)))
	const golden = "testdata/full.prom"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("not %s; if that is wanted: go test ./metrics -update\n%s", golden, got)
	}
}

// Each number that processes give is in the text once.
func TestEachNumber(t *testing.T) {
	n := full(t)
	_, families := text(t, of(n))
	seen := map[float64]int{}
	for name, f := range families {
		for _, m := range f.GetMetric() {
			switch f.GetType() {
			case dto.MetricType_HISTOGRAM:
				seen[m.GetHistogram().GetSampleSum()*1000]++
			case dto.MetricType_COUNTER, dto.MetricType_GAUGE:
				if !strings.HasPrefix(name, "thaw_prefetch_wasted") { // a difference
					seen[m.GetCounter().GetValue()+m.GetGauge().GetValue()]++
				}
			}
		}
	}
	check := func(what string, v any) {
		leaves(reflect.ValueOf(v), what, func(path string, n float64) {
			if seen[n] != 1 {
				t.Errorf("%s, here %v, is there %d times", path, n, seen[n])
			}
		})
	}
	f := n.Fetchers[0].Stats
	z := *Zone(&f)
	z.K, z.N = 0, 0 // labels
	f.Prefetched, f.PrefetchUsed, f.Decrypt = cache.Amount{}, cache.Amount{}, latency.Snapshot{}
	check("fetcher", f)
	check("zone client", z)
	i := n.Images[0].Stats
	i.Queue, i.Keep = latency.Snapshot{}, latency.Snapshot{}
	check("agent", i)
}

// leaves calls f with each number in v but zeros.
func leaves(v reflect.Value, path string, f func(path string, n float64)) {
	switch {
	case v.Type() == reflect.TypeFor[latency.Snapshot]():
		if s := v.Interface().(latency.Snapshot); s.Sum > 0 {
			f(path, s.Sum.Seconds()*1000)
		}
	case v.Type() == reflect.TypeFor[json.RawMessage]():
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			leaves(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			leaves(v.Index(i), fmt.Sprintf("%s[%d]", path, i), f)
		}
	case v.CanInt() && v.Int() != 0:
		f(path, float64(v.Int()))
	case v.CanUint() && v.Uint() != 0:
		f(path, float64(v.Uint()))
	case v.CanFloat() && v.Float() != 0:
		f(path, v.Float())
	}
}

// A histogram's buckets are cumulative, end with all, and their bounds are of
// seconds.
func TestHistogram(t *testing.T) {
	var h latency.Histogram
	for _, d := range []time.Duration{time.Microsecond, 3 * time.Millisecond, time.Hour} {
		h.Observe(d)
	}
	n := host.Numbers{Images: []host.ImageNumbers{{Asked: host.Asked{Key: "i"}, Stats: cache.Stats{Zone: cache.Count{Latency: h.Snapshot()}}}}}
	_, families := text(t, of(n))
	for _, m := range families["thaw_agent_get_seconds"].GetMetric() {
		got := m.GetHistogram()
		tier := m.GetLabel()[2].GetValue()
		if tier != "zone" {
			if got.GetSampleCount() != 0 {
				t.Errorf("%s: %v", tier, got)
			}
			continue
		}
		want := map[float64]uint64{1e-6: 1, 0.002048: 1, 0.004096: 2, 134.217728: 2}
		for _, b := range got.GetBucket() {
			if w, ok := want[b.GetUpperBound()]; ok && w != b.GetCumulativeCount() {
				t.Errorf("up to %v: %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), w)
			}
			delete(want, b.GetUpperBound())
		}
		if len(want) > 0 || got.GetSampleCount() != 3 || got.GetSampleSum() < 3600 {
			t.Errorf("left %v, %v", want, got)
		}
	}
}

// Who does not answer has no numbers, and is counted; who was killed is not.
func TestUnanswered(t *testing.T) {
	n := full(t)
	e := New(func(context.Context) (host.Numbers, error) { return n, nil })
	value := func(name string) float64 {
		_, families := text(t, e)
		sum := 0.0
		for _, m := range families[name].GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		return sum
	}
	if got := value("thaw_agent_up") + value("thaw_fetcher_up") + value("thaw_images_mounted"); got != 3 {
		t.Errorf("up: %v", got)
	}
	n.Fetchers[0].Err, n.Images[0].Err = errors.New("hangs"), os.ErrProcessDone
	if got := value("thaw_agent_up") + value("thaw_fetcher_up") + value("thaw_images_mounted"); got != 0 {
		t.Errorf("up: %v", got)
	}
	if got := value("thaw_unanswered_total"); got != 4 { // three scrapes before this one
		t.Errorf("unanswered: %v", got)
	}
	for _, name := range []string{"thaw_agent_chunks_total", "thaw_fetcher_chunks_total", "thaw_zone_client_hits_total"} {
		if _, families := text(t, e); families[name] != nil {
			t.Errorf("%s: %v", name, families[name])
		}
	}
}

// A scrape too many is refused, a failed one says why, and more than text is
// there for who asks for it.
func TestServe(t *testing.T) {
	var mu sync.Mutex // guards fails
	fails := errors.New("no such folder")
	arrived, leave := make(chan struct{}), make(chan struct{})
	e := New(func(context.Context) (host.Numbers, error) {
		arrived <- struct{}{}
		<-leave
		mu.Lock()
		defer mu.Unlock()
		return host.Numbers{}, fails
	})
	s := httptest.NewServer(e)
	defer s.Close()
	get := func(want int) string {
		res, err := http.Get(s.URL)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != want {
			t.Errorf("%s: %s, %v", res.Status, b, err)
		}
		return string(b)
	}
	var work sync.WaitGroup
	for range maxScrapes {
		work.Go(func() {
			if got := get(http.StatusInternalServerError); !strings.Contains(got, "no such folder") {
				t.Error(got)
			}
		})
	}
	for range maxScrapes {
		<-arrived
	}
	get(http.StatusServiceUnavailable)
	close(leave)
	work.Wait()
	mu.Lock()
	fails = nil
	mu.Unlock()
	work.Go(func() { <-arrived })
	if got := get(http.StatusOK); !strings.Contains(got, "\nthaw_images_mounted 0\n") {
		t.Error(got)
	}
	work.Wait()
}

// docs/metrics.md lists what there is, of this exporter and of a zone node, with
// the kind and the labels that it has.
func TestDocs(t *testing.T) {
	_, have := text(t, of(full(t)))
	n, err := node.Open(node.Options{Memory: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	w := httptest.NewRecorder()
	n.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	ofNode, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range ofNode {
		if strings.HasPrefix(name, "thaw_") {
			have[name] = f
		}
	}
	page, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	ours, _, _ := strings.Cut(string(page), "\n## The function platform\n") // of which cmd/thaw has a test
	rows := regexp.MustCompile("(?m)^\\| `(thaw_\\w+)` \\| (\\w+) \\| ([^|]*) \\| ([^|]+) \\| ([^|]+) \\|$").FindAllStringSubmatch(ours, -1)
	documented := map[string]bool{}
	for _, row := range rows {
		name, f := row[1], have[row[1]]
		if documented[name] || f == nil {
			t.Errorf("%s: there are none, or it is listed twice", name)
			continue
		}
		documented[name] = true
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		if kind := strings.ToLower(f.GetType().String()); row[2] != kind || row[3] != strings.Join(names, ", ") {
			t.Errorf("%s: is a %s with the labels %v, documented as a %s with %s", name, kind, names, row[2], row[3])
		}
		if unit := strings.TrimSpace(row[4]); strings.Contains(name, "_seconds") != (unit == "seconds") || strings.Contains(name, "_bytes") != (unit == "bytes") {
			t.Errorf("%s: documented in %s", name, unit)
		}
	}
	for name := range have {
		if !documented[name] {
			t.Errorf("docs/metrics.md does not list %s: %s", name, have[name].GetHelp())
		}
	}
}
