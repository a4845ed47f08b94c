// Package worker is the micro manager of one machine: it starts instances of
// function versions, gives them one invoke at a time, keeps them between
// invokes, and ends them.
//
// A function version has one root file system, shared by its instances: the
// image as its agent serves it, mounted read-only, under a skeleton with what
// the platform adds. An instance is a sandbox on that root, with a disk-backed
// /tmp of its own, hard limits on memory and CPU time, and thaw-init as its
// first process, which speaks frames (invokewire) to the worker over one socket.
//
// What a start needs and no image decides is kept prepared: in slots, a sandbox
// that runs and waits for its root, and for images that are not mounted yet, an
// agent that waits for its keys.
package worker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/cgroups"
	"thaw/host"
	"thaw/invokewire"
	"thaw/network"
	"thaw/sandbox"
)

// Registration keeps the worker known to managers: a cluster's lease.
type Registration interface {
	Renew(ctx context.Context, value []byte) error
	Release(ctx context.Context) error
}

// Options say how to run a worker. Zero values of those with a default mean
// that.
type Options struct {
	ID      string // unique in the fleet, and the same after a restart
	Address string // host:port, where others reach Handler
	State   string // folder
	Token   string // of the fleet; requests must carry it
	Host    *host.Host
	Init    string // path of the thaw-init program
	Agent   string // path of the thaw-agent program
	Runtime string // OCI runtime, name or path; "" = the best that the host has

	// Fetcher has the process run that serves this worker's agents with chunks;
	// the worker releases it.
	Fetcher func(ctx context.Context) (*host.Use, error)
	// Image finds what is needed to mount an image, and gives its config JSON. The
	// worker sets Agent and Start. An error that wraps ErrNoImage says that no worker
	// can have the image.
	Image func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error)
	// KeepTrace keeps, for Image to give the next time, what the first start on a
	// mount of an image touched until the end of its init, sealed; nil: nothing is
	// recorded.
	KeepTrace func(ctx context.Context, tenant, image, root string, sealed []byte) error
	// Register takes the lease "workers/<id>", with invokewire.WorkerState as its
	// JSON value; nil: nobody is told.
	Register func(ctx context.Context, key string, value []byte) (Registration, error)
	// Pins tells of base images for GET /pins; nil: there are none.
	Pins func() []invokewire.Pin
	TTL  time.Duration // of the lease, renewed each TTL/3; 0 = 10 s

	// Network gives functions with Egress a way out; nil: they are not started. The
	// caller closes it once Run has returned.
	Network *network.Network

	// CABundle is certificates, in PEM, that functions trust besides their image's.
	CABundle []byte

	MaxStarts int           // that run at once; 0 = 2 × cores
	Queue     int           // starts that wait; 0 = 1000
	Memory    int64         // bytes that instances may take; 0 = three quarters of the machine's
	Disk      int64         // bytes that instances' /tmp and all logs may take on disk, LeastDisk at least; 0 = half of what is free
	Slots     int           // kept prepared; 0 = MaxStarts, negative = none
	Keep      time.Duration // how long an image without instances stays mounted; 0 = 10 min
	Logs      LogLimits
	Logger    *slog.Logger // nil = none
}

// LogLimits bound the logs of functions. Zero values mean the defaults.
type LogLimits struct {
	Stream   int64         // bytes of one instance's log; 0 = 8 MiB: what is older goes
	Function int64         // bytes of a function's logs; 0 = 64 MiB: the oldest streams go
	Total    int64         // bytes of all, of Options.Disk half at most; 0 = 1 GiB
	Streams  int           // of a function; 0 = 1000
	Age      time.Duration // 0 = 14 days
	Invoke   int64         // bytes that one invoke may log; 0 = 1 MiB: the rest is counted
}

// ErrNoImage says that an image is not in the origin, or damaged there.
var ErrNoImage = errors.New("no such image")

// Worker runs instances. Its methods are safe for concurrent use.
type Worker struct {
	o          Options
	log        *slog.Logger
	runtime    sandbox.Runtime
	supervisor *sandbox.Supervisor
	groups     *cgroups.Host
	fetcher    *host.Use
	program    string // thaw-init, where skeletons link it from
	bare       string // a skeleton without an image, for sandboxes that are started ahead; "" if they cannot be
	logs       *logStore
	slots      *slots
	blanks     *blanks
	roots      *roots
	admission  *admission
	history    *history
	counts     *counts
	payloads   payloads
	followers  atomic.Int64
	leaving    atomic.Bool // all instances are ended
	started    time.Time
	limits     limits
	life       context.Context // ends when nothing is to be left
	work       sync.WaitGroup  // all goroutines

	mu        sync.Mutex // guards what follows
	open      bool       // starts are admitted
	instances map[string]*instance
	users     map[string]uint32 // by tenant
	toldFull  time.Time         // when tellFull said it last
}

// New checks the options and finds the runtime.
func New(o Options) (*Worker, error) {
	if o.ID == "" || o.Address == "" || o.State == "" || o.Host == nil || o.Fetcher == nil || o.Image == nil || o.Init == "" || o.Agent == "" {
		return nil, errors.New("worker: an option is missing: ID, Address, State, Host, Fetcher, Image, Init and Agent are needed")
	}
	if len(o.CABundle) > 0 {
		if err := checkBundle(o.CABundle); err != nil {
			return nil, fmt.Errorf("worker: CA bundle: %w", err)
		}
	}
	if o.Disk == 0 {
		var err error
		if o.Disk, err = freeDisk(o.State); err != nil {
			return nil, err
		}
	}
	o = o.withDefaults()
	w := &Worker{
		o: o, log: o.Logger, started: time.Now(), limits: usualLimits(), life: context.Background(), instances: map[string]*instance{}, users: map[string]uint32{},
		logs: newLogStore(filepath.Join(o.State, "logs"), o.Logs, o.Logger), history: &history{counts: map[string]uint64{}}, counts: newCounts(),
		payloads: newPayloads(),
	}
	w.logs.limits.Total = min(w.logs.limits.Total, o.Disk/2) // else logs alone could keep all starts off: they go for Total only
	w.slots = newSlots(o.Slots, slotKind{slotTmp, o.Network != nil}, func(ctx context.Context, k slotKind) (*slot, error) { return w.makeSlot(ctx, k, true) })
	w.blanks = newBlanks(min(o.Slots, mostBlanks), func(ctx context.Context) (*host.Blank, error) { return w.o.Host.StartAgent(ctx, w.fetcher, w.o.Agent) })
	w.roots = &roots{w: w, all: map[string]*root{}}
	w.admission = newAdmission(o.MaxStarts, o.Queue, w.begin)
	var err error
	if w.runtime, err = sandbox.Find(o.Runtime); err != nil {
		return nil, err
	}
	if w.supervisor, err = sandbox.NewSharedSupervisor(w.runtime); err != nil {
		return nil, err
	}
	w.groups, err = cgroups.Find()
	return w, err
}

func (o Options) withDefaults() Options {
	o.MaxStarts = cmp.Or(o.MaxStarts, 2*runtime.NumCPU()) // more at once make each slower and none sooner
	o.Queue = cmp.Or(o.Queue, 1000)
	o.Slots = cmp.Or(o.Slots, o.MaxStarts)
	o.TTL = cmp.Or(o.TTL, 10*time.Second)
	o.Keep = cmp.Or(o.Keep, 10*time.Minute)
	o.Memory = cmp.Or(o.Memory, machineMemory()/4*3)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

func machineMemory() int64 {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 4 << 30 // it does not fail
	}
	return int64(info.Totalram) * int64(info.Unit)
}

// Run ends what a former worker left, registers, and serves until ctx ends; then
// it ends all instances and leaves nothing. Handler refuses starts before and
// after. It is called once.
func (w *Worker) Run(ctx context.Context) error {
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	w.life = life
	keeper, err := w.prepare(ctx)
	if err != nil {
		return err
	}
	background, stop := context.WithCancel(life)
	defer stop()
	var helpers sync.WaitGroup
	var failed error
	helpers.Go(func() {
		failed = w.slots.fill(background, func(err error) { w.log.Error("no slot can be prepared: starts take longer", "cause", err) })
	})
	helpers.Go(func() {
		w.blanks.fill(background, func(err error) { w.log.Error("no agent can be started ahead: full starts take longer", "cause", err) })
	})
	helpers.Go(func() { w.tend(background) })
	helpers.Go(func() { w.tendRoots(background) })
	helpers.Go(func() { w.keepFetcher(background) })
	helpers.Go(func() { w.register(background) })
	w.mu.Lock()
	w.open = true
	w.mu.Unlock()
	w.log.Info("worker runs", "id", w.o.ID, "address", w.o.Address, "runtime", w.runtime.Name)
	<-ctx.Done()
	w.mu.Lock()
	w.open = false
	w.mu.Unlock()
	stop()
	helpers.Wait()
	err = errors.Join(failed, w.endAll(life))
	end()
	w.work.Wait()
	quiet := context.WithoutCancel(ctx)
	err = errors.Join(err, w.roots.drop(quiet, func(*root) bool { return true }), keeper.End(quiet), w.o.Host.ReleaseFetcher(quiet, w.fetcher))
	if _, rerr := w.o.Host.Reap(quiet); rerr != nil { // a start that was cut off may have left something
		w.log.Warn("something is left: thaw prune removes it", "cause", rerr)
	}
	return err
}

// prepare clears what was left, and makes what all instances need. The keeper
// holds the program.
func (w *Worker) prepare(ctx context.Context) (keeper *host.Instance, err error) {
	removed, err := w.o.Host.Reap(ctx)
	if err != nil {
		w.log.Warn("left over from before, and not cleaned", "cause", err)
	}
	if len(removed) > 0 {
		w.log.Info("removed what a former worker left", "count", len(removed))
	}
	if w.fetcher, err = w.o.Fetcher(ctx); err != nil {
		return nil, err
	}
	keeper, err = w.o.Host.NewInstance(host.KindRoot, nil, nil)
	if err == nil {
		if w.program, err = keeper.KeepProgram(w.o.Init); err == nil && w.runtime.SharesKernel() {
			w.bare, err = w.makeBare(keeper)
		}
		if err != nil {
			err = errors.Join(err, keeper.End(ctx))
		}
	}
	if err != nil {
		return nil, errors.Join(err, w.o.Host.ReleaseFetcher(ctx, w.fetcher))
	}
	return keeper, nil
}

// endAll ends all instances, a few at a time.
func (w *Worker) endAll(ctx context.Context) error {
	w.leaving.Store(true)
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.instances))
	w.mu.Unlock()
	var ends errgroup.Group
	ends.SetLimit(endsAtOnce)
	for _, i := range all {
		ends.Go(func() error { return w.end(ctx, i, true) })
	}
	return ends.Wait()
}

// endsAtOnce is how many instances are ended at a time: most of an end is waiting.
const endsAtOnce = 16

// How often what runs beside invokes looks.
const (
	sweepEvery = time.Second
	pruneEvery = time.Minute
)

// tend reaps orphans, ends what takes too much disk, and prunes logs.
func (w *Worker) tend(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for pruned := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.supervisor.Sweep()
			w.relieve(ctx)
			if now.Sub(pruned) > pruneEvery || w.logs.bytes.Load() > w.logs.limits.Total {
				pruned = now
				w.logs.prune(now, w.logsInUse())
			}
		}
	}
}

func (w *Worker) logsInUse() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	used := map[string]bool{}
	for _, i := range w.instances {
		used[i.log.file.path] = true
	}
	return used
}

// tendRoots takes idle images down. That waits for starts that mount one, which
// may wait for chunks.
func (w *Worker) tendRoots(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := w.roots.drop(ctx, func(v *root) bool { return now.Sub(v.idle) > w.o.Keep }); err != nil {
				w.log.Warn("an image that nobody uses stays mounted: thaw prune removes it", "cause", err)
			}
		}
	}
}

// keepFetcher starts the fetcher again when it has ended, once a second at most.
// It waits for nothing else: all that reads waits for the fetcher.
func (w *Worker) keepFetcher(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		end, err := w.o.Host.ReviveFetcher(ctx, w.fetcher)
		if err != nil && ctx.Err() == nil {
			w.log.Error("the fetcher cannot be started", "cause", err)
		}
		if end != nil {
			stop := context.AfterFunc(ctx, func() { _ = end.Close() })
			if awaitEnd(end) {
				w.log.Warn("the fetcher has ended, and is started again")
			}
			stop()
			_ = end.Close()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// awaitEnd waits until a process has ended, as its descriptor tells, or that is
// closed, and says whether the process has.
func awaitEnd(process *os.File) bool {
	conn, err := process.SyscallConn()
	return err == nil && conn.Read(readable) == nil
}

// register keeps the worker known until ctx ends.
func (w *Worker) register(ctx context.Context) {
	if w.o.Register == nil {
		return
	}
	tick := time.NewTicker(w.o.TTL / 3)
	defer tick.Stop()
	var lease Registration
	for {
		value, err := json.Marshal(w.state(false))
		if err == nil && lease == nil {
			lease, err = w.o.Register(ctx, "workers/"+w.o.ID, value)
		} else if err == nil {
			if err = lease.Renew(ctx, value); err != nil {
				lease = nil // it may be lost: taken anew
			}
		}
		if err != nil && ctx.Err() == nil {
			w.log.Warn("managers may not know this worker: is the cluster up, and has no other worker its --id?", "id", w.o.ID, "cause", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if lease != nil {
				quiet, cancel := context.WithTimeout(context.WithoutCancel(ctx), w.o.TTL/3)
				defer cancel()
				_ = lease.Release(quiet) // else it ends by itself
			}
			return
		}
	}
}
