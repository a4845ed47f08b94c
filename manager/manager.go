// Package manager is the worker manager: it decides which instance an invoke
// gets when its frontend has none, where new instances start, and which ones
// end. It speaks HTTP, as package invokewire says.
//
// Each function has one owning manager, by a lease in the cluster's memory; the
// others name it to whoever asks them. A manager keeps nothing durable: after a
// restart it learns of instances from the workers and of leases from frontends
// that renew them, and until then it admits nothing.
//
//	acquire ─ idle instance without lease? ─ yes ─→ lease
//	              │ no
//	          caps: reserved, account, burst ─ full ─→ make room of idle ones, or throttle
//	              │
//	          worker: the last one of this version, else the least waiting, the freest
//	              │
//	          POST /instances ─ refused ─→ the next worker, or throttle
//	              │ 202
//	            lease (fresh)
//
// Instances of what was deleted or replaced end at once, as the records tell of
// it: those that work, when they are done.
//
// The worker is the authority on its instances. What the manager knows of them
// comes from starts that were admitted and from their workers' state, polled.
package manager

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"thaw/cluster"
	"thaw/functions"
)

// Defaults of Options.
const (
	// defaultTTL lets a frontend miss two renewals before its leases end.
	defaultTTL = 15 * time.Second
	// defaultIdle is near what Lambda's users see: minutes, not hours.
	defaultIdle = 10 * time.Minute
	// defaultMaxAge is well within the life of the keys that an instance was
	// started with, which are good for twelve hours.
	defaultMaxAge = 6 * time.Hour
	// defaultPoll is how old the manager's view of a worker may be.
	defaultPoll = 2 * time.Second
	// defaultRenew suits leases of ten seconds, the cluster's usual ones.
	defaultRenew = 3 * time.Second
	// defaultAccountLimit and defaultBurst are Lambda's.
	defaultAccountLimit = 1000
	defaultBurst        = 1000
	// defaultOvercommit: most functions use a small part of their memory; what
	// they do use is measured, and counts in full.
	defaultOvercommit = 8
)

// Options of a manager. Zero values mean the defaults given.
type Options struct {
	// ID names this manager among others; empty: a random one, which is best: a
	// name that is used again must wait until its last process's leases have ended.
	ID string
	// Address is where frontends and managers reach it, host:port, and nobody else
	// is: what the manager that was there before held is ended when this one runs.
	Address string
	// Token is the fleet's; requests without it are refused.
	Token string
	// Leases hold workers ("workers/ID"), managers ("managers/ID") and owners
	// ("owner/ACCOUNT/FUNCTION"). Their TTL bounds how long a dead manager owns.
	Leases *cluster.Leases
	// Client sends requests to workers; nil: http.DefaultClient.
	Client *http.Client
	// Functions tells of functions, as Watch of functions.Store does: instances of
	// what was deleted or replaced end then. nil: they end when they are idle.
	Functions func(ctx context.Context, changed func(functions.ID, *functions.Function) error) error

	TTL    time.Duration // of instance leases: 15 s
	Idle   time.Duration // after which an instance without lease ends: 10 min
	MaxAge time.Duration // after which an instance is leased no more: 6 h
	Poll   time.Duration // between looks at a worker's state: 2 s
	Renew  time.Duration // between renewals of what Leases hold: 3 s, a third of their TTL at most

	AccountLimit int     // instances of one account: 1000
	Burst        int     // new instances of one function per 10 s: 1000
	Overcommit   float64 // instances' memory over the worker's: 8

	Log *slog.Logger // nil: silent
}

// fill sets defaults.
func (o *Options) fill() {
	or(&o.ID, randomID())
	or(&o.TTL, defaultTTL)
	or(&o.Idle, defaultIdle)
	or(&o.MaxAge, defaultMaxAge)
	or(&o.Poll, defaultPoll)
	or(&o.Renew, defaultRenew)
	or(&o.AccountLimit, defaultAccountLimit)
	or(&o.Burst, defaultBurst)
	or(&o.Overcommit, defaultOvercommit)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
}

func or[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// randomID gives 64 random bits: unique among managers, or instances.
func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// Manager manages. It is safe for concurrent use.
type Manager struct {
	options Options
	table   *table
	owners  *owners
	members directory
	workers *workerClient

	counted *counted

	others  atomic.Bool   // there has been another manager
	settled chan struct{} // closed once it may admit
	wake    chan struct{} // there are instances to delete
	look    chan struct{} // there are workers to look at
}

// New makes a manager that admits nothing until it runs.
func New(o Options) *Manager { return newManager(o, leases{o.Leases}) }

func newManager(o Options, members directory) *Manager {
	o.fill()
	m := &Manager{
		options: o,
		table:   newTable(&o),
		members: members,
		counted: newCounted(),
		workers: &workerClient{o.Client, o.Token},
		settled: make(chan struct{}),
		wake:    make(chan struct{}, 1),
		look:    make(chan struct{}, 1),
	}
	m.owners = newOwners(o.ID, members)
	m.table.owned = m.owners.has
	return m
}

// signal tells a loop that there is work. It never blocks.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // it has been told
	}
}
