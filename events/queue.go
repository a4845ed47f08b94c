package events

import (
	"context"
	"errors"
	"time"

	"thaw/cluster"
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
	// this process; 0 means 128 MiB. One event of each function is tried
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
	o    Options
}

// DeadLetter is an event that will not be tried again, unless it is replayed.
type DeadLetter struct {
	Event  Event
	Died   time.Time
	Reason string // as Decision has it
	Last   string // how the last try ended, for people; may be empty
	// Position orders dead letters by the time they died.
	Position uint64
}

var errLater = errors.New("events: not built yet")

// Open opens the queue, and makes it if it is not there. The queue uses c until
// it is closed.
func Open(ctx context.Context, c *cluster.Conn, o Options) (*Queue, error) { return &Queue{c, o}, nil }

// Put accepts an event: once it has returned without an error, the event is on
// disk. Accepted is set to now if it is zero. ErrFull says that there is no room.
func (q *Queue) Put(ctx context.Context, e Event) error { return errLater }

// Run has events tried until ctx ends, and returns when all tries have. Several
// processes may run, each with its own invoker: each event is tried by one of
// them at a time.
func (q *Queue) Run(ctx context.Context, i Invoker) error { return errLater }

// List reads at most limit dead letters of an account, those that died first
// first; of one function, unless that is empty; those after a position.
func (q *Queue) List(ctx context.Context, account, function string, after uint64, limit int) ([]DeadLetter, error) {
	return nil, errLater
}

// Replay puts a dead letter back as if it had just been accepted, under its
// request id, or returns ErrNotFound.
func (q *Queue) Replay(ctx context.Context, account, id string) error { return errLater }

// Remove forgets a dead letter, or returns ErrNotFound.
func (q *Queue) Remove(ctx context.Context, account, id string) error { return errLater }
