package zone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"thaw/chunk"
)

const (
	// maxFills is how many chunks are put at once: eight fill 10 Gbit/s of a
	// zone that takes 5 ms for one.
	maxFills = 8
	// maxFillings bounds the chunks that wait, however short they are.
	maxFillings = 1024
	// maxPuts is how many uploads may be under way to one node: more than
	// maxFills, so that only a node that does not answer is left out.
	maxPuts = 2 * maxFills
	// settle is how long stripe 0 waits for the last of the others, which may be
	// on a node that hangs, and how much longer than those a fill waits for it.
	settle = 25 * time.Millisecond
)

// Fill puts a chunk into the zone later, as Put does, and returns at once. It
// copies sealed, whose name the caller has checked. It does nothing if the
// chunk waits already; it drops the chunk, and counts it, if too many do.
func (c *Client) Fill(name chunk.Name, sealed []byte) {
	v := c.view.Load()
	if v == nil || len(v.nodes) < v.k || len(sealed) == 0 || len(sealed) > chunk.MaxSize {
		c.counts.dropped.Add(1)
		return
	}
	if !c.reserve(name, len(sealed)) {
		return
	}
	u := c.newPut(v, name, bytes.Clone(sealed))
	go func() {
		defer c.work.Done()
		defer c.release(name)
		select {
		case c.fills <- struct{}{}:
			u.first(c.base)
			<-c.fills
			stored, _ := u.wait()
			c.tally(u, stored)
		case <-c.base.Done():
		}
	}()
}

// reserve makes room for a chunk to wait in; release gives it back, and so
// does the caller c.work.
func (c *Client) reserve(name chunk.Name, size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.filling[name] > 0 {
		return false
	}
	if c.closed || len(c.filling) >= maxFillings || c.fillBytes+int64(size) > c.o.FillBytes {
		c.counts.dropped.Add(1)
		return false
	}
	c.filling[name] = size
	c.fillBytes += int64(size)
	c.work.Add(1)
	return true
}

func (c *Client) release(name chunk.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fillBytes -= int64(c.filling[name])
	delete(c.filling, name)
}

// Put puts a chunk's n stripes on their nodes, stripe 0 last: who finds that
// finds the others. It waits for all nodes or their deadline, and succeeds if
// at least k have the chunk's stripe then. A node that holds other bytes under
// the ID is made to replace them. sealed must have its name and is not modified.
func (c *Client) Put(ctx context.Context, name chunk.Name, sealed []byte) error {
	v := c.view.Load()
	switch {
	case v == nil || len(v.nodes) < v.k:
		return errors.New("zone: too few members")
	case len(sealed) == 0 || len(sealed) > chunk.MaxSize:
		return fmt.Errorf("zone: chunk of %d bytes, want 1 to %d", len(sealed), chunk.MaxSize)
	}
	if err := chunk.Check(sealed, name); err != nil {
		return fmt.Errorf("zone: %w", err)
	}
	ctx, leave, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	u := c.newPut(v, name, sealed)
	u.patient = true
	u.first(ctx)
	stored, err := u.wait()
	c.tally(u, stored)
	if ctx.Err() != nil {
		return fmt.Errorf("zone: chunk %s: %w", name, ctx.Err())
	}
	if stored < v.k {
		return fmt.Errorf("zone: chunk %s: %d of %d stripes put, %d needed: %w", name, stored, v.n, v.k, err)
	}
	return nil
}

// tally counts a chunk that was put, with at least k stripes or without.
func (c *Client) tally(u *put, stored int) {
	if stored >= u.v.k {
		c.counts.fills.Add(1)
	} else {
		c.counts.dropped.Add(1)
	}
}

// put is a chunk on its way to its nodes.
type put struct {
	c       *Client
	v       *view
	name    chunk.Name
	data    []byte
	nodes   []*node
	stripes [][]byte
	patient bool // wait for nodes that have enough to do

	out    int // not heard
	stored atomic.Int32
	done   chan error // one for each stripe; room for all
	err    error
}

func (c *Client) newPut(v *view, name chunk.Name, sealed []byte) *put {
	return &put{c: c, v: v, name: name, data: sealed, nodes: v.at(name), done: make(chan error, v.n)}
}

// first sends all stripes: those but 0, and 0 once the others are there or one
// of them, or as many as the code can miss, takes too long. Nor does it wait for 0
// much longer than it did for the others, or for a deadline where there are none:
// if that is the one on a node that hangs, the next fill is not to wait for it.
func (u *put) first(ctx context.Context) {
	began := time.Now()
	u.stripes = u.v.code.Split(u.data)
	for i := 1; i < u.v.n; i++ {
		u.send(ctx, i)
	}
	for u.out > u.v.n-u.v.k {
		u.hear()
	}
	u.hearFor(u.c.settle, 0)
	u.send(ctx, 0)
	limit := time.Since(began) + u.c.settle
	if u.v.n == 1 {
		limit = u.c.o.Deadline
	}
	u.hearFor(limit, max(0, u.out-1))
}

// hearFor waits until no more than some uploads are out, but not for longer than a
// limit.
func (u *put) hearFor(limit time.Duration, left int) {
	late := time.NewTimer(limit)
	defer late.Stop()
	for u.out > left {
		select {
		case err := <-u.done:
			u.take(err)
		case <-late.C:
			return
		}
	}
}

func (u *put) hear() { u.take(<-u.done) }

func (u *put) take(err error) {
	u.out--
	if err != nil {
		u.err = err
	}
}

// wait waits for what is left. It gives the number of stripes that lie where
// they should.
func (u *put) wait() (stored int, err error) {
	for u.out > 0 {
		u.hear()
	}
	return int(u.stored.Load()), u.err
}

// send starts the upload of one stripe.
func (u *put) send(ctx context.Context, index int) {
	to := u.nodes[index]
	if to == nil {
		u.err = errors.New("no member for it")
		return
	}
	u.out++
	u.c.work.Add(1) // the caller is in work: it can't be at 0
	go func() {
		defer u.c.work.Done()
		err := u.upload(ctx, to, index)
		if err == nil {
			u.stored.Add(1)
		} else {
			to.counts.refused.Add(1)
			u.c.counts.refused.Add(1)
		}
		u.done <- err
	}()
}

func (u *put) upload(ctx context.Context, to *node, index int) error {
	if u.patient {
		select {
		case to.puts <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	} else {
		select {
		case to.puts <- struct{}{}:
		default:
			return fmt.Errorf("%s: too many uploads under way", to.addr)
		}
	}
	defer func() { <-to.puts }()
	s := stripeOf(u.v, u.name, len(u.data), index, u.stripes[index])
	err := u.c.upload(ctx, to, s, "")
	if !errors.Is(err, errAnother) || chunk.Check(u.data, u.name) != nil {
		return err
	}
	tag, err := u.c.tagOf(ctx, to, s.ID()) // what it has is not this chunk's
	if err != nil {
		return err
	}
	return u.c.upload(ctx, to, s, tag)
}

func stripeOf(v *view, name chunk.Name, size, index int, payload []byte) Stripe {
	return Stripe{Name: name, K: uint8(v.k), N: uint8(v.n), Index: uint8(index), ChunkSize: uint32(size), Payload: payload}
}
