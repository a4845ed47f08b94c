package network

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	isolatedEnv = "THAW_NETWORK_ISOLATED" // this is the test program, in namespaces of its own
	killedEnv   = "THAW_NETWORK_KILLED"   // a process that makes networks in this folder, and is killed
)

// TestMain runs the tests where they cannot harm: as root, in a network
// namespace, which plays the host, and a mount namespace of their own.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv(killedEnv) != "":
		toBeKilled(os.Getenv(killedEnv))
	case os.Getenv(helperEnv) != "":
		helper()
	case os.Geteuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(isolatedEnv) != "":
		// A new namespace has the host's setting, whatever runs there just now.
		if err := os.WriteFile(forwardFile, []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // which dies with the thread
	err := cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making network namespaces needs root")
	}
}

// Addresses of the outside: each has a server that would answer.
const (
	outside  = "203.0.113.2" // the next hop, and a public server
	public   = "198.51.100.7"
	hostOut  = "203.0.113.1" // the host's own
	metadata = "169.254.169.254"
	private  = "10.9.9.9"
	office   = "192.168.7.7"
)

// newOutside makes a namespace that plays everything that is not this host: a
// link to it, a web server at all its addresses, and a DNS server. It returns a
// resolv.conf that names the latter.
func newOutside(t testing.TB) string {
	t.Helper()
	needRoot(t)
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "outside")
	if err := newNamespace(file, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, unbind(file)) })
	ns, err := netns.GetFromPath(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}, PeerName: "in0", PeerNamespace: netlink.NsFd(ns)}
	must(t, netlink.LinkAdd(link))
	t.Cleanup(func() { must(t, netlink.LinkDel(link)) })
	there, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	in0, err := there.LinkByName("in0")
	must(t, err)
	addr, err := netlink.ParseAddr(hostOut + "/24")
	must(t, err)
	must(t, errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link)))
	addr, err = netlink.ParseAddr(outside + "/24")
	must(t, err)
	must(t, errors.Join(there.AddrAdd(in0, addr), there.LinkSetUp(in0)))
	for _, a := range []string{public, metadata, private, office} {
		must(t, there.AddrAdd(in0, &netlink.Addr{IPNet: ipNet(single(netip.MustParseAddr(a)))}))
	}
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Gw: net.ParseIP(outside)}))
	must(t, inNamespace(int(ns), func() error { return errors.Join(serveWeb(t, "outside"), serveNames(t)) }))

	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("nameserver "+outside+"\n"), 0o600))
	return resolv
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serveWeb serves at port 80 of this thread's namespace: who is there, and who
// asks.
func serveWeb(t testing.TB, who string) error {
	l, err := net.Listen("tcp", ":80")
	if err != nil {
		return err
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s sees %s", who, source(addrOf(r.RemoteAddr)))
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return nil
}

// addrOf is a net.Addr of text.
func addrOf(text string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text)) }

// serveNames answers every name with the public server's address, those that
// begin with big with more than fits into a datagram, and with silent not at all.
func serveNames(t testing.TB) error {
	udp, err := net.ListenPacket("udp", outside+":53")
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", outside+":53")
	if err != nil {
		return err
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if strings.HasPrefix(q.Question[0].Name, "silent") {
			return
		}
		n := 1
		if strings.HasPrefix(q.Question[0].Name, "big") {
			n = 100
		}
		for i := range n {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(198, 51, 100, byte(7+i))})
		}
		if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
			m.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(m)
	})
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: answer}, {Listener: tcp, Handler: answer}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		var wg sync.WaitGroup
		wg.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); wg.Wait() })
	}
	return nil
}

// open opens networks in folders of the test's own.
func open(t testing.TB, o Options) *Network {
	t.Helper()
	needRoot(t)
	if o.State == "" {
		o.State = t.TempDir()
	}
	o.Run = filepath.Join(t.TempDir(), "run")
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, &n.names)
	})
	return n
}

// nothingLeft fails if the host has anything of a network.
func nothingLeft(t testing.TB, n *names) {
	t.Helper()
	if _, err := netlink.LinkByName(n.link); err == nil {
		t.Errorf("link %s is left", n.link)
	}
	if hasTable(t, n) {
		t.Errorf("table %s is left", n.table)
	}
	if on, err := word(forwardFile); on != "0" || err != nil {
		t.Errorf("forwarding is %q, %v; it was 0", on, err)
	}
	if _, err := os.Stat(n.run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", n.run, err)
	}
	records, _ := filepath.Glob(filepath.Join(filepath.Dir(n.run), "forwarding-*.json"))
	if len(records) != 0 {
		t.Errorf("records are left: %v", records)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), n.run) {
		t.Errorf("mounts are left in %s: %v", n.run, err)
	}
}

func hasTable(t testing.TB, n *names) bool {
	t.Helper()
	conn, err := nftables.New()
	must(t, err)
	tables, err := conn.ListTables()
	must(t, err)
	for _, table := range tables {
		if table.Name == n.table {
			return true
		}
	}
	return false
}

// inside calls f in an instance's namespace.
func inside(t testing.TB, ns *Namespace, f func()) {
	t.Helper()
	h, err := netns.GetFromPath(ns.Path)
	must(t, err)
	defer h.Close()
	must(t, inNamespace(int(h), func() error { f(); return nil }))
}

const (
	dialTime  = 3 * time.Minute        // what answers does, however slow the machine is
	askTime   = 5 * time.Second        // then a stub resolver asks again
	shortTime = 300 * time.Millisecond // where nothing answers
)

// get asks a web server from this thread's namespace.
func get(address string) (string, error) { return getWithin(address, dialTime) }

func getWithin(address string, limit time.Duration) (string, error) {
	d := net.Dialer{Timeout: limit}
	c, err := d.Dial("tcp", address) // on this thread: an http.Client would dial on another
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(dialTime))
	fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
	data, err := io.ReadAll(c)
	_, body, _ := strings.Cut(string(data), "\r\n\r\n")
	return body, err
}

// lookUp asks for a name from this thread's namespace, again and again as a stub
// resolver does.
func lookUp(server netip.Addr, name, network string) (*dns.Msg, error) {
	c := &dns.Client{Net: network, Timeout: askTime}
	for end := time.Now().Add(dialTime); ; {
		m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), netip.AddrPortFrom(server, dnsPort).String())
		if !errors.Is(err, os.ErrDeadlineExceeded) || time.Now().After(end) {
			return m, err
		}
	}
}

func newNS(t testing.TB, n *Network, id string, egress bool) *Namespace {
	t.Helper()
	ns, err := n.New(t.Context(), id, egress)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}
