// Package builder makes devices of functions' images and zip packages: it takes
// functions that are Pending, or whose update is InProgress, and settles them.
//
// Of several builders one works on a function: the one that has its lease. The
// lease of a builder that was killed ends by itself, and another builder, or the
// next process, begins anew: what has been stored is not stored again, and an
// image's tag is not resolved again. How often a build was begun is a record of
// its own, so that one which kills its builder each time ends as Failed.
//
// It also removes from the origin what no version of a function needs any more,
// and records of versions that no function names.
//
//	leases    build/<account>/<name>   id of the builder
//	          sweep                    id of the builder that removes
//	records   <account>/<name>         {"build": word, "tries": n}; there while a build is tried
package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thaw/cluster"
	"thaw/functions"
)

// Defaults, and how often things are done.
const (
	// defaultTries is for what may pass: a registry or an origin that is away, and
	// a builder that ran out of memory beside another conversion.
	defaultTries = 4
	// defaultTTL is how long a killed builder's function waits.
	defaultTTL = 10 * time.Second
	// firstPause is the time before the second try; it doubles up to longestPause.
	firstPause   = time.Second
	longestPause = time.Minute
	// reportEvery bounds how often progress is written: each time is a synced write.
	reportEvery = 2 * time.Second
	// settleTime is how long a result that is there may take to be written while
	// the builder ends.
	settleTime = 5 * time.Second
)

// Options are what a Builder works with.
type Options struct {
	ID        string // of this builder, unique in the fleet
	Functions *functions.Store
	Leases    *cluster.Leases
	TTL       time.Duration    // of Leases; 0: 10 s
	Records   *cluster.Records // of builders alone
	// Convert makes a job's device. An error that is a Refusal ends the build as
	// Failed; others are tried again, some times. It is called from several
	// goroutines, and returns soon after its context has ended.
	Convert  func(context.Context, *Job) (functions.Result, error)
	Kept     Kept          // what is swept beside the records; nil: nothing
	Keep     time.Duration // how long what no function needs is kept at least; 0: 15 min
	Parallel int           // jobs at a time; 0: one
	Tries    int           // 0: 4
	Logger   *slog.Logger  // nil: none

	pause, every time.Duration // replace firstPause and reportEvery in tests
}

// Job is one build of a function.
type Job struct {
	functions.ID
	Build   string // its word
	Version functions.Version

	store *functions.Store
	after time.Time  // when to begin it again; guarded by Builder.mu
	mu    sync.Mutex // guards said
	said  string     // newest sentence of Report
}

// Report shows users how far the job is: one sentence, shown within seconds. It
// may be called as often as one likes, from many goroutines.
func (j *Job) Report(sentence string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.said = sentence
}

// Resolve notes what the image's tag stands for, with a digest, so that a
// builder which starts over keeps to it. It fails if the build is not wanted any
// more.
func (j *Job) Resolve(ctx context.Context, uri string) error {
	j.Version.Package.ResolvedURI = uri
	if j.store == nil {
		return nil // in tests of Convert
	}
	return j.store.Resolve(ctx, j.ID, j.Build, uri)
}

// Refusal ends a build as Failed: Code is a StateReasonCode, Reason a sentence
// for the user.
type Refusal struct{ Code, Reason string }

// Error gives code and reason.
func (r *Refusal) Error() string { return r.Code + ": " + r.Reason }

// StateReasonCodes of refusals.
const (
	AccessDenied  = "ImageAccessDenied" // the registry refuses the credentials that are known, or wants some
	InvalidImage  = "InvalidImage"      // it can never be run here
	ImageDeleted  = "ImageDeleted"      // it is not there
	InternalError = "InternalError"     // all else
)

// Refuse makes a Refusal.
func Refuse(code, format string, args ...any) error {
	return &Refusal{code, fmt.Sprintf(format, args...)}
}

// Builder builds what the fleet's functions need. Run runs it.
type Builder struct {
	o      Options
	log    *slog.Logger
	counts *counts

	mu      sync.Mutex // guards all below
	pending map[functions.ID]*Job
	running map[functions.ID]*attempt
	settled map[functions.ID]string // builds; the watch may lag behind
	wake    chan struct{}           // has an element if pending or running may have changed
}

// attempt is a job that this builder works on.
type attempt struct {
	build  string
	cancel context.CancelCauseFunc
}

// New makes a Builder.
func New(o Options) *Builder {
	o.TTL = cmp.Or(o.TTL, defaultTTL)
	o.Parallel = cmp.Or(o.Parallel, 1)
	o.Tries = cmp.Or(o.Tries, defaultTries)
	o.Keep = cmp.Or(o.Keep, defaultKeep)
	o.pause, o.every = cmp.Or(o.pause, firstPause), cmp.Or(o.every, reportEvery)
	b := &Builder{
		o: o, log: o.Logger, counts: newCounts(), wake: make(chan struct{}, 1),
		pending: map[functions.ID]*Job{}, running: map[functions.ID]*attempt{}, settled: map[functions.ID]string{},
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	return b
}

// errUnwanted ends jobs that nobody wants any more.
var errUnwanted = errors.New("build is not wanted any more")

// Run builds until ctx ends, and then waits for what it has begun to end. Other
// builders go on with that. It fails only if the cluster's records cannot be
// watched or are damaged.
func (b *Builder) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := b.o.Functions.Watch(ctx, b.changed)
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("builder: watch functions: %w", err)
	})
	g.Go(func() error { // a lease that has ended may be a killed builder's
		err := b.o.Leases.Watch(ctx, leasePrefix, func(c cluster.Change) error {
			if c.Deleted {
				b.signal()
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("builder: watch leases: %w", err)
	})
	g.Go(func() error { return b.schedule(ctx) })
	g.Go(func() error { return b.sweeps(ctx) })
	return g.Wait()
}

// changed notes what is to be built, and ends what is not any more.
func (b *Builder) changed(id functions.ID, f *functions.Function) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	build := ""
	if f != nil {
		build = f.Latest.Build
	}
	if a := b.running[id]; a != nil && a.build != build {
		a.cancel(errUnwanted)
	}
	if b.settled[id] == build && build != "" {
		return nil
	}
	delete(b.settled, id)
	if build == "" {
		delete(b.pending, id)
		return nil
	}
	if old := b.pending[id]; old == nil || old.Build != build {
		b.pending[id] = &Job{ID: id, Build: build, Version: f.Latest, store: b.o.Functions}
		b.signalLocked()
	}
	return nil
}

func (b *Builder) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.signalLocked()
}

func (b *Builder) signalLocked() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// schedule starts jobs while there is room, whenever something may have changed.
func (b *Builder) schedule(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for {
		for _, j := range b.waiting() {
			lease, err := b.o.Leases.Take(ctx, leaseKey(j.ID), []byte(b.o.ID))
			if errors.Is(err, cluster.ErrExists) {
				continue // another builder works on it
			}
			if err != nil {
				b.log.Warn("builder: cannot claim a build, and tries again", "function", j.ID, "error", err)
				break
			}
			inner, cancel := context.WithCancelCause(ctx)
			if !b.begin(j, cancel) {
				cancel(errUnwanted)
				b.release(lease)
				continue
			}
			workers.Go(func() { b.work(inner, cancel, j, lease) })
			if b.full() {
				break
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.wake:
		case <-time.After(b.o.TTL): // watches may have missed something
		}
	}
}

func (b *Builder) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.running) >= b.o.Parallel
}

// waiting gives the jobs that nobody here works on; none if there is no room.
// Accounts take turns, each with its oldest, those first that have fewer under
// way: whoever brings a hundred images keeps nobody else waiting for all of them.
func (b *Builder) waiting() []*Job {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.running) >= b.o.Parallel {
		return nil
	}
	var jobs []*Job
	for id, j := range b.pending {
		if b.running[id] == nil && !time.Now().Before(j.after) {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(x, y *Job) int {
		return cmp.Or(x.Version.LastModified.Compare(y.Version.LastModified), cmp.Compare(x.ID.String(), y.ID.String()))
	})
	before, turn := map[string]int{}, map[*Job]int{}
	for id := range b.running {
		before[id.Account]++
	}
	for _, j := range jobs {
		turn[j] = before[j.Account]
		before[j.Account]++
	}
	slices.SortStableFunc(jobs, func(x, y *Job) int { return cmp.Compare(turn[x], turn[y]) })
	return jobs
}
