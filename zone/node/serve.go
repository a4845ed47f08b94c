package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxStreams is how many requests one HTTP/2 connection may have open.
	maxStreams = 32
	// connWindow is how many bytes a client may send on one HTTP/2 connection,
	// and streamWindow for one request on it, before they are asked for: they
	// lie in the heap. A stripe of 128 KiB goes through without a pause.
	connWindow, streamWindow = 1 << 20, 256 << 10
	// warnEvery is how often an operator is told of what goes on.
	warnEvery = time.Minute
	// acceptPause is how long nobody is accepted when that failed, for want of
	// descriptors as a rule.
	acceptPause = 100 * time.Millisecond
)

// bounds are what a client, or its end, may take of a node. Tests have others.
type bounds struct {
	conns                         int64 // that may be open: the one that has waited longest makes room
	http2                         int64 // of those; others are closed at once
	idle, head, body, send, grace time.Duration
	drain                         time.Duration // closing waits no longer for what is queued for flash
}

func usualBounds() bounds {
	return bounds{
		conns: 2048,            // two of each of 1,000 workers
		http2: 64,              // 64 MiB of windows; workers speak HTTP/1.1
		idle:  2 * time.Minute, // between requests: clients keep theirs for 90 s or less
		head:  10 * time.Second,
		body:  20 * time.Second, // of 128 KiB: 6 KiB/s
		send:  20 * time.Second,
		grace: 5 * time.Second, // for what is under way when the node is to end
		drain: 5 * time.Second, // it is a cache
	}
}

// server is one call of Serve.
type server struct {
	n    *Node
	done chan struct{} // closed when it is to end
	http handover

	mu    sync.Mutex // guards conns
	conns map[client]struct{}
	work  sync.WaitGroup
}

// client is a connection that is served.
type client interface {
	since() *atomic.Int64 // when it began to wait for a request, in ns since 1970; 0: it does not
	cut()                 // closes what is below it, and waits for nothing
}

// Serve answers requests on l until ctx ends, and closes it. Requests for
// stripes over plain HTTP/1.1 are answered here; a connection that brings
// anything else is net/http's with Handler, from that request on. Requests that
// are under way at the end get 5 s.
func (n *Node) Serve(ctx context.Context, l net.Listener) error {
	return n.newServer(l).run(ctx, l)
}

func (n *Node) newServer(l net.Listener) *server {
	s := &server{n: n, done: make(chan struct{}), conns: map[client]struct{}{}}
	s.http = handover{addr: l.Addr(), conns: make(chan net.Conn), done: s.done}
	return s
}

func (s *server) run(ctx context.Context, l net.Listener) error {
	n := s.n
	hs := n.httpServer()
	s.work.Go(func() { _ = hs.Serve(&s.http) }) // it ends with the handover
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	err := s.accept(ctx, l)
	close(s.done)
	_ = l.Close()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.bounds.grace)
	defer cancel()
	s.closeConns(true)
	cut := context.AfterFunc(grace, func() { s.closeConns(false) })
	if hs.Shutdown(grace) != nil {
		_ = hs.Close()
	}
	s.work.Wait()
	cut()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *Node) httpServer() *http.Server {
	t := &n.bounds
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetHTTP2(true)
	p.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: n.Handler(), Protocols: &p, MaxHeaderBytes: maxHead,
		ReadHeaderTimeout: t.head, ReadTimeout: t.head + t.body, IdleTimeout: t.idle, WriteTimeout: t.head + t.body + t.send,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 64 << 10, MaxReceiveBufferPerStream: streamWindow, MaxReceiveBufferPerConnection: connWindow},
		ErrorLog: log.New(io.Discard, "", 0), // what clients do wrong is no news
		ConnState: func(c net.Conn, state http.ConnState) {
			if c, ok := c.(*counted); ok {
				c.waits(state == http.StateIdle)
			}
		},
	}
}

// accept takes connections until the listener is closed.
func (s *server) accept(ctx context.Context, l net.Listener) error {
	for warned := (time.Time{}); ; {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return err
			}
			s.n.options.Warn(err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		if s.n.conns.Add(1) > s.n.bounds.conns {
			s.n.counts.connsRefused.Add(1)
			if time.Since(warned) > warnEvery {
				warned = time.Now()
				s.n.options.Warn(fmt.Errorf("node: %d connections are open: each new one takes the place of the one that has waited longest, if any waits", s.n.bounds.conns))
			}
			if !s.makeRoom() {
				s.n.conns.Add(-1)
				_ = c.Close()
				continue
			}
		}
		s.work.Go(func() { s.serve(c) })
	}
}

// makeRoom closes the connection that has waited longest for a request, and
// tells whether there was one. Its goroutine ends a moment later.
func (s *server) makeRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	var longest client
	var least int64
	for c := range s.conns {
		if since := c.since().Load(); since != 0 && (longest == nil || since < least) {
			longest, least = c, since
		}
	}
	if longest == nil {
		return false
	}
	longest.since().Store(0)
	longest.cut()
	return true
}

// enter has a connection counted among those that can be closed, until leave.
func (s *server) enter(c client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
}

func (s *server) leave(c client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// serve has a connection served, here or by net/http.
func (s *server) serve(nc net.Conn) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok { // TLS
		s.giveTLS(nc)
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		s.n.conns.Add(-1)
		return
	}
	c := &conn{s: s, tcp: tcp, raw: raw, began: time.Now()}
	c.out.step, c.from.step = c.out.write, c.from.read
	s.enter(c)
	p := c.serve()
	s.leave(c)
	if p == foreign {
		_ = tcp.SetDeadline(time.Time{})
		s.give(&counted{Conn: tcp, s: s, first: append([]byte(nil), c.in[c.start:c.end]...)})
		return
	}
	_ = tcp.Close()
	s.n.conns.Add(-1)
}

// giveTLS waits until a connection with TLS has brought the beginning of a
// request, as long as for a request's head, and gives it to net/http.
func (s *server) giveTLS(nc net.Conn) {
	c := &counted{Conn: nc, s: s}
	c.waits(true)
	s.enter(c)
	first, n := make([]byte, maxHead), 0
	err := nc.SetReadDeadline(time.Now().Add(s.n.bounds.head))
	for k := 0; err == nil && n < len(preface); n += k {
		k, err = nc.Read(first[n:])
	}
	c.waits(false)
	if err != nil {
		_ = c.Close()
		return
	}
	_ = nc.SetReadDeadline(time.Time{}) // net/http shows the error
	c.first = first[:n]
	s.give(c)
}

// preface is how HTTP/2 begins, and no method of ours.
const preface = "PR"

// give gives a connection to net/http, if there is room for one more of
// HTTP/2: that is known by its first bytes.
func (s *server) give(c *counted) {
	if c.http2 = bytes.HasPrefix(c.first, []byte(preface)); c.http2 && s.n.http2.Add(1) > s.n.bounds.http2 {
		s.n.counts.connsRefused.Add(1)
		_ = c.Close()
		return
	}
	s.enter(c)
	s.http.give(c)
}

// ending tells whether the server is to end.
func (s *server) ending() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// closeConns closes connections, or only those that wait for a request.
func (s *server) closeConns(waiting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if !waiting || c.since().Load() != 0 {
			c.cut()
		}
	}
}

// handover is the listener of net/http: it gets connections of which a request
// has been read, or is still to be.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
}

func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		_ = c.Close()
	}
}

// Accept gives the next connection.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close does nothing: whoever called Serve ends it.
func (h *handover) Close() error { return nil }

// Addr is that of the real listener.
func (h *handover) Addr() net.Addr { return h.addr }

// counted is a connection with what has been read of it in front.
type counted struct {
	net.Conn
	s       *server
	first   []byte
	http2   bool
	waiting atomic.Int64
	closed  sync.Once
}

// waits notes whether the connection waits for a request.
func (c *counted) waits(so bool) {
	if so {
		c.waiting.Store(time.Now().UnixNano())
	} else {
		c.waiting.Store(0)
	}
}

func (c *counted) since() *atomic.Int64 { return &c.waiting }

func (c *counted) cut() {
	below := c.Conn
	if t, ok := below.(*tls.Conn); ok { // its Close says goodbye, and may wait for that
		below = t.NetConn()
	}
	_ = below.Close()
}

// Read reads what was read already, and then on.
func (c *counted) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// Close closes the connection and makes room for another.
func (c *counted) Close() error {
	c.closed.Do(func() {
		c.s.leave(c)
		c.s.n.conns.Add(-1)
		if c.http2 {
			c.s.n.http2.Add(-1)
		}
	})
	return c.Conn.Close()
}
