package zone

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"thaw/chunk"
)

const (
	// missGrace is how long what is no hit any more waits for those that have
	// not answered: a node that answers at all has done so by then, and one that
	// does not must not cost as much as the origin does.
	missGrace = 25 * time.Millisecond
	// maxTries bounds how often a chunk is rebuilt from other stripes if it does
	// not have its name: all there are of 4-of-5 and of 8-of-10.
	maxTries = 50
)

// Get gives a sealed chunk that has its name. It sends n requests and needs k
// good answers. What more than n-k nodes do not have gives chunk.ErrNotFound,
// and if more than n-k had other bytes, or the stripes are whole but their
// chunk is not, chunk.ErrCorrupt. All other errors say that the zone could not
// be asked. It takes no longer than the deadline; three and LeaseWait where
// another worker is about to fill the chunk.
func (c *Client) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("zone: chunk %s: %w", name, err)
	}
	if !c.begin() {
		return nil, errClosed
	}
	defer c.work.Done()
	v := c.view.Load()
	if v == nil || len(v.nodes) < v.k {
		c.counts.misses.Add(1)
		return nil, fmt.Errorf("zone: %w: %s: too few members", chunk.ErrNotFound, name)
	}
	r := c.newRound(ctx, v, name)
	r.lease = c.o.Worker != ""
	data, err := r.run()
	if l := r.said; err != nil && l != nil && !l.Granted && errors.Is(err, chunk.ErrNotFound) {
		if again := c.await(ctx, v, name, *l); again != nil {
			data, err = again.run()
		}
	}
	switch {
	case err == nil:
		c.counts.hits.Add(1)
		c.counts.bytes.Add(uint64(len(data)))
	case errors.Is(err, chunk.ErrNotFound):
		c.counts.misses.Add(1)
	default:
		c.counts.failed.Add(1)
		c.silence(err)
	}
	return data, err
}

// await waits for another worker's fill. It gives the round that is then to
// be run, or nil if the fill did not come.
func (c *Client) await(ctx context.Context, v *view, name chunk.Name, l Lease) *round {
	wait := min(l.For, c.o.LeaseWait)
	first := v.at(name)[0]
	if wait < time.Millisecond || first == nil {
		return nil
	}
	c.counts.waited.Add(1)
	ask, cancel := context.WithTimeout(c.base, wait+c.o.Deadline)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	a := c.ask(ask, first, question{id: StripeID{name, uint8(v.k), uint8(v.n), 0}, ask: true, wait: wait}, nil)
	c.note(first, a, false)
	if a.what != good {
		if a.lease != nil && a.lease.Granted {
			c.counts.granted.Add(1)
		}
		return nil
	}
	c.counts.waitedFor.Add(1)
	r := c.newRound(ctx, v, name)
	r.have = &a
	return r
}

// round asks the n nodes of a chunk once.
type round struct {
	c     *Client
	v     *view
	name  chunk.Name
	nodes []*node // by index
	ctx   context.Context
	began time.Time

	lease bool    // ask for it
	whole bool    // wait for all answers: for repair
	have  *answer // came before the round: its index is not asked

	// of run
	good     []answer
	all      []answer // by index; those not heard have failed
	heard    []bool   // by index
	out      int      // not heard
	verdicts [4]int
	last     error // why one was not good
	said     *Lease
	tries    int
	wrong    bool // a rebuilt chunk did not have its name
	grace    <-chan time.Time

	answers chan answer   // room for all
	won     chan struct{} // closed when run returns
	ask     context.Context
	stop    context.CancelFunc

	mu    sync.Mutex
	over  bool // guarded by mu: nobody reads answers any more
	given bool // guarded by mu: the chunk was
	left  int  // guarded by mu: requests that have not ended
}

func (c *Client) newRound(ctx context.Context, v *view, name chunk.Name) *round {
	return &round{
		c: c, v: v, name: name, nodes: v.at(name), ctx: ctx, began: time.Now(),
		heard: make([]bool, v.n), all: make([]answer, v.n), answers: make(chan answer, v.n), won: make(chan struct{}),
	}
}

func (r *round) id(index int) StripeID {
	return StripeID{r.name, uint8(r.v.k), uint8(r.v.n), uint8(index)}
}

// run sends the requests and waits for what is needed of the answers. The
// caller holds the client open.
func (r *round) run() ([]byte, error) {
	r.ask, r.stop = context.WithTimeout(r.c.base, r.c.o.Deadline)
	r.out, r.left = r.v.n, r.v.n
	if r.have != nil {
		r.left--
	}
	for i := range r.v.n {
		if r.have != nil && r.have.index == i {
			r.answers <- *r.have
			continue
		}
		r.c.work.Add(1) // a call is in work: it can't be at 0
		go r.send(i)
	}
	data, err := r.collect()
	if !r.whole {
		r.end(data != nil)
	}
	return data, err
}

// send asks one node. What comes too late is counted and put back.
func (r *round) send(index int) {
	defer r.c.work.Done()
	a := r.c.ask(r.ask, r.nodes[index], question{id: r.id(index), ask: r.lease && index == 0}, r.won)
	r.mu.Lock()
	late, given := r.over, r.given
	r.c.note(r.nodes[index], a, late) // before Get returns with it
	if !late {
		r.answers <- a
	}
	r.left--
	last := late && r.left == 0
	r.mu.Unlock()
	if late {
		r.c.buffers.put(a.buf)
	}
	if given && (a.what == bad || a.what == missing) {
		r.c.repair(r.name)
	}
	if last {
		r.stop()
	}
}

// end leaves requests that are under way to their deadline; those not sent
// are not any more. It puts back all buffers, and if the chunk was given, has
// repaired what was bad or missing.
func (r *round) end(given bool) {
	r.mu.Lock()
	r.over, r.given = true, given
	none := r.left == 0
	r.mu.Unlock()
	close(r.won)
	if none || r.ctx.Err() != nil {
		r.stop()
	}
	close(r.answers) // who is late does not send
	for a := range r.answers {
		r.hear(a)
	}
	for _, a := range r.good {
		r.c.buffers.put(a.buf)
	}
	if given && (r.verdicts[bad]+r.verdicts[missing] > 0 || r.wrong) {
		r.c.repair(r.name)
	}
}

// hear takes an answer in.
func (r *round) hear(a answer) {
	r.heard[a.index], r.all[a.index] = true, a
	r.out--
	r.verdicts[a.what]++
	switch a.what {
	case good:
		r.good = append(r.good, a)
	case missing:
		if a.lease != nil && a.index == 0 && r.lease {
			r.said = a.lease
			if a.lease.Granted {
				r.c.counts.granted.Add(1)
			}
		}
	default:
		r.last = a.err
	}
}

// collect waits until the chunk has been rebuilt, or can't be.
func (r *round) collect() (data []byte, err error) {
	for r.out > 0 && (r.whole || data == nil && !r.hopeless()) {
		a, ok := r.next()
		if !ok {
			break
		}
		if r.hear(a); a.what == good && data == nil {
			data = r.rebuild()
		}
	}
	switch {
	case data != nil:
		return data, nil
	case r.ctx.Err() != nil:
		return nil, fmt.Errorf("zone: chunk %s: %w", r.name, r.ctx.Err())
	}
	return nil, r.why()
}

// next waits for an answer; not ok: there is nothing to wait for any more.
func (r *round) next() (a answer, ok bool) {
	select {
	case a = <-r.answers:
		return a, true
	case <-r.grace:
	case <-r.ctx.Done():
	case <-r.ask.Done():
		select {
		case a = <-r.answers: // it was in time
			return a, true
		default:
			r.last = errors.Join(r.last, fmt.Errorf("%d nodes did not answer in %v", r.out, r.c.o.Deadline))
		}
	}
	return a, false
}

// hopeless tells whether no answer that is still to come can help, or be worth
// a moment's waiting: for whether it is a miss, and for what the first node
// says of the lease then.
func (r *round) hopeless() bool {
	if r.whole || len(r.good)+r.out >= r.v.k {
		return false
	}
	spare, misses := r.v.n-r.v.k, r.verdicts[missing]
	open := misses <= spare && misses+r.out > spare
	lease := misses > spare && r.lease && !r.heard[0] && r.nodes[0] != nil
	if !open && !lease {
		return true
	}
	if r.grace == nil {
		r.grace = time.After(min(r.c.missGrace, r.c.o.Deadline))
	}
	return false
}

// why says why there is no chunk.
func (r *round) why() error {
	spare := r.v.n - r.v.k
	switch {
	case r.verdicts[missing] > spare:
		return fmt.Errorf("zone: %w: %s", chunk.ErrNotFound, r.name)
	case r.wrong:
		return fmt.Errorf("zone: %w: %d stripes, each with its checksum, are not those of %s", chunk.ErrCorrupt, len(r.good), r.name)
	case r.verdicts[bad] > spare:
		return fmt.Errorf("zone: %w: %d of %d stripes of %s: %w", chunk.ErrCorrupt, r.verdicts[bad], r.v.n, r.name, r.last)
	}
	return fmt.Errorf("zone: chunk %s: %d of %d stripes came, %d are missing, %d bad, %d needed: %w",
		r.name, len(r.good), r.v.n, r.verdicts[missing], r.verdicts[bad], r.v.k, r.last)
}

// rebuild joins the stripes there are and gives the chunk if it has its name,
// nil otherwise. Each stripe had its checksum, so a chunk without its name
// has stripes that somebody made wrong: it tries without each.
func (r *round) rebuild() []byte {
	newest := r.good[len(r.good)-1]
	var fit []answer // stripes that may be of one chunk
	for _, a := range r.good {
		if a.stripe.ChunkSize == newest.stripe.ChunkSize {
			fit = append(fit, a)
		}
	}
	if len(r.good) == r.v.k {
		r.c.counts.firstK.Since(r.began)
	}
	r.wrong = r.wrong || len(r.good) >= r.v.k && len(fit) < r.v.k
	if len(fit) < r.v.k {
		return nil
	}
	// The sets without the newest have been tried.
	stripes := make([][]byte, r.v.n)
	stripes[newest.index] = newest.stripe.Payload
	return r.choose(fit[:len(fit)-1], r.v.k-1, stripes)
}

// choose tries all sets of more stripes of fit beside those that are set.
func (r *round) choose(fit []answer, more int, stripes [][]byte) []byte {
	if more == 0 {
		return r.try(stripes)
	}
	for i := 0; i <= len(fit)-more && r.tries < maxTries; i++ {
		stripes[fit[i].index] = fit[i].stripe.Payload
		if data := r.choose(fit[i+1:], more-1, stripes); data != nil {
			return data
		}
		stripes[fit[i].index] = nil
	}
	return nil
}

func (r *round) try(stripes [][]byte) []byte {
	r.tries++
	began := time.Now()
	size := int(r.good[len(r.good)-1].stripe.ChunkSize)
	data, err := r.v.code.Join(size, stripes)
	r.c.counts.rebuildTime.Since(began)
	if err != nil {
		r.last = err
		return nil
	}
	began = time.Now()
	err = chunk.Check(data, r.name)
	r.c.counts.hashingTime.Since(began)
	if err != nil {
		if !r.wrong {
			r.c.counts.mismatched.Add(1)
		}
		r.wrong, r.last = true, err
		return nil
	}
	return data
}
