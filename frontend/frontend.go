// Package frontend is the door of a region: the Lambda API with its control
// operations and invokes, function URLs, notifications of S3, and as much of the
// CloudWatch Logs API as clients need to read functions' logs.
//
// # One request
//
//	bytes ─ read once into one bounded buffer ─ signature ─ operation
//	           │ control: the records, at once
//	           │ Event: the queue, 202
//	           └ invoke: version ─ idle instance that is leased here? ─ no ─→ manager: acquire
//	                                    │ yes                                   │
//	                                    └──────── POST to its worker ←──────────┘
//	                                              busy, gone: the next one
//
// A frontend holds leases on instances, and asks the manager only when it has
// no idle one of the version. It renews all of them in one request, and gives
// back what it has not used for a while. Who sends an invoke and hangs up does
// not stop it. Payloads are never logged.
package frontend

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"thaw/cluster"
	"thaw/events"
	"thaw/fleet"
	"thaw/functions"
	"thaw/keys"
)

// Defaults of Options.
const (
	// defaultIdle is long against the pauses of a client that is at work, and
	// short against the manager's idle time.
	defaultIdle = 30 * time.Second
	// defaultStart lets two hundred starts on two cores end one after another.
	defaultStart = 5 * time.Minute
	// defaultRegion is what clients take who are told none.
	defaultRegion = "us-east-1"
	// defaultSession is what functions' keys last at least: an instance is leased
	// for half of that, see manager.Options.MaxAge, and then ends when it is idle.
	defaultSession = 12 * time.Hour
)

// Options of a frontend. Zero values mean the defaults given.
type Options struct {
	// ID names this frontend to managers; empty: a random one. One that keeps its
	// name after a restart has what it held before at once.
	ID string
	// Token is the fleet's. Functions' short-lived keys are derived from it.
	Token string
	// Region is what clients must have signed for: us-east-1.
	Region string
	// Endpoint is the URL of this door as clients reach it; function URLs are
	// made of it.
	Endpoint string
	// URLDomain is what function URLs end with; "": Endpoint's host name, or
	// localhost, which resolves whatever is in front, if that is an address.
	URLDomain string
	// Inside is the same as functions reach it, for their AWS_ENDPOINT_URL;
	// empty: they are told none.
	Inside string
	// NoNetwork keeps functions from reaching anything, the door inside too.
	NoNetwork bool
	// Leases are where managers and workers are found.
	Leases *cluster.Leases

	Store    *functions.Store
	Keys     *KeyStore
	Queue    *events.Queue
	Packages Packages
	// Objects opens a package in S3, of so many bytes, or -1 if that is not known;
	// what the service answers instead is an *ObjectError. A body that ends too soon
	// ends with an error. It is closed, and ctx ends its reading. nil: there is no S3.
	Objects func(ctx context.Context, bucket, key, version string) (body io.ReadCloser, size int64, err error)
	// Scratch is the folder of packages from S3 until they are kept, in files without
	// names: some 600 MB at most; "": the system's for what is temporary.
	Scratch string
	// Keeper gives the key of an account's tenant, which seals its functions'
	// variables. It remembers those that it has given; nil: no function has any.
	Keeper func(ctx context.Context, account string) (keys.Keeper, error)
	// Runtimes are the names that zip packages may ask for.
	Runtimes []string
	// Tenant gives the tenant whose images an account's are, in the origin; nil:
	// "default" for 000000000000, else the account.
	Tenant func(account string) string

	// Client sends requests to managers and workers; nil: one that reaches loopback.
	Client *http.Client
	// Idle is after what a lease that is not used is given back: 30 s.
	Idle time.Duration
	// Start is how long an invoke may wait until its instance starts: 5 min.
	Start time.Duration

	Log *slog.Logger // nil: silent
}

// fill sets defaults.
func (o *Options) fill() {
	o.ID = cmp.Or(o.ID, "frontend-"+randomText(8)) + "#" + randomText(16)
	o.Region = cmp.Or(o.Region, defaultRegion)
	o.Idle = cmp.Or(o.Idle, defaultIdle)
	o.Start = cmp.Or(o.Start, defaultStart)
	if o.Tenant == nil {
		o.Tenant = tenantOf
	}
	if o.NoNetwork {
		o.Inside = ""
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Client == nil {
		o.Client = fleet.Dir("").Client()
	}
}

// tenantOf maps accounts unless something else is said.
func tenantOf(account string) string {
	if account == defaultAccount {
		return defaultTenant
	}
	return account
}

// Frontend serves a region. It is safe for concurrent use.
type Frontend struct {
	options  Options
	control  *control
	sessions sessions
	view     *view
	pool     *pool
	managers *managers
	workers  *workers
	buffers  *buffers
	chunks   chunks
	counts   *counts
	rates    *rates // of control
	reads    *turns // of logs
}

// New makes a frontend. It finds managers and workers once it runs.
func New(o Options) *Frontend {
	o.fill()
	f := &Frontend{options: o, sessions: newSessions(o.Token), buffers: newBuffers(), counts: newCounts(), rates: newRates(controlRate, controlBurst), reads: newTurns()}
	f.view = newView(o.Store)
	f.managers = newManagers(o.Client, o.Token)
	f.workers = newWorkers(o.Client, o.Token)
	f.pool = newPool(o.ID, o.Idle, f.managers)
	f.control = newControl(control{
		store: o.Store, secrets: newSecrets(o.Keeper), region: o.Region, urls: f.urlOf, packages: o.Packages, objects: o.Objects, scratch: o.Scratch,
		runtimes: o.Runtimes, now: time.Now,
	})
	return f
}

// urlOf makes a function URL's address: a host name of its own.
func (f *Frontend) urlOf(id string) string {
	u, err := url.Parse(f.options.Endpoint)
	if err != nil || u.Host == "" {
		u = &url.URL{Scheme: "http"}
	}
	host := u.Hostname()
	if host == "" || net.ParseIP(host) != nil {
		host = "localhost"
	}
	host = cmp.Or(f.options.URLDomain, host)
	host = id + urlLabel + f.options.Region + "." + host
	if port := u.Port(); port != "" {
		host = net.JoinHostPort(host, port)
	}
	return u.Scheme + "://" + host + "/"
}

// Run follows managers and workers, keeps leases and hands queued events to
// functions, until ctx ends. It gives its leases back and waits for what it has
// started. Requests that Handler serves are their server's to wait for.
func (f *Frontend) Run(ctx context.Context) error {
	err := f.work(ctx)
	if ctx.Err() != nil {
		return nil // whatever else came of that
	}
	return err
}

func (f *Frontend) work(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.view.run(ctx) })
	g.Go(func() error { return f.options.Keys.run(ctx) })
	g.Go(func() error { return f.options.Leases.Watch(ctx, "managers/", f.managers.tell) })
	g.Go(func() error { return f.options.Leases.Watch(ctx, "workers/", f.workers.tell) })
	g.Go(func() error { f.pool.run(ctx); return nil })
	g.Go(func() error { f.workers.lanes.run(ctx); return nil })
	defer f.workers.lanes.close("")
	g.Go(func() error { f.buffers.run(ctx); return nil })
	g.Go(func() error { return f.options.Queue.Run(ctx, invoker{f}) })
	return g.Wait()
}

// isURLHost tells whether a host name is a function URL's, and its id.
func isURLHost(host string) (id string, ok bool) {
	id, rest, ok := strings.Cut(host, urlLabel)
	return id, ok && id != "" && rest != ""
}

// urlLabel is between a function URL's id and its region.
const urlLabel = ".lambda-url."
