package zone

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestReadMembersInPlace(t *testing.T) {
	m, err := ReadMembers(t.Context(), "B.Example:70, 10.0.0.1:7000,[::1]:7,[::ffff:10.0.0.2]:7,b.example.:71")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"10.0.0.1:7000", "10.0.0.2:7", "[::1]:7", "b.example:70", "b.example:71"}
	for i, node := range m.All() {
		if node != (Member{Addr: want[i], Weight: 1}) {
			t.Errorf("member %d is %v, want %s", i, node, want[i])
		}
	}
	for bad, says := range map[string]string{
		"": "not host:port", "a:1,": "not host:port", "a": "not host:port", "a:0": "no port", "a:65536": "no port", "a:http": "no port",
		":1": "neither an address nor a name", "a/b:1": "neither", "a b:1": "neither", "a:1,A:1": "named twice", "10.0.0.1:1,[::ffff:10.0.0.1]:1": "named twice",
		"file:": "needs a path", "dns:": "dns:NAME", "dns:a:b:c": "dns:NAME", "dns:a/b:1": "dns:NAME", "http://a:1": "is a URL, not host:port", "http://x": "is a URL",
	} {
		if _, err := ReadMembers(t.Context(), bad); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %q", bad, err, says)
		}
	}
}

func TestParseFile(t *testing.T) {
	m, err := parseFile([]byte("# zone a\n\nversion 7\nb:1 rack=r1 # first\na:1 weight=5 rack=r2\n"))
	if err != nil || m.Version() != 7 || len(m.All()) != 2 || m.All()[0] != (Member{"a:1", 5, "r2", ""}) || m.All()[1] != (Member{"b:1", 1, "r1", ""}) {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := parseFile(nil); err != nil || len(m.All()) != 0 {
		t.Errorf("an empty file: %v, %v", m, err)
	}
	for bad, says := range map[string]string{
		"a:1 weight=0": "weight 0", "a:1 weight=1001": "1001", "a:1 weight=x": "line 1", "a:1\nb:1 colour=red": "line 2", "a:1 rack=": "rack=",
		"a:1\nversion 7": "line 2", "version -1": "line 1", "a:1\na:1": "named twice", "a:1 name=x\nb:1 name=x": "named twice", "a:1 name=x\na:1": "named twice", "a:1 name=b:1\nb:1": "named twice", "a:1 name=": "name=", strings.Repeat("#", maxListSize+1): "longer", "a:1\n#" + strings.Repeat("x", 70_000) + "\nb:1": "line 2: ", "a:1 rack=" + strings.Repeat("x", 65): "rack",
	} {
		if _, err := parseFile([]byte(bad)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", bad, err, says)
		}
	}
}

// FuzzParseFile holds that whatever is taken for a list can be placed.
func FuzzParseFile(f *testing.F) {
	for _, s := range []string{"", "version 7\na:1 weight=5 rack=x\n", "a:1\nb:2\n[::1]:3 # c"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseFile(data)
		if err != nil || len(m.list) > 20 {
			return
		}
		again, err := newMembers(m.version, m.list)
		if err != nil || len(again.list) != len(m.list) {
			t.Fatalf("%v is not taken: %v", m.list, err)
		}
	})
}

// write replaces a file of members and makes sure that it looks changed.
func write(t *testing.T, path, list string, age time.Duration) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	then := time.Unix(1_700_000_000, 0).Add(age)
	if err := os.Chtimes(path+".new", then, then); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	s, err := newSource("file:"+path, nil)
	if err != nil || s.every == 0 {
		t.Fatal(s, err)
	}
	if _, err := s.read(t.Context()); err == nil {
		t.Error("a file that is not there is read")
	}
	write(t, path, "version 2\na:1\n", 0)
	first, err := s.read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.read(t.Context()); err != nil || again != first {
		t.Errorf("unchanged: %v, %v", again, err)
	}
	for i, bad := range []string{"version 2\nb:1\n", "b:1\n", "version 3\nb:\n"} {
		write(t, path, bad, time.Duration(i+1)*time.Second)
		if m, err := s.read(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v, %v", bad, m, err)
		}
	}
	write(t, path, "version 3\na:1\nb:1\n", 0)
	if m, err := s.read(t.Context()); err != nil || len(m.list) != 2 {
		t.Errorf("changed: %v, %v", m, err)
	}
}

// resolver answers every question for addresses with these, from a server of
// its own on loopback.
func resolver(t *testing.T, answer *atomic.Pointer[[]byte]) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = server.Close(); <-done })
	go func() {
		defer close(done)
		question := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(question)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(reply(question[:n], *answer.Load()), from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// reply answers a question about type A with addresses of four bytes each, one
// about SRV with two services of host "n.", any other with nothing.
func reply(question, addrs []byte) []byte {
	end := 12
	for question[end] != 0 {
		end += 1 + int(question[end])
	}
	end += 5
	b := append([]byte{}, question[:end]...)
	kind, count := binary.BigEndian.Uint16(b[end-4:]), 0
	record := func(data []byte) {
		b = append(b, 0xc0, 12)
		b = binary.BigEndian.AppendUint16(b, kind)
		b = append(b, 0, 1, 0, 0, 0, 0)
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
		count++
	}
	switch kind {
	case 1:
		for ; len(addrs) > 0; addrs = addrs[4:] {
			record(addrs[:4])
		}
	case 33:
		record([]byte{0, 0, 0, 3, 0x1b, 0x58, 1, 'n', 0})
		record([]byte{0, 0, 0, 0, 0x1b, 0x59, 1, 'n', 0})
	}
	b[2], b[3] = 0x81, 0x80
	copy(b[4:12], []byte{0, 1, 0, byte(count), 0, 0, 0, 0})
	return b
}

func TestDNS(t *testing.T) {
	var answer atomic.Pointer[[]byte]
	answer.Store(&[]byte{10, 0, 0, 2, 10, 0, 0, 1, 10, 0, 0, 2})
	r := resolver(t, &answer)
	read := func(zone string) (*Members, error) {
		s, err := newSource(zone, r)
		if err != nil {
			t.Fatal(err)
		}
		return s.read(t.Context())
	}
	m, err := read("dns:zone.test.:7000")
	if err != nil || len(m.list) != 2 || m.list[0].Addr != "10.0.0.1:7000" || m.list[1].Addr != "10.0.0.2:7000" {
		t.Errorf("addresses: %+v, %v", m, err)
	}
	m, err = read("dns:zone.test.")
	if err != nil || len(m.list) != 2 || m.list[0] != (Member{"n:7000", 3, "", ""}) || m.list[1] != (Member{"n:7001", 1, "", ""}) {
		t.Errorf("services: %+v, %v", m, err)
	}
	answer.Store(&[]byte{})
	if m, err := read("dns:zone.test.:7000"); err == nil {
		t.Errorf("no address: %v", m.list)
	}
}

// TestSourcesFailAlike: what fails in one way again and again is one warning.
func TestSourcesFailAlike(t *testing.T) {
	nobody := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", "127.0.0.1:1") // each time from another port
	}}
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "list"), "a:1\n", 0)
	write(t, filepath.Join(dir, "long"), strings.Repeat("#\n", maxListSize), 0)
	for from, to := range map[string]string{"link": "list", "loop": "loop", "dangling": "none"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	for zone, says := range map[string]string{
		"dns:zone.test.:7000": "connection refused", "dns:zone.test.": "connection refused",
		"file:" + dir: "is not a file", "file:" + pipe: "is not a file", "file:/dev/zero": "is not a file",
		"file:" + dir + "/loop": "too many", "file:" + dir + "/dangling": "no such file", "file:" + dir + "/long": "longer than",
		"file:" + dir + "/link": "",
	} {
		s, err := newSource(zone, nobody)
		if err != nil {
			t.Fatal(err)
		}
		_, first := s.read(t.Context())
		_, again := s.read(t.Context())
		if (first == nil) != (says == "") || first != nil && (again == nil || first.Error() != again.Error() || !strings.Contains(first.Error(), says)) {
			t.Errorf("%s: %v, then %v, want %q", zone, first, again, says)
		}
	}
	if _, err := readBounded(pipe); err == nil { // it was a file when it was looked at
		t.Error("a pipe was read")
	}
}

// TestWatchTellsOnce: what is wrong with the list is told when it begins, and
// again only after it has been well.
func TestWatchTellsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		var failing atomic.Value
		failing.Store("")
		m, err := parseList("a:1,b:1")
		if err != nil {
			t.Fatal(err)
		}
		c := &Client{
			o: Options{Warn: func(err error) { told = append(told, err.Error()) }},
			source: &source{time.Second, true, func(context.Context) (*Members, error) {
				if says := failing.Load().(string); says != "" {
					return nil, errors.New(says)
				}
				return m, nil
			}},
		}
		ctx, cancel := context.WithCancel(t.Context())
		c.base = ctx
		done := make(chan struct{})
		go func() { c.watch(m, "first"); close(done) }()
		for _, failure := range []string{"first", "", "first", "second", "second", "", "second"} {
			failing.Store(failure)
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		cancel()
		<-done
		if strings.Join(told, " ") != "first second second" {
			t.Errorf("told %q", told)
		}
	})
}
