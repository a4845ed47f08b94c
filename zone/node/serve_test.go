package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"thaw/zone"
)

// dial opens a connection that closes at the end of the test, and bounds it.
func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c net.Conn, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		t.Fatal(err)
	}
}

// answer reads an answer, of any method but HEAD.
func readAnswer(t *testing.T, in *bufio.Reader) reply {
	t.Helper()
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{res.StatusCode, res.Header, b}
}

// What a client sends at once, or byte by byte, is answered in order, also
// when net/http takes over on the way.
func TestPipeline(t *testing.T) {
	n := open(t, Options{})
	n.bounds.head, n.bounds.body = patience, patience
	address := serve(t, n, nil)
	id, b := usualStripe(1)
	text := fmt.Sprintf("PUT %[1]s HTTP/1.1\r\nHost: x\r\nContent-Length: %[2]d\r\n\r\n%[3]sGET %[1]s HTTP/1.1\r\nHost: x\r\n\r\n"+
		"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\nGET %[1]s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", id.Path(), len(b), b)
	for _, step := range []int{len(text), 1000, 7} {
		c := dial(t, address)
		go func() {
			for rest := text; len(rest) > 0; {
				k := min(step, len(rest))
				if _, err := io.WriteString(c, rest[:k]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[k:]
			}
		}()
		in := bufio.NewReader(c)
		for i, want := range []int{201, 200, 404, 200} {
			if i == 0 && step < len(text) {
				want = 200 // it is there by now
			}
			r := readAnswer(t, in)
			if r.status != want || i%2 == 1 && !bytes.Equal(r.body, b) {
				t.Fatalf("steps of %d, answer %d: %d", step, i, r.status)
			}
		}
		if _, err := in.ReadByte(); err != io.EOF {
			t.Fatalf("after close: %v", err)
		}
	}
}

// A stripe that is evicted, and its place used again, while a slow client reads
// it: what comes are the bytes it had.
func TestEvictedOnItsWay(t *testing.T) {
	n := open(t, Options{Memory: 3 * MinMemory})
	n.bounds.send = patience
	address := serve(t, n, nil)
	id, b := stripe(1, code{1, 1, 0}, 2<<20, 0)
	if out, err := n.put(id, b, ""); out != stored {
		t.Fatal(err)
	}
	c := dial(t, address)
	send(t, c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", id.Path())
	in := bufio.NewReaderSize(c, 4096)
	if _, err := in.Peek(1); err != nil { // it is on its way
		t.Fatal(err)
	}
	for i := range uint64(200) { // evicts everything that can be
		other, ob := usualStripe(100 + i)
		if out, err := n.put(other, ob, ""); out != stored {
			t.Fatal(err)
		}
	}
	if n.mem.contains(id) {
		t.Fatal("it was not evicted")
	}
	if r := readAnswer(t, in); !bytes.Equal(r.body, b) {
		t.Fatal("bytes have changed on their way")
	}
	if used, _, _ := n.mem.usage(); used > n.mem.limit {
		t.Error("too much memory")
	}
}

// Clients that stop on the way lose their connection, and hold nothing.
func TestSlowClients(t *testing.T) {
	n := open(t, Options{Buffers: 1})
	n.bounds.idle, n.bounds.head, n.bounds.body, n.bounds.send = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	address := serve(t, n, nil)
	id, b := stripe(1, code{1, 1, 0}, 2<<20, 0)
	if out, err := n.put(id, b, ""); out != stored {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"idle":            "",
		"head":            "GET " + id.Path(),
		"head elsewhere":  "GET /status HTTP/1.1\r\n",
		"body":            fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", id.Path()),
		"chunked body":    fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", id.Path()),
		"no reading":      strings.Repeat(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\n\r\n", id.Path()), 20),
		"endless head":    "GET " + id.Path() + " HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 3000),
		"HTTP/2, no more": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, address)
			send(t, c, "%s", text)
			if name != "no reading" {
				_, _ = io.Copy(io.Discard, c) // until it is closed
			}
			waitFor(t, "its connection to be closed, and the one buffer", func() bool {
				buf, err := n.buffers.get()
				if err == nil {
					n.buffers.put(buf)
				}
				return err == nil && n.conns.Load() == 0
			})
			other, ob := usualStripe(7)
			if out, err := n.put(other, ob, ""); out != stored && out != had {
				t.Fatal(err)
			}
		})
	}
}

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !so(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

// With every buffer taken a put is told so, its connection stays good, and
// what is in memory is given all the same.
func TestBusy(t *testing.T) {
	for name, to := range fronts() {
		t.Run(name, func(t *testing.T) {
			n := open(t, Options{Buffers: 1})
			f := to(t, n)
			id, b := usualStripe(1)
			f.want(t, 201, "PUT "+id.Path(), b)
			buf := takeBuffer(t, n)
			other, ob := usualStripe(2)
			if r := f.want(t, 503, "PUT "+other.Path(), ob); r.header.Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
			if name == "HTTP/1.1" {
				f.want(t, 200, "GET "+id.Path(), nil)
			} else {
				f.want(t, 503, "GET "+id.Path(), nil)
			}
			n.buffers.put(buf)
			f.want(t, 201, "PUT "+other.Path(), ob)
			if s := n.Stats(); s.Busy == 0 {
				t.Error("not counted")
			}
		})
	}
}

// With all places taken, the connection that has waited longest makes room for
// a new one, whoever serves it; one that is at work does not.
func TestConnectionsAreBounded(t *testing.T) {
	warned := make(chan error, 10)
	n := open(t, Options{Warn: func(err error) { warned <- err }})
	n.bounds.conns, n.bounds.head, n.bounds.body = 2, patience, patience
	l := listen(t)
	address, s := l.Addr().String(), n.newServer(l)
	runs(t, func(ctx context.Context) error { return s.run(ctx, l) })
	id, _ := usualStripe(1)
	asks := func(c net.Conn, path string) (open bool) {
		if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
			return false
		}
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
		return err == nil
	}
	// A client has its answer a moment before the server says that the connection waits.
	waiting := func(open int64, want int) {
		t.Helper()
		waitFor(t, fmt.Sprintf("%d connections, %d of them waiting", open, want), func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			have := 0
			for c := range s.conns {
				if c.since().Load() != 0 {
					have++
				}
			}
			return n.conns.Load() == open && have == want
		})
	}
	silent := dial(t, address)
	waiting(1, 1)
	second := dial(t, address)
	if !asks(second, id.Path()) {
		t.Fatal("not served")
	}
	waiting(2, 2)
	third := dial(t, address)
	if !asks(third, "/status") { // net/http has it
		t.Fatal("not served")
	}
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent one is still there")
	}
	waiting(2, 2)
	busy := dial(t, address) // in the place of the second
	send(t, busy, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", id.Path())
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("the second is still there")
	}
	waiting(2, 1)
	if !asks(dial(t, address), id.Path()) { // in the third's
		t.Error("the last was not served")
	}
	if asks(third, "/status") {
		t.Error("the third was not closed for the last")
	}
	if s := n.Stats(); s.Refused != 3 || len(warned) != 1 {
		t.Errorf("%d warnings, %+v", len(warned), s)
	}
}

// Connections that work are closed for nobody.
func TestConnectionsAtWork(t *testing.T) {
	n := open(t, Options{})
	n.bounds.conns, n.bounds.body = 1, patience
	address := serve(t, n, nil)
	id, _ := usualStripe(1)
	busy := dial(t, address)
	send(t, busy, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", id.Path())
	waitFor(t, "the body's buffer", func() bool { return len(n.buffers.room) == 1 })
	if _, err := dial(t, address).Read(make([]byte, 1)); err == nil {
		t.Fatal("a second connection is served")
	}
	send(t, busy, "%s", strings.Repeat("x", 97))
	if r := readAnswer(t, bufio.NewReader(busy)); r.status != 400 {
		t.Error(r.status)
	}
}

// Bodies that find no buffer, and trickle in, keep nobody out.
func TestRefusedBodiesMakeRoom(t *testing.T) {
	n := open(t, Options{Buffers: 1})
	n.bounds.conns, n.bounds.body = 2, patience
	address := serve(t, n, nil)
	id, b := usualStripe(1)
	kept, refused := dial(t, address), dial(t, address)
	send(t, kept, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", id.Path(), len(b))
	waitFor(t, "the body's buffer", func() bool { return len(n.buffers.room) == 1 })
	send(t, refused, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", id.Path())
	waitFor(t, "a place for one more", func() bool {
		c := dial(t, address)
		defer c.Close()
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", id.Path())
		_, err := c.Read(make([]byte, 1))
		return err == nil
	})
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("the refused one is still there")
	}
	send(t, kept, "%s", b)
	if r := readAnswer(t, bufio.NewReader(kept)); r.status != 201 {
		t.Error(r.status)
	}
}

// Who has said nothing yet waits as long as for the rest of a head, not as long
// as who will come back.
func TestSilentConnections(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.StartTLS() // for its certificate
	defer s.Close()
	for name, secure := range map[string]*tls.Config{"plain": nil, "TLS": {Certificates: s.TLS.Certificates}} {
		t.Run(name, func(t *testing.T) {
			n := open(t, Options{})
			n.bounds.head, n.bounds.idle = 20*time.Millisecond, patience
			if _, err := dial(t, serve(t, n, secure)).Read(make([]byte, 1)); err == nil {
				t.Error("it was spoken to")
			}
			waitFor(t, "its end", func() bool { return n.conns.Load() == 0 })
		})
	}
}

// Connections of HTTP/2 hold more memory than others: there are fewer.
func TestHTTP2IsBounded(t *testing.T) {
	for _, name := range []string{"HTTP/2 without TLS", "HTTP/2 over TLS"} {
		t.Run(name, func(t *testing.T) {
			n := open(t, Options{})
			n.bounds.http2 = 1
			f := fronts()[name](t, n)
			f.want(t, 200, "GET /status", nil)
			other := f.Transport.(*http.Transport).Clone()
			defer other.CloseIdleConnections()
			if res, err := (&http.Client{Transport: other}).Get(f.url + "/status"); err == nil {
				_ = res.Body.Close()
				t.Fatal("a second connection is served")
			}
			waitFor(t, "room", func() bool { // a stream ends a moment after its answer, and is not idle until then
				f.CloseIdleConnections()
				return n.http2.Load() == 0
			})
			(front{&http.Client{Transport: other}, f.url}).want(t, 200, "GET /status", nil)
		})
	}
}

// Questions lie in the places for bodies, and nowhere else.
func TestHaveTakesABuffer(t *testing.T) {
	everywhere(t, Options{Buffers: 1}, func(t *testing.T, n *Node, f front) {
		id, b := usualStripe(1)
		f.want(t, 201, "PUT "+id.Path(), b)
		buf := takeBuffer(t, n)
		if r := f.want(t, 503, "POST "+zone.HavePath, id.Append(nil)); r.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		n.buffers.put(buf)
		if r := f.want(t, 200, "POST "+zone.HavePath, id.Append(nil)); string(r.body) != "\x01" {
			t.Errorf("%q", r.body)
		}
	})
}

// At its end a node answers what it has begun, and waits for nobody else: for who
// has begun to say something a moment, for who has not none.
func TestEnd(t *testing.T) {
	for name, grace := range map[string]time.Duration{"waiting": patience, "half": 10 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			n := open(t, Options{Lease: zone.MaxWait})
			n.bounds.grace = grace
			l := listen(t)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- n.Serve(ctx, l) }()
			id, _ := usualStripe(1)
			begun, idle := dial(t, l.Addr().String()), dial(t, l.Addr().String())
			if name == "waiting" {
				grantForLong(t, n, id)
				send(t, begun, "GET %s?wait=5000 HTTP/1.1\r\nHost: x\r\nThaw-Lease: b\r\n\r\n", id.Path())
			} else {
				send(t, begun, "PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", id.Path())
			}
			waitFor(t, "one that waits, or its body's buffer", func() bool {
				return n.Stats().Leases.Waiting+int64(len(n.buffers.room)) == 1 && n.conns.Load() == 2
			})
			cancel()
			if name == "waiting" {
				if r := readAnswer(t, bufio.NewReader(begun)); r.status != 404 || !strings.HasPrefix(r.header.Get(zone.LeaseHeader), "held ") {
					t.Errorf("%+v", r)
				}
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for _, c := range []net.Conn{idle, begun} {
				if _, err := c.Read(make([]byte, 1)); err == nil {
					t.Error("a connection is still served")
				}
			}
			if n.conns.Load() != 0 {
				t.Errorf("%d connections", n.conns.Load())
			}
		})
	}
}

// Where the kernel's pages cannot be lent, bytes are copied.
func TestWithoutSharing(t *testing.T) {
	n := open(t, Options{})
	n.mem.arena.shares = false
	f := fronts()["HTTP/1.1"](t, n)
	id, b := usualStripe(1)
	f.want(t, 201, "PUT "+id.Path(), b)
	if r := f.want(t, 200, "GET "+id.Path(), nil); !bytes.Equal(r.body, b) {
		t.Fatal("other bytes")
	}
	f.want(t, 200, "HEAD "+id.Path(), nil)
}
