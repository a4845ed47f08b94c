package events

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"thaw/cluster"
)

const (
	// movers is how many delayed events are put back at a time: the disk syncs
	// several writes about as quickly as one.
	movers = 8
	// round is how many are put back before those of other functions that have
	// come due meanwhile get their turn.
	round = 64
)

// delayed is an event that waits for its time.
type delayed struct {
	owner owner
	due   time.Time
	seq   uint64
}

// schedule has all delayed events, those that are due first in front, and gives
// them in turns of their functions.
type schedule struct {
	mu    sync.Mutex // guards what follows
	heap  byDue
	ready map[owner][]delayed // due, by function
	turn  []owner             // functions that have some
	news  chan struct{}       // something was added
}

func newSchedule() *schedule {
	return &schedule{ready: map[owner][]delayed{}, news: make(chan struct{}, 1)}
}

func (s *schedule) add(d delayed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	heap.Push(&s.heap, d)
	signal(s.news)
}

// take gives at most n of those that are due, functions in turn, and how long
// it is until another one is due: a long time if there is none.
func (s *schedule) take(now time.Time, n int) (due []delayed, next time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.heap) > 0 && !s.heap[0].due.After(now) {
		d := heap.Pop(&s.heap).(delayed)
		if len(s.ready[d.owner]) == 0 {
			s.turn = append(s.turn, d.owner)
		}
		s.ready[d.owner] = append(s.ready[d.owner], d)
	}
	for len(due) < n && len(s.turn) > 0 {
		o := s.turn[0]
		s.turn = s.turn[1:]
		due = append(due, s.ready[o][0])
		if s.ready[o] = s.ready[o][1:]; len(s.ready[o]) > 0 {
			s.turn = append(s.turn, o)
		} else {
			delete(s.ready, o)
		}
	}
	switch {
	case len(s.turn) > 0:
		return due, 0
	case len(s.heap) > 0:
		return due, s.heap[0].due.Sub(now)
	}
	return due, time.Hour
}

// move puts delayed events back into the queue when they are due, until ctx ends.
func (r *runner) move(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.moveOnce(ctx); err != nil && ctx.Err() == nil {
			r.warn("delayed events", err)
			select {
			case <-ctx.Done():
			case <-time.After(poll):
			}
		}
	}
}

// moveOnce does so until the connection is lost: then, it may have missed some.
func (r *runner) moveOnce(ctx context.Context) error {
	ctx, forget := r.conn.Alive(ctx) // before we subscribe: then nothing is missed
	defer forget()
	s := newSchedule()
	broken := make(chan error, 1)
	c, err := r.js.OrderedConsumer(ctx, streamLater, jetstream.OrderedConsumerConfig{HeadersOnly: true})
	if err != nil {
		return err
	}
	follow, err := c.Consume(func(m jetstream.Msg) {
		meta, err := m.Metadata()
		if err != nil {
			return
		}
		o, due, err := parseLater(m.Subject())
		if err != nil {
			r.warn("delayed events", err)
			return
		}
		s.add(delayed{o, due, meta.Sequence.Stream})
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if errors.Is(err, jetstream.ErrOrderedConsumerReset) || errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrConnectionClosed) {
			select {
			case broken <- err:
			default:
			}
		}
	}))
	if err != nil {
		return err
	}
	defer follow.Stop()
	for {
		due, next := s.take(time.Now(), round)
		r.putBack(ctx, s, due)
		t := time.NewTimer(next)
		select {
		case <-t.C:
		case <-s.news:
		case err := <-broken:
			t.Stop()
			return err
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		t.Stop()
	}
}

// putBack moves events that are due. Those that could not be moved are tried
// again a little later.
func (r *runner) putBack(ctx context.Context, s *schedule, due []delayed) {
	var g errgroup.Group
	g.SetLimit(movers)
	for _, d := range due {
		g.Go(func() error {
			if err := r.putBackOne(ctx, d); err != nil && ctx.Err() == nil {
				r.warn("delayed event", err)
				d.due = time.Now().Add(poll)
				s.add(d)
			}
			return nil
		})
	}
	g.Wait() // none returns an error
}

func (r *runner) putBackOne(ctx context.Context, d delayed) error {
	var m *jetstream.RawStreamMsg
	err := r.conn.Try(ctx, func(ctx context.Context) (err error) {
		m, err = r.later.GetMsg(ctx, d.seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return cluster.ErrNotFound
		}
		return err
	})
	if errors.Is(err, cluster.ErrNotFound) {
		return nil // another process was quicker
	}
	if err != nil {
		return unavailable(err)
	}
	e, err := decode(m.Header, m.Data)
	if err != nil {
		r.warn(fmt.Sprintf("delayed event %d", d.seq), err)
		if err := r.buryUnreadable(ctx, d.owner, &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}, d.seq); err != nil {
			return err
		}
		return r.forget(ctx, r.later, d.seq)
	}
	if err := r.enqueue(ctx, e, fmt.Sprintf("%s/%d/due/%d", e.ID, e.Attempt, e.Accepted.UnixNano())); err != nil {
		return err
	}
	return r.forget(ctx, r.later, d.seq)
}

// byDue is a heap.
type byDue []delayed

// Len, Less, Swap, Push and Pop are what container/heap asks for.
func (h byDue) Len() int           { return len(h) }
func (h byDue) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h byDue) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push adds one at the end.
func (h *byDue) Push(x any) { *h = append(*h, x.(delayed)) }

// Pop takes the last one away.
func (h *byDue) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}
