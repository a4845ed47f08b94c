package frontend

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
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

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"thaw/cluster"
	"thaw/events"
	"thaw/functions"
	"thaw/invokewire"
	"thaw/manager"
	"thaw/sdkhttp"
)

const testToken = "the token of this fleet"

// fakeWorker runs functions that are written in Go, by what their payloads say.
type fakeWorker struct {
	t      testing.TB
	id     string
	server *httptest.Server
	script func(payload []byte) []byte // what to do, if not what the payload says
	hold   chan struct{}               // invokes of "hold" end when it is closed
	starts chan int                    // each start takes its status from it; nil: 204
	queued atomic.Bool                 // starts have not begun
	broken atomic.Int32                // starts fail, with this status

	looks atomic.Int64 // how often it was asked for its state

	mu        sync.Mutex
	instances map[string]*invokewire.InstanceState
	specs     map[string]invokewire.Spec
	started   int
	invokes   []http.Header
	done      int // invokes that have ended
	limit     int
	logs      []invokewire.LogEvent
}

func newFakeWorker(t testing.TB, leases *cluster.Leases, id string) *fakeWorker {
	w := &fakeWorker{
		t: t, id: id, instances: map[string]*invokewire.InstanceState{}, specs: map[string]invokewire.Spec{}, limit: 1000, hold: make(chan struct{}),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /instances", w.start)
	mux.HandleFunc("POST /instances/{id}/invoke", w.invoke)
	mux.HandleFunc("GET /instances/{id}/ready", w.ready)
	mux.HandleFunc("DELETE /instances/{id}", w.end)
	mux.HandleFunc("GET /state", func(rw http.ResponseWriter, _ *http.Request) {
		w.looks.Add(1)
		_ = json.NewEncoder(rw).Encode(w.state())
	})
	mux.HandleFunc("GET /logs", w.serveLogs)
	mux.HandleFunc("GET /logs/streams", w.serveStreams)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get(invokewire.HeaderToken) != testToken {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		mux.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.server.Close)
	t.Cleanup(w.letGo) // else its requests never end
	s := w.state()
	s.Instances = nil
	value, _ := json.Marshal(s)
	if _, err := leases.Take(t.Context(), "workers/"+id, value); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *fakeWorker) letGo() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.hold:
	default:
		close(w.hold)
	}
}

func (w *fakeWorker) state() invokewire.WorkerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := invokewire.WorkerState{ID: w.id, Address: w.server.Listener.Addr().String(), Cores: 2, Memory: 16 << 30}
	for _, i := range w.instances {
		s.Instances = append(s.Instances, *i)
	}
	return s
}

func (w *fakeWorker) start(rw http.ResponseWriter, r *http.Request) {
	var s invokewire.Start
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
		w.t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.instances) >= w.limit {
		rw.WriteHeader(http.StatusTooManyRequests)
		return
	}
	w.started++
	w.specs[s.ID] = s.Spec
	w.instances[s.ID] = &invokewire.InstanceState{
		ID: s.ID, Key: s.Spec.Key(), Account: s.Spec.Account, Function: s.Spec.Function, Version: s.Spec.Version,
		Phase: invokewire.PhaseIdle, Memory: s.Spec.Memory, Since: time.Now(),
	}
	rw.WriteHeader(http.StatusAccepted)
}

// ready answers as the test says; 0 is a worker that dies.
func (w *fakeWorker) ready(rw http.ResponseWriter, r *http.Request) {
	status := http.StatusNoContent
	if w.starts != nil {
		select {
		case status = <-w.starts:
		case <-r.Context().Done():
			return
		}
	}
	if status == 0 {
		panic(http.ErrAbortHandler)
	}
	if broken := w.broken.Load(); broken != 0 {
		w.mu.Lock()
		delete(w.instances, r.PathValue("id"))
		w.mu.Unlock()
		rw.WriteHeader(int(broken))
		fmt.Fprint(rw, `{"error":"no key"}`)
		return
	}
	rw.WriteHeader(status)
}

func (w *fakeWorker) end(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("queued") && !w.queued.Load() {
		rw.WriteHeader(http.StatusConflict)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.instances, r.PathValue("id"))
	rw.WriteHeader(http.StatusNoContent)
}

// take makes an instance busy.
func (w *fakeWorker) take(id string, h http.Header) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch i := w.instances[id]; {
	case i == nil:
		return http.StatusGone
	case i.Phase == invokewire.PhaseBusy:
		return http.StatusConflict
	default:
		i.Phase = invokewire.PhaseBusy
		w.invokes = append(w.invokes, h)
		return http.StatusOK
	}
}

func (w *fakeWorker) invoke(rw http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if status := w.take(id, r.Header); status != http.StatusOK {
		rw.WriteHeader(status)
		return
	}
	payload, err := io.ReadAll(r.Body)
	if err != nil {
		w.t.Error(err)
	}
	rw.Header().Set(invokewire.HeaderRequestID, r.Header.Get(invokewire.HeaderRequestID))
	w.behave(rw, payload)
	if r.Header.Get(invokewire.HeaderLogType) == "Tail" {
		_ = http.NewResponseController(rw).Flush() // else a short answer has no trailers
		rw.Header().Set(http.TrailerPrefix+invokewire.HeaderLogTail, base64.StdEncoding.EncodeToString([]byte("START\nREPORT\n")))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done++
	if i := w.instances[id]; i != nil {
		i.Phase = invokewire.PhaseIdle
	}
}

// behave does what the payload's first word asks for.
func (w *fakeWorker) behave(rw http.ResponseWriter, payload []byte) {
	if w.script != nil {
		payload = w.script(payload)
	}
	var what string
	if json.Unmarshal(payload, &what) != nil {
		_, _ = rw.Write(payload) // an echo
		return
	}
	word, _, _ := strings.Cut(what, " ")
	switch word {
	case "fail":
		rw.Header().Set(invokewire.HeaderFunctionError, "Unhandled")
		fmt.Fprint(rw, `{"errorType":"Boom","errorMessage":"no"}`)
	case "late": // it fails after it has begun to answer
		fmt.Fprint(rw, "partial")
		_ = http.NewResponseController(rw).Flush()
		rw.Header().Set(http.TrailerPrefix+invokewire.HeaderFunctionError, "Unhandled")
		rw.Header().Set(http.TrailerPrefix+invokewire.HeaderErrorBody, base64.StdEncoding.EncodeToString([]byte(`{"errorType":"Late"}`)))
	case "big":
		chunk := make([]byte, 1<<20)
		for range 7 {
			_, _ = rw.Write(chunk)
		}
	case "flood": // so many MiB, a letter for each
		var mib int
		_, _ = fmt.Sscanf(what, "flood %d", &mib)
		for n := range mib {
			_, _ = rw.Write(bytes.Repeat([]byte{byte('a' + n%26)}, 1<<20))
		}
	case "die":
		fmt.Fprint(rw, "partial")
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	case "half":
		fmt.Fprint(rw, "partial")
		_ = http.NewResponseController(rw).Flush()
		<-w.hold
	case "hold":
		<-w.hold
		fmt.Fprint(rw, `"held"`)
	case "prelude":
		rw.Header().Set(invokewire.HeaderResponseType, preludeType)
		fmt.Fprint(rw, `{"statusCode":418,"headers":{"x-a":"b"},"cookies":["c=d"]}`+"\x00\x00\x00\x00\x00\x00\x00\x00"+"body")
	case "http":
		fmt.Fprint(rw, what[len("http "):])
	case "chunks":
		for n := range 3 {
			fmt.Fprintf(rw, "chunk %d;", n)
			_ = http.NewResponseController(rw).Flush()
			<-time.After(5 * time.Millisecond)
		}
	default:
		_, _ = rw.Write(payload)
	}
}

func (w *fakeWorker) counts() (starts, invokes, done int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.started, len(w.invokes), w.done
}

// door is a whole region but for real workers: cluster, manager, frontend.
type door struct {
	*Frontend
	t       testing.TB
	url     string
	server  *httptest.Server
	key     Key
	worker  *fakeWorker
	leases  *cluster.Leases
	conn    *cluster.Conn
	client  *lambda.Client
	options Options
}

func newDoor(t testing.TB) *door {
	t.Helper()
	ctx := t.Context()
	s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: testToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	conn, err := cluster.Dial(ctx, s.URL(), testToken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	d := &door{t: t, conn: conn}
	d.leases = must(conn.Leases(ctx, "fleet", time.Hour)) // nobody renews the worker's
	store := functions.NewStore(must(conn.Records(ctx, "functions")))
	keys := NewKeyStore(must(conn.Records(ctx, "keys")), testKeeper(t))
	d.key = must(keys.Create(ctx, testAccount, "test"))
	queue := must(events.Open(ctx, conn, events.Options{Policy: EventPolicy(store)}))
	d.worker = newFakeWorker(t, d.leases, "w0")
	d.manage("m0")
	d.options = Options{Token: testToken, Leases: d.leases, Store: store, Keys: keys, Queue: queue, Endpoint: "http://127.0.0.1:9000", Start: 3 * time.Minute}
	d.Frontend = New(d.options)
	d.server = httptest.NewUnstartedServer(d.Handler())
	d.server.Config.ConnContext = ConnContext
	d.server.Start()
	t.Cleanup(d.server.Close)
	d.url = d.server.URL
	d.running(d.Frontend.Run)
	d.client = d.as(d.key)
	return d
}

// running runs something until the test ends, or what it returns is called.
func (d *door) running(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			d.t.Errorf("Run: %v", err)
		}
	})
	d.t.Cleanup(stop)
	return stop
}

// manage runs a manager.
func (d *door) manage(id string) (stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	m := manager.New(manager.Options{ID: id, Address: l.Addr().String(), Token: testToken, Leases: d.leases, Poll: 50 * time.Millisecond})
	server := httptest.NewUnstartedServer(m.Handler())
	_ = server.Listener.Close()
	server.Listener = l
	server.Start()
	d.t.Cleanup(server.Close)
	end := d.running(m.Run)
	return func() { end(); server.CloseClientConnections(); server.Close() }
}

func (d *door) as(k Key) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: testRegion, BaseEndpoint: aws.String(d.url), RetryMaxAttempts: 1, HTTPClient: sdkhttp.Client(),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, nil
		}),
	})
}

// function makes one that can be invoked, with a first version.
func (d *door) function(name string, change ...func(*functions.Function)) functions.ID {
	d.t.Helper()
	id := functions.ID{Account: testAccount, Name: name}
	v := functions.Version{Config: functions.Config{Memory: 128, Tmp: 512, Timeout: 600, LogGroup: "/aws/lambda/" + name, LogFormat: "Text"}}
	f := functions.NewFunction(id, v, time.Now())
	for _, c := range change {
		c(f)
	}
	if err := d.options.Store.Create(d.t.Context(), f, true); err != nil {
		d.t.Fatal(err)
	}
	if err := d.options.Store.Settle(d.t.Context(), id, f.Latest.Build, ready); err != nil {
		d.t.Fatal(err)
	}
	for _, u := range f.URLs { // visitors wait for a second only
		d.until("its URL is known", func() bool {
			d.view.mu.Lock()
			defer d.view.mu.Unlock()
			return d.view.urls[u.ID].id == id
		})
	}
	return id
}

func (d *door) update(id functions.ID, change func(*functions.Function)) {
	d.t.Helper()
	d.view.changed(id)
	if _, err := d.options.Store.Update(d.t.Context(), id, func(f *functions.Function) error { change(f); return nil }); err != nil {
		d.t.Fatal(err)
	}
	d.view.changed(id)
}

func (d *door) invoke(in *lambda.InvokeInput) (*lambda.InvokeOutput, error) {
	return d.client.Invoke(d.t.Context(), in)
}

// ok invokes, and wants an answer.
func (d *door) ok(name, payload string) *lambda.InvokeOutput {
	d.t.Helper()
	out, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String(name), Payload: []byte(payload)})
	if err != nil {
		d.t.Fatalf("invoke %s: %v", name, err)
	}
	return out
}

// until waits for a condition.
func (d *door) until(what string, ok func() bool) {
	d.t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			d.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// tell adds a line to the log that it serves.
func (w *fakeWorker) tell(e invokewire.LogEvent) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs = append(w.logs, e)
}

func (w *fakeWorker) told() []invokewire.LogEvent {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logs
}

func (w *fakeWorker) serveLogs(rw http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	since, _ := strconv.ParseInt(q.Get("since"), 10, 64)
	for _, e := range w.told() {
		if q.Get("account") == testAccount && q.Get("function") == "f" && e.Time >= since && (q.Get("stream") == "" || q.Get("stream") == e.Stream) {
			_ = json.NewEncoder(rw).Encode(e)
		}
	}
}

func (w *fakeWorker) serveStreams(rw http.ResponseWriter, r *http.Request) {
	list := []invokewire.LogStream{}
	for _, e := range w.told() {
		if q := r.URL.Query(); q.Get("account") == testAccount && q.Get("function") == "f" && !slices.ContainsFunc(list, func(s invokewire.LogStream) bool { return s.Name == e.Stream }) {
			list = append(list, invokewire.LogStream{Name: e.Stream, Created: e.Time, First: e.Time, Last: e.Time, Bytes: 1})
		}
	}
	_ = json.NewEncoder(rw).Encode(list)
}

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }
