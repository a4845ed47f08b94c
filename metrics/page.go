package metrics

import (
	"encoding/json"
	"maps"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"thaw/cache"
	"thaw/host"
	"thaw/latency"
	"thaw/zone"
)

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

// page collects the metrics of one scrape.
type page []prometheus.Metric

type labels = prometheus.Labels

// number is a metric that is one.
type number struct {
	name, help string
	kind       prometheus.ValueType
	value      float64
}

// Describe tells nothing beforehand: what there is changes.
func (page) Describe(chan<- *prometheus.Desc) {}

// Collect gives all of it.
func (p page) Collect(out chan<- prometheus.Metric) {
	for _, m := range p {
		out <- m
	}
}

func (p *page) number(n number, l labels) {
	*p = append(*p, prometheus.MustNewConstMetric(prometheus.NewDesc(n.name, n.help, nil, l), n.kind, n.value))
}

func (p *page) numbers(l labels, all []number) {
	for _, n := range all {
		p.number(n, l)
	}
}

// bucketStep takes every second of latency's bounds: powers of 2. An image has
// five histograms, and a machine hundreds of images.
const bucketStep = 2

// histogram gives counts of package latency as Prometheus wants them:
// cumulative, in seconds.
func (p *page) histogram(name, help string, s latency.Snapshot, l labels) {
	cumulative := map[float64]uint64{}
	var sum uint64
	for i, bound := range latency.Bounds() {
		if i < len(s.Counts) {
			sum += s.Counts[i]
		}
		if i%bucketStep == 0 {
			cumulative[bound.Seconds()] = sum
		}
	}
	*p = append(*p, prometheus.MustNewConstHistogram(prometheus.NewDesc(name, help, nil, l), s.Count(), s.Sum.Seconds(), cumulative))
}

// with adds a label.
func with(l labels, name, value string) labels {
	l = maps.Clone(l)
	l[name] = value
	return l
}

// machine tells what runs.
func (p *page) machine(n *host.Numbers) {
	mounted := 0
	for _, i := range n.Images {
		if i.Mounted && i.Err == nil {
			mounted++
		}
	}
	p.number(number{"thaw_images_mounted", "Images that are mounted, each with an agent that answers.", gauge, float64(mounted)}, nil)
	type group struct{ kind, state string }
	groups := map[group]int{}
	for _, kind := range []string{host.KindRun, host.KindMount} {
		groups[group{kind, "running"}], groups[group{kind, "left_over"}] = 0, 0
	}
	for _, i := range n.Instances {
		if i.Kept() {
			groups[group{i.Kind, "running"}]++
		} else {
			groups[group{i.Kind, "left_over"}]++
		}
	}
	for g, count := range groups {
		p.number(number{"thaw_instances", "Containers (kind run) and mounted folders (mount); left over: whoever kept it was killed.", gauge, float64(count)},
			labels{"kind": g.kind, "state": g.state})
	}
}

// fetcher tells what a fetcher says.
func (p *page) fetcher(f *host.FetcherNumbers) {
	l := labels{"fetcher": f.Key}
	p.number(number{"thaw_fetcher_info", "Which origin and cache folder the fetcher serves.", gauge, 1},
		labels{"fetcher": f.Key, "origin": valid(f.Origin), "cache": valid(f.Cache)})
	if f.Err != nil {
		return
	}
	s, q := &f.Stats, &f.Stats.LastTier
	p.tiers("fetcher", &s.Stats, l)
	for _, stage := range []struct {
		name string
		s    latency.Snapshot
	}{{"queue", s.Queue}, {"hash", s.Hash}, {"keep", s.Keep}} {
		p.histogram("thaw_fetcher_stage_seconds", "Time of a chunk in a stage: waiting for a place at the origin, hashing, storing in the cache folder.", stage.s, with(l, "stage", stage.name))
	}
	p.numbers(l, []number{
		{"thaw_fetcher_connections", "Connections of agents.", gauge, float64(s.Connections)},
		{"thaw_fetcher_requests", "Requests for chunks under way.", gauge, float64(s.Requests)},
		{"thaw_fetcher_chunks", "Chunks under way: many requests may wait for one.", gauge, float64(s.Fetching)},
		{"thaw_fetcher_touched_total", "Uses of chunks in the cache folder that agents reported.", counter, float64(s.Touched)},
		{"thaw_cache_limit_bytes", "Bytes that chunks in the cache folder may take.", gauge, float64(s.Folder.Limit)},
		{"thaw_cache_evicted_total", "Chunks removed from the cache folder by this fetcher to make room.", counter, float64(s.Folder.Evicted)},
		{"thaw_cache_corrupt_total", "Files in the cache folder that did not hold their chunk, and were removed.", counter, float64(s.Folder.Corrupt)},
		{"thaw_cache_failures_total", "Chunks that could not be stored in the cache folder.", counter, float64(s.Folder.Failures)},
		{"thaw_origin_requests", "Requests to the origin in flight.", gauge, float64(q.Busy)},
		{"thaw_origin_prefetches", "Requests in flight that nobody waits for.", gauge, float64(q.Prefetches)},
		{"thaw_origin_waiting", "Chunks that wait for a place at the origin, oldest start first.", gauge, float64(q.Waiting)},
		{"thaw_origin_limit", "Requests that may be in flight now: fewer after a slow-down.", gauge, q.Limit},
		{"thaw_origin_limit_max", "Requests that may be in flight when nothing is wrong.", gauge, float64(q.Most)},
		{"thaw_origin_held_bytes", "Bytes of chunks from the origin in memory or expected.", gauge, float64(q.Bytes)},
		{"thaw_origin_gave_up_total", "Chunks refused because their time was over before their turn.", counter, float64(q.GaveUp)},
		{"thaw_origin_slow_downs_total", "Times that the origin asked for fewer requests.", counter, float64(q.SlowDowns)},
	})
	if s.Folder.Used >= 0 {
		p.number(number{"thaw_cache_used_bytes", "Bytes that chunks in the cache folder take, or a little more.", gauge, float64(s.Folder.Used)}, l)
	}
	if z := Zone(&f.Stats); z != nil {
		p.zone(z, l)
	}
}

// image tells what an image's agent says.
func (p *page) image(i *host.ImageNumbers) {
	l := labels{"agent": i.Key, "image": valid(i.Name)}
	p.number(number{"thaw_image_info", "The image that an agent serves.", gauge, 1}, with(l, "image_id", valid(i.ID)))
	if i.Err != nil {
		return
	}
	s := &i.Stats
	p.tiers("agent", s, l)
	p.histogram("thaw_agent_stage_seconds", "Time of a chunk in a stage: reading and hashing a file of the cache folder, decrypting a piece.", s.Hash, with(l, "stage", "hash"))
	p.histogram("thaw_agent_stage_seconds", "Time of a chunk in a stage: reading and hashing a file of the cache folder, decrypting a piece.", s.Decrypt, with(l, "stage", "decrypt"))
	p.numbers(l, []number{
		{"thaw_prefetch_chunks_total", "Chunks fetched ahead.", counter, float64(s.Prefetched.Chunks)},
		{"thaw_prefetch_bytes_total", "Bytes of chunks fetched ahead.", counter, float64(s.Prefetched.Bytes)},
		{"thaw_prefetch_used_chunks_total", "Chunks fetched ahead that were touched since.", counter, float64(s.PrefetchUsed.Chunks)},
		{"thaw_prefetch_used_bytes_total", "Bytes of chunks fetched ahead that were touched since.", counter, float64(s.PrefetchUsed.Bytes)},
		{"thaw_prefetch_wasted_chunks", "Chunks fetched ahead and not touched until now.", gauge, float64(s.Prefetched.Chunks - s.PrefetchUsed.Chunks)},
		{"thaw_prefetch_wasted_bytes", "Bytes of chunks fetched ahead and not touched until now.", gauge, float64(s.Prefetched.Bytes - s.PrefetchUsed.Bytes)},
	})
}

// tiers tells what came from where, as an agent or a fetcher has counted it.
func (p *page) tiers(role string, s *cache.Stats, l labels) {
	prefix := "thaw_" + role
	for _, t := range []struct {
		tier cache.Tier
		*cache.Count
	}{{cache.Cache, &s.Cache}, {cache.Zone, &s.Zone}, {cache.Origin, &s.Origin}} {
		l := with(l, "tier", t.tier.String())
		chunks, seconds := "Chunks that a tier gave for their first touch.", "Time from the request for a chunk until the tier gave it; of what is open or in memory not counted."
		if role == "fetcher" {
			chunks, seconds = "Chunks that a tier gave.", "Time that a tier took to give a chunk, with the network and the zone's rebuilding."
		}
		p.numbers(l, []number{
			{prefix + "_chunks_total", chunks, counter, float64(t.Chunks)},
			{prefix + "_bytes_total", "Sealed bytes of the chunks of " + prefix + "_chunks_total.", counter, float64(t.Bytes)},
			{prefix + "_hits_total", "Times that a tier was asked and gave a chunk, repeated touches included.", counter, float64(t.Hits)},
			{prefix + "_corrupt_total", "Times that a tier gave bytes that were not the chunk's.", counter, float64(t.Corrupt)},
			{prefix + "_errors_total", "Times that a tier failed in another way than not having the chunk.", counter, float64(t.Errors)},
		})
		p.histogram(prefix+"_get_seconds", seconds, t.Latency, l)
	}
}

// Zone gives the numbers of a fetcher's client of the zone, or nil if it has
// none.
func Zone(s *cache.FetcherStats) *zone.Stats {
	var more struct {
		Zone *zone.Stats `json:"zone"`
	}
	if len(s.More) == 0 || json.Unmarshal(s.More, &more) != nil {
		return nil
	}
	return more.Zone
}

// valid makes text that others chose fit for a label.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// zone tells what a fetcher's client of the zone says.
func (p *page) zone(z *zone.Stats, l labels) {
	n := func(v uint64) float64 { return float64(v) }
	p.number(number{"thaw_zone_client_info", "How chunks are cut: any K of N stripes give one back.", gauge, 1}, labels{"fetcher": l["fetcher"], "k": strconv.Itoa(z.K), "n": strconv.Itoa(z.N)})
	p.numbers(l, []number{
		{"thaw_zone_client_members", "Nodes of the zone.", gauge, float64(len(z.Nodes))},
		{"thaw_zone_client_members_version", "Version of the list of nodes, which all workers of a zone should share.", gauge, n(z.Version)},
		{"thaw_zone_client_hits_total", "Chunks that the zone gave.", counter, n(z.Hits)},
		{"thaw_zone_client_bytes_total", "Bytes of chunks that the zone gave.", counter, n(z.Bytes)},
		{"thaw_zone_client_misses_total", "Chunks that the zone did not have.", counter, n(z.Misses)},
		{"thaw_zone_client_failed_total", "Chunks that the zone could not give: errors, deadlines, bad stripes.", counter, n(z.Failed)},
		{"thaw_zone_client_stragglers_total", "Requests for stripes that were not needed any more when they were answered, or not.", counter, n(z.Stragglers)},
		{"thaw_zone_client_cancelled_total", "Stragglers that were not sent, or given up.", counter, n(z.Cancelled)},
		{"thaw_zone_client_bad_total", "Answers that were not the stripe.", counter, n(z.Bad)},
		{"thaw_zone_client_mismatched_total", "Rebuilt chunks that were not the chunk, though each stripe had its checksum.", counter, n(z.Mismatched)},
		{"thaw_zone_client_leases_total", "Leases to fetch a chunk from the origin.", counter, n(z.Granted)},
		{"thaw_zone_client_waits_total", "Times that a chunk waited for another worker's fetch.", counter, n(z.Waited)},
		{"thaw_zone_client_waits_ended_well_total", "Waits after which the chunk was there.", counter, n(z.WaitedFor)},
		{"thaw_zone_client_fills_total", "Chunks put into the zone.", counter, n(z.Fills)},
		{"thaw_zone_client_fills_dropped_total", "Chunks not put: too much waited, or too few nodes took their stripes.", counter, n(z.Dropped)},
		{"thaw_zone_client_stripes_refused_total", "Stripes that a node did not take.", counter, n(z.Refused)},
		{"thaw_zone_client_repairs_total", "Bad or missing stripes put again.", counter, n(z.Repaired)},
		{"thaw_zone_client_repairs_failed_total", "Stripes that could not be put again.", counter, n(z.RepairsFailed)},
		{"thaw_zone_client_repairs_left_total", "Chunks not repaired, since too many waited.", counter, n(z.RepairsLeft)},
	})
	for _, stage := range []struct {
		name string
		s    latency.Snapshot
	}{{"network", z.Network}, {"first_k", z.FirstK}, {"rebuild", z.Rebuild}, {"hash", z.Hash}} {
		p.histogram("thaw_zone_client_stage_seconds", "Time in a stage: a request that brought a stripe, from the first request of a chunk to its K-th stripe, rebuilding, hashing.", stage.s, with(l, "stage", stage.name))
	}
	for _, node := range z.Nodes {
		l := with(l, "node", valid(node.Addr))
		p.numbers(l, []number{
			{"thaw_zone_client_node_requests_total", "Requests for stripes.", counter, n(node.Requests)},
			{"thaw_zone_client_node_missing_total", "Stripes that a node did not have.", counter, n(node.Missing)},
			{"thaw_zone_client_node_bad_total", "Answers of a node that were not the stripe.", counter, n(node.Bad)},
			{"thaw_zone_client_node_errors_total", "Requests that failed, or had no answer by their deadline.", counter, n(node.Failed)},
			{"thaw_zone_client_node_refused_total", "Stripes that a node did not take.", counter, n(node.Refused)},
		})
		p.histogram("thaw_zone_client_node_get_seconds", "Time of a request that brought a stripe.", node.Latency, l)
	}
}
