package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A namespace without a way out has a loopback, and nothing else.
func TestNone(t *testing.T) {
	n := open(t, Options{})
	ns := newNS(t, n, "a", false)
	if ns.Address.IsValid() {
		t.Errorf("it has the address %v", ns.Address)
	}
	inside(t, ns, func() {
		links, err := netlink.NewHandle()
		must(t, err)
		defer links.Close()
		all, err := links.LinkList()
		must(t, err)
		for _, l := range all {
			if up := l.Attrs().Flags&net.FlagUp != 0; up != (l.Attrs().Name == "lo") {
				t.Errorf("link %s: up %v", l.Attrs().Name, up)
			}
		}
		l, err := net.Listen("tcp", "127.0.0.1:9001")
		must(t, err)
		defer l.Close()
		c, err := net.Dial("tcp", "127.0.0.1:9001")
		must(t, err)
		c.Close()
		if _, err := get(public + ":80"); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("outside: %v", err)
		}
	})
	if hasTable(t, &n.names) {
		t.Error("a table, though nobody has a way out")
	}
	must(t, ns.Remove())
	if _, err := os.Stat(ns.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", ns.Path, err)
	}
}

// The way out leads outside, with the host's address, and nowhere else.
func TestEgress(t *testing.T) {
	resolv := newOutside(t)
	must(t, serveWeb(t, "host"))
	n := open(t, Options{Resolv: resolv})
	a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
	inside(t, b, func() { must(t, serveWeb(t, "b")) })
	gateway, err := n.Gateway()
	must(t, err)
	inside(t, a, func() {
		for _, to := range []string{outside, public} {
			if got, err := get(to + ":80"); got != "outside sees "+hostOut || err != nil {
				t.Errorf("%s: %q, %v", to, got, err)
			}
		}
		hostEnd := n.hub.pool.at(atHost).String()
		for what, to := range map[string]string{
			"host, outer": hostOut, "host, link": hostEnd, "metadata": metadata, "private": private, "office": office,
			"instance": b.Address.String(), "gateway": gateway.String(), "hub": n.hub.pool.at(atHub).String(),
			"nobody": n.hub.pool.at(1000).String(), "carrier": "100.127.0.1", "multicast": "224.0.0.1",
		} {
			begun := time.Now()
			if got, err := get(to + ":80"); err == nil {
				t.Errorf("%s (%s) answers: %q", what, to, got)
			} else if time.Since(begun) >= dialTime {
				t.Errorf("%s (%s) says nothing: %v", what, to, err)
			}
		}
	})
	// Not the other way round either.
	if c, err := net.DialTimeout("tcp", net.JoinHostPort(b.Address.String(), "80"), shortTime); err == nil {
		c.Close()
		t.Error("the host reaches an instance")
	}
}

// IPv6 leads nowhere, not even to the next link.
func TestNoIPv6(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	ns := newNS(t, n, "a", true)
	inside(t, ns, func() {
		h, err := netlink.NewHandle()
		must(t, err)
		defer h.Close()
		addrs, err := h.AddrList(nil, netlink.FAMILY_V6)
		must(t, err)
		for _, a := range addrs {
			if !a.IP.IsLoopback() {
				t.Errorf("it has %v", a)
			}
		}
		if _, err := get("[fe80::1%eth0]:80"); err == nil {
			t.Error("a link's neighbour answers")
		}
	})
	link, err := netlink.LinkByName(n.names.link)
	must(t, err)
	if addrs, err := netlink.AddrList(link, netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
		t.Errorf("the host's link has %v, %v", addrs, err)
	}
}

// A source that is not the instance's own gets nowhere.
func TestSpoof(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
	gateway, err := n.Gateway()
	must(t, err)
	inside(t, a, func() {
		h, err := netlink.NewHandle()
		must(t, err)
		defer h.Close()
		eth0, err := h.LinkByName(insideName)
		must(t, err)
		must(t, h.AddrAdd(eth0, &netlink.Addr{IPNet: ipNet(single(b.Address))}))
		d := net.Dialer{Timeout: shortTime, LocalAddr: &net.TCPAddr{IP: b.Address.AsSlice()}}
		for _, to := range []string{outside + ":80", net.JoinHostPort(gateway.String(), "53")} {
			if c, err := d.Dial("tcp", to); err == nil {
				c.Close()
				t.Errorf("%s answers another's address", to)
			}
		}
	})
	inside(t, b, func() {
		if _, err := get(outside + ":80"); err != nil {
			t.Errorf("the other: %v", err)
		}
	})
}

// What is allowed is reached: ranges, and the host's addresses one by one.
func TestAllow(t *testing.T) {
	resolv := newOutside(t)
	must(t, serveWeb(t, "host"))
	for _, c := range []struct {
		allow  []string
		to     string
		answer string
	}{
		{[]string{"10.9.0.0/16", metadata + "/32"}, private, "outside sees " + hostOut},
		{[]string{"10.9.0.0/16", metadata + "/32"}, metadata, "outside sees " + hostOut},
		{[]string{"10.9.0.0/16"}, office, ""},
		{[]string{"203.0.113.0/24"}, hostOut, ""},
		{[]string{hostOut + "/32"}, hostOut, "host sees "},
		{[]string{"0.0.0.0/0"}, office, "outside sees " + hostOut},
		{[]string{"0.0.0.0/0"}, hostOut, ""},
	} {
		t.Run(strings.Join(c.allow, ",")+" "+c.to, func(t *testing.T) {
			o := Options{Resolv: resolv}
			for _, a := range c.allow {
				o.Allow = append(o.Allow, netip.MustParsePrefix(a))
			}
			n := open(t, o)
			a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
			inside(t, b, func() { must(t, serveWeb(t, "b")) })
			inside(t, a, func() {
				got, err := get(c.to + ":80")
				if ok := c.answer != ""; ok != (err == nil) || !strings.HasPrefix(got, c.answer) {
					t.Errorf("%q, %v; want %q", got, err, c.answer)
				}
				if got, err := get(b.Address.String() + ":80"); err == nil {
					t.Errorf("another instance answers: %q", got)
				}
			})
		})
	}
}

// Names are found over UDP, and over TCP if they do not fit; the host's file may
// change.
func TestResolver(t *testing.T) {
	resolv := newOutside(t)
	n := open(t, Options{Resolv: resolv})
	ns := newNS(t, n, "a", true)
	gateway, err := n.Gateway()
	must(t, err)
	ask := func(name, network string) *dns.Msg {
		t.Helper()
		var m *dns.Msg
		inside(t, ns, func() {
			m, err = lookUp(gateway, name, network)
		})
		must(t, err)
		return m
	}
	for _, network := range []string{"udp", "tcp"} {
		m := ask("example.org.", network)
		if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), public) {
			t.Errorf("%s: %v", network, m)
		}
	}
	if m := ask("big.example.org.", "udp"); !m.Truncated {
		t.Errorf("a large answer over UDP is not cut: %v", m.MsgHdr)
	}
	if m := ask("big.example.org.", "tcp"); len(m.Answer) != 100 {
		t.Errorf("a large answer over TCP has %d parts", len(m.Answer))
	}
	must(t, os.WriteFile(resolv, []byte("nameserver "+office+"\n"), 0o600)) // nobody
	must(t, os.Chtimes(resolv, time.Now(), time.Now().Add(time.Hour)))
	if m := ask("example.org.", "tcp"); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a resolver: %v", m.MsgHdr)
	}
	must(t, os.WriteFile(resolv, []byte("nameserver "+office+"\nnameserver "+outside+"\n"), 0o600))
	must(t, os.Chtimes(resolv, time.Now(), time.Now().Add(2*time.Hour)))
	if m := ask("example.org.", "tcp"); len(m.Answer) != 1 {
		t.Errorf("with a second resolver: %v", m)
	}
}

// A door leads to what listens on the host's loopback.
func TestDoor(t *testing.T) {
	resolv := newOutside(t)
	must(t, serveWeb(t, "host"))
	n := open(t, Options{Resolv: resolv, Doors: map[uint16]string{9000: "127.0.0.1:80", 9001: "127.0.0.1:1"}})
	ns := newNS(t, n, "a", true)
	gateway, err := n.Gateway()
	must(t, err)
	inside(t, ns, func() {
		if got, err := get(gateway.String() + ":9000"); got != "host sees 127.0.0.1" || err != nil {
			t.Errorf("door: %q, %v", got, err)
		}
		if got, err := get(gateway.String() + ":9001"); got != "" {
			t.Errorf("door to nobody: %q, %v", got, err)
		}
		// Somebody who keeps connections open has so many, and no more.
		var open []net.Conn
		for range maxStreamsEach + 8 {
			c, err := net.DialTimeout("tcp", gateway.String()+":9000", dialTime)
			if err != nil {
				break
			}
			open = append(open, c)
		}
		last := open[len(open)-1]
		_ = last.SetDeadline(time.Now().Add(dialTime))
		if _, err := last.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("one too many: %v", err)
		}
		for _, c := range open {
			c.Close()
		}
	})
}

// Connections that one instance begins with the gateway get through one by one,
// and all of them; another's are not among them.
func TestCalls(t *testing.T) {
	resolv := newOutside(t)
	must(t, serveWeb(t, "host"))
	n := open(t, Options{Resolv: resolv, Doors: map[uint16]string{9000: "127.0.0.1:80"}})
	a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
	gateway, err := n.Gateway()
	must(t, err)
	call := func() error {
		c, err := net.DialTimeout("tcp", gateway.String()+":9000", dialTime)
		if err == nil {
			err = c.Close()
		}
		return err
	}
	began := time.Now()
	inside(t, a, func() {
		for range 3 * maxCalls {
			must(t, call())
		}
	})
	if took := time.Since(began); took < time.Second {
		t.Errorf("%d in %v: want at most %d a second, after as many", 3*maxCalls, took, maxCalls)
	}
	inside(t, b, func() { must(t, call()) })
	conn, err := nftables.New(nftables.WithNetNSFd(int(n.hub.file.Fd())))
	must(t, err)
	calls, err := conn.GetSetByName(table(&n.names), "calls")
	must(t, err)
	kept, err := conn.GetSetElements(calls)
	must(t, err)
	if len(kept) == 0 {
		t.Error("nobody's calls are counted")
	}
	for _, e := range kept { // or the set is full one day, and bounds nobody
		if e.Expires <= 0 || e.Expires > forgetAfter {
			t.Errorf("the calls of %v are forgotten after %v", net.IP(e.Key), e.Expires)
		}
	}
}

// An instance has so many connections through the host, and no more; another
// has its own.
func TestConnections(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
	var kept []net.Conn
	defer func() {
		for _, c := range kept {
			c.Close()
		}
	}()
	refused := false
	inside(t, a, func() {
		for range maxConnections + 64 {
			c, err := net.DialTimeout("tcp", outside+":80", dialTime)
			if err != nil {
				refused = true
				break
			}
			kept = append(kept, c)
		}
	})
	if !refused || len(kept) < maxConnections/2 {
		t.Errorf("%d connections, then refused: %v", len(kept), refused)
	}
	inside(t, b, func() {
		if _, err := get(outside + ":80"); err != nil {
			t.Errorf("the other: %v", err)
		}
	})
}

// Twenty at once, each with an address of its own; addresses come back.
func TestParallel(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t), CIDR: netip.MustParsePrefix("100.99.0.0/27")})
	for round := range 2 {
		all := make([]*Namespace, 20)
		var wg sync.WaitGroup
		for i := range all {
			wg.Go(func() {
				var err error
				if all[i], err = n.New(t.Context(), fmt.Sprintf("i%d", i), true); err != nil {
					t.Error(err)
					return
				}
				inside(t, all[i], func() {
					if got, err := get(public + ":80"); got != "outside sees "+hostOut {
						t.Errorf("%d: %q, %v", i, got, err)
					}
				})
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		seen := map[netip.Addr]bool{}
		for _, ns := range all {
			seen[ns.Address] = true
			wg.Go(func() {
				if err := errors.Join(ns.Remove(), ns.Remove()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(seen) != len(all) {
			t.Errorf("round %d: %d addresses for %d", round, len(seen), len(all))
		}
	}
	links, err := n.hub.links.LinkList()
	if err != nil || len(links) > 2+4 { // some kernels put tunnels into every namespace
		t.Errorf("the hub has %d links, %v", len(links), err)
	}
}

// A range that is used up says so, and a failed New leaves nothing.
func TestFull(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t), CIDR: netip.MustParsePrefix("100.99.0.0/28")})
	var all []*Namespace
	for i := range 16 - firstPlace - 1 {
		all = append(all, newNS(t, n, fmt.Sprint("i", i), true))
	}
	if _, err := n.New(t.Context(), "more", true); err == nil || !strings.Contains(err.Error(), "100.99.0.0/28") {
		t.Errorf("one too many: %v", err)
	}
	if _, err := n.New(t.Context(), "i0", false); err == nil {
		t.Error("an id that is taken is no error")
	}
	must(t, all[3].Remove())
	if ns := newNS(t, n, "more", true); ns.Address != all[3].Address {
		t.Errorf("address %v, want %v", ns.Address, all[3].Address)
	}
}

// toBeKilled makes networks and waits.
func toBeKilled(folder string) {
	n, err := Open(Options{State: folder, Run: filepath.Join(folder, "run"), Resolv: filepath.Join(folder, "resolv.conf")})
	for i := range 3 {
		if err == nil {
			_, err = n.New(context.Background(), fmt.Sprint("i", i), i > 0)
		}
	}
	fmt.Println("ready", err)
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// What a process leaves that is killed goes with the next, or with Reap; while
// it lives nobody else gets in. Forwarding is put back with the last user.
func TestKilled(t *testing.T) {
	resolv := newOutside(t)
	n := open(t, Options{Resolv: resolv})
	for name, end := range map[string]func(Options) error{
		"Reap": func(o Options) error {
			removed, err := Reap(o)
			if names, _ := o.names(); err == nil && !slices.Equal(removed, []string{"network " + names.link}) {
				err = fmt.Errorf("removed %q", removed)
			}
			return err
		},
		"Open": func(o Options) error {
			n, err := Open(o)
			if err != nil {
				return err
			}
			return n.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			o := Options{State: folder, Run: n.options.Run}
			must(t, os.Symlink(o.Run, filepath.Join(folder, "run")))
			must(t, os.Symlink(resolv, filepath.Join(folder, "resolv.conf")))
			names, err := o.names()
			must(t, err)
			o.Run = filepath.Join(folder, "run")
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), killedEnv+"="+folder)
			stdin, err := cmd.StdinPipe()
			must(t, err)
			defer stdin.Close()
			stdout, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			line := make([]byte, 256)
			k, err := stdout.Read(line)
			if got := string(line[:k]); got != "ready <nil>\n" || err != nil {
				t.Fatalf("%q, %v", got, err)
			}
			if err := end(o); !errors.Is(err, ErrInUse) {
				t.Errorf("while it lives: %v", err)
			}
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			if on, _ := word(forwardFile); on != "1" || !hasTable(t, &names) {
				t.Errorf("killed: forwarding %q, table %v", on, hasTable(t, &names))
			}
			if name == "Reap" { // one who lives keeps what both need
				ns := newNS(t, n, "other", true)
				must(t, end(o))
				inside(t, ns, func() {
					if _, err := get(public + ":80"); err != nil {
						t.Errorf("the one who lives: %v", err)
					}
				})
				if on, _ := word(forwardFile); on != "1" {
					t.Error("forwarding is off while somebody needs it")
				}
				if hasTable(t, &names) {
					t.Error("the table of the killed is left")
				}
				return
			}
			must(t, end(o))
		})
	}
}

// What is left of a state folder that is gone goes, but not what is in use, nor
// what is of a folder that is there, or that nobody knows.
func TestReapOthers(t *testing.T) {
	needRoot(t)
	run := t.TempDir()
	left := func(state string) string {
		t.Helper()
		names, err := (&Options{State: state, Run: run}).names()
		must(t, err)
		lock, err := take(&names)
		must(t, err)
		must(t, lock.Close())
		return names.run
	}
	must(t, os.Mkdir(filepath.Join(run, "unknown"), 0o700))
	there := left(t.TempDir())
	gone := filepath.Join(t.TempDir(), "gone")
	n, err := Open(Options{State: gone, Run: run})
	must(t, err)
	if removed, err := ReapOthers(run); err != nil || len(removed) > 0 {
		t.Errorf("removed %q, %v", removed, err)
	}
	must(t, n.Close())
	gone = left(gone)
	if removed, err := ReapOthers(run); err != nil || len(removed) != 1 {
		t.Errorf("removed %q, %v", removed, err)
	}
	for dir, want := range map[string]bool{there: true, gone: false, filepath.Join(run, "unknown"): true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	needRoot(t)
	prefix := netip.MustParsePrefix
	for name, o := range map[string]Options{
		"no state":        {},
		"IPv6":            {State: "/s", CIDR: prefix("fd00::/64")},
		"too small":       {State: "/s", CIDR: prefix("10.0.0.0/29")},
		"too large":       {State: "/s", CIDR: prefix("10.0.0.0/8")},
		"allow IPv6":      {State: "/s", Allow: []netip.Prefix{prefix("::/0")}},
		"allow instances": {State: "/s", CIDR: prefix("10.0.0.0/16"), Allow: []netip.Prefix{prefix("10.0.0.0/8")}},
		"door 53":         {State: "/s", Doors: map[uint16]string{53: "127.0.0.1:53"}},
		"door nowhere":    {State: "/s", Doors: map[uint16]string{80: "localhost"}},
	} {
		o.Run = t.TempDir()
		if n, err := Open(o); err == nil {
			n.Close()
			t.Errorf("%s is no error", name)
		}
	}
	n := open(t, Options{})
	for _, id := range []string{"", ".", "..", "a/b", "-a", strings.Repeat("a", 129)} {
		if _, err := n.New(t.Context(), id, false); err == nil {
			t.Errorf("id %q is no error", id)
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.New(over, "a", false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	must(t, n.Close())
	if _, err := n.New(t.Context(), "a", false); err == nil {
		t.Error("New after Close is no error")
	}
}

// A way out that cannot be made leaves nothing, and the next try may work.
func TestHubFails(t *testing.T) {
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	good := newOutside(t)
	n := open(t, Options{Resolv: resolv})
	for _, text := range []string{"", "search example.org\n"} {
		must(t, os.WriteFile(resolv, []byte(text), 0o600))
		if _, err := n.New(t.Context(), "a", true); err == nil || !strings.Contains(err.Error(), "names no server") {
			t.Errorf("no resolver: %v", err)
		}
		if on, _ := word(forwardFile); on != "0" || hasTable(t, &n.names) {
			t.Errorf("forwarding %q, table %v", on, hasTable(t, &n.names))
		}
	}
	data, err := os.ReadFile(good)
	must(t, err)
	must(t, os.WriteFile(resolv, data, 0o600))
	newNS(t, n, "a", true)
}

func BenchmarkNew(b *testing.B) {
	resolv := newOutside(b)
	for _, egress := range []bool{false, true} {
		b.Run(fmt.Sprintf("egress=%v", egress), func(b *testing.B) {
			n := open(b, Options{Resolv: resolv})
			newNS(b, n, "first", egress)
			var all []*Namespace
			for i := 0; b.Loop(); i++ {
				all = append(all, newNS(b, n, fmt.Sprint("i", i), egress))
			}
			for _, ns := range all {
				must(b, ns.Remove())
			}
		})
	}
}
