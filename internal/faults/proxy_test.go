package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// echo is a server that gives back what it gets.
func echo(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func newProxy(t *testing.T, target string, seed uint64) *Proxy {
	t.Helper()
	p, err := NewProxy(target, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if c := p.Counts(); c.Open != 0 {
			t.Errorf("after Close: %+v", c)
		}
	})
	return p
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.TCPConn)
}

// talk sends bytes, ends, and gives all that comes back.
func talk(t *testing.T, p *Proxy, sent []byte) ([]byte, error) {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		return nil, err // it was reset before this side had looked
	}
	defer conn.Close()
	var wg sync.WaitGroup
	var wrote error
	wg.Go(func() {
		_, wrote = conn.Write(sent)
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(conn)
	if wg.Wait(); err == nil && errors.Is(wrote, syscall.ECONNRESET) {
		err = wrote // of a reset the kernel tells once: who writes or who reads
	}
	return got, err
}

// some gives n bytes that are not alike.
func some(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	return data
}

func TestProxyPassesAll(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	sent := some(1 << 20)
	got, err := talk(t, p, sent)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	c := p.Counts()
	if c.Connections != 1 || c.ToTarget != 1<<20 || c.ToClient != 1<<20 || c.Flips+c.Delays+c.Resets+c.Cuts+c.Unreached != 0 {
		t.Errorf("%+v", c)
	}
}

// TestProxyEndsConnections at the byte that was said, in the way that was said.
func TestProxyEndsConnections(t *testing.T) {
	cases := []struct {
		name string
		link Link
		want int
		err  error
	}{
		{"reset", Link{ResetAfter: 1000}, 1000, syscall.ECONNRESET},
		{"cut", Link{CutAfter: 100_000}, 100_000, nil},
		{"reset comes first", Link{ResetAfter: 10, CutAfter: 11}, 10, syscall.ECONNRESET},
		{"cut comes first", Link{ResetAfter: 11, CutAfter: 10}, 10, nil},
		{"behind the end", Link{CutAfter: 1 << 20}, 200_000, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newProxy(t, echo(t), 1)
			p.Set(c.link)
			sent := some(200_000)
			got, err := talk(t, p, sent)
			if len(got) != c.want || !bytes.Equal(got, sent[:len(got)]) || !errors.Is(err, c.err) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	t.Run("requests", func(t *testing.T) {
		p := newProxy(t, echo(t), 1)
		p.SetRequests(Link{CutAfter: 1000})
		if _, err := talk(t, p, some(5000)); p.Counts().ToTarget != 1000 || p.Counts().Cuts != 1 {
			t.Errorf("%+v, %v", p.Counts(), err)
		}
	})
}

// TestProxyIsSeeded: equal seeds break the same bytes of the same connections.
func TestProxyIsSeeded(t *testing.T) {
	sent := some(300_000)
	replies := func(seed uint64) (got [3][]byte) {
		p := newProxy(t, echo(t), seed)
		p.Set(Link{Flip: 1e-4, CutAfter: 300_000, Anywhere: true})
		for i := range got {
			var err error
			if got[i], err = talk(t, p, sent); err != nil {
				t.Fatal(err)
			}
		}
		if c := p.Counts(); c.Flips == 0 || c.Cuts != 3 {
			t.Errorf("%+v", c)
		}
		return got
	}
	a, b, other := replies(7), replies(7), replies(8)
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			t.Errorf("connection %d: equal seeds, other bytes", i)
		}
		if bytes.Equal(a[i], other[i]) {
			t.Errorf("connection %d: other seeds, equal bytes", i)
		}
	}
	if bytes.Equal(a[0], a[1]) {
		t.Error("two connections met the same faults")
	}
}

// TestProxyCountsFlips: as many bytes differ as are counted, by a bit each.
func TestProxyCountsFlips(t *testing.T) {
	for _, rate := range []float64{1e-3, 0.5, 1} {
		p := newProxy(t, echo(t), 3)
		p.Set(Link{Flip: rate})
		sent := some(100_000)
		got, err := talk(t, p, sent)
		if err != nil || len(got) != len(sent) {
			t.Fatal(len(got), err)
		}
		differ := 0
		for i := range got {
			if x := got[i] ^ sent[i]; x != 0 {
				differ++
				if x&(x-1) != 0 {
					t.Fatalf("byte %d: %08b", i, x)
				}
			}
		}
		want := rate * float64(len(sent))
		if int64(differ) != p.Counts().Flips || float64(differ) < want*0.7 || float64(differ) > want*1.3 {
			t.Errorf("rate %g: %d bytes differ, %+v", rate, differ, p.Counts())
		}
	}
}

// TestProxySparesHeaders of every reply on a connection.
func TestProxySparesHeaders(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(text)))
		_, _ = io.WriteString(w, text)
	}))
	defer server.Close()
	p := newProxy(t, server.Listener.Addr().String(), 1)
	p.Set(Link{Flip: 1, Body: true})
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for range 5 {
		got := get(t.Context(), client, "http://"+p.Addr())
		if got.status != 200 || got.err != nil || len(got.body) != len(text) || got.body == text {
			t.Errorf("%+v", got)
		}
	}
	if c := p.Counts(); c.Connections != 1 || c.Flips != int64(5*len(text)) {
		t.Errorf("%+v", c)
	}
}

func TestHeaderSkip(t *testing.T) {
	for in, want := range map[string]string{
		"A: b\r\n\r\nbody": "body", "\r\n\r\n\r\n\r\nx": "\r\n\r\nx", "no end\r\n": "", "a\r\r\n\r\nx": "x", "a\r\n\r\r\n\r\nx": "x",
	} {
		for cut := range len(in) + 1 {
			var h header
			got := in[:cut][h.skip([]byte(in[:cut])):]
			got += in[cut:][h.skip([]byte(in[cut:])):]
			if got != want {
				t.Errorf("%q cut at %d: %q", in, cut, got)
			}
		}
	}
}

// TestProxyDelays each reply, and no request. Only that it is not early is sure.
func TestProxyDelays(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	p.Set(Link{Delay: 10 * time.Millisecond, Jitter: time.Millisecond, Curve: Curve{0: 10 * time.Millisecond}})
	conn := dial(t, p)
	for range 3 {
		start := time.Now()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 20*time.Millisecond {
			t.Errorf("answered after %v", took)
		}
	}
	if c := p.Counts(); c.Delays != 3 {
		t.Errorf("%+v", c)
	}
}

func TestProxyLimitsBandwidth(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	p.Set(Link{Bandwidth: 1 << 20})
	start := time.Now()
	if got, err := talk(t, p, some(50_000)); err != nil || len(got) != 50_000 {
		t.Fatal(len(got), err)
	}
	if took := time.Since(start); took < 47*time.Millisecond { // 50,000 / 2^20 s
		t.Errorf("took %v", took)
	}
}

// TestProxyStalls and goes on: with what it held, and on the same connection.
func TestProxyStalls(t *testing.T) {
	for name, l := range map[string]Link{"stall": {Stall: true}, "long delay": {Delay: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, echo(t), 1)
			p.Set(l)
			conn := dial(t, p)
			if _, err := conn.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, errTimeout(err)) {
				t.Fatal(n, err)
			}
			_ = conn.SetReadDeadline(time.Time{})
			p.Set(Link{})
			got := make([]byte, len(text))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// errTimeout gives err if it is a timeout, else another.
func errTimeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return err
	}
	return errors.New("a timeout")
}

// TestProxyRefuses for real, keeps its port meanwhile, and lets in again. Open
// connections go on until they are cut.
func TestProxyRefuses(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	conn := dial(t, p)
	ping := func() error {
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	if err := ping(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		p.Set(Link{Refuse: true})
		if _, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("dialled: %v", err)
		}
		if err := ping(); err != nil {
			t.Errorf("the open connection: %v", err)
		}
		p.Set(Link{})
		if got, err := talk(t, p, []byte(text)); err != nil || string(got) != text {
			t.Errorf("let in again: %q, %v", got, err)
		}
	}
	p.Cut()
	if err := ping(); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("after Cut: %v", err)
	}
}

func TestProxyRetargets(t *testing.T) {
	p := newProxy(t, "127.0.0.1:1", 1) // nobody listens there
	if got, err := talk(t, p, nil); len(got) != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%q, %v", got, err)
	}
	if c := p.Counts(); c.Unreached != 1 {
		t.Errorf("%+v", c)
	}
	p.Retarget(echo(t))
	if got, err := talk(t, p, []byte(text)); err != nil || string(got) != text {
		t.Errorf("%q, %v", got, err)
	}
}

// TestProxyShare breaks some connections, and those that equal seeds say.
func TestProxyShare(t *testing.T) {
	outcomes := func(seed uint64) (s string) {
		p := newProxy(t, echo(t), seed)
		p.Set(Link{CutAfter: 1, Share: 0.5})
		for range 40 {
			got, err := talk(t, p, []byte("ab"))
			if err != nil {
				t.Fatal(err)
			}
			s += fmt.Sprint(len(got))
		}
		return s
	}
	a := outcomes(1)
	if a != outcomes(1) || a == outcomes(2) {
		t.Error("not by the seed")
	}
	if n := strings.Count(a, "1"); n < 10 || n > 30 {
		t.Errorf("%d of 40 connections were cut: %s", n, a)
	}
}

// TestProxyClosesInTheMiddle of everything, with many connections.
func TestProxyClosesInTheMiddle(t *testing.T) {
	sent := some(1 << 20) // more than sockets hold
	for _, l := range []Link{{}, {Stall: true}, {Delay: time.Hour}, {Bandwidth: 1}, {Flip: 0.001}} {
		p := newProxy(t, echo(t), 1)
		p.Set(l)
		var wg sync.WaitGroup
		for range 20 {
			conn := dial(t, p)
			wg.Go(func() { _, _ = conn.Write(sent) })
			wg.Go(func() { _, _ = io.Copy(io.Discard, conn) })
		}
		if err := errors.Join(p.Close(), p.Close()); err != nil {
			t.Error(err)
		}
		wg.Wait()
		p.Set(Link{Refuse: true}) // to no effect, and no harm
		p.Set(Link{})
	}
}

func TestProxyUnderChange(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		links := []Link{{Delay: time.Millisecond}, {Stall: true}, {Bandwidth: 1 << 20}, {Refuse: true}, {}}
		for i := 0; ; i++ {
			select {
			case <-stop:
				p.Set(Link{})
				return
			default:
				p.Set(links[i%len(links)])
			}
		}
	})
	sent := some(100_000)
	for range 5 {
		conn, err := net.Dial("tcp", p.Addr())
		if err != nil {
			continue // refused
		}
		wg.Go(func() { _, _ = conn.Write(sent) })
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(conn, got); err == nil && !bytes.Equal(got, sent) {
			t.Error("other bytes came back")
		}
		_ = conn.Close()
	}
	close(stop)
	wg.Wait()
}

func TestCurve(t *testing.T) {
	c := Curve{0.5: 100, 0.9: 500, 1: 600}
	for share, want := range map[float64]time.Duration{0: 100, 0.5: 100, 0.7: 300, 0.9: 500, 0.95: 550, 1: 600} {
		if got := c.At(share); got < want-1 || got > want+1 {
			t.Errorf("at %g: %d, want %d", share, got, want)
		}
	}
	if got := (Curve{}).At(0.5); got != 0 {
		t.Errorf("empty: %v", got)
	}
	l := LogNormal(36*time.Millisecond, 175*time.Millisecond)
	for share, want := range map[float64]float64{0.5: 36, 0.999: 175, 0.99: 118.3, 0.01: 10.95} {
		if got := l.At(share).Seconds() * 1000; got < want*0.99 || got > want*1.01 {
			t.Errorf("log-normal at %g: %g ms, want %g", share, got, want)
		}
	}
}

func TestSlowIsSeeded(t *testing.T) {
	curve := LogNormal(36*time.Millisecond, 175*time.Millisecond)
	a, b, other := Slow(1, curve), Slow(1, curve), Slow(2, curve)
	alike, below := 0, 0
	for call := range int64(1000) {
		x, hit := a(call, nil)
		if y, _ := b(call, nil); x != y || !hit || x.Kind != Delay {
			t.Fatalf("call %d: %v, %v", call, x, y)
		}
		if y, _ := other(call, nil); x == y {
			alike++
		}
		if x.Delay < 36*time.Millisecond {
			below++
		}
	}
	if alike > 5 || below < 450 || below > 550 {
		t.Errorf("%d calls alike under another seed; %d of 1000 below the median", alike, below)
	}
}

// A connection that was accepted, and not more, when its port was closed is not
// let through afterwards: who cuts then has cut all.
func TestRefuseWhileAccepting(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	p.mu.Lock()
	l := p.listener
	p.mu.Unlock()
	near, err := net.Dial("tcp", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	p.Set(Link{Refuse: true})
	p.Cut()
	c, _ := p.admit(l, near.(*net.TCPConn))
	if c.ctx.Err() == nil {
		t.Error("it was let through")
	}
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
	p.Set(Link{})
}

// A port that is closed stays the proxy's: nobody gets it but a server that is
// told of it, as one of Go's may be.
func TestRefusedPortIsHeld(t *testing.T) {
	p := newProxy(t, echo(t), 1)
	p.Set(Link{Refuse: true})
	if conn, err := net.Dial("tcp", p.Addr()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%v, %v", conn, err)
	}
	for range 2 {
		l, err := net.Listen("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
