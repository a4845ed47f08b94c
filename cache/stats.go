package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync/atomic"
	"time"

	"thaw/latency"
)

// maxStats bounds the answer to a request for numbers, in bytes.
const maxStats = 256 << 10

// Count is what one tier did.
type Count struct {
	Chunks  int64 `json:"chunks"`  // chunks whose first touch this tier served
	Bytes   int64 `json:"bytes"`   // their sealed bytes
	Hits    int64 `json:"hits"`    // times it was asked and gave a chunk, first touches included
	Corrupt int64 `json:"corrupt"` // times it gave bytes that were not the chunk's
	Errors  int64 `json:"errors"`  // times it failed in another way than not having the chunk
	// Latency is how long it took to give a chunk. In a client that is from the
	// request to the chunk, of the folder with the hash, and of what is in memory
	// or open not counted; in a fetcher the tier's own time, with the network and
	// the zone's rebuilding.
	Latency latency.Snapshot `json:"latency,omitzero"`
}

// Amount is a number of chunks.
type Amount struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"bytes"` // their sealed bytes
}

func (a *Amount) add(size int) { a.Chunks, a.Bytes = a.Chunks+1, a.Bytes+int64(size) }

// Stats counts by tier. A Client's Chunks and Bytes count each chunk once, by
// the tier that served its first touch; a Fetcher's count each time it had to
// get a chunk.
type Stats struct {
	Cache  Count `json:"cache"`
	Zone   Count `json:"zone"`
	Origin Count `json:"origin"`
	// Prefetched is what Prefetch brought into the folder from a tier beyond,
	// PrefetchUsed what of that was touched; of clients.
	Prefetched   Amount `json:"prefetched"`
	PrefetchUsed Amount `json:"prefetch_used"`

	Queue   latency.Snapshot `json:"queue,omitzero"`   // waiting for a place at the last tier; of fetchers
	Hash    latency.Snapshot `json:"hash,omitzero"`    // hashing a chunk, in a client with reading it
	Keep    latency.Snapshot `json:"keep,omitzero"`    // storing a chunk in the folder; of fetchers
	Decrypt latency.Snapshot `json:"decrypt,omitzero"` // decrypting a piece of a chunk; of agents, who fill it in
}

// IsZero tells whether nothing was counted.
func (s Stats) IsZero() bool { return reflect.ValueOf(s).IsZero() }

// of gives the tier's own count, nil for none.
func (s *Stats) of(t Tier) *Count {
	switch t {
	case Cache:
		return &s.Cache
	case Zone:
		return &s.Zone
	case Origin:
		return &s.Origin
	}
	return nil
}

// times are the histograms behind Stats.
type times struct {
	tiers [Origin + 1]latency.Histogram
	hash  latency.Histogram
}

// into fills in what was observed.
func (t *times) into(s *Stats) {
	for tier := Cache; tier <= Origin; tier++ {
		s.of(tier).Latency = t.tiers[tier].Snapshot()
	}
	s.Hash = t.hash.Snapshot()
}

// QueueStats is how it stands with fetches from the last tier.
type QueueStats struct {
	Limit      float64 `json:"limit"`      // how many at a time, now
	Most       int     `json:"most"`       // and when nothing is wrong
	Busy       int     `json:"busy"`       // under way
	Prefetches int     `json:"prefetches"` // of Busy
	Waiting    int     `json:"waiting"`
	Bytes      int64   `json:"bytes"`      // of those under way, and of chunks on their way to agents
	GaveUp     int64   `json:"gave_up"`    // those whose readers' time was over before their turn
	SlowDowns  int64   `json:"slow_downs"` // times that the tier asked for fewer
}

// FetcherStats are a fetcher's numbers, as it gives them to AskStats.
type FetcherStats struct {
	Stats
	Folder      FolderStats `json:"folder"`
	LastTier    QueueStats  `json:"last_tier"`
	Connections int64       `json:"connections"` // of agents, now
	Requests    int64       `json:"requests"`    // for chunks under way, now
	Fetching    int64       `json:"fetching"`    // chunks under way, now
	Touched     int64       `json:"touched"`     // uses of chunks that agents reported
	// More is what FetcherOptions.More gave.
	More json.RawMessage `json:"more,omitempty"`
}

// gauges count what there is now.
type gauges struct{ connections, requests, touched atomic.Int64 }

// Stats gives the numbers so far, without More. The cache's errors are chunks
// that could not be kept.
func (f *Fetcher) Stats() FetcherStats {
	f.mu.Lock()
	s := FetcherStats{Stats: f.stats}
	f.mu.Unlock()
	f.times.into(&s.Stats)
	s.Queue, s.Keep = f.queue.times.Snapshot(), f.o.Folder.keeps.Snapshot()
	s.Folder, s.LastTier = f.o.Folder.Stats(), f.queue.stats()
	s.Cache.Corrupt, s.Cache.Errors = s.Folder.Corrupt, s.Folder.Failures
	s.Connections, s.Requests, s.Touched = f.now.connections.Load(), f.now.requests.Load(), f.now.touched.Load()
	s.Fetching = int64(f.flights.count())
	return s
}

// tell answers a request for numbers.
func (f *Fetcher) tell(p *peer, r request) {
	s := f.Stats()
	var err error
	if f.o.More != nil {
		s.More, err = json.Marshal(f.o.More())
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(s)
	}
	if err == nil && len(text) > maxStats {
		err = fmt.Errorf("%d bytes of numbers, at most %d can be sent", len(text), maxStats)
	}
	if err != nil {
		p.send(header{id: r.id, status: statusInternal}, []byte(oneLine(err.Error())))
		return
	}
	p.send(header{id: r.id, status: statusFound}, text)
}

// AskStats asks the fetcher at the other end of a connection for its numbers,
// until ctx ends. The caller closes the connection, which is of no more use.
func AskStats(ctx context.Context, conn net.Conn) (s FetcherStats, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(err error) (FetcherStats, error) {
		return FetcherStats{}, fmt.Errorf("cache: asking the fetcher for its numbers: %w", err)
	}
	if _, err := conn.Write(request{id: 1, op: opStats}.append(hello{}.append(nil))); err != nil {
		return fail(err)
	}
	h, err := readHeader(conn)
	if err != nil {
		return fail(err)
	}
	if h.length > maxStats {
		return fail(fmt.Errorf("%w: %d bytes", errProtocol, h.length))
	}
	text := make([]byte, h.length)
	if _, err := io.ReadFull(conn, text); err != nil {
		return fail(err)
	}
	if h.status != statusFound {
		return fail(&failure{h.status, h.tier, oneLine(string(text))})
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return fail(err)
	}
	return s, nil
}
