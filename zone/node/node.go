// Package node is a node of the zone: it holds stripes in memory over flash and
// serves them over HTTP as package zone says.
//
//	GET ──→ memory ──→ flash ──→ 404, perhaps with a lease
//	        ↑   ↑────────┘ what is read comes back into memory
//	PUT ────┴──→ queue ──→ flash
//
// Both tiers keep what LRU-k keeps (package lru). Stripes in memory lie in an
// anonymous file (memfd), each in a window of its own of the file's address
// space, and are sent by sendfile: the collector sees none of their bytes, and
// the kernel's pages are the allocator, so that a stripe takes its payload
// rounded up to 4 KiB and nothing is lost to fragmentation. A stripe that was sent
// and goes has a hole punched in its place. What a socket has not sent of it yet are
// pages that are no longer the file's, so reuse of a window never changes bytes
// that are on their way.
//
// A stripe that is put is in memory when the answer goes out, and is written to
// flash from there by one goroutine. A put waits at most putWait for room in its
// queue. If there is none by then, or memory evicts the stripe before its turn, it
// does not get to flash, and is counted as such.
//
// Everything is bounded: memory by Options.Memory, with evicted stripes that
// are still being sent counted; bodies coming in, read from flash, or going out
// over HTTP/2 or TLS by Options.Buffers of at most 2 MiB each; leases, waiters,
// connections, sizes of headers and times by constants.
package node

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"thaw/chunk"
	"thaw/latency"
	"thaw/zone"
)

// Options say what a node may take.
type Options struct {
	// Memory is the number of bytes that stripes in memory may take: at least
	// MinMemory.
	Memory int64
	// Flash is the folder of the flash store; "" is none. FlashSize is the
	// number of bytes it takes.
	Flash     string
	FlashSize int64
	// Lease is how long the right to fill a missing stripe lasts; 0 is 3 s.
	Lease time.Duration
	// Buffers is the number of bodies that may be on their way other than from
	// memory straight to a connection; 0 is 64.
	Buffers int
	// Warn is told what an operator should know; it may be nil.
	Warn func(error)
}

const (
	// MinMemory is room for the longest stripe, and one that is being sent.
	MinMemory = 2 * (chunk.MaxSize + overhead)
	// defaultLease is many times what an origin takes (175 ms at p99.9), since a
	// worker may first wait for a place there, and no more than a start can wait
	// if the worker has died.
	defaultLease = 3 * time.Second
	// defaultBuffers keep a 10 Gb/s link busy with 128 KiB stripes for 7 ms; at
	// worst, with the longest stripes, they take 128 MiB.
	defaultBuffers = 64
	// queued is how many stripes may wait for flash: 128 MiB of 128 KiB.
	queued = 1024
	// putWait is the longest that a put waits for the queue: a fill that takes
	// this long slows nobody's reads, and slows a conversion to what flash can
	// take.
	putWait = 50 * time.Millisecond
	// bufferWait is the longest that a request waits for a buffer before it is
	// told that the node is busy.
	bufferWait = 250 * time.Millisecond
)

// errBusy is all that a client hears of a bound that was reached.
var errBusy = errors.New("node: too busy")

// Node holds stripes. It is safe for concurrent use.
type Node struct {
	options Options
	bounds  bounds
	started time.Time
	mem     *memory
	disk    *disk // nil without flash
	leases  *leases
	buffers *buffers
	drained atomic.Bool
	conns   atomic.Int64 // open connections
	http2   atomic.Int64 // of those
	counts  counters
	work    sync.WaitGroup // the writer to flash
	closed  chan struct{}
	closing sync.Once
}

// counters are what only counts up.
type counters struct {
	memoryHits, flashHits, misses               atomic.Uint64
	stored, had, other, replaced, refused, busy atomic.Uint64
	sentBytes, receivedBytes, corrupt           atomic.Uint64
	flashWritten, flashSkipped, flashFailed     atomic.Uint64
	connsRefused                                atomic.Uint64
	getMemory, getFlash, getMiss, put           latency.Histogram
}

// Open makes a node with what its flash holds. The caller closes it.
func Open(o Options) (*Node, error) {
	if o.Memory < MinMemory {
		return nil, errors.New("node: too little memory: want room for two stripes of 2 MiB")
	}
	if o.Lease <= 0 {
		o.Lease = defaultLease
	}
	if o.Buffers <= 0 {
		o.Buffers = defaultBuffers
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	mem, err := newMemory(o.Memory)
	if err != nil {
		return nil, err
	}
	n := &Node{
		options: o, bounds: usualBounds(), started: time.Now(), mem: mem, leases: newLeases(o.Lease),
		buffers: newBuffers(o.Buffers), closed: make(chan struct{}),
	}
	if o.Flash != "" {
		if n.disk, err = openDisk(n, o); err != nil {
			return nil, errors.Join(err, mem.close())
		}
		n.work.Go(n.disk.write)
	}
	return n, nil
}

// Close ends the writer to flash and gives memory back. Nobody may be using
// the node's handler any more.
func (n *Node) Close() error {
	var err error
	n.closing.Do(func() {
		close(n.closed)
		n.work.Wait()
		if n.disk != nil {
			err = n.disk.close()
		}
		err = errors.Join(err, n.buffers.close(), n.mem.close())
	})
	return err
}

// Drain makes the node refuse what is put from now on. It serves on.
func (n *Node) Drain() { n.drained.Store(true) }

// found is a stripe to send: from memory, pinned there, or in a buffer.
type found struct {
	head    [zone.HeaderSize]byte
	size    int // bytes of the payload
	pinned  bool
	slot    uint32
	lent    bool    // its pages may be sent from where they are
	payload []byte  // if not pinned
	buffer  *buffer // of payload

	began time.Time // when it was asked for
	lend  bool      // who asks sends from where it is, if it may
}

// release must be called once for what find gave.
func (n *Node) release(f *found) {
	if f.pinned {
		n.mem.unpin(f.slot)
	}
	n.buffers.put(f.buffer)
	*f = found{}
}

// find looks for a stripe in memory and on flash, and says whether it has it;
// f.began is when it was asked for.
// errBusy means that it could not look.
func (n *Node) find(id zone.StripeID, f *found) (bool, error) {
	if n.mem.pin(id, f.began, f) {
		return true, nil
	}
	if n.disk == nil {
		return false, nil
	}
	return n.disk.find(id, f)
}

// ask is what a GET wants to know of a lease.
type ask struct {
	token string        // "" asks for none
	wait  time.Duration // how long a lease of another is waited for
}

// answer says what get found: a stripe, or what there is to say of its lease, or
// neither.
type answer struct {
	found  bool
	waited bool // found only once somebody else had filled it
	asked  bool // there is something to say of a lease
	lease  zone.Lease
}

// get finds a stripe or what there is to say of its absence, and counts it. A
// wait ends when done is closed; it may be nil.
func (n *Node) get(id zone.StripeID, a ask, done <-chan struct{}, f *found) (answer, error) {
	f.began = time.Now()
	ok, err := n.find(id, f)
	var res answer
	if !ok && err == nil && a.token != "" && !n.drained.Load() {
		res, err = n.leased(id, a, done, f)
		ok = res.found
	}
	switch {
	case err != nil:
		return answer{}, err
	case !ok:
		n.counts.misses.Add(1)
		n.leases.count(&res)
		if !res.waited {
			n.counts.getMiss.Since(f.began)
		}
	case f.pinned:
		n.counts.memoryHits.Add(1)
	default:
		n.counts.flashHits.Add(1)
	}
	res.found = ok
	return res, nil
}

// leased asks for the lease of a stripe that was missing, and waits for that of
// another as long as a says.
func (n *Node) leased(id zone.StripeID, a ask, done <-chan struct{}, f *found) (res answer, err error) {
	until := time.Now().Add(min(a.wait, zone.MaxWait))
	for {
		lease, over := n.leases.ask(id, a.token, time.Now())
		// The stripe may have come between the look and the lease.
		ok, err := n.find(id, f)
		if ok || err != nil {
			if ok && lease.Granted {
				n.leases.end(id)
			}
			return answer{found: ok, waited: res.waited}, err
		}
		res.asked, res.lease = true, lease
		left := time.Until(until)
		if lease.Granted || left <= 0 || !n.leases.await(over, min(left, lease.For), done) {
			return res, nil
		}
		res.waited = true
	}
}

// have tells whether a stripe is here. It is no use of it.
func (n *Node) have(id zone.StripeID) bool {
	return n.mem.contains(id) || n.disk != nil && n.disk.contains(id)
}

// outcome of a put.
type outcome int

const (
	stored  outcome = iota // new, or in the place of the bad copy
	had                    // the same was here
	differs                // another was here, or not the copy to replace
	refused                // the node is being drained
	noRoom                 // not even for a moment
	tooBusy                // for now
	bad                    // no stripe, or another
)

// put keeps a stripe that is whole in b. If match is not "", it replaces the
// copy of that ETag and nothing else.
func (n *Node) put(id zone.StripeID, b []byte, match string) (outcome, error) {
	if n.drained.Load() {
		n.counts.refused.Add(1)
		return refused, errors.New("this node is being drained")
	}
	s, err := zone.ParseStripe(b)
	if err == nil && s.ID() != id {
		err = errors.New("the stripe is not the one of the path")
	}
	if err != nil {
		return bad, err
	}
	tag := zone.ETag(b)
	held, err := n.tag(id)
	switch {
	case err != nil:
		return tooBusy, err
	case match != "" && held != match, match == "" && held != "" && held != tag:
		n.counts.other.Add(1)
		return differs, errors.New("another copy is here: " + held)
	case held == tag:
		n.leases.end(id)
		n.counts.had.Add(1)
		return had, nil
	}
	out, err := n.keep(id, b, held)
	if out == stored {
		n.leases.end(id)
		n.counts.receivedBytes.Add(uint64(len(b)))
		if match != "" {
			n.counts.replaced.Add(1)
		} else {
			n.counts.stored.Add(1)
		}
	}
	return out, err
}

// tag gives the ETag of the copy that is here, or "".
func (n *Node) tag(id zone.StripeID) (string, error) {
	if tag := n.mem.tag(id); tag != "" || n.disk == nil {
		return tag, nil
	}
	return n.disk.tag(id)
}

// keep takes a stripe into memory, in the place of the copy with the tag old,
// and hands it on to flash.
func (n *Node) keep(id zone.StripeID, b []byte, old string) (outcome, error) {
	if old != "" && n.disk != nil {
		n.disk.remove(id) // before it could be found in the place of the new one
	}
	ok, err := n.mem.add(id, b, old, time.Now())
	switch {
	case errors.Is(err, errBusy):
		return tooBusy, err
	case err != nil:
		return noRoom, err
	case !ok: // somebody else was faster
		n.counts.other.Add(1)
		return differs, errors.New("another copy has come meanwhile")
	}
	if n.disk != nil {
		n.disk.enqueue(id)
	}
	return stored, nil
}
