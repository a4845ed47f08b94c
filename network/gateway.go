package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// What the gateway does at a time, in all and for one instance, so that one
// cannot keep the others out.
const (
	maxQueries, maxQueriesEach = 1024, 64
	maxStreams, maxStreamsEach = 2048, 128 // connections: queries over TCP, and through doors
	doorTime                   = 5 * time.Second
	// doorIdle is more than the 15 minutes that an invoke may take.
	doorIdle = 20 * time.Minute
)

// gateway is what listens at the hub's address.
type gateway struct {
	group   *errgroup.Group
	ctx     context.Context
	cancel  context.CancelFunc
	closers []func() error
	streams *share
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
}

// serve opens the sockets in the hub and serves them from here.
func (h *hub) serve(o *Options) error {
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	g := &gateway{group: group, ctx: ctx, cancel: cancel, streams: newShare(maxStreams, maxStreamsEach), dial: o.Dial}
	if g.dial == nil {
		g.dial = (&net.Dialer{}).DialContext
	}
	h.gateway = g
	address := h.pool.gateway()
	return inNamespace(int(h.file.Fd()), func() error {
		if err := g.serveDNS(address, o.Resolv); err != nil {
			return fmt.Errorf("resolver: %w", err)
		}
		for port, to := range o.Doors {
			l, err := g.listen(netip.AddrPortFrom(address, port))
			if err != nil {
				return fmt.Errorf("door: %w", err)
			}
			group.Go(func() error { return g.door(l, to) })
		}
		return nil
	})
}

// listen opens a TCP port in this thread's namespace, whose connections count.
func (g *gateway) listen(at netip.AddrPort) (net.Listener, error) {
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	g.closers = append(g.closers, l.Close)
	return &shared4{l, g.streams}, nil
}

// close ends all that serves, and waits for it.
func (g *gateway) close() error {
	g.cancel()
	var err error
	for _, f := range g.closers {
		if e := f(); !errors.Is(e, net.ErrClosed) { // a server that ends has closed its socket
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, g.group.Wait())
}

// door passes connections on to an address on the host.
func (g *gateway) door(l net.Listener, to string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if g.ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("door to %s: %w", to, err)
		}
		g.group.Go(func() error { g.through(c, to); return nil })
	}
}

// through copies both ways until both have ended, one fails, or nothing comes
// for too long.
func (g *gateway) through(c net.Conn, to string) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(g.ctx, doorTime)
	far, err := g.dial(ctx, "tcp", to)
	cancel()
	if err != nil {
		return // the instance sees a connection that ends: like any server that is not there
	}
	defer far.Close()
	stop := context.AfterFunc(g.ctx, func() { c.Close(); far.Close() })
	defer stop()
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, far}, {far, c}} {
		wg.Go(func() {
			if _, err := io.Copy(idle{way[0], way[1]}, way[1]); err != nil {
				c.Close()
				far.Close()
			}
			if half, ok := way[0].(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

// idle moves both ends' deadlines with every write.
type idle struct{ to, from net.Conn }

func (i idle) Write(p []byte) (int, error) {
	end := time.Now().Add(doorIdle)
	_, _ = i.to.SetDeadline(end), i.from.SetDeadline(end)
	return i.to.Write(p)
}

// share bounds what is under way, in all and for each source.
type share struct {
	all, each int

	// mu guards what follows.
	mu    sync.Mutex
	total int
	of    map[netip.Addr]int
}

func newShare(all, each int) *share { return &share{all: all, each: each, of: map[netip.Addr]int{}} }

// take tells whether one more is fine; then it has to be given back.
func (s *share) take(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= s.all || s.of[source] >= s.each {
		return false
	}
	s.total++
	s.of[source]++
	return true
}

func (s *share) give(source netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.of[source]--; s.of[source] == 0 {
		delete(s.of, source)
	}
}

// source is who is at the other end.
func source(a net.Addr) netip.Addr {
	p, _ := netip.ParseAddrPort(a.String())
	return p.Addr().Unmap()
}

// shared4 is a listener that ends connections beyond somebody's share.
type shared4 struct {
	net.Listener
	share *share
}

// Accept waits for a connection that is fine.
func (l *shared4) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := source(c.RemoteAddr())
		if l.share.take(from) {
			return &counted{TCPConn: c.(*net.TCPConn), done: sync.OnceFunc(func() { l.share.give(from) })}, nil
		}
		c.Close()
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	*net.TCPConn
	done func()
}

// Close closes it.
func (c *counted) Close() error {
	c.done()
	return c.TCPConn.Close()
}
