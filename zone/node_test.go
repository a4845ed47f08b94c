package zone

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/internal/testleak"
)

// testNode is a node in memory that can be made to misbehave.
type testNode struct {
	*httptest.Server
	fault atomic.Pointer[http.HandlerFunc] // takes GETs, or all if it is nil for none

	before atomic.Pointer[func(*http.Request)] // called with each PUT, if set

	gets, puts, conns atomic.Int64
	leaseFor          atomic.Int64 // what it says of leases; they end with a PUT
	patient           atomic.Bool  // who waits does so until a PUT

	mu      sync.Mutex
	changed *sync.Cond
	stripes map[StripeID][]byte    // guarded by mu
	when    map[StripeID]time.Time // guarded by mu: of the last PUT
	leases  map[StripeID]string    // guarded by mu: for ever, until a PUT
}

func newTestNode(t testing.TB) *testNode {
	n := &testNode{stripes: map[StripeID][]byte{}, leases: map[StripeID]string{}, when: map[StripeID]time.Time{}}
	n.leaseFor.Store(int64(time.Second))
	n.changed = sync.NewCond(&n.mu)
	n.Server = httptest.NewUnstartedServer(n)
	n.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.conns.Add(1)
		}
	}
	n.Start()
	t.Cleanup(n.Close)
	return n
}

func (n *testNode) addr() string { return n.Listener.Addr().String() }

// behave makes the node answer GETs by f; nil: as it should.
func (n *testNode) behave(f http.HandlerFunc) {
	if f == nil {
		n.fault.Store(nil)
		return
	}
	n.fault.Store(&f)
}

func (n *testNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == HavePath {
		n.have(w, r)
		return
	}
	id, err := ParsePath(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		n.gets.Add(1)
		if f := n.fault.Load(); f != nil && r.Method == http.MethodGet {
			(*f)(w, r)
			return
		}
		n.get(w, r, id)
	case http.MethodPut:
		if f := n.before.Load(); f != nil {
			(*f)(r)
		}
		n.puts.Add(1)
		n.put(w, r, id)
	}
}

func (n *testNode) get(w http.ResponseWriter, r *http.Request, id StripeID) {
	wait, _ := strconv.Atoi(r.URL.Query().Get("wait"))
	worker := r.Header.Get(LeaseHeader)
	n.mu.Lock()
	if wait > 0 {
		if n.patient.Load() {
			wait = int((3 * time.Minute).Milliseconds())
		}
		timer := time.AfterFunc(time.Duration(wait)*time.Millisecond, n.changed.Broadcast)
		defer timer.Stop()
		for end := time.Now().Add(time.Duration(wait) * time.Millisecond); n.stripes[id] == nil && n.leases[id] != "" && time.Now().Before(end); {
			n.changed.Wait()
		}
	}
	b := n.stripes[id]
	if b == nil && worker != "" {
		l := Lease{For: time.Duration(n.leaseFor.Load())}
		if n.leases[id] == "" {
			n.leases[id], l.Granted = worker, true
		}
		w.Header().Set(LeaseHeader, l.String())
	}
	n.mu.Unlock()
	if b == nil {
		w.WriteHeader(http.StatusNotFound) // a page would be another server's
		return
	}
	send(w, b)
}

func send(w http.ResponseWriter, b []byte) {
	w.Header().Set("ETag", ETag(b))
	w.Header().Set("Content-Length", fmt.Sprint(len(b)))
	_, _ = w.Write(b)
}

func (n *testNode) put(w http.ResponseWriter, r *http.Request, id StripeID) {
	b, err := io.ReadAll(r.Body)
	s, bad := ParseStripe(b)
	n.mu.Lock()
	defer n.mu.Unlock()
	old, match := n.stripes[id], r.Header.Get("If-Match")
	switch {
	case err != nil || bad != nil || s.ID() != id:
		w.WriteHeader(http.StatusBadRequest)
	case match != "" && (old == nil || ETag(old) != match), match == "" && old != nil && !bytes.Equal(old, b):
		w.WriteHeader(http.StatusPreconditionFailed)
	case match == "" && old != nil:
		w.WriteHeader(http.StatusOK)
	default:
		n.stripes[id] = b
		n.when[id] = time.Now()
		delete(n.leases, id)
		n.changed.Broadcast()
		w.WriteHeader(http.StatusCreated)
	}
}

func (n *testNode) have(w http.ResponseWriter, r *http.Request) {
	if f := n.fault.Load(); f != nil {
		(*f)(w, r)
		return
	}
	body, _ := io.ReadAll(r.Body)
	var answers []byte
	for b := range slices.Chunk(body, IDSize) {
		id, err := ParseID(b)
		held := byte(0)
		if err == nil && n.holds(id) != nil {
			held = 1
		}
		answers = append(answers, held)
	}
	_, _ = w.Write(answers)
}

// plant puts any bytes in the place of a stripe; nil: nothing.
func (n *testNode) plant(id StripeID, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stripes[id] = b; b == nil {
		delete(n.stripes, id)
	}
}

func (n *testNode) holds(id StripeID) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stripes[id]
}

func (n *testNode) putAt(id StripeID) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.when[id]
}

// testZone is a client and its nodes.
type testZone struct {
	*Client
	t     testing.TB
	nodes map[string]*testNode // by address
}

// newZone starts nodes and a client of k of n. Options but the zone are the
// caller's; deadlines are long, so that slow machines fail no test.
func newZone(t testing.TB, count int, o Options) *testZone {
	t.Helper()
	z := &testZone{t: t, nodes: map[string]*testNode{}}
	var addrs []string
	for range count {
		n := newTestNode(t)
		z.nodes[n.addr()] = n
		addrs = append(addrs, n.addr())
	}
	o.Zone = strings.Join(addrs, ",")
	if o.Deadline == 0 {
		o.Deadline = time.Minute
	}
	if o.Warn == nil {
		o.Warn = func(err error) {
			if !errors.Is(err, errUnheard) { // tests that break all nodes see it
				t.Error(err)
			}
		}
	}
	var err error
	if z.Client, err = NewClient(o); err != nil {
		t.Fatal(err)
	}
	HearAll(z.Client)
	t.Cleanup(func() { _ = z.Client.Close() })
	return z
}

// HearAll has a client wait for what all nodes say of a chunk that they do not
// have, and the first of its lease, however slow the machine is.
func HearAll(c *Client) { c.missGrace = time.Minute }

// at gives the nodes of a chunk by index.
func (z *testZone) at(name chunk.Name) (nodes []*testNode) {
	for _, n := range z.view.Load().at(name) {
		nodes = append(nodes, z.nodes[n.addr])
	}
	return nodes
}

func (z *testZone) id(name chunk.Name, index int) StripeID {
	v := z.view.Load()
	return StripeID{name, uint8(v.k), uint8(v.n), uint8(index)}
}

// fill puts a sample chunk into the zone.
func (z *testZone) fill(seed byte, size int) chunk.Sealed {
	z.t.Helper()
	s := chunktest.Sample(seed, size)
	if err := z.Put(z.t.Context(), s.Name, s.Data); err != nil {
		z.t.Fatal(err)
	}
	return s
}

func (z *testZone) wants(s chunk.Sealed) {
	z.t.Helper()
	got, err := z.Get(z.t.Context(), s.Name)
	if err != nil {
		z.t.Fatalf("Get: %v", err)
	}
	if !bytes.Equal(got, s.Data) {
		z.t.Fatalf("Get: %d other bytes", len(got))
	}
}

// until waits for what happens in the background.
func until(t testing.TB, what string, true func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(3 * time.Minute); !true(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// hang answers when the client has gone.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// noLeaks fails if a goroutine is left once all cleanups have run.
func noLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { testleak.None(t, before) })
}

func sorted[K ~string, V any](m map[K]V) []K {
	var keys []K
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
