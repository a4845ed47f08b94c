package frontend

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thaw/fleet"
	"thaw/invokewire"
	"thaw/quiet"
)

// laneRig is a worker that says by which connection an invoke came, refuses those of
// the instance "busy" unread, and those of "slow" never end. If it stands still, it
// does not say that it lives either.
type laneRig struct {
	*httptest.Server
	workers      *workers
	conns, heard atomic.Int64 // connections, and invokes of "slow" that came whole
	still        atomic.Bool
	asked        chan struct{} // closed once it was asked whether it lives
}

func newLaneRig(t *testing.T, secure bool) *laneRig {
	r := &laneRig{asked: make(chan struct{})}
	asked := sync.OnceFunc(func() { close(r.asked) })
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch {
		case q.URL.Path == "/healthz":
			asked()
			if r.still.Load() {
				<-q.Context().Done()
			}
			return
		case strings.Contains(q.URL.Path, "late"):
			<-r.asked
		case strings.Contains(q.URL.Path, "busy"):
			w.WriteHeader(http.StatusConflict)
			return
		case strings.Contains(q.URL.Path, "slow"):
			_, _ = io.Copy(io.Discard, q.Body) // else the server does not see the end
			r.heard.Add(1)
			<-q.Context().Done()
			return
		}
		body, _ := io.ReadAll(q.Body)
		w.Header().Set(invokewire.HeaderRequestID, q.Header.Get(invokewire.HeaderRequestID))
		_, _ = w.Write([]byte("said "))
		_ = http.NewResponseController(w).Flush()
		_, _ = w.Write(body)
		w.Header().Set(http.TrailerPrefix+invokewire.HeaderLogTail, "tail of "+q.Header.Get(invokewire.HeaderRequestID))
	}))
	r.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			r.conns.Add(1)
		}
	}
	client := fleet.Dir("").Client()
	if secure {
		r.StartTLS()
		dialer := &tls.Dialer{Config: r.Client().Transport.(*http.Transport).TLSClientConfig}
		client.Transport = &http.Transport{DialContext: dialer.DialContext}
	} else {
		r.Start()
	}
	t.Cleanup(r.Close)
	r.workers = newWorkers(client, testToken)
	t.Cleanup(func() { r.workers.lanes.close("") })
	return r
}

func (r *laneRig) invoke(ctx context.Context, instance, payload string) (*answer, error) {
	return r.invokeBy(ctx, instance, payload, time.Time{})
}

// invokeBy is invoke of what is due by then.
func (r *laneRig) invokeBy(ctx context.Context, instance, payload string, due time.Time) (*answer, error) {
	return r.workers.invoke(ctx, &leased{id: instance, worker: r.Listener.Addr().String()}, &invocation{
		requestID: "r1", payload: &buffer{b: []byte(payload)}, deadline: time.Now().Add(time.Hour), due: due,
	})
}

// Of a worker that stands still no answer is waited for that is due, in an hour's
// time; of one that lives, it is, and its connection is not used again, which may
// be about to be cut.
func TestLateAnswer(t *testing.T) {
	t.Parallel() // it waits for lifeTime
	r := newLaneRig(t, false)
	a, err := r.invokeBy(t.Context(), "late", `"late"`, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(a); string(got) != `said "late"` || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	a.close()
	r.say(t, "1", true)
	r.still.Store(true)
	before := r.conns.Load()
	if _, err := r.invokeBy(t.Context(), "slow", `"slow"`, time.Now()); !errors.Is(err, errBroken) {
		t.Errorf("of a worker that stands still: %v", err)
	}
	if before != 3 { // two of invokes, and who asked
		t.Errorf("%d connections", before)
	}
}

// say expects an answer, and reads it to its end if it is to be whole.
func (r *laneRig) say(t *testing.T, payload string, whole bool) {
	t.Helper()
	a, err := r.invoke(t.Context(), "i", payload)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if !whole {
		return
	}
	got, err := io.ReadAll(a)
	if string(got) != "said "+payload || err != nil || a.Trailer.Get(invokewire.HeaderLogTail) != "tail of r1" {
		t.Fatalf("%d bytes, %v, %v", len(got), err, a.Trailer)
	}
}

// One connection serves one invoke after the other, as long as all are read to
// their ends; also over TLS.
func TestLanes(t *testing.T) {
	for _, secure := range []bool{false, true} {
		r := newLaneRig(t, secure)
		for range 5 {
			r.say(t, `"short"`, true)
		}
		r.say(t, strings.Repeat("x", 3<<20), true)
		if n := r.conns.Load(); n != 1 {
			t.Errorf("TLS %v: %d connections for invokes one after the other", secure, n)
		}
		r.say(t, "1", false)
		r.say(t, "2", true)
		if n := r.conns.Load(); n != 2 {
			t.Errorf("TLS %v: %d connections after an answer that was given up", secure, n)
		}
	}
}

// hungUp waits until it is known here that the worker has hung up: a busy kernel
// takes its time to say so.
func (r *laneRig) hungUp(t *testing.T) {
	t.Helper()
	known := func() bool {
		r.workers.lanes.mu.Lock()
		defer r.workers.lanes.mu.Unlock()
		for _, l := range r.workers.lanes.idle[r.Listener.Addr().String()] {
			if quiet.Idle(l.conn) {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(3 * time.Minute); !known(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody has hung up")
		}
	}
}

// A worker that has hung up is dialled again, and one that is gone was not reached.
func TestLaneHungUp(t *testing.T) {
	r := newLaneRig(t, false)
	for range 3 {
		r.say(t, "1", true)
		r.CloseClientConnections()
		r.hungUp(t)
	}
	if n := r.conns.Load(); n != 3 {
		t.Errorf("%d connections", n)
	}
	r.say(t, "1", true)
	r.Close()
	r.hungUp(t)
	if _, err := r.invoke(t.Context(), "i", "1"); !errors.Is(err, errUnsent) {
		t.Errorf("a worker that is gone: %v", err)
	}
}

// What a worker refuses without having read it is known as refused.
func TestLaneRefused(t *testing.T) {
	r := newLaneRig(t, false)
	for _, payload := range []string{"1", strings.Repeat("x", 200<<10)} {
		if _, err := r.invoke(t.Context(), "busy", payload); !errors.Is(err, errBusy) {
			t.Errorf("%d bytes: %v", len(payload), err)
		}
	}
}

// An invoke ends with its context: nobody knows then what became of it.
func TestLaneContext(t *testing.T) {
	r := newLaneRig(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := r.invoke(ctx, "slow", "1")
		ended <- err
	}()
	for end := time.Now().Add(3 * time.Minute); r.heard.Load() == 0 && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, errBroken) {
		t.Error(err)
	}
	r.say(t, "1", true)
	if n := r.conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

// More lanes than are kept are closed, the oldest first.
func TestLaneBounds(t *testing.T) {
	s := newLanes(&http.Client{})
	var closed bytes.Buffer
	for i := range maxLanes + 2 {
		s.put(&lane{worker: "w", conn: closing{name: byte('a' + i%26), to: &closed}})
	}
	if closed.String() != "ab" || len(s.idle["w"]) != maxLanes {
		t.Errorf("closed %q, %d are idle", &closed, len(s.idle["w"]))
	}
	s.close("v")
	s.expire(time.Now())
	if len(s.idle["w"]) != maxLanes {
		t.Error("another worker's")
	}
	s.close("w")
	if closed.Len() != maxLanes+2 || len(s.idle) != 0 {
		t.Errorf("%d closed", closed.Len())
	}
	s.put(&lane{worker: "w", conn: closing{to: &closed}})
	s.put(&lane{worker: "w", conn: closing{to: &closed}})
	s.expire(time.Now().Add(2 * laneIdle))
	if closed.Len() != maxLanes+4 || len(s.idle) != 0 {
		t.Errorf("%d closed after a while, %d workers have idle ones", closed.Len(), len(s.idle))
	}
}

// closing notes that it was closed.
type closing struct {
	net.Conn
	name byte
	to   *bytes.Buffer
}

func (c closing) Close() error { return c.to.WriteByte(c.name) }
