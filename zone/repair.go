package zone

import (
	"context"
	"time"

	"thaw/chunk"
)

// maxRepairs bounds the chunks that wait for repair. More are found again when
// they are read again.
const maxRepairs = 1024

// repair has a chunk looked at later: some node had no stripe of it, or a wrong
// one. It only takes a note.
func (c *Client) repair(name chunk.Name) {
	if c.o.Repairs < 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.repairing[name] {
		return
	}
	select {
	case c.repairs <- name:
		c.repairing[name] = true
	default:
		c.counts.repairsLeft.Add(1)
	}
}

// repairLoop repairs one chunk after another, at its rate, until Close.
func (c *Client) repairLoop() {
	pause := time.Second / time.Duration(max(c.o.Repairs, 1))
	for {
		select {
		case <-c.base.Done():
			return
		case name := <-c.repairs:
			c.mu.Lock()
			delete(c.repairing, name)
			c.mu.Unlock()
			c.repairNow(name)
		}
		timer := time.NewTimer(pause)
		select {
		case <-c.base.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// repairNow reads all stripes of a chunk, and if it can be rebuilt, puts
// again what is missing or is not the chunk's. Nothing is written that has not
// been checked against the chunk's name.
func (c *Client) repairNow(name chunk.Name) {
	v := c.view.Load()
	r := c.newRound(c.base, v, name)
	r.whole = true
	data, err := r.run()
	defer r.end(false)
	if err != nil {
		return
	}
	right := v.code.Split(data)
	for i, to := range r.nodes {
		s := stripeOf(v, name, len(data), i, right[i])
		tag, needed := r.needs(s)
		if to == nil || !needed {
			continue
		}
		if c.mend(to, s, tag) {
			c.counts.repaired.Add(1)
		} else {
			c.counts.repairsFailed.Add(1)
		}
	}
}

// needs tells whether a node answered with something else than the stripe, or
// did not have it, and what its tag is.
func (r *round) needs(s Stripe) (tag string, needed bool) {
	a := r.all[s.Index]
	switch a.what {
	case missing:
		return "", true
	case bad:
		return a.tag, a.tag != ""
	case good:
		encodedAlike := a.stripe.ChunkSize == s.ChunkSize && string(a.stripe.Payload) == string(s.Payload)
		return a.tag, !encodedAlike
	}
	return "", false
}

// mend puts a stripe unless the node has enough to do.
func (c *Client) mend(to *node, s Stripe, tag string) bool {
	select {
	case to.puts <- struct{}{}:
		defer func() { <-to.puts }()
	default:
		return false
	}
	ctx, cancel := context.WithTimeout(c.base, putDeadlines*c.o.Deadline)
	defer cancel()
	return c.upload(ctx, to, s, tag) == nil
}
