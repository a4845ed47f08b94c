package events

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// try has one event tried, and writes down how that ended.
func (r *runner) try(l *line, seq uint64, m jetstream.Msg) {
	settle, again := r.invoke(l, seq, m)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), settling)
	defer cancel()
	var err error
	if settle != nil {
		err = settle(ctx)
	}
	m = r.land(seq)
	switch {
	case again:
		m.Nak() // it comes back after AckWait anyway
	case err != nil:
		r.warn("settle event", err)
		m.NakWithDelay(poll) // as above
	default:
		if err := r.drop(ctx, seq, m); err != nil {
			r.warn("settle event", err)
		}
	}
}

// invoke decides whether an event is tried, tries it, and returns what is to be
// written down before it leaves the queue. It may be to be tried again as it is.
func (r *runner) invoke(l *line, seq uint64, m jetstream.Msg) (settle func(context.Context) error, again bool) {
	e, err := decode(m.Headers(), m.Data())
	if err != nil {
		r.warn("a message", err)
		return func(ctx context.Context) error {
			return r.buryUnreadable(ctx, l.owner, &nats.Msg{Subject: m.Subject(), Header: m.Headers(), Data: m.Data()}, seq)
		}, false
	}
	size := int64(len(e.Payload))
	r.bytes.Add(size)
	defer r.bytes.Add(-size)
	p := r.o.Policy(r.tries, e).normal()
	if d := p.Next(0, Outcome{}, time.Since(e.Accepted)); d.Step == Dead {
		return func(ctx context.Context) error { return r.bury(ctx, e, d.Reason) }, false
	}
	o := r.invoker.Invoke(r.tries, e)
	if r.tries.Err() != nil && o.Kind != Succeeded {
		return nil, true // it was cut short
	}
	l.gate.learn(o.Kind, p.Backoff, time.Now())
	r.counts.tried(o.Kind)
	e, d := after(e, p, o, time.Since(e.Accepted))
	switch d.Step {
	case Retry:
		return func(ctx context.Context) error { return r.delay(ctx, e, time.Now().Add(d.Delay)) }, false
	case Dead:
		return func(ctx context.Context) error { return r.bury(ctx, e, d.Reason) }, false
	}
	return nil, false
}

// after counts a try and decides by it.
func after(e Event, p Policy, o Outcome, age time.Duration) (Event, Decision) {
	if o.Kind == Untried { // an invoker that does not say is broken
		o = Outcome{SystemError, "the invoker gave no outcome"}
	}
	e.Attempt++
	e.Last = o.Reason[:min(len(o.Reason), maxLast)]
	if o.Kind == FunctionError {
		d := p.Next(e.Failures, o, age)
		e.Failures, e.Refusals = e.Failures+1, 0
		return e, d
	}
	d := p.Next(e.Refusals, o, age)
	if o.Kind == Throttled || o.Kind == SystemError {
		e.Refusals++
	}
	return e, d
}

// drop takes an event out of the queue.
func (r *runner) drop(ctx context.Context, seq uint64, m jetstream.Msg) error {
	try, cancel := context.WithTimeout(ctx, settling/4)
	defer cancel()
	try, forget := r.conn.Alive(try)
	defer forget()
	if m.DoubleAck(try) == nil {
		return nil
	}
	return r.forget(ctx, r.queue, seq) // its consumer may be gone
}

// delay has an event tried later.
func (q *Queue) delay(ctx context.Context, e Event, due time.Time) error {
	return q.publish(ctx, encode(ownerOf(e.Account, e.Function).later(e.ID, due), e), fmt.Sprintf("%s/%d/later/%d", e.ID, e.Attempt, e.Accepted.UnixNano()))
}

// buryUnreadable keeps what is no event, as it is, for people to look at.
func (q *Queue) buryUnreadable(ctx context.Context, o owner, m *nats.Msg, seq uint64) error {
	id := fmt.Sprintf("unreadable-%s-%d", m.Subject[:min(len(m.Subject), len(prefixQueue))], seq)
	bad := &nats.Msg{Subject: o.dead(id), Data: m.Data, Header: nats.Header{
		headerEvent: {m.Header.Get(headerEvent)}, headerLetter: {mustJSON(obituary{Died: time.Now(), Reason: reasonUnreadable})},
	}}
	return q.publish(ctx, bad, id)
}
