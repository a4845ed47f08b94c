package zone

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"thaw/latency"
)

// maxCause is how many bytes of an error are kept for who asks for Stats.
const maxCause = 300

// Stats counts what a Client has done since it was made. It is for adding up
// and for JSON.
type Stats struct {
	Version uint64 `json:"version"` // of the list of members
	K       int    `json:"k"`
	N       int    `json:"n"`

	Hits   uint64 `json:"hits"`   // chunks given
	Bytes  uint64 `json:"bytes"`  // of them
	Misses uint64 `json:"misses"` // chunks that the zone did not have
	Failed uint64 `json:"failed"` // chunks that it could not give: errors, deadlines, bad stripes

	Stragglers uint64 `json:"stragglers"` // requests that were not needed any more when they were answered, or not
	Cancelled  uint64 `json:"cancelled"`  // of those: not sent, or given up at the deadline
	Bad        uint64 `json:"bad"`        // answers that were not the stripe
	Mismatched uint64 `json:"mismatched"` // rebuilt chunks without their name, though each stripe had its checksum

	Granted   uint64 `json:"granted"`    // leases given to this worker
	Waited    uint64 `json:"waited"`     // leases of others that a Get waited for
	WaitedFor uint64 `json:"waited_for"` // of those: the chunk came

	Fills   uint64 `json:"fills"`   // chunks put, by Fill or Put: at least k stripes of each
	Dropped uint64 `json:"dropped"` // chunks that Fill did not put: too much waits, or fewer than k stripes were taken
	Refused uint64 `json:"refused"` // stripes of fills that a node did not take

	Repaired      uint64 `json:"repaired"`       // stripes put again
	RepairsFailed uint64 `json:"repairs_failed"` // stripes that could not be
	RepairsLeft   uint64 `json:"repairs_left"`   // chunks not repaired, since too many wait

	Network latency.Snapshot `json:"network"` // a request that brought a stripe
	FirstK  latency.Snapshot `json:"first_k"` // from the first request to the k-th stripe
	Rebuild latency.Snapshot `json:"rebuild"`
	Hash    latency.Snapshot `json:"hash"`

	// Unheard says, as long as no node has ever answered, or none for half a
	// minute, why the last chunk that was asked for did not come; "" else.
	Unheard string `json:"unheard,omitempty"`

	Nodes []NodeStats `json:"nodes"` // members of now, by address
}

// NodeStats counts what one node answered.
type NodeStats struct {
	Addr     string           `json:"addr"`
	Requests uint64           `json:"requests"` // for stripes
	Missing  uint64           `json:"missing"`
	Bad      uint64           `json:"bad"`
	Failed   uint64           `json:"failed"`  // errors, and no answer by the deadline
	Refused  uint64           `json:"refused"` // stripes that it did not take
	Latency  latency.Snapshot `json:"latency"` // of stripes it gave
}

// counts are a Client's.
type counts struct {
	hits, bytes, misses, failed               atomic.Uint64
	stragglers, cancelled, bad, mismatched    atomic.Uint64
	granted, waited, waitedFor                atomic.Uint64
	fills, dropped, refused                   atomic.Uint64
	repaired, repairsFailed, repairsLeft      atomic.Uint64
	network, firstK, rebuildTime, hashingTime latency.Histogram
}

type nodeCounts struct {
	requests, missing, bad, failed, refused atomic.Uint64
	latency                                 latency.Histogram
}

// Stats reads the counts. They are not of one moment.
func (c *Client) Stats() Stats {
	n := &c.counts
	s := Stats{
		Hits: n.hits.Load(), Bytes: n.bytes.Load(), Misses: n.misses.Load(), Failed: n.failed.Load(),
		Stragglers: n.stragglers.Load(), Cancelled: n.cancelled.Load(), Bad: n.bad.Load(), Mismatched: n.mismatched.Load(),
		Granted: n.granted.Load(), Waited: n.waited.Load(), WaitedFor: n.waitedFor.Load(),
		Fills: n.fills.Load(), Dropped: n.dropped.Load(), Refused: n.refused.Load(),
		Repaired: n.repaired.Load(), RepairsFailed: n.repairsFailed.Load(), RepairsLeft: n.repairsLeft.Load(),
		Network: n.network.Snapshot(), FirstK: n.firstK.Snapshot(), Rebuild: n.rebuildTime.Snapshot(), Hash: n.hashingTime.Snapshot(),
	}
	if cause := c.unheard.Load(); cause != nil {
		s.Unheard = *cause
	}
	v := c.view.Load()
	if v == nil {
		return s
	}
	s.Version, s.K, s.N = v.members.version, v.k, v.n
	for _, node := range v.nodes {
		n := &node.counts
		s.Nodes = append(s.Nodes, NodeStats{
			Addr: node.addr, Requests: n.requests.Load(), Missing: n.missing.Load(), Bad: n.bad.Load(),
			Failed: n.failed.Load(), Refused: n.refused.Load(), Latency: n.latency.Snapshot(),
		})
	}
	return s
}

var errUnheard = errors.New("zone: no node has answered")

// silentFor is how long no node answers before that is told, if some did before:
// longer than machines are busy, or than a zone that is started again takes.
const silentFor = 30 * time.Second

// silence remembers why a chunk did not come, if no node has ever answered, or
// none for silentFor: the origin gives it, and nobody would see that the zone is
// of no use. It is a warning the first time, and again once one has answered.
func (c *Client) silence(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	now := time.Now()
	c.failing.CompareAndSwap(0, now.UnixNano())
	told := errUnheard
	if c.answered.Load() {
		if since := c.failing.Load(); since == 0 || now.Sub(time.Unix(0, since)) < silentFor {
			return
		}
		told = fmt.Errorf("%w for %v", errUnheard, silentFor)
	}
	if cause := errors.Unwrap(err); cause != nil { // without the chunk's name
		err = cause
	}
	text := strings.ToValidUTF8(err.Error(), "?")
	if text = text[:min(len(text), maxCause)]; c.unheard.Swap(&text) == nil {
		c.o.Warn(fmt.Errorf("%w: %s", told, text))
	}
}

// hears notes that a node has answered as nodes do.
func (c *Client) hears() {
	if !c.answered.Load() {
		c.answered.Store(true)
	}
	if c.failing.Load() != 0 {
		c.failing.Store(0)
	}
	if c.unheard.Load() != nil {
		c.unheard.Store(nil)
	}
}

// note counts an answer that was waited for, or was not.
func (c *Client) note(from *node, a answer, late bool) {
	if late {
		c.counts.stragglers.Add(1)
		if a.what == failed {
			c.counts.cancelled.Add(1)
		}
	}
	if a.what == bad {
		c.counts.bad.Add(1)
	}
	if a.what == good || a.what == missing {
		c.hears()
	}
	if from == nil {
		return
	}
	switch a.what {
	case missing:
		from.counts.missing.Add(1)
	case bad:
		from.counts.bad.Add(1)
	case failed:
		if a.err != errNotSent {
			from.counts.failed.Add(1)
		}
	}
}
