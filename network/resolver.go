package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

const (
	dnsPort = 53
	// queryTime bounds one question to one of the host's resolvers: a stub
	// resolver asks again after 5 s.
	queryTime = 4 * time.Second
	// maxServers is how many of a resolv.conf's a libc uses.
	maxServers = 3
	// maxUDP is the largest answer over UDP that we pass on.
	maxUDP = 4096
	// udpBuffer holds some 5,000 questions: those of ten instances that send as
	// many as they may.
	udpBuffer = 4 << 20
	// fileTick is more than a file's time may stand still while it is written: the
	// kernel sets it at its ticks, 1 to 10 ms apart.
	fileTick = time.Second
	// defaultResolv names the host's resolvers.
	defaultResolv = "/etc/resolv.conf"
)

// forwarder passes questions on to the host's resolvers. It keeps no answers:
// that is the resolvers' business.
type forwarder struct {
	ctx     context.Context
	resolv  string
	queries *share

	// mu guards what follows.
	mu      sync.Mutex
	read    time.Time // modification time of what was read
	servers []string
}

// serveDNS answers at port 53 of this thread's namespace, over UDP and TCP.
func (g *gateway) serveDNS(at netip.Addr, resolv string) error {
	if resolv == "" {
		resolv = defaultResolv
	}
	f := &forwarder{ctx: g.ctx, resolv: resolv, queries: newShare(maxQueries, maxQueriesEach)}
	if _, err := f.upstream(); err != nil {
		return err
	}
	local := netip.AddrPortFrom(at, dnsPort)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(local))
	if err != nil {
		return err
	}
	g.closers = append(g.closers, udp.Close)
	if err := forceBuffer(udp); err != nil {
		return err
	}
	tcp, err := g.listen(local)
	if err != nil {
		return err
	}
	g.serveOne(&dns.Server{PacketConn: udp, Handler: f, UDPSize: maxUDP})
	g.serveOne(&dns.Server{Listener: tcp, Handler: f})
	return nil
}

// forceBuffer gives a socket room for the packets that many instances send at
// once.
func forceBuffer(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer)
	})
	return errors.Join(err, os.NewSyscallError("setsockopt", set))
}

// serveOne serves until the gateway is closed. It returns once it does: a server
// that has not begun cannot be told to end.
func (g *gateway) serveOne(s *dns.Server) {
	begun, over := make(chan struct{}), make(chan struct{})
	s.NotifyStartedFunc = func() { close(begun) }
	g.closers = append([]func() error{func() error {
		ctx, cancel := context.WithTimeout(context.Background(), queryTime)
		defer cancel()
		return s.ShutdownContext(ctx) // also closes its socket
	}}, g.closers...)
	g.group.Go(func() error {
		defer close(over)
		if err := s.ActivateAndServe(); err != nil && g.ctx.Err() == nil {
			return fmt.Errorf("resolver: %w", err)
		}
		return nil
	})
	select {
	case <-begun:
	case <-over:
	}
}

// ServeDNS answers one question. Beyond an instance's share it says nothing: the
// instance asks again.
func (f *forwarder) ServeDNS(w dns.ResponseWriter, question *dns.Msg) {
	from := source(w.RemoteAddr())
	if !f.queries.take(from) {
		return
	}
	defer f.queries.give(from)
	network := "udp"
	if _, ok := w.RemoteAddr().(*net.TCPAddr); ok {
		network = "tcp"
	}
	answer, err := f.ask(question, network)
	if err != nil {
		answer = new(dns.Msg).SetRcode(question, dns.RcodeServerFailure)
	}
	answer.Id = question.Id
	if network == "udp" {
		size := dns.MinMsgSize
		if o := question.IsEdns0(); o != nil {
			size = max(size, min(int(o.UDPSize()), maxUDP))
		}
		answer.Truncate(size) // also compresses, as the one that came was
	} else {
		answer.Compress = true
	}
	_ = w.WriteMsg(answer) // who asked may be gone
}

// ask asks the host's resolvers, one after the other.
func (f *forwarder) ask(question *dns.Msg, network string) (*dns.Msg, error) {
	servers, err := f.upstream()
	if err != nil {
		return nil, err
	}
	client := &dns.Client{Net: network, Timeout: queryTime, UDPSize: maxUDP}
	ours := question.Copy()
	for _, server := range servers {
		ours.Id = dns.Id() // an instance must not know what to forge
		answer, e := f.exchange(client, ours, server)
		if e == nil {
			return answer, nil
		}
		err = errors.Join(err, e)
	}
	return nil, err
}

// exchange asks one resolver, until the gateway is closed: the client by itself
// would wait for an answer that does not come.
func (f *forwarder) exchange(client *dns.Client, question *dns.Msg, server string) (*dns.Msg, error) {
	c, err := client.DialContext(f.ctx, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(f.ctx, func() { c.Close() })
	defer stop()
	answer, _, err := client.ExchangeWithConn(question, c)
	return answer, err
}

// upstream lists the host's resolvers. A file that has changed is read again.
func (f *forwarder) upstream() ([]string, error) {
	info, err := os.Stat(f.resolv)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if info.ModTime().Equal(f.read) && len(f.servers) > 0 {
		return f.servers, nil
	}
	c, err := dns.ClientConfigFromFile(f.resolv)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.resolv, err)
	}
	if len(c.Servers) == 0 {
		return nil, fmt.Errorf("%s names no server", f.resolv)
	}
	f.servers, f.read = nil, info.ModTime()
	if age := time.Since(f.read); age >= 0 && age < fileTick {
		f.read = time.Time{} // it may be written again without another time
	}
	for _, s := range c.Servers[:min(len(c.Servers), maxServers)] {
		f.servers = append(f.servers, net.JoinHostPort(s, c.Port))
	}
	return f.servers, nil
}
