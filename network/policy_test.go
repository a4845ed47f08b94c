package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// The table as nft prints it: what is let through, and in which order, in a form
// that is read more easily than what makes it.
func TestTable(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skipf("SKIPPED: no program prints the table: %v", err)
	}
	o := Options{Resolv: newOutside(t), CIDR: netip.MustParsePrefix("100.99.0.0/24"),
		Allow: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16"), netip.MustParsePrefix("192.168.7.7/32")}}
	n := open(t, o)
	if _, err := n.Gateway(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(nft, "list", "table", "inet", n.names.table).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	got := strings.NewReplacer(n.names.table, "TABLE", n.names.link, "LINK").Replace(string(out))
	got = regexp.MustCompile(`(?s)elements = \{.*?\}\n\s*`).ReplaceAllString(got, "")
	want, err := os.ReadFile("testdata/table.nft")
	if err != nil {
		t.Fatal(err)
	}
	if words(got) != words(string(want)) {
		t.Errorf("the table is\n%s", got)
	}
}

// words leaves out how a text is laid out.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

// helperEnv makes the test program an instance's process: it does what lines on
// standard input say.
const helperEnv = "THAW_NETWORK_HELPER"

func helper() {
	var to string
	for {
		if _, err := fmt.Scanln(&to); err != nil {
			os.Exit(0)
		}
		got, err := get(to)
		fmt.Printf("%s|%v\n", got, err)
	}
}

// A process in namespaces of its own, as a runtime makes them, gets a way out
// after it has begun, and loses it again.
func TestAttach(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids, Credential: &syscall.Credential{}}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	ask := func() string {
		t.Helper()
		fmt.Fprintln(stdin, public+":80")
		line := make([]byte, 512)
		k, err := stdout.Read(line)
		must(t, err)
		return string(line[:k])
	}
	if got := ask(); !strings.Contains(got, "unreachable") {
		t.Errorf("before: %q", got)
	}
	ns, err := n.Attach(t.Context(), "a", cmd.Process.Pid)
	must(t, err)
	if got := ask(); got != "outside sees "+hostOut+"|<nil>\n" {
		t.Errorf("with a way out: %q", got)
	}
	if _, err := n.Attach(t.Context(), "a", cmd.Process.Pid); err == nil {
		t.Error("twice is no error")
	}
	if _, err := ns.Sys(); err == nil {
		t.Error("a /sys of what the runtime made is no error")
	}
	must(t, ns.Remove())
	if got := ask(); !strings.Contains(got, "unreachable") {
		t.Errorf("after: %q", got)
	}
	for name, pid := range map[string]int{"this process": os.Getpid(), "nobody": 1 << 30} {
		if _, err := n.Attach(t.Context(), "b", pid); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
	if len(n.taken) != 0 {
		t.Errorf("failed ones are noted: %v", n.taken)
	}
}

// A /sys shows the namespace's links, and no other's.
func TestSys(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	ns := newNS(t, n, "a", true)
	for range 2 {
		dir, err := ns.Sys()
		must(t, err)
		entries, err := os.ReadDir(filepath.Join(dir, "class/net"))
		must(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if got := strings.Join(names, " "); !strings.Contains(got, "eth0") || !strings.Contains(got, "lo") || strings.Contains(got, "out0") {
			t.Errorf("links %q", got)
		}
	}
	must(t, ns.Remove())
	if _, err := ns.Sys(); err == nil {
		t.Error("a /sys after Remove is no error")
	}
	newNS(t, n, "b", false) // leaves it to Close
	if _, err := n.taken["b"].Sys(); err != nil {
		t.Error(err)
	}
}

// Programs as users have them find names and servers: the C library with a
// resolv.conf that names the gateway, and curl.
func TestPrograms(t *testing.T) {
	for _, program := range []string{"nsenter", "unshare", "getent", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
	}
	n := open(t, Options{Resolv: newOutside(t)})
	ns := newNS(t, n, "a", true)
	gateway, err := n.Gateway()
	must(t, err)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.WriteFile(resolv, []byte("nameserver "+gateway.String()+"\noptions attempts:5\n"), 0o600)) // 155 s in all
	script := `mount --bind "$1" /etc/resolv.conf && getent ahostsv4 some.example.org && curl -sS -m 180 http://some.example.org/ && ! curl -sS -m 180 http://10.9.9.9/`
	var out bytes.Buffer
	cmd := exec.Command("nsenter", "--net="+ns.Path, "unshare", "-m", "sh", "-c", script, "sh", resolv)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), public) || !strings.Contains(out.String(), "outside sees "+hostOut) {
		t.Errorf("%v: %s", err, out.String())
	}
}

// One instance that floods the resolver with questions nobody answers does not
// keep another from its answers.
func TestFlood(t *testing.T) {
	n := open(t, Options{Resolv: newOutside(t)})
	a, b := newNS(t, n, "a", true), newNS(t, n, "b", true)
	gateway, err := n.Gateway()
	must(t, err)
	question, err := new(dns.Msg).SetQuestion("silent.example.org.", dns.TypeA).Pack()
	must(t, err)
	inside(t, a, func() {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(gateway, dnsPort)))
		must(t, err)
		defer c.Close()
		for range 2000 {
			if _, err := c.Write(question); err != nil {
				t.Fatal(err)
			}
		}
	})
	inside(t, b, func() {
		for range 3 {
			if m, err := lookUp(gateway, "example.org.", "udp"); err != nil || len(m.Answer) != 1 {
				t.Errorf("the other: %v, %v", m, err)
			}
		}
	})
}

// A thread that has been elsewhere is at home again, whatever happened there.
func TestElsewhere(t *testing.T) {
	needRoot(t)
	home := ""
	must(t, elsewhere(func() error { return nil }, func() (err error) { home, err = os.Readlink(ownNamespace); return err }))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			file := filepath.Join(t.TempDir(), "ns")
			there := ""
			failed := errors.New("as wanted")
			err := newNamespace(file, func() error {
				there, _ = os.Readlink(ownNamespace)
				if i%2 == 0 {
					return failed
				}
				return nil
			})
			if there == home || there == "" || (i%2 == 0) != errors.Is(err, failed) {
				t.Errorf("%q, %v", there, err)
			}
			if i%2 == 0 {
				if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a namespace that failed: %v", err)
				}
				return
			}
			if err := unbind(file); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	must(t, err)
	for _, task := range tasks {
		if got, err := os.Readlink(task); err == nil && got != home {
			t.Errorf("%s is in %s, not %s", task, got, home)
		}
	}
}

// Forwarding that was on stays on; a record of another boot, or of users that
// have died, does not count; one that is damaged is somebody's to look at.
func TestForwarding(t *testing.T) {
	needRoot(t)
	write := func(text string) { t.Helper(); must(t, os.WriteFile(forwardFile, []byte(text), 0)) }
	is := func(want string) {
		t.Helper()
		if got, err := word(forwardFile); got != want || err != nil {
			t.Errorf("forwarding is %q, %v; want %q", got, err, want)
		}
	}
	n := &names{hash: "a", run: filepath.Join(t.TempDir(), "a")}
	record, err := recordName(n)
	must(t, err)
	write("1")
	must(t, holdForwarding(n))
	must(t, releaseForwarding(n))
	is("1")
	write("0")
	must(t, releaseForwarding(n))
	is("0")
	for _, text := range []string{
		`{"boot":"another","before":"1","users":{"b":"/lock"}}`, `{}`, `{"boot":"","before":"2","users":{}}`,
	} {
		must(t, os.WriteFile(record, []byte(text), 0o600))
		must(t, holdForwarding(n))
		is("1")
		must(t, releaseForwarding(n))
		is("0")
	}
	must(t, holdForwarding(&names{hash: "dead", run: filepath.Join(filepath.Dir(n.run), "dead")}))
	is("1")
	must(t, releaseForwarding(n))
	is("0")
	for _, text := range []string{"", "x", strings.Repeat(" ", maxRecord) + "{}"} {
		must(t, os.WriteFile(record, []byte(text), 0o600))
		if err := holdForwarding(n); err == nil {
			t.Errorf("record %.20q is no error", text)
		}
		is("0")
	}
}

// Addresses are different while they are out, and come back last.
func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPool(netip.PrefixFrom(netip.MustParseAddr("100.80.16.77"), rapid.IntRange(24, smallest).Draw(t, "bits")))
		out := map[netip.Addr]bool{}
		room := 1<<(32-p.prefix.Bits()) - 1 - firstPlace
		for range rapid.IntRange(1, 600).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "take") {
				a, err := p.take()
				if full := len(out) == room; full != (err != nil) {
					t.Fatalf("%d of %d are out: %v", len(out), room, err)
				}
				if err != nil {
					continue
				}
				if out[a] || !p.prefix.Contains(a) || p.at(p.place(a)) != a || p.place(a) < firstPlace {
					t.Fatalf("%v, of %v", a, p.prefix)
				}
				out[a] = true
				continue
			}
			for a := range out {
				delete(out, a)
				p.giveBack(a)
				break
			}
		}
	})
}

// Ranges that the host uses are left alone.
func TestRanges(t *testing.T) {
	all := slices20(7, nil)
	if len(all) != 1024 || all[0].String() != "100.64.112.0/20" || all[1023].String() != "100.64.96.0/20" {
		t.Errorf("%d, from %v to %v", len(all), all[0], all[len(all)-1])
	}
	for _, p := range slices20(7, []netip.Prefix{netip.MustParsePrefix("100.64.113.5/32"), netip.MustParsePrefix("100.96.0.0/11")}) {
		if p == all[0] || p.Addr().As4()[1] >= 96 {
			t.Errorf("%v is used", p)
		}
	}
	if free := slices20(7, []netip.Prefix{netip.MustParsePrefix(shared)}); len(free) != 0 {
		t.Errorf("all are used, but %v", free)
	}
}

func TestShare(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	s := newShare(3, 2)
	for i, step := range []struct {
		from netip.Addr
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}, {c, false}} {
		if got := s.take(step.from); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	s.give(a)
	if !s.take(c) || s.take(a) {
		t.Error("what is given back is not the next one's")
	}
	s.give(a)
	s.give(b)
	s.give(c)
	if s.total != 0 || len(s.of) != 0 {
		t.Errorf("left: %d, %v", s.total, s.of)
	}
}

// Two state folders side by side: neither reaches the other's instances, and
// neither ends the other's way out.
func TestTwo(t *testing.T) {
	resolv := newOutside(t)
	first := open(t, Options{Resolv: resolv})
	a := newNS(t, first, "a", true)
	o := Options{State: t.TempDir(), Run: first.options.Run, Resolv: resolv}
	second, err := Open(o)
	must(t, err)
	b := newNS(t, second, "a", true)
	inside(t, b, func() { must(t, serveWeb(t, "b")) })
	inside(t, a, func() {
		if got, err := get(b.Address.String() + ":80"); err == nil {
			t.Errorf("another folder's instance answers: %q", got)
		}
	})
	must(t, second.Close())
	inside(t, a, func() {
		if _, err := get(public + ":80"); err != nil {
			t.Errorf("after the other's end: %v", err)
		}
	})
}

// A door that is in use does not keep Close waiting.
func TestCloseBusy(t *testing.T) {
	resolv := newOutside(t)
	l, err := net.Listen("tcp", "127.0.0.1:0") // says nothing
	must(t, err)
	defer l.Close()
	n := open(t, Options{Resolv: resolv, Doors: map[uint16]string{9000: l.Addr().String()}})
	ns := newNS(t, n, "a", true)
	gateway, err := n.Gateway()
	must(t, err)
	var c net.Conn
	inside(t, ns, func() {
		c, err = net.DialTimeout("tcp", gateway.String()+":9000", dialTime)
		must(t, err)
	})
	defer c.Close()
	far, err := l.Accept()
	must(t, err)
	defer far.Close()
	must(t, n.Close())
	_ = far.SetDeadline(time.Now().Add(dialTime))
	if _, err := io.ReadAll(far); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection outlives its door")
	}
	if err := unix.Access(ns.Path, 0); err == nil {
		t.Errorf("%s is left", ns.Path)
	}
}

// A resolv.conf that is written twice within a tick of the kernel's clock is read
// again, and one that has not changed for long is not.
func TestResolvWithinTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &forwarder{resolv: filepath.Join(t.TempDir(), "resolv.conf")}
		at := time.Now()
		for n, want := range []string{"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53", "192.0.2.3:53"} {
			if n == 2 {
				time.Sleep(fileTick)
			}
			host, _, _ := strings.Cut(want, ":")
			if n == 3 {
				host = "192.0.2.4" // which is not looked for: the time is old, and the same
			}
			must(t, os.WriteFile(f.resolv, []byte("nameserver "+host+"\n"), 0o600))
			must(t, os.Chtimes(f.resolv, at, at))
			if got, err := f.upstream(); err != nil || !slices.Equal(got, []string{want}) {
				t.Errorf("%d: %q, %v, want %s", n, got, err, want)
			}
		}
	})
}

// A question that nobody answers does not keep Close waiting either.
func TestExchangeEnds(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer silent.Close()
	ctx, cancel := context.WithCancel(t.Context())
	f := &forwarder{ctx: ctx}
	failed := make(chan error, 1)
	go func() {
		question := new(dns.Msg).SetQuestion("example.org.", dns.TypeA)
		_, err := f.exchange(&dns.Client{Timeout: time.Hour}, question, silent.LocalAddr().String())
		failed <- err
	}()
	_, _, err = silent.ReadFrom(make([]byte, maxUDP))
	must(t, err)
	cancel()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("an answer, of nobody")
		}
	case <-time.After(dialTime):
		t.Error("it goes on")
	}
}
