package quiet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pair gives both ends of a connection of this package.
func pair(t *testing.T, network, address string) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d Dialer
	if dialled, err = d.DialContext(context.Background(), network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = Listener(l).Accept(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{dialled, accepted} {
		if _, ok := c.(*conn); !ok {
			t.Fatalf("a plain %T", c)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return dialled, accepted
}

// More than the sockets hold goes through, both ways at once, and the end is seen.
func TestBytes(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": t.TempDir() + "/socket"} {
		a, b := pair(t, network, address)
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
		var work sync.WaitGroup
		for from, to := range map[net.Conn]net.Conn{a: b, b: a} {
			work.Go(func() {
				if n, err := from.Write(want); n != len(want) || err != nil {
					t.Errorf("%s: wrote %d: %v", network, n, err)
				}
				if err := from.(*conn).CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			work.Go(func() {
				if got, err := io.ReadAll(to); !bytes.Equal(got, want) || err != nil {
					t.Errorf("%s: read %d bytes: %v", network, len(got), err)
				}
			})
		}
		work.Wait()
		if n, err := a.Read(nil); n != 0 || err != nil {
			t.Errorf("no bytes: %d %v", n, err)
		}
	}
}

// Deadlines, and a Close meanwhile, end what waits, with the errors of package net.
func TestWaiting(t *testing.T) {
	a, b := pair(t, "tcp", "127.0.0.1:0")
	if err := a.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	_, err := a.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("deadline: %v", err)
	}
	if err := a.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { _, err := a.Read(make([]byte, 1)); ended <- err }()
	go func() {
		var err error
		for err == nil { // until nothing more fits, and then until the end
			_, err = a.Write(make([]byte, 1<<20))
		}
		ended <- err
	}()
	if _, err := io.ReadFull(b, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
	}
}

// Who writes to nobody is told so, as package net tells it.
func TestReset(t *testing.T) {
	a, b := pair(t, "tcp", "127.0.0.1:0")
	if _, err := a.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil { // with bytes unread: a reset
		t.Fatal(err)
	}
	_, err := a.Read(make([]byte, 1))
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	_, err = a.Write([]byte("more"))
	var op *net.OpError
	if !errors.Is(err, syscall.EPIPE) || !errors.As(err, &op) || op.Op != "write" || !strings.HasPrefix(err.Error(), "write tcp 127.0.0.1:") {
		t.Errorf("write: %v", err)
	}
}

// net/http is content with such connections, on both sides.
func TestHTTP(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}))
	s.Listener = Listener(s.Listener)
	s.Start()
	defer s.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: new(Dialer).DialContext}}
	defer client.CloseIdleConnections()
	for range 10 {
		resp, err := client.Post(s.URL, "text/plain", strings.NewReader(strings.Repeat("x", 100_000)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if len(got) != 100_000 || err != nil {
			t.Fatalf("%d bytes: %v", len(got), err)
		}
	}
}

// What is no socket stays what it is.
func TestOther(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if Conn(a) != a {
		t.Error("a pipe was wrapped")
	}
}

// A descriptor without bytes is not waited for.
func TestRead(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	raw, err := r.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	read := func() (n int, err error) {
		if rerr := raw.Control(func(fd uintptr) { n, err = Read(fd, make([]byte, 8)) }); rerr != nil {
			t.Fatal(rerr)
		}
		return n, err
	}
	if _, err := read(); err != syscall.EAGAIN {
		t.Errorf("empty: %v", err)
	}
	if _, err := w.WriteString("four"); err != nil {
		t.Fatal(err)
	}
	if n, err := read(); n != 4 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}
