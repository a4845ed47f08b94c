package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"thaw/invokewire"
)

const token = "the token of this fleet"

// network is HTTP over pipes, so that time can be faked.
type network struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

func (n *network) dial(_ context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	l := n.listeners[address]
	n.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	}
}

func (n *network) serve(t *testing.T, address string, h http.Handler) *http.Server {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	n.listeners[address] = l
	n.mu.Unlock()
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return s
}

func (n *network) client(t *testing.T) *http.Client {
	tr := &http.Transport{DialContext: n.dial, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// fakeDirectory is the cluster's memory.
type fakeDirectory struct {
	mu       sync.Mutex
	values   map[string]*fakeHold
	watchers map[int]func(key string, value []byte)
	next     int
}

type fakeHold struct {
	d     *fakeDirectory
	key   string
	value []byte
	lost  chan struct{}
}

func (d *fakeDirectory) Take(_ context.Context, key string, value []byte) (hold, []byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.values[key]; h != nil {
		return nil, h.value, errTaken
	}
	h := &fakeHold{d: d, key: key, value: value, lost: make(chan struct{})}
	d.values[key] = h
	d.tell(key, value)
	return h, nil, nil
}

func (d *fakeDirectory) tell(key string, value []byte) {
	for _, w := range d.watchers {
		w(key, value)
	}
}

func (d *fakeDirectory) Watch(ctx context.Context, prefix string, tell func(string, []byte)) error {
	d.mu.Lock()
	filtered := func(key string, value []byte) {
		if strings.HasPrefix(key, prefix) {
			tell(key, value)
		}
	}
	for k, h := range d.values {
		filtered(k, h.value)
	}
	tell("", nil)
	n := d.next
	d.next++
	d.watchers[n] = filtered
	d.mu.Unlock()
	<-ctx.Done()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.watchers, n)
	return ctx.Err()
}

func (d *fakeDirectory) End(_ context.Context, prefix string, died func(string, []byte) bool) error {
	d.mu.Lock()
	var gone []string
	for key, h := range d.values {
		if strings.HasPrefix(key, prefix) && died(key, h.value) {
			gone = append(gone, key)
		}
	}
	d.mu.Unlock()
	for _, key := range gone {
		d.expire(key)
	}
	return nil
}

// expire ends a lease as if its holder had died.
func (d *fakeDirectory) expire(key string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.values[key]; h != nil {
		delete(d.values, key)
		close(h.lost)
		d.tell(key, nil)
	}
}

func (h *fakeHold) Renew(context.Context, []byte) error { return nil }
func (h *fakeHold) Lost() <-chan struct{}               { return h.lost }
func (h *fakeHold) Release(context.Context) error       { h.d.expire(h.key); return nil }

// fakeWorker admits starts up to limit, and does what it is told.
type fakeWorker struct {
	invokewire.WorkerState
	mu        sync.Mutex
	instances map[string]*invokewire.InstanceState
	limit     int
	starts    int
	asked     int
	hang      bool
}

// hangs makes it answer nothing any more.
func (w *fakeWorker) hangs() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hang = true
}

func (w *fakeWorker) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	id := strings.TrimPrefix(r.URL.Path, "/instances/")
	switch {
	case r.Header.Get(invokewire.HeaderToken) != token:
		rw.WriteHeader(http.StatusForbidden)
	case w.hang:
		w.mu.Unlock()
		_, _ = io.Copy(io.Discard, r.Body) // else the server does not see who hangs up
		<-r.Context().Done()
		w.mu.Lock()
	case r.URL.Path == "/state":
		s := w.WorkerState
		for _, i := range w.instances {
			s.Instances = append(s.Instances, *i)
		}
		answer(rw, http.StatusOK, s)
	case r.Method == http.MethodPost:
		var s invokewire.Start
		w.asked++
		_ = json.NewDecoder(r.Body).Decode(&s)
		if len(w.instances) >= w.limit {
			rw.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.starts++
		w.instances[s.ID] = &invokewire.InstanceState{
			ID: s.ID, Key: s.Spec.Key(), Account: s.Spec.Account, Function: s.Spec.Function, Version: s.Spec.Version,
			Phase: invokewire.PhaseIdle, Memory: s.Spec.Memory, Asked: time.Now(), Since: time.Now(),
		}
		rw.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodDelete && w.instances[id] == nil:
		rw.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodDelete && w.instances[id].Phase == invokewire.PhaseBusy:
		rw.WriteHeader(http.StatusConflict)
	case r.Method == http.MethodDelete:
		delete(w.instances, id)
		rw.WriteHeader(http.StatusNoContent)
	}
}

func (w *fakeWorker) phase(id, phase string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i := w.instances[id]; i != nil {
		i.Phase, i.Since = phase, time.Now()
	}
}

func (w *fakeWorker) count() (starts, instances int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts, len(w.instances)
}

// fleet is managers and workers on fake time.
type fleet struct {
	t       *testing.T
	net     *network
	dir     *fakeDirectory
	client  *http.Client
	workers map[string]*fakeWorker
}

func newFleet(t *testing.T, workers int) *fleet {
	f := &fleet{
		t: t, net: &network{listeners: map[string]*pipeListener{}}, workers: map[string]*fakeWorker{},
		dir: &fakeDirectory{values: map[string]*fakeHold{}, watchers: map[int]func(string, []byte){}},
	}
	f.client = f.net.client(t)
	for n := range workers {
		f.worker(fmt.Sprintf("w%d", n))
	}
	return f
}

func (f *fleet) worker(id string) *fakeWorker {
	w := &fakeWorker{
		WorkerState: invokewire.WorkerState{ID: id, Address: id + ":1", Started: time.Now(), Cores: 2, Memory: 8 << 30},
		instances:   map[string]*invokewire.InstanceState{}, limit: 10_000,
	}
	f.workers[id] = w
	f.net.serve(f.t, w.Address, w)
	value, _ := json.Marshal(w.WorkerState)
	if _, _, err := f.dir.Take(context.Background(), "workers/"+id, value); err != nil {
		f.t.Fatal(err)
	}
	return w
}

// manager runs one, until the test ends or stop is called.
func (f *fleet) manager(o Options) (m *Manager, stop func()) {
	if o.ID == "" {
		o.ID = "m0"
	}
	o.Token, o.Client, o.Address = token, f.client, o.ID+":1"
	m = newManager(o, f.dir)
	s := f.net.serve(f.t, o.Address, m.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
		_ = s.Close()
	})
	f.t.Cleanup(stop)
	synctest.Wait()
	return m, stop
}

// answerOf is what a manager said.
type answerOf struct {
	status   int
	lease    invokewire.Lease
	throttle invokewire.Throttle
	owner    string
	gone     []string
}

func (f *fleet) post(manager, path string, body any) answerOf {
	f.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		f.t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodPost, "http://"+manager+":1"+path, bytes.NewReader(b))
	req.Header.Set(invokewire.HeaderToken, token)
	resp, err := f.client.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer resp.Body.Close()
	a := answerOf{status: resp.StatusCode}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		err = json.NewDecoder(resp.Body).Decode(&a.throttle)
	case resp.StatusCode == http.StatusMisdirectedRequest:
		var m invokewire.Misdirected
		err = json.NewDecoder(resp.Body).Decode(&m)
		a.owner = m.Owner
	case resp.StatusCode == http.StatusOK && path == "/renew":
		var r invokewire.Renewed
		err = json.NewDecoder(resp.Body).Decode(&r)
		a.gone = r.Gone
	case resp.StatusCode == http.StatusOK:
		err = json.NewDecoder(resp.Body).Decode(&a.lease)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return a
}

func spec(name, version string) invokewire.Spec {
	return invokewire.Spec{Account: "000000000000", Function: name, Version: version, Revision: "r1", Memory: 128, Tmp: 512}
}

func (f *fleet) acquire(s invokewire.Spec) answerOf {
	f.t.Helper()
	return f.post("m0", "/acquire", invokewire.Acquire{Frontend: "f0", Spec: s})
}

// lease acquires, and wants a lease.
func (f *fleet) lease(s invokewire.Spec) invokewire.Lease {
	f.t.Helper()
	a := f.acquire(s)
	if a.status != http.StatusOK {
		f.t.Fatalf("acquire %s: %+v", s.Key(), a)
	}
	return a.lease
}

func (f *fleet) release(ids ...string) {
	f.t.Helper()
	f.post("m0", "/release", invokewire.Release{Frontend: "f0", Instances: ids})
}

// renewing keeps leases until d has passed.
func (f *fleet) renewing(d time.Duration, ids ...string) {
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(5 * time.Second) {
		f.post("m0", "/renew", invokewire.Renew{Frontend: "f0", Instances: ids})
	}
}

// throttled wants a refusal, and why.
func (f *fleet) throttled(s invokewire.Spec, reason string) {
	f.t.Helper()
	if a := f.acquire(s); a.status != http.StatusTooManyRequests || a.throttle.Reason != reason || a.throttle.RetryAfter <= 0 {
		f.t.Fatalf("want throttle %s, got %+v", reason, a)
	}
}

func (f *fleet) running() (n int) {
	for w := range maps.Values(f.workers) {
		_, k := w.count()
		n += k
	}
	return n
}

func (f *fleet) holder(address string) *fakeWorker {
	return f.workers[strings.TrimSuffix(address, ":1")]
}

func ptr[T any](v T) *T { return &v }
