package node

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxStreams is how many requests one HTTP/2 connection may have open.
	maxStreams = 64
	// acceptPause is how long nobody is accepted when that failed, for want of
	// descriptors as a rule.
	acceptPause = 100 * time.Millisecond
)

// bounds are what a client may take of a node. Tests take less.
type bounds struct {
	conns                         int64 // that may be open; others are closed at once
	idle, head, body, send, grace time.Duration
}

func usualBounds() bounds {
	return bounds{
		conns: 2048,            // two of each of 1,000 workers
		idle:  2 * time.Minute, // between requests: clients keep theirs for 90 s or less
		head:  10 * time.Second,
		body:  20 * time.Second, // of 128 KiB: 6 KiB/s
		send:  20 * time.Second,
		grace: 5 * time.Second, // for what is under way when the node is to end
	}
}

// server is one call of Serve.
type server struct {
	n    *Node
	done chan struct{} // closed when it is to end
	http handover

	mu    sync.Mutex // guards conns
	conns map[*conn]struct{}
	work  sync.WaitGroup
}

// Serve answers requests on l until ctx ends, and closes it. Requests for
// stripes over plain HTTP/1.1 are answered here; a connection that brings
// anything else is net/http's with Handler, from that request on. Requests that
// are under way at the end get 5 s.
func (n *Node) Serve(ctx context.Context, l net.Listener) error {
	s := &server{n: n, done: make(chan struct{}), conns: map[*conn]struct{}{}}
	s.http = handover{addr: l.Addr(), conns: make(chan net.Conn), done: s.done}
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
		// Windows below 4 MiB, or they would be ignored: a stripe of 1 of 1 goes through without a pause.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 256 << 10, MaxReceiveBufferPerStream: 2<<20 + 4096, MaxReceiveBufferPerConnection: 4<<20 - 1},
		ErrorLog: log.New(io.Discard, "", 0), // what clients do wrong is no news
	}
}

// accept takes connections until the listener is closed.
func (s *server) accept(ctx context.Context, l net.Listener) error {
	for {
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
			s.n.conns.Add(-1)
			s.n.counts.connsRefused.Add(1)
			_ = c.Close()
			continue
		}
		s.work.Go(func() { s.serve(c) })
	}
}

// serve has a connection served, here or by net/http.
func (s *server) serve(nc net.Conn) {
	tcp, ok := nc.(*net.TCPConn)
	if !ok { // TLS
		s.http.give(&counted{Conn: nc, n: s.n})
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		s.n.conns.Add(-1)
		return
	}
	c := &conn{s: s, tcp: tcp, raw: raw}
	c.out.step, c.from.step = c.out.write, c.from.read
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	p := c.serve()
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	if p == foreign {
		_ = tcp.SetDeadline(time.Time{})
		s.http.give(&counted{Conn: tcp, n: s.n, first: append([]byte(nil), c.in[c.start:c.end]...)})
		return
	}
	_ = tcp.Close()
	s.n.conns.Add(-1)
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
		if !waiting || c.waiting.Load() {
			_ = c.tcp.Close()
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
	n      *Node
	first  []byte
	closed sync.Once
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
	c.closed.Do(func() { c.n.conns.Add(-1) })
	return c.Conn.Close()
}
