package events

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"thaw/cluster"
)

const (
	streamQueue = "EVENTS"
	streamLater = "EVENTS_LATER"
	streamDead  = "EVENTS_DEAD"

	// maxBytes is what each stream may take on disk.
	maxBytes = 2 << 30
	// maxWaiting is how many events of one function wait: enough for a large
	// import, and no function takes all the room with small ones.
	maxWaiting = 100_000
	// maxLater is how many events wait for their time. Each takes 300 bytes of
	// memory in each process that runs.
	maxLater = 200_000
	// maxDead is how long dead letters are kept, as long as queues of dead
	// letters elsewhere do.
	maxDead = 14 * 24 * time.Hour
	// window is how long the server recognises a message it already has.
	window = 2 * time.Minute
	// noRoom is the server's code for a stream that takes no more.
	noRoom = 10077
)

// Options say how a queue works. The zero Options are good.
type Options struct {
	// Policy gives the policy of an event's function, at the time it is asked.
	// Nil: DefaultPolicy for all. Many calls are made at a time.
	Policy func(ctx context.Context, e Event) Policy
	// PerFunction is how many events of one function are tried at a time in this
	// process; 0 means 256.
	PerFunction int
	// Bytes is how much the payloads of events that are being tried may take in
	// this process; 0 means 128 MiB. Some events of each function are tried
	// whatever the others take.
	Bytes int64
	// AckWait is how long an event stays with a process that has gone silent
	// before another one tries it; 0 means 30 s.
	AckWait time.Duration
	// Grace is how long Run lets tries go on after its ctx has ended; 0: not at all.
	Grace time.Duration
	// Warn is told one line for each thing that went wrong and is tried again.
	// It may be nil, is called by many at a time and must return soon.
	Warn func(line string)
}

// Queue is the fleet's queue of asynchronous invokes. Many may use it at a time.
type Queue struct {
	conn *cluster.Conn
	js   jetstream.JetStream
	nats *nats.Conn
	o    Options

	counts *counts

	queue, later, dead jetstream.Stream
}

// Open opens the queue, and makes it if it is not there. The queue uses c until
// it is closed.
func Open(ctx context.Context, c *cluster.Conn, o Options) (*Queue, error) {
	if o.Policy == nil {
		o.Policy = func(context.Context, Event) Policy { return DefaultPolicy() }
	}
	if o.PerFunction <= 0 {
		o.PerFunction = 256
	}
	if o.Bytes <= 0 {
		o.Bytes = 128 << 20
	}
	if o.AckWait <= 0 {
		o.AckWait = 30 * time.Second
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	q := &Queue{conn: c, js: c.JetStream(), nats: c.JetStream().Conn(), o: o, counts: newCounts()}
	// No direct gets: of several servers one that is a little behind would say that
	// there is no such event.
	for _, s := range []struct {
		stream *jetstream.Stream
		config jetstream.StreamConfig
	}{
		{&q.queue, jetstream.StreamConfig{Name: streamQueue, Subjects: []string{prefixQueue + "*.*"}, Retention: jetstream.WorkQueuePolicy,
			Discard: jetstream.DiscardNew, MaxMsgsPerSubject: maxWaiting, DiscardNewPerSubject: true}},
		{&q.later, jetstream.StreamConfig{Name: streamLater, Subjects: []string{prefixLater + "*.*.*.*"},
			Discard: jetstream.DiscardNew, MaxMsgs: maxLater}},
		{&q.dead, jetstream.StreamConfig{Name: streamDead, Subjects: []string{prefixDead + "*.*.*"},
			Discard: jetstream.DiscardOld, MaxMsgsPerSubject: 1, MaxAge: maxDead}},
	} {
		s.config.Storage, s.config.MaxBytes, s.config.Duplicates = jetstream.FileStorage, maxBytes, window
		s.config.MaxMsgSize = MaxPayload + maxHeader + 4096 // and the other headers
		err := c.Try(ctx, func(ctx context.Context) (err error) {
			s.config.Replicas = c.Replicas()
			*s.stream, err = q.js.CreateOrUpdateStream(ctx, s.config)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("events: open stream %s: %w", s.config.Name, unavailable(err))
		}
	}
	return q, nil
}

// Put accepts an event: once it has returned without an error, the event is on
// disk. Accepted is set to now if it is zero, and counts to 0. ErrFull says that
// there is no room. An event with the same id within two minutes is the same event.
func (q *Queue) Put(ctx context.Context, e Event) error {
	if e.Accepted.IsZero() {
		e.Accepted = time.Now()
	}
	e.Attempt, e.Failures, e.Refusals = 0, 0, 0
	if err := e.check(); err != nil {
		return err
	}
	return q.enqueue(ctx, e, e.ID+"/put")
}

// enqueue has an event tried. A message of the same id is not stored again.
func (q *Queue) enqueue(ctx context.Context, e Event, message string) error {
	o := ownerOf(e.Account, e.Function)
	if err := q.publish(ctx, encode(o.queue(), e), message); err != nil {
		return err
	}
	q.wake(o)
	return nil
}

// wake tells all who run that something of this function waits. It may get lost.
func (q *Queue) wake(o owner) {
	if err := q.nats.Publish(subjectWake, []byte(o)); err != nil && !errors.Is(err, nats.ErrReconnectBufExceeded) {
		q.o.Warn("events: wake: " + err.Error())
	}
}

// publish stores a message and returns once it is on disk.
func (q *Queue) publish(ctx context.Context, m *nats.Msg, id string) error {
	err := q.conn.Try(ctx, func(ctx context.Context) error {
		_, err := q.js.PublishMsg(ctx, m, jetstream.WithMsgID(id))
		return err
	})
	if err != nil {
		return fmt.Errorf("events: store event: %w", unavailable(err))
	}
	return nil
}

// unavailable puts an error of the cluster in our words.
func unavailable(err error) error {
	var api *jetstream.APIError
	if errors.As(err, &api) && api.ErrorCode == noRoom && strings.Contains(api.Description, "exceeded") {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	if errors.Is(err, cluster.ErrUnavailable) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
