package node

import (
	"time"

	"thaw/latency"
	"thaw/zone/flash"
)

// Stats is what GET /status says. Counts are since the node was opened.
type Stats struct {
	State   string        `json:"state"` // up or draining
	Uptime  time.Duration `json:"uptime_ns"`
	Memory  Tier          `json:"memory"`
	Flash   Tier          `json:"flash"` // all 0 without
	Gets    Gets          `json:"gets"`
	Puts    Puts          `json:"puts"`
	Corrupt uint64        `json:"corrupt"` // stripes on flash that were not whole: dropped
	Leases  Leases        `json:"leases"`
	// Busy counts requests that a bound has refused; Connections are open ones,
	// Refused those that were too many.
	Busy        uint64 `json:"busy"`
	Connections int64  `json:"connections"`
	Refused     uint64 `json:"connections_refused"`
	// Store is what flash says of itself; nil without.
	Store *flash.Stats `json:"store,omitempty"`
}

// Tier is what memory or flash holds, in bytes and stripes.
type Tier struct {
	Limit   int64  `json:"limit"`
	Used    int64  `json:"used"`
	Stripes int    `json:"stripes"`
	Evicted uint64 `json:"evicted"`
}

// Gets counts GETs by what they came to. Times are those of the server: from the
// request to the last byte that the kernel took. Those of GETs that waited for
// another worker's fill are left out.
type Gets struct {
	Memory     uint64           `json:"memory"`
	Flash      uint64           `json:"flash"`
	Missed     uint64           `json:"missed"`
	Bytes      uint64           `json:"bytes"`
	FromMemory latency.Snapshot `json:"from_memory"`
	FromFlash  latency.Snapshot `json:"from_flash"`
	Misses     latency.Snapshot `json:"misses"`
}

// Puts counts PUTs by what they came to.
type Puts struct {
	Stored   uint64           `json:"stored"`   // new
	Had      uint64           `json:"had"`      // there already
	Other    uint64           `json:"other"`    // another copy was there
	Replaced uint64           `json:"replaced"` // a bad copy
	Refused  uint64           `json:"refused"`  // for draining
	Bytes    uint64           `json:"bytes"`    // of those stored and replaced
	Flashed  uint64           `json:"flashed"`  // written to flash
	Skipped  uint64           `json:"skipped"`  // in memory only: flash was too slow
	Failed   uint64           `json:"failed"`   // in memory only: flash refused
	Times    latency.Snapshot `json:"times"`
}

// Leases counts answers to those who asked for one.
type Leases struct {
	Active  int    `json:"active"`
	Waiting int64  `json:"waiting"`
	Granted uint64 `json:"granted"`
	Held    uint64 `json:"held"`
}

// Stats tells how the node is doing.
func (n *Node) Stats() Stats {
	c := &n.counts
	s := Stats{
		State: "up", Uptime: time.Since(n.started), Corrupt: c.corrupt.Load(), Busy: c.busy.Load(),
		Connections: n.conns.Load(), Refused: c.connsRefused.Load(),
		Gets: Gets{
			Memory: c.memoryHits.Load(), Flash: c.flashHits.Load(), Missed: c.misses.Load(), Bytes: c.sentBytes.Load(),
			FromMemory: c.getMemory.Snapshot(), FromFlash: c.getFlash.Snapshot(), Misses: c.getMiss.Snapshot(),
		},
		Puts: Puts{
			Stored: c.stored.Load(), Had: c.had.Load(), Other: c.other.Load(), Replaced: c.replaced.Load(), Refused: c.refused.Load(),
			Bytes: c.receivedBytes.Load(), Flashed: c.flashWritten.Load(), Skipped: c.flashSkipped.Load(), Failed: c.flashFailed.Load(),
			Times: c.put.Snapshot(),
		},
		Leases: Leases{n.leases.active(time.Now()), n.leases.waiting.Load(), n.leases.granted.Load(), n.leases.held.Load()},
	}
	if n.drained.Load() {
		s.State = "draining"
	}
	s.Memory.Limit = n.options.Memory
	s.Memory.Used, s.Memory.Stripes, s.Memory.Evicted = n.mem.usage()
	if n.disk != nil {
		f := n.disk.store.Stats()
		s.Store = &f
		s.Flash = Tier{Limit: f.Limit, Used: f.Bytes, Stripes: f.Items, Evicted: f.Evicted}
	}
	return s
}
