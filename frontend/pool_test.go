package frontend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/cluster"
	"thaw/functions"
	"thaw/invokewire"
)

var fID = functions.ID{Account: testAccount, Name: "f"}

// fakeManager answers as it is told, and notes what it was asked.
type fakeManager struct {
	server *httptest.Server
	mu     sync.Mutex
	asked  []string
	bodies []string
	answer func(path string, body []byte) (int, any)
}

func newFakeManager(t *testing.T, answer func(string, []byte) (int, any)) *fakeManager {
	m := &fakeManager{answer: answer}
	m.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		_, _ = b.ReadFrom(r.Body)
		m.mu.Lock()
		m.asked, m.bodies = append(m.asked, r.URL.Path), append(m.bodies, b.String())
		m.mu.Unlock()
		status, v := m.answer(r.URL.Path, b.Bytes())
		w.WriteHeader(status)
		if v != nil {
			_ = json.NewEncoder(w).Encode(v)
		}
	}))
	t.Cleanup(m.server.Close)
	return m
}

func (m *fakeManager) count(path string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.asked {
		if p == path {
			n++
		}
	}
	return n
}

// newTestPool makes a pool over fake managers, by their ids.
func newTestPool(idle time.Duration, list map[string]*fakeManager) *pool {
	m := newManagers(http.DefaultClient, testToken)
	for id, f := range list {
		_ = m.tell(cluster.Change{Record: cluster.Record{Key: "managers/" + id, Value: []byte(f.server.Listener.Addr().String())}})
	}
	return newPool("f0", idle, m)
}

func (p *pool) grant(id string, now time.Time) *leased {
	return p.add("k", fID, &invokewire.Lease{Instance: id, Worker: "w:1", TTL: 15 * time.Second}, now)
}

// The instance used last is used next; what has expired or gone is not.
func TestPoolOrder(t *testing.T) {
	p := newTestPool(time.Minute, nil)
	now := time.Now()
	if p.get("k", now) != nil {
		t.Fatal("an instance out of nothing")
	}
	a, b := p.grant("a", now), p.grant("b", now)
	p.put(a, true, now)
	p.put(b, true, now)
	if l := p.get("k", now); l != b {
		t.Errorf("got %+v, want b", l)
	}
	p.put(b, true, now)
	p.renewed([]string{"a", "b"}, []string{"b"}, now)
	if l := p.get("k", now); l != a {
		t.Errorf("got %+v, want a: b is gone", l)
	}
	p.renewed([]string{"a"}, []string{"a"}, now) // while it works
	p.put(a, true, now)
	if l := p.get("k", now); l != nil {
		t.Errorf("got %+v, which was to work once more only", l)
	}
	c := p.grant("c", now)
	p.put(c, true, now)
	if l := p.get("k", now.Add(16*time.Second)); l != nil {
		t.Error("got an instance whose lease has ended")
	}
	if len(p.all)+len(p.idle) > 0 {
		t.Errorf("left: %v %v", p.all, p.idle)
	}
}

func TestPoolReserve(t *testing.T) {
	p := newTestPool(time.Minute, nil)
	two, zero := 2, 0
	if !p.enter(fID, &two) || !p.enter(fID, &two) || p.enter(fID, &two) || p.enter(fID, &zero) || !p.enter(fID, nil) {
		t.Error("the reserve is not kept")
	}
	p.exit(fID)
	p.exit(fID)
	if !p.enter(fID, &two) {
		t.Error("an invoke that has ended counts")
	}
	p.exit(fID)
	p.exit(fID)
	if len(p.flying) != 0 {
		t.Errorf("left: %v", p.flying)
	}
}

// All leases are renewed in one request, idle ones go back, lost ones are told.
func TestPoolRuns(t *testing.T) {
	m := newFakeManager(t, func(path string, _ []byte) (int, any) {
		if path == "/renew" {
			return http.StatusOK, invokewire.Renewed{Gone: []string{"c"}}
		}
		return http.StatusNoContent, nil
	})
	p := newTestPool(1500*time.Millisecond, map[string]*fakeManager{"m": m})
	now := time.Now()
	p.ttl = 3 * time.Second
	for _, id := range []string{"a", "b", "c"} {
		p.all[id] = &leased{id: id, key: "k", function: fID, busy: true, expires: now.Add(3 * time.Second)}
	}
	lost := p.all["a"]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.run(ctx) }()
	p.put(lost, false, time.Now())
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(3 * time.Minute); !ok(); <-time.After(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	wait("the lost one is told", func() bool { return m.count("/release") == 1 })
	wait("leases are renewed", func() bool { return m.count("/renew") >= 2 })
	p.mu.Lock()
	b, c := p.all["b"], p.all["c"]
	p.mu.Unlock()
	if b == nil || b.gone || c == nil || !c.gone {
		t.Errorf("after renewal: %+v, %+v", b, c)
	}
	p.put(b, true, time.Now())
	wait("the idle one goes back", func() bool { return m.count("/release") == 2 })
	d := p.grant("d", time.Now())
	p.put(d, true, time.Now())
	cancel()
	<-done
	if n := m.count("/release"); n != 3 {
		t.Errorf("%d releases, want the last one at the end", n)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.bodies, func(s string) bool { return strings.Contains(s, `"Instances":["d"]`) }) {
		t.Errorf("bodies: %v", m.bodies)
	}
}

// A throttled function's own idle instances go back first.
func TestPoolSpare(t *testing.T) {
	p := newTestPool(time.Minute, nil)
	now := time.Now()
	other := functions.ID{Account: testAccount, Name: "g"}
	stranger := functions.ID{Account: "111111111111", Name: "f"}
	fill := func() {
		for n, f := range []functions.ID{fID, other, stranger} {
			p.put(p.add(f.String(), f, &invokewire.Lease{Instance: string(rune('a' + n)), TTL: time.Minute}, now), true, now)
		}
	}
	for reason, want := range map[string]int{invokewire.ReasonReserved: 1, invokewire.ReasonAccount: 2, invokewire.ReasonRate: 3} {
		fill()
		if got := p.spare(fID, reason); len(got) != want {
			t.Errorf("%s: %v", reason, got)
		}
		p.stale(time.Time{})
	}
}

func acquireOf(f functions.ID) *invokewire.Acquire {
	return &invokewire.Acquire{Frontend: "f0", Spec: invokewire.Spec{Account: f.Account, Function: f.Name, Version: "1"}}
}

// The owner is found by asking any, and asked first from then on.
func TestManagersFindOwner(t *testing.T) {
	lease := invokewire.Lease{Instance: "i", Worker: "w:1"}
	a := newFakeManager(t, func(string, []byte) (int, any) {
		return http.StatusMisdirectedRequest, invokewire.Misdirected{Owner: "b"}
	})
	b := newFakeManager(t, func(string, []byte) (int, any) { return http.StatusOK, lease })
	m := newTestPool(time.Minute, map[string]*fakeManager{"a": a, "b": b}).managers
	m.own(fID, "a") // as it was once
	for range 3 {
		if l, err := m.acquire(t.Context(), acquireOf(fID)); err != nil || l.Instance != "i" {
			t.Fatalf("got %v, %v", l, err)
		}
	}
	if n := a.count("/acquire"); n != 1 {
		t.Errorf("who does not own it was asked %d times", n)
	}
}

// A manager that does not answer is passed over, and forgotten once it has left.
func TestManagersDead(t *testing.T) {
	dead := newFakeManager(t, nil)
	dead.server.Close()
	b := newFakeManager(t, func(string, []byte) (int, any) {
		return http.StatusTooManyRequests, invokewire.Throttle{Reason: invokewire.ReasonAccount, RetryAfter: time.Second}
	})
	m := newTestPool(time.Minute, map[string]*fakeManager{"dead": dead, "b": b}).managers
	m.own(fID, "dead")
	_, err := m.acquire(t.Context(), acquireOf(fID))
	var throttle *invokewire.Throttle
	if !errors.As(err, &throttle) || throttle.Reason != invokewire.ReasonAccount {
		t.Errorf("got %v", err)
	}
	for _, id := range []string{"dead", "b"} {
		_ = m.tell(cluster.Change{Record: cluster.Record{Key: "managers/" + id}, Deleted: true})
	}
	if c := m.candidates(fID); len(c) != 2 {
		t.Errorf("candidates %v: those that have left are asked until they do not answer", c)
	}
	m.silent(fID, "dead")
	if c := m.candidates(fID); !slices.Equal(c, []string{"b"}) {
		t.Errorf("candidates %v", c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newManagers(http.DefaultClient, "").acquire(ctx, acquireOf(fID)); err == nil {
		t.Error("an instance without managers")
	}
}

func TestBuffers(t *testing.T) {
	p := newBuffers()
	ctx := t.Context()
	long := bytes.Repeat([]byte("x"), maxSync)
	for _, c := range []struct {
		name  string
		body  []byte
		hint  int64
		limit int
		err   error
	}{
		{"small", []byte("abc"), 3, 10, nil}, {"exact", []byte("abc"), 3, 3, nil}, {"one more", []byte("abcd"), -1, 3, errTooLong},
		{"told", nil, 4, 3, errTooLong}, {"empty", nil, 0, 3, nil}, {"long", long, -1, maxSync, nil}, {"long, told", long, maxSync, maxSync, nil},
		{"longer", append(long, 'x'), -1, maxSync, errTooLong},
	} {
		b := p.get()
		err := p.fill(ctx, b, bytes.NewReader(c.body), c.hint, c.limit)
		if !errors.Is(err, c.err) || err == nil && !bytes.Equal(b.b, c.body) {
			t.Errorf("%s: %d bytes, %v", c.name, len(b.b), err)
		}
		p.put(b)
	}
	if len(p.slots) != 0 || len(p.free) != 1 {
		t.Errorf("%d in use, %d free, want one that was lent again and again", len(p.slots), len(p.free))
	}
	// Who finds none waits, and may give up.
	var lent []*buffer
	for range maxLarge {
		b := p.get()
		if err := p.grow(ctx, b); err != nil {
			t.Fatal(err)
		}
		lent = append(lent, b)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	b := p.get()
	if err := p.grow(short, b); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	for _, b := range lent {
		p.put(b)
	}
	if err := p.grow(ctx, b); err != nil {
		t.Error(err)
	}
}
