// Package top shows people the numbers of one machine: as a table, and live in
// a terminal.
package top

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"thaw/cache"
	"thaw/host"
	"thaw/metrics"
	"thaw/text"
	"thaw/zone"
	"thaw/zone/node"
)

// Sample is how things are at a moment.
type Sample struct {
	At      time.Time
	Numbers host.Numbers
	Nodes   []Node // of the zone, if there is one
}

// Node is one node of the zone.
type Node struct {
	Node  string      `json:"node"`
	State string      `json:"state"` // up, draining or down
	Error string      `json:"error,omitempty"`
	Stats *node.Stats `json:"stats,omitempty"`
}

// Report is what is shown of a moment and of the time before it.
type Report struct {
	Time     time.Time `json:"time"`
	Seconds  float64   `json:"seconds"` // of which Tiers tell; 0: since each agent was started
	Tiers    []Tier    `json:"tiers"`   // nearest first
	Images   []Image   `json:"images"`
	Fetchers []Fetcher `json:"fetchers"`
	Nodes    []Node    `json:"nodes,omitempty"`
	Silent   []string  `json:"silent,omitempty"` // who does not answer, and why
}

// Tier is what a tier gave to programs.
type Tier struct {
	Tier    string   `json:"tier"`
	Hits    int64    `json:"hits"`   // reads of chunks
	Chunks  int64    `json:"chunks"` // chunks touched for the first time
	Bytes   int64    `json:"bytes"`  // their sealed bytes
	Errors  int64    `json:"errors"`
	P50     float64  `json:"p50_ms"` // time to give a chunk that was neither open nor in memory
	P99     float64  `json:"p99_ms"`
	HitRate *float64 `json:"hit_rate,omitempty"` // Chunks ÷ those that nearer tiers did not have; of cache and zone
}

// Image is an image that is mounted.
type Image struct {
	Image        string    `json:"image"`
	ID           string    `json:"image_id"`
	Since        time.Time `json:"since"`
	Instances    int       `json:"instances"`
	Chunks       int64     `json:"chunks"`
	Bytes        int64     `json:"bytes"`
	CacheChunks  int64     `json:"cache_chunks"`
	ZoneChunks   int64     `json:"zone_chunks"`
	OriginChunks int64     `json:"origin_chunks"`
	Prefetched   int64     `json:"prefetched"`    // chunks
	PrefetchUsed int64     `json:"prefetch_used"` // of those
}

// Fetcher is what fills a cache.
type Fetcher struct {
	Fetcher string            `json:"fetcher"`
	Origin  string            `json:"origin"`
	Cache   cache.FolderStats `json:"cache"`
	Queue   cache.QueueStats  `json:"queue"` // at the origin
	Zone    *zone.Stats       `json:"zone,omitempty"`
}

// Watcher makes reports. Its zero value is ready; it is for one goroutine.
type Watcher struct {
	before time.Time
	last   map[process]*cache.Stats // of agents; nil for one that has not answered yet
}

// process tells an agent from the one that takes its place.
type process struct {
	key string
	pid int
}

// Report tells what happened since the last one; the first, since the start of
// each agent.
func (w *Watcher) Report(s Sample) *Report {
	r := &Report{Time: s.At, Nodes: s.Nodes, Images: []Image{}, Fetchers: []Fetcher{}}
	if !w.before.IsZero() {
		r.Seconds = s.At.Sub(w.before).Seconds()
	}
	instances := map[string]int{}
	for _, i := range s.Numbers.Instances {
		if i.Kept() {
			instances[i.ImageOf]++
		}
	}
	var sum cache.Stats
	now := map[process]*cache.Stats{}
	for _, i := range s.Numbers.Images {
		id := process{i.Key, i.PID}
		before, listed := w.last[id]
		if i.Err != nil {
			r.silent("agent of image "+i.Name, i.Err)
			now[id] = before
			continue
		}
		now[id] = &i.Stats
		switch {
		case before != nil:
			grow(&sum, &i.Stats, before)
		case !listed: // it is new, or this is the first report
			grow(&sum, &i.Stats, new(cache.Stats))
		}
		if i.Mounted {
			r.Images = append(r.Images, imageOf(&i, instances[i.Key]))
		}
	}
	for _, f := range s.Numbers.Fetchers {
		if f.Err != nil {
			r.silent("fetcher "+f.Key, f.Err)
			continue
		}
		z := metrics.Zone(&f.Stats)
		if z != nil && z.Unheard != "" {
			r.Silent = append(r.Silent, "zone of fetcher "+f.Key+": no node has answered it: "+z.Unheard)
		}
		r.Fetchers = append(r.Fetchers, Fetcher{f.Key, f.Origin, f.Stats.Folder, f.Stats.LastTier, z})
	}
	w.before, w.last = s.At, now
	r.tiers(&sum)
	return r
}

// silent notes a process that has no numbers.
func (r *Report) silent(who string, err error) {
	why := "does not answer: " + err.Error()
	if errors.Is(err, os.ErrProcessDone) {
		why = "was killed"
	}
	r.Silent = append(r.Silent, who+" "+why)
}

// grow adds what was counted from before to now.
func grow(sum, now, before *cache.Stats) {
	for _, c := range [][3]*cache.Count{{&sum.Cache, &now.Cache, &before.Cache}, {&sum.Zone, &now.Zone, &before.Zone}, {&sum.Origin, &now.Origin, &before.Origin}} {
		s, n, b := c[0], c[1], c[2]
		s.Chunks += n.Chunks - b.Chunks
		s.Bytes += n.Bytes - b.Bytes
		s.Hits += n.Hits - b.Hits
		s.Errors += n.Errors + n.Corrupt - b.Errors - b.Corrupt
		s.Latency = s.Latency.Add(n.Latency.Since(b.Latency))
	}
}

func (r *Report) tiers(s *cache.Stats) {
	left := s.Cache.Chunks + s.Zone.Chunks + s.Origin.Chunks
	for _, t := range []struct {
		tier cache.Tier
		*cache.Count
	}{{cache.Cache, &s.Cache}, {cache.Zone, &s.Zone}, {cache.Origin, &s.Origin}} {
		tier := Tier{
			Tier: t.tier.String(), Hits: t.Hits, Chunks: t.Chunks, Bytes: t.Bytes, Errors: t.Errors,
			P50: milliseconds(t.Latency.Quantile(0.5)), P99: milliseconds(t.Latency.Quantile(0.99)),
		}
		if left > 0 && t.tier != cache.Origin {
			rate := float64(t.Chunks) / float64(left)
			tier.HitRate = &rate
		}
		left -= t.Chunks
		r.Tiers = append(r.Tiers, tier)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func imageOf(i *host.ImageNumbers, instances int) Image {
	s := &i.Stats
	return Image{
		Image: i.Name, ID: i.ID, Since: i.Since, Instances: instances,
		Chunks:      s.Cache.Chunks + s.Zone.Chunks + s.Origin.Chunks,
		Bytes:       s.Cache.Bytes + s.Zone.Bytes + s.Origin.Bytes,
		CacheChunks: s.Cache.Chunks, ZoneChunks: s.Zone.Chunks, OriginChunks: s.Origin.Chunks,
		Prefetched: s.Prefetched.Chunks, PrefetchUsed: s.PrefetchUsed.Chunks,
	}
}

// Write writes the report as a table.
func (r *Report) Write(w io.Writer) error {
	_, err := w.Write([]byte(strings.Join(r.lines(), "\n") + "\n"))
	return err
}

// lines gives the table.
func (r *Report) lines() []string {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	per, of := "", func(n int64) string { return fmt.Sprint(n) }
	amount := text.Bytes
	if r.Seconds > 0 {
		per = "/S"
		of = func(n int64) string { return fmt.Sprintf("%.1f", float64(n)/r.Seconds) }
		amount = func(n int64) string { return text.Bytes(int64(float64(n) / r.Seconds)) }
	}
	fmt.Fprintf(t, "TIER\tHITS%s\tCHUNKS%[1]s\tBYTES%[1]s\tP50\tP99\tHIT RATE\tERRORS%[1]s\n", per)
	for _, tier := range r.Tiers {
		rate := "-"
		if tier.HitRate != nil {
			rate = fmt.Sprintf("%.1f %%", 100**tier.HitRate)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", tier.Tier, of(tier.Hits), of(tier.Chunks), amount(tier.Bytes), short(tier.P50), short(tier.P99), rate, of(tier.Errors))
	}
	section(t, len(r.Images), "IMAGE\tINSTANCES\tCHUNKS\tBYTES\tCACHE\tZONE\tORIGIN\tAHEAD\tIN VAIN")
	for _, i := range r.Images {
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%d\t%d\t%d\t%d\t%d\n", text.Line(i.Image), i.Instances, i.Chunks, text.Bytes(i.Bytes),
			i.CacheChunks, i.ZoneChunks, i.OriginChunks, i.Prefetched, i.Prefetched-i.PrefetchUsed)
	}
	section(t, len(r.Fetchers), "ORIGIN\tIN FLIGHT\tWAITING\tGAVE UP\tSLOW-DOWNS\tCACHE\tEVICTED")
	for _, f := range r.Fetchers {
		used := "?"
		if f.Cache.Used >= 0 {
			used = text.Bytes(f.Cache.Used)
		}
		fmt.Fprintf(t, "%s\t%d of %.0f\t%d\t%d\t%d\t%s of %s\t%d\n", text.Line(f.Origin), f.Queue.Busy, f.Queue.Limit, f.Queue.Waiting, f.Queue.GaveUp, f.Queue.SlowDowns,
			used, text.Bytes(f.Cache.Limit), f.Cache.Evicted)
	}
	_ = t.Flush() // b takes all
	if len(r.Nodes) > 0 {
		b.WriteByte('\n')
		_ = WriteNodes(&b, r.Nodes)
	}
	for i, s := range r.Silent {
		if i == 0 {
			b.WriteByte('\n')
		}
		b.WriteString(text.Line(s) + "\n")
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// section begins a table of its own, with columns of its own width, unless it
// has no rows.
func section(t *tabwriter.Writer, rows int, head string) {
	if rows > 0 {
		fmt.Fprintf(t, "\n%s\n", head)
	}
}

// WriteNodes writes a table of nodes.
func WriteNodes(w io.Writer, nodes []Node) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATE\tMEMORY\tFLASH\tSTRIPES\tGETS\tHITS")
	for i := range nodes {
		nodes[i].line(t)
	}
	return t.Flush()
}

// line writes a row for the node.
func (n *Node) line(w io.Writer) {
	if n.Stats == nil {
		fmt.Fprintf(w, "%s\t%s\t%s\n", text.Line(n.Node), n.State, text.Line(strings.TrimSpace(n.Error)))
		return
	}
	g := &n.Stats.Gets
	hits, rate := g.Memory+g.Flash, "-"
	if gets := hits + g.Missed; gets > 0 {
		rate = fmt.Sprintf("%.1f %%", 100*float64(hits)/float64(gets))
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\n", text.Line(n.Node), text.Line(n.State), use(n.Stats.Memory), use(n.Stats.Flash),
		max(n.Stats.Memory.Stripes, n.Stats.Flash.Stripes), hits+g.Missed, rate)
}

// use says what is used of what may be.
func use(t node.Tier) string {
	if t.Limit == 0 {
		return "none"
	}
	return text.Bytes(t.Used) + " of " + text.Bytes(t.Limit)
}

// short gives milliseconds in a few digits.
func short(ms float64) string {
	switch {
	case ms == 0:
		return "-"
	case ms < 1:
		return fmt.Sprintf("%.0f µs", ms*1000)
	case ms < 10:
		return fmt.Sprintf("%.1f ms", ms)
	case ms < 10_000:
		return fmt.Sprintf("%.0f ms", ms)
	}
	return fmt.Sprintf("%.0f s", ms/1000)
}
