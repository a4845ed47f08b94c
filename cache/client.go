package cache

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"thaw/chunk"
)

const (
	// defaultMemory lets a chunk that was just received be read to its end
	// without its file: 16 chunks of 512 KiB.
	defaultMemory = 8 << 20
	// defaultFiles are 256 MiB of an image; more cost a hash at each opening,
	// if the chunk was touched since.
	defaultFiles = 512
	// parallelHashes bounds the memory for files that are being hashed. It is
	// apart from requests under way: while an origin hangs, what the folder has
	// is still read.
	parallelHashes = 16
	// defaultDeadline is what a program may wait before it sees an I/O error.
	defaultDeadline = time.Minute
)

// ClientOptions say where a Client finds chunks. Zero bounds have defaults.
type ClientOptions struct {
	Folder string // the cache folder as this process sees it; only read
	Root   string // whose chunks
	// Dial connects to the fetcher. It is called again, one call at a time,
	// whenever the connection has ended.
	Dial func(ctx context.Context) (net.Conn, error)

	// Start is when the start that reads began: the fetcher serves older ones
	// first. Zero: now.
	Start time.Time

	Deadline time.Duration // how long Find waits; a minute
	Memory   int64         // bytes of chunks kept in memory; 8 MiB
	Files    int           // files kept open; 512
}

// Client finds chunks for an agent: in memory, in the folder, or through the
// fetcher, which it takes at its word that it has hashed them. It is safe for
// concurrent use.
type Client struct {
	o       ClientOptions
	start   time.Time
	reading chan struct{} // one for each file being hashed
	asking  chan struct{} // one for each get of the fetcher
	flights flights[wanted, *held]
	links   links

	prefetching chan struct{} // one for each prefetch

	touches touches
	buffers sync.Pool // *[]byte, for hashing
	times   times

	mu      sync.Mutex // guards what follows and the fields of all records
	closed  bool
	records map[chunk.Name]*record
	memory  recent[*record]
	files   recent[*record]
	stats   Stats
}

var _ chunk.Finder = (*Client)(nil)

// record is what the client knows of one chunk. It stays: an image has so many
// and no more.
type record struct {
	held    *held // in memory, or nil
	heldAt  *list.Element
	file    *openFile // open, or nil
	fileAt  *list.Element
	known   identity      // of the file that was hashed
	touched time.Duration // after Client.start, when its use was last reported
	counted bool          // first touch has been

	prefetched bool // counted as such
}

// NewClient makes a client, which connects when it first has to. The caller
// closes it.
func NewClient(o ClientOptions) (*Client, error) {
	if err := checkRoot(o.Root); err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if o.Dial == nil {
		return nil, errors.New("cache: a client needs a way to reach the fetcher")
	}
	if o.Start.IsZero() {
		o.Start = time.Now()
	}
	orDefault(&o.Deadline, defaultDeadline)
	orDefault(&o.Memory, defaultMemory)
	orDefault(&o.Files, defaultFiles)
	c := &Client{
		o: o, start: time.Now(),
		reading: make(chan struct{}, parallelHashes),
		asking:  make(chan struct{}, perConnection),
		records: map[chunk.Name]*record{},
		links:   links{dial: o.Dial, hello: hello{o.Root, uint64(o.Start.UnixMicro())}, dialing: make(chan struct{}, 1)},

		prefetching: make(chan struct{}, perPrefetch),
	}
	c.touches.send = c.sendTouches
	c.memory = recent[*record]{limit: o.Memory, drop: func(r *record) { r.held, r.heldAt = nil, nil }}
	c.files = recent[*record]{limit: int64(o.Files), drop: func(r *record) {
		_ = r.file.Close()
		r.file, r.fileAt = nil, nil
	}}
	return c, nil
}

// Close ends what is under way, reports what was used, and waits for all that
// the client began. Chunks found before can be read until they are closed.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.flights.close()
	c.touches.close()
	c.links.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.memory.clear()
	c.files.clear()
	return nil
}

// Stats counts by tier, since the start.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	s := c.stats
	c.mu.Unlock()
	c.times.into(&s)
	return s
}

// Find implements chunk.Finder. It waits until ctx ends or for the client's
// deadline; then the error is ErrUnavailable and names the tier and the cause.
func (c *Client) Find(ctx context.Context, name chunk.Name, size int) (chunk.Verified, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cache: chunk %s: %w", short(name), err)
	}
	c.mu.Lock()
	v, err := c.atHand(name, size)
	c.mu.Unlock()
	if v != nil || err != nil {
		return v, err
	}
	if size <= 0 || size > chunk.MaxSize {
		return nil, fmt.Errorf("cache: chunk %s: %w: no chunk has %d bytes", short(name), chunk.ErrCorrupt, size)
	}
	if f := c.reopen(name, size); f != nil {
		return f, nil
	}
	return c.wait(ctx, wanted{c.o.Root, name, size})
}

// atHand gives a chunk that is in memory or open. It needs mu held. This is
// what each read of a page goes through: one look-up and no allocation.
func (c *Client) atHand(name chunk.Name, size int) (chunk.Verified, error) {
	if c.closed {
		return nil, errClosed
	}
	r := c.records[name]
	if r == nil {
		return nil, nil
	}
	switch {
	case r.held != nil && len(r.held.data) == size:
		c.memory.use(r.heldAt)
		c.hit(name, r)
		return r.held, nil
	case r.file != nil && r.file.size == size:
		c.files.use(r.fileAt)
		c.hit(name, r)
		r.file.refs.Add(1)
		return r.file, nil
	}
	return nil, nil
}

// hit counts a use of the cache, and has it reported. It needs mu held.
func (c *Client) hit(name chunk.Name, r *record) {
	c.stats.Cache.Hits++
	if now := time.Since(c.start); now-r.touched >= touchEvery {
		r.touched = now
		c.touches.add(name)
	}
}

// record gives a chunk's record. It needs mu held.
func (c *Client) record(name chunk.Name) *record {
	r := c.records[name]
	if r == nil {
		r = &record{touched: time.Since(c.start) - touchEvery}
		c.records[name] = r
	}
	return r
}

// first counts a first touch. It needs mu held.
func (c *Client) first(r *record, t Tier, size int) {
	if r.counted {
		return
	}
	r.counted = true
	n := c.stats.of(t)
	n.Chunks++
	n.Bytes += int64(size)
	if r.prefetched {
		c.stats.PrefetchUsed.add(size)
	}
}

func (c *Client) count(t Tier, change func(n *Count)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := c.stats.of(t); n != nil {
		change(n)
	}
}

// wait loads a chunk, together with all who want it now.
func (c *Client) wait(ctx context.Context, w wanted) (chunk.Verified, error) {
	began := time.Now()
	wait, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	var err error
	for err == nil {
		var h *held
		if h, err = c.flights.do(wait, w, c.load(w)); h != nil {
			return h, nil
		}
		if err == nil { // its file is open, unless many others have been since
			var v chunk.Verified
			c.mu.Lock()
			v, err = c.atHand(w.name, w.size)
			c.mu.Unlock()
			if v == nil && err == nil {
				v = c.reopen(w.name, w.size)
			}
			if v != nil {
				return v, nil
			}
		}
	}
	var late *ended
	if errors.As(err, &late) && ctx.Err() == nil { // the deadline is ours
		if err = late.cause; err == nil {
			err = &failure{status: statusUnavailable, text: "no answer"}
		}
	}
	return nil, fmt.Errorf("cache: chunk %s: %w (waited %.1f s)", short(w.name), err, time.Since(began).Seconds())
}

// short is how errors name a chunk: enough to find it.
func short(name chunk.Name) string { return name.String()[:12] }
