package zone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"thaw/chunk"
	"thaw/erasure"
)

const (
	// The code that a zone of five or more uses unless told otherwise: the
	// paper's. Fewer nodes hold whole chunks, one each.
	defaultK, defaultN = 4, 5
	// DefaultDeadline is that of a round of requests: far beyond a zone's
	// slowest thousandth (4 ms). Short ones would send a crowd to the origin just
	// when all machines are too busy to answer.
	defaultDeadline = time.Second
	// putDeadlines is how many deadlines an upload may take: nobody waits for it.
	putDeadlines = 4
	// defaultConns is how many requests may be under way to one node: what 64
	// readers need, and what a node that hangs may hold on to.
	defaultConns = 64
	// defaultLeaseWait is how long a Get waits for another worker's fill: an
	// origin's slowest answer, the upload, and a wait for a place at the origin.
	defaultLeaseWait = 3 * time.Second
	// defaultFillBytes is a burst of 64 chunks of 512 KiB that wait to be put.
	defaultFillBytes = 32 << 20
	// defaultRepairs is how many chunks are repaired in a second: 10 MB/s read
	// besides what is asked for, a part of what one worker reads at its busiest.
	defaultRepairs = 20
	// idleConns and idleTime bound connections that nobody uses.
	idleConns, idleTime = 512, 90 * time.Second
	// maxAnswerHeader is far more than a node says, in bytes.
	maxAnswerHeader = 16 << 10
)

// Options say which zone, and how much of it. What is zero has a default.
type Options struct {
	Zone string // the nodes: see ReadMembers

	// K of N stripes give a chunk back. Both zero: 4 of 5 from five members on,
	// else 1 of 1; once it has been 4 of 5 it stays, however few members there
	// are. All clients of a zone must use the same.
	K, N int

	Deadline  time.Duration // of a round of n requests; 1 s
	Worker    string        // who asks for leases, at most MaxToken visible bytes; "" asks for none
	LeaseWait time.Duration // the longest wait for another worker's fill; 3 s; below 0: none
	Conns     int           // requests under way to one node; 64
	FillBytes int64         // of chunks that wait to be put; 32 MiB
	Repairs   int           // chunks repaired in a second; 20; below 0: none

	// Patient says that a file of members that cannot be read at first is a
	// warning, as it is later: somebody found it right, and reads go on without.
	Patient bool

	TLS      *tls.Config // nil: no TLS
	Resolver *net.Resolver
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)

	// Warn, if set, is told what is wrong with the list of members, once each
	// time, that no node has answered the first Get, and each time that none has
	// answered for half a minute. It may be called by another goroutine.
	Warn func(error)
}

// errClosed says that the client is.
var errClosed = errors.New("zone: client is closed")

// Client reads chunks from a zone and puts them there. It is a chunk.Source
// that verifies what it gives. It is safe for concurrent use.
//
// A Get sends n requests and is done when k stripes have come and their chunk
// has its name. The others go on until they are answered or the deadline is
// over, since a request that is cancelled costs its connection; they are
// bounded by Conns. Nothing is asked for twice.
type Client struct {
	o         Options
	transport *http.Transport
	source    *source
	plain     http.Header // of requests; not written to
	asking    http.Header // the same with LeaseHeader
	buffers   buffers
	counts    counts
	view      atomic.Pointer[view] // nil: no members yet
	answered  atomic.Bool          // a node has, with a stripe or without
	failing   atomic.Int64         // since when Gets have failed and no node has answered, in ns since 1970; 0: not so
	unheard   atomic.Pointer[string]

	base   context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // all goroutines, and all calls

	missGrace, settle time.Duration // the constants; tests wait longer

	fills   chan struct{} // a place for each that is being put
	repairs chan chunk.Name

	mu        sync.Mutex
	closed    bool                // guarded by mu
	filling   map[chunk.Name]int  // guarded by mu: bytes that wait or are being put
	fillBytes int64               // guarded by mu: sum of filling
	repairing map[chunk.Name]bool // guarded by mu: in repairs
}

// view is a list of members with what is made of it. It does not change.
type view struct {
	members *Members
	code    *erasure.Code
	k, n    int
	nodes   []*node // by number in the list
}

// at gives the nodes of a chunk by index, nil where there is none.
func (v *view) at(name chunk.Name) []*node {
	nodes := make([]*node, v.n)
	for i, number := range v.members.place(name, v.n) {
		if number != nobody {
			nodes[i] = v.nodes[number]
		}
	}
	return nodes
}

// node is what the client knows of a member. Its counts go with it.
type node struct {
	addr   string
	slots  chan struct{} // a place for each request under way
	puts   chan struct{} // the same for uploads
	counts nodeCounts
}

// NewClient reads the list of members. It refuses a list in place that is too
// short for the code, and a file that cannot be read unless it is to be Patient;
// a file or a name that is too short gets a warning, as later ones
// will, and the stripes without a node are missing. The caller closes it.
func NewClient(o Options) (*Client, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	s, err := newSource(o.Zone, o.Resolver)
	if err != nil {
		return nil, err
	}
	c := &Client{
		o: o, source: s, plain: http.Header{"User-Agent": {"thaw"}},
		fills: make(chan struct{}, maxFills), repairs: make(chan chunk.Name, maxRepairs),
		filling: map[chunk.Name]int{}, repairing: map[chunk.Name]bool{}, missGrace: missGrace, settle: settle,
	}
	c.asking = c.plain.Clone()
	c.asking.Set(LeaseHeader, o.Worker)
	c.base, c.cancel = context.WithCancel(context.Background())
	c.transport = newTransport(o)
	m, err := s.read(c.base)
	if err == nil && s.every == 0 && len(m.list) < o.N {
		err = fmt.Errorf("zone: %d of %d needs %d members, %d are named", o.K, o.N, o.N, len(m.list))
	}
	if err != nil && !s.lenient && (!o.Patient || s.every == 0) {
		c.cancel()
		return nil, err
	}
	if err == nil {
		err = c.use(m)
	}
	warned := ""
	if err != nil {
		warned = err.Error()
		o.Warn(err)
	}
	c.work.Go(c.repairLoop)
	if s.every > 0 {
		c.work.Go(func() { c.watch(m, warned) })
	}
	return c, nil
}

// complete fills in defaults and refuses what can't be.
func (o *Options) complete() error {
	if o.K != 0 || o.N != 0 {
		if _, err := erasure.New(o.K, o.N); err != nil {
			return err
		}
	}
	if len(o.Worker) > MaxToken || !visible(o.Worker) {
		return fmt.Errorf("zone: worker's token %.80q is not up to %d visible bytes", o.Worker, MaxToken)
	}
	setDefault(&o.Deadline, defaultDeadline)
	setDefault(&o.LeaseWait, defaultLeaseWait)
	setDefault(&o.Conns, defaultConns)
	setDefault(&o.FillBytes, defaultFillBytes)
	setDefault(&o.Repairs, defaultRepairs)
	if o.Deadline < 0 || o.Conns < 0 || o.FillBytes < 0 {
		return fmt.Errorf("zone: deadline %v, %d connections, %d bytes of fills: want more than 0", o.Deadline, o.Conns, o.FillBytes)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: o.Deadline}).DialContext
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func visible(s string) bool {
	for _, b := range []byte(s) {
		if b <= ' ' || b > '~' {
			return false
		}
	}
	return true
}

// newTransport speaks HTTP/1.1: bodies of 128 KiB cost it a third of the
// processor time that HTTP/2 takes.
func newTransport(o Options) *http.Transport {
	t := &http.Transport{
		DialContext: o.Dial, TLSClientConfig: o.TLS, TLSHandshakeTimeout: putDeadlines * o.Deadline,
		DisableCompression: true, MaxIdleConns: idleConns, MaxIdleConnsPerHost: o.Conns, IdleConnTimeout: idleTime,
		MaxResponseHeaderBytes: maxAnswerHeader, Protocols: new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	return t
}

// use takes a list into use. The error is what is wrong with it: stripes
// without a node.
func (c *Client) use(m *Members) error {
	old, k, n := c.view.Load(), c.o.K, c.o.N
	switch {
	case n != 0:
	case old != nil && old.n == defaultN, len(m.list) >= defaultN:
		k, n = defaultK, defaultN
	default:
		k, n = 1, 1
	}
	code, err := erasure.New(k, n)
	if err != nil {
		return err
	}
	v := &view{members: m, code: code, k: k, n: n}
	known := map[string]*node{}
	if old != nil {
		m.table(n) // before reads want it; the first is made when one does, if ever
		for _, node := range old.nodes {
			known[node.addr] = node
		}
	}
	for _, member := range m.list {
		if known[member.Addr] == nil {
			known[member.Addr] = &node{addr: member.Addr, slots: make(chan struct{}, c.o.Conns), puts: make(chan struct{}, maxPuts)}
		}
		v.nodes = append(v.nodes, known[member.Addr])
	}
	c.view.Store(v)
	if len(m.list) < n {
		return fmt.Errorf("zone: %d members for %d-of-%d: some stripes have no node", len(m.list), k, n)
	}
	return nil
}

// watch reads the list again and again until Close. last is the one in use, and
// warned what has been told of it.
func (c *Client) watch(last *Members, warned string) {
	tick := time.NewTicker(c.source.every)
	defer tick.Stop()
	for {
		select {
		case <-c.base.Done():
			return
		case <-tick.C:
		}
		m, err := c.source.read(c.base)
		if err == nil {
			warned = "" // it is to be told if it fails again
			if m == last || last != nil && m.same(last) {
				continue
			}
			last = m
			err = c.use(m)
		}
		if err != nil && err.Error() != warned && c.base.Err() == nil {
			warned = err.Error()
			c.o.Warn(err)
		}
	}
}

// begin makes Close wait until the caller calls c.work.Done, unless it has
// begun already.
func (c *Client) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.work.Add(1)
	}
	return !c.closed
}

// enter is begin for what Close cuts short: inner ends with ctx or the client. The
// caller calls leave.
func (c *Client) enter(ctx context.Context) (inner context.Context, leave func(), err error) {
	if !c.begin() {
		return nil, nil, errClosed
	}
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.base, cancel)
	return inner, func() {
		stop()
		cancel()
		c.work.Done()
	}, nil
}

// Close ends what is under way, drops fills that wait, and waits for all of it.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	c.transport.CloseIdleConnections()
	return nil
}
