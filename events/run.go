package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// poll is how often a process looks for what waits and was not told of.
	poll = time.Second
	// linger is how long a function's line is watched after its last event.
	linger = time.Second
	// batch is how many events are fetched at a time: all of them are in memory.
	batch = 16
	// maxLines is how many functions one process serves at a time; others wait
	// until one of them has nothing to do.
	maxLines = 4096
	// forgetful is how long the server keeps a function's consumer when nobody
	// asks it for anything.
	forgetful = time.Minute
	// settling bounds how long the end of a try is written down for.
	settling = 20 * time.Second
	// news is how many wake-ups wait; what is beyond is found by polling.
	news = 1024
)

// runner is one Run.
type runner struct {
	*Queue
	invoker Invoker
	ctx     context.Context // ends when no more events are to be fetched
	tries   context.Context // ends when tries are to end too
	bytes   atomic.Int64    // payloads being tried
	wg      sync.WaitGroup  // lines and tries

	mu     sync.Mutex // guards what follows
	lines  map[owner]*line
	flying map[uint64]jetstream.Msg // being tried, by position in the stream
}

// line is a function whose events are being served.
type line struct {
	owner owner
	gate  *gate
	news  chan struct{} // something waits, perhaps
	freed chan struct{} // a try has ended
}

// Run has events tried until ctx ends, and returns when all tries have ended.
// Several processes may run, each with its own invoker: an event is tried by one
// of them at a time, unless that one goes silent.
func (q *Queue) Run(ctx context.Context, i Invoker) error {
	tries, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	r := &runner{Queue: q, invoker: i, ctx: ctx, tries: tries, lines: map[owner]*line{}, flying: map[uint64]jetstream.Msg{}}
	woken := make(chan *nats.Msg, news)
	sub, err := q.nats.ChanSubscribe(subjectWake, woken)
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	defer sub.Unsubscribe() // the connection may be closed

	var around sync.WaitGroup
	beating, still := context.WithCancel(context.WithoutCancel(ctx))
	around.Go(func() { r.beat(beating) })
	around.Go(func() { r.move(ctx) })
	defer around.Wait()
	defer still()

	r.dispatch(woken)
	grace := time.AfterFunc(q.o.Grace, cancel)
	defer grace.Stop()
	r.wg.Wait()
	return context.Cause(ctx)
}

// dispatch serves each function that has something waiting, until ctx ends.
func (r *runner) dispatch(woken <-chan *nats.Msg) {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	r.look()
	for {
		select {
		case <-r.ctx.Done():
			return
		case m := <-woken:
			if o, err := parseOwner(string(m.Data)); err == nil {
				r.serve(o)
			}
		case <-ticker.C:
			r.look()
		}
	}
}

// look serves each function of which the stream has something.
func (r *runner) look() {
	ctx, cancel := context.WithTimeout(r.ctx, 5*poll)
	defer cancel()
	info, err := r.queue.Info(ctx, jetstream.WithSubjectFilter(prefixQueue+">"))
	if err != nil {
		r.warn("look for events", err)
		return
	}
	for subject := range info.State.Subjects {
		if o, err := parseOwner(strings.TrimPrefix(subject, prefixQueue)); err == nil {
			r.serve(o)
		}
	}
}

// serve sees to it that a function's line is served.
func (r *runner) serve(o owner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.lines[o]; l != nil {
		signal(l.news)
		return
	}
	if len(r.lines) >= maxLines {
		return
	}
	l := &line{o, newGate(r.o.PerFunction), make(chan struct{}, 1), make(chan struct{}, 1)}
	r.lines[o] = l
	r.wg.Go(func() {
		for err := r.drain(l); err != nil && r.ctx.Err() == nil; err = r.drain(l) {
			r.warn("fetch events", err)
			r.rest(l, poll)
		}
	})
}

// leave ends a line, unless something has come or is being tried.
func (r *runner) leave(l *line) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(l.news) > 0 || !l.gate.idle() {
		return false
	}
	delete(r.lines, l.owner)
	return true
}

// drain has a function's events tried until there are none.
func (r *runner) drain(l *line) error {
	consumer, err := r.consumer(l.owner)
	if err != nil {
		return err
	}
	for r.ctx.Err() == nil {
		n, closed := l.gate.room(time.Now())
		if r.bytes.Load() >= r.o.Bytes && !l.gate.idle() {
			n, closed = 0, 10*time.Millisecond // others have to end first
		}
		if n == 0 {
			r.rest(l, closed)
			continue
		}
		select {
		case <-l.news: // what it tells of is fetched now
		default:
		}
		got, err := r.fetch(l, consumer, min(n, batch))
		if err != nil {
			return err
		}
		if got == 0 && r.leave(l) {
			return nil
		}
	}
	return nil
}

// rest waits until a try has ended or the gate opens.
func (r *runner) rest(l *line, closed time.Duration) {
	if closed <= 0 {
		closed = time.Hour // only the end of a try makes room
	}
	t := time.NewTimer(closed)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.freed:
	case <-r.ctx.Done():
	}
}

// consumer makes a function's consumer, which all processes share. It lives in
// memory: if it is lost, events are tried again.
func (r *runner) consumer(o owner) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(r.ctx, settling)
	defer cancel()
	return r.queue.CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: strings.ReplaceAll(string(o), ".", "_"), FilterSubject: o.queue(), AckPolicy: jetstream.AckExplicitPolicy, AckWait: r.o.AckWait,
		MaxAckPending: 16 * r.o.PerFunction, // of all processes
		MaxDeliver:    -1, MemoryStorage: true, InactiveThreshold: forgetful,
	})
}

// fetch starts to try at most n events and returns how many came within a while.
func (r *runner) fetch(l *line, c jetstream.Consumer, n int) (int, error) {
	b, err := c.Fetch(n, jetstream.FetchMaxWait(linger))
	if err != nil {
		return 0, err
	}
	got := 0
	for m := range b.Messages() {
		got++
		if r.ctx.Err() != nil {
			m.Nak() // another process takes it at once, or after a while
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			return got, err
		}
		if r.take(meta.Sequence.Stream, m) {
			l.gate.enter()
			r.wg.Go(func() {
				r.try(l, meta.Sequence.Stream, m)
				l.gate.leave()
				signal(l.freed)
			})
		}
	}
	if err := b.Error(); err != nil && !errors.Is(err, nats.ErrTimeout) {
		return got, err
	}
	return got, nil
}

// take notes that an event is being tried. It returns false if it is already,
// by us: the server has forgotten that we have it.
func (r *runner) take(seq uint64, m jetstream.Msg) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, again := r.flying[seq]
	r.flying[seq] = m // what came last is what is to be acknowledged
	return !again
}

// land notes that an event is not being tried any more and gives its message.
func (r *runner) land(seq uint64) jetstream.Msg {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.flying[seq]
	delete(r.flying, seq)
	return m
}

// beat tells the server that tries are going on.
func (r *runner) beat(ctx context.Context) {
	ticker := time.NewTicker(r.o.AckWait / 3)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		r.mu.Lock()
		for _, m := range r.flying {
			m.InProgress() // there is a next time
		}
		r.mu.Unlock()
	}
}

func (r *runner) warn(what string, err error) {
	if r.ctx.Err() == nil {
		r.o.Warn("events: " + what + ": " + err.Error())
	}
}

// signal tells something to whoever listens, once.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
