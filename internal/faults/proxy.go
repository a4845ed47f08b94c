package faults

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// maxConns bounds the connections that a Proxy has open; further ones wait in
// the kernel. No test needs more, and each may hold 2 × queued × segmentSize.
const maxConns = 1024

// direction is where bytes go.
type direction int

const (
	toClient direction = iota // replies
	toTarget                  // requests
	directions
)

// Proxy stands between clients and a server, both real, and breaks what passes
// as its Links say. It listens on a port of the loopback interface. It is safe
// for concurrent use.
type Proxy struct {
	addr string
	seed uint64
	port int // a socket bound to addr that never listens: it keeps the port while it is refused

	slots  chan struct{} // one for each open connection
	done   chan struct{} // closed by Close
	wg     sync.WaitGroup
	counts counters

	mu       sync.Mutex // guards what follows
	target   string
	listener net.Listener // nil while connections are refused
	settings [directions]*setting
	conns    map[*conn]struct{}
	accepted uint64
	closed   bool
	err      error // the first of the proxy's own
}

// Counts is what a Proxy has done so far.
type Counts struct {
	Connections, Open int64 // accepted; of those, not over yet
	Unreached         int64 // connections that were reset since the target took none
	ToTarget          int64 // bytes passed on
	ToClient          int64
	Delays            int64 // turns that were delayed
	Flips             int64 // bytes
	Resets, Cuts      int64 // connections that ResetAfter and CutAfter ended
}

type counters struct {
	connections, open, unreached, delays, flips, resets, cuts atomic.Int64
	bytes                                                     [directions]atomic.Int64
}

// NewProxy starts a proxy before a TCP address. The caller closes it.
func NewProxy(target string, seed uint64) (*Proxy, error) {
	port, addr, err := holdPort()
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		addr: addr, seed: seed, port: port, target: target,
		slots: make(chan struct{}, maxConns), done: make(chan struct{}), conns: map[*conn]struct{}{},
	}
	for to := range directions {
		p.settings[to] = newSetting(Link{}, 0)
	}
	p.listen()
	if p.err != nil {
		_ = syscall.Close(port)
		return nil, p.err
	}
	return p, nil
}

// holdPort binds a socket to a free port, so that nobody else gets it. Linux
// lets a listener bind to it too if both say SO_REUSEADDR, as Go's do, and
// refuses connections while there is none.
func holdPort() (fd int, addr string, err error) {
	fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, "", err
	}
	err = syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var name syscall.Sockaddr
	if err == nil {
		name, err = syscall.Getsockname(fd)
	}
	if err != nil {
		_ = syscall.Close(fd)
		return 0, "", err
	}
	in := name.(*syscall.SockaddrInet4)
	return fd, (&net.TCPAddr{IP: in.Addr[:], Port: in.Port}).String(), nil
}

// Addr gives the address that clients are to be told, host:port.
func (p *Proxy) Addr() string { return p.addr }

// Set says from now on, also on open connections, what happens to replies: the
// bytes from the target to clients. Its Refuse closes the port to all.
func (p *Proxy) Set(l Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(toClient, l)
	switch {
	case p.closed:
	case l.Refuse && p.listener != nil:
		_ = p.listener.Close()
		p.listener = nil
	case !l.Refuse && p.listener == nil:
		p.listen()
	}
}

// SetRequests is Set for the bytes from clients to the target. Its Refuse is
// ignored.
func (p *Proxy) SetRequests(l Link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.replace(toTarget, l)
}

// replace changes a setting. p.mu is held.
func (p *Proxy) replace(to direction, l Link) {
	old := p.settings[to]
	p.settings[to] = newSetting(l, old.number+1)
	close(old.changed)
}

func (p *Proxy) setting(to direction) *setting {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settings[to]
}

// Retarget has new connections go to another address, such as that of a server
// that was started again.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut resets all open connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.end(true)
	}
}

// Counts gives the numbers so far.
func (p *Proxy) Counts() Counts {
	c := &p.counts
	return Counts{
		Connections: c.connections.Load(), Open: c.open.Load(), Unreached: c.unreached.Load(),
		ToTarget: c.bytes[toTarget].Load(), ToClient: c.bytes[toClient].Load(),
		Delays: c.delays.Load(), Flips: c.flips.Load(), Resets: c.resets.Load(), Cuts: c.cuts.Load(),
	}
}

// Close resets all connections and waits until nothing of the proxy runs. It
// gives the first error the proxy itself had. Only its first call does so.
func (p *Proxy) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.done)
	if p.listener != nil {
		_ = p.listener.Close()
	}
	for c := range p.conns {
		c.end(true)
	}
	p.mu.Unlock()
	p.wg.Wait()
	return errors.Join(p.err, syscall.Close(p.port))
}

// listen opens the port. p.mu is held, or nobody else has p.
func (p *Proxy) listen() {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.err = errors.Join(p.err, err)
		return
	}
	p.listener = l
	p.wg.Go(func() { p.accept(l) })
}

func (p *Proxy) accept(l net.Listener) {
	for {
		select {
		case p.slots <- struct{}{}:
		case <-p.done:
			return
		}
		client, err := l.Accept()
		if err != nil {
			<-p.slots
			return // closed, by Set or Close
		}
		p.counts.connections.Add(1)
		p.counts.open.Add(1)
		c, target := p.admit(l, client.(*net.TCPConn))
		p.wg.Go(func() {
			c.serve(target)
			p.mu.Lock()
			delete(p.conns, c)
			p.mu.Unlock()
			p.counts.open.Add(-1)
			<-p.slots
		})
	}
}

// admit numbers a connection, and makes it known to Cut and Close. One that l
// took just before it was closed is refused: a Cut after that has not seen it.
func (p *Proxy) admit(l net.Listener, client *net.TCPConn) (c *conn, target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c = &conn{p: p, number: p.accepted, client: client}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	p.accepted++
	p.conns[c] = struct{}{}
	if p.closed || p.listener != l {
		c.end(true)
	}
	return c, p.target
}
