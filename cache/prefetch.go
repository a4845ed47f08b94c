package cache

import (
	"context"
	"fmt"
	"os"
	"time"

	"thaw/chunk"
)

const (
	// perPrefetch bounds the prefetches of one agent under way: enough to keep
	// a zone busy, few enough that a read waits for none of them.
	perPrefetch = 16
	// prefetchBytes bounds those of all agents of a fetcher, apart from what
	// gets may take: no prefetch ever takes a get's memory.
	prefetchBytes = 16 << 20
)

// Prefetch has the fetcher bring a chunk into the folder, behind all that is
// read, and waits for that until ctx ends or for the client's deadline. It does
// nothing for a chunk that was found before or whose file is there, and tries
// once: what fails is for a read to try again. The fetcher hashes the chunk.
func (c *Client) Prefetch(ctx context.Context, name chunk.Name, size int) error {
	if size <= 0 || size > chunk.MaxSize {
		return fmt.Errorf("cache: chunk %s: %w: no chunk has %d bytes", short(name), chunk.ErrCorrupt, size)
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.Deadline)
	defer cancel()
	if !take(ctx, c.prefetching) {
		return fmt.Errorf("cache: prefetch of chunk %s: %w", short(name), ctx.Err())
	}
	defer func() { <-c.prefetching }()
	if !c.lacks(name, size) {
		return nil
	}
	wait := c.o.Deadline
	if end, ok := ctx.Deadline(); ok {
		wait = max(time.Until(end), time.Millisecond)
	}
	a, err := c.links.call(ctx, request{op: opPrefetch, wait: wait, size: uint32(size), name: name})
	if err == nil && a.failed != nil {
		err = a.failed
	}
	if err != nil {
		return fmt.Errorf("cache: prefetch of chunk %s: %w", short(name), err)
	}
	file, id, err := c.open(name) // what the fetcher has hashed is not hashed again
	if err == nil {
		_ = file.Close()
	}
	c.prefetched(name, size, a.tier, id)
	return nil
}

// lacks tells whether a chunk was never found and has no file.
func (c *Client) lacks(name chunk.Name, size int) bool {
	c.mu.Lock()
	r := c.records[name]
	counted := r != nil && r.counted
	c.mu.Unlock()
	if counted {
		return false
	}
	info, err := os.Lstat(chunkPath(c.o.Folder, name))
	return err != nil || info.Size() != int64(size)
}

// prefetched counts a chunk that came for a Prefetch, perhaps together with a
// read that came later, and takes the fetcher at its word that the file id holds
// it.
func (c *Client) prefetched(name chunk.Name, size int, tier Tier, id identity) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.record(name)
	if r.known.size == 0 && id.size == int64(size) {
		r.known = id
	}
	if tier == Cache || r.prefetched {
		return
	}
	r.prefetched = true
	c.stats.Prefetched.add(size)
	if r.counted {
		c.stats.PrefetchUsed.add(size)
	}
}

// prefetch is answer for a request that wants no bytes.
func (f *Fetcher) prefetch(ctx context.Context, p *peer, r request) {
	f.now.requests.Add(1)
	defer f.now.requests.Add(-1)
	if f.prefetches.Acquire(ctx, int64(r.size)) == nil { // else flights.whole says so
		defer f.prefetches.Release(int64(r.size))
	}
	w := wanted{p.root, r.name, int(r.size)}
	f.queue.join(w, p.start, true)
	defer f.queue.leave(w)
	got, err := f.flights.whole(ctx, w, f.get(w))
	if err == nil {
		got.hold.drop()
		if _, there := f.o.Folder.stat(r.name); !there {
			err = &failure{statusInternal, Cache, "the chunk could not be kept"}
		}
	}
	if err != nil {
		p.refuse(ctx, r, err)
		return
	}
	p.send(header{id: r.id, status: statusFound, tier: got.tier}, nil)
}
