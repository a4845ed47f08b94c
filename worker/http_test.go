package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/agent"
	"thaw/host"
	"thaw/invokewire"
)

func (r *rig) decode(resp *http.Response, v any) {
	r.t.Helper()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		r.t.Fatal(err)
	}
}

// Who is not of the fleet, or asks for what cannot be, is refused in one line.
func TestRefusals(t *testing.T) {
	r := newRig(t, nil)
	stranger, err := http.NewRequest("GET", r.url+"/state", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", "wrong", "token2"} {
		stranger.Header.Set(invokewire.HeaderToken, token)
		if resp := r.send(stranger); resp.StatusCode != http.StatusForbidden {
			t.Errorf("%q: %s", token, resp.Status)
		}
	}
	valid := spec(nil)
	change := func(f func(*invokewire.Spec)) invokewire.Start { return invokewire.Start{ID: "i", Spec: spec(f)} }
	for _, body := range []any{
		[]byte("{"), []byte(`{"ID":"i","More":1}`), []byte(`{"ID":"i","Spec":{"Env":{"SECRET":7}}}`),
		invokewire.Start{Spec: valid}, invokewire.Start{ID: "../x", Spec: valid}, invokewire.Start{ID: "i", Spec: valid, Force: "warm"},
		change(func(s *invokewire.Spec) { s.Memory = 1 }), change(func(s *invokewire.Spec) { s.Tmp = 1 << 20 }),
		change(func(s *invokewire.Spec) { s.Timeout = 0 }), change(func(s *invokewire.Spec) { s.Image = "" }),
	} {
		resp := r.do("POST", "/instances", body)
		var e struct{ Error string }
		r.decode(resp, &e)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || e.Error == "" || strings.Contains(e.Error, "\n") || strings.Contains(e.Error, "SECRET") {
			t.Errorf("%.80s: %s %q", body, resp.Status, e.Error)
		}
	}
	r.start("i", "", valid)
	if resp := r.do("POST", "/instances", invokewire.Start{ID: "i", Spec: valid}); resp.StatusCode != http.StatusConflict {
		t.Error(resp.Status)
	}
	if got := r.invoke("i", "bad id", "1"); got.status != http.StatusBadRequest {
		t.Errorf("%+v", got)
	}
	if got := r.invoke("i", "r", strings.Repeat("x", invokewire.MaxPayload+1)); got.status != http.StatusRequestEntityTooLarge {
		t.Errorf("%+v", got)
	}
	if got := r.invoke("i", "r", "1"); got.body != "1" { // after all that
		t.Errorf("%+v", got)
	}
	if resp := r.do("DELETE", "/instances/none", nil); resp.StatusCode != http.StatusNoContent {
		t.Error(resp.Status)
	}
}

// What cannot be started is told to who waits for it, and leaves nothing.
func TestFailedStarts(t *testing.T) {
	r := newRig(t, func(o *Options) {
		image := o.Image
		o.Image = func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error) {
			if id == "lost" {
				return host.Image{}, nil, fmt.Errorf("a chunk: %w", agent.ErrLost)
			}
			return image(ctx, tenant, id, root)
		}
	})
	for id, c := range map[string]struct {
		change func(*invokewire.Spec)
		status int
	}{
		"lost":    {func(s *invokewire.Spec) { s.Image = "lost" }, http.StatusBadGateway},
		"missing": {func(s *invokewire.Spec) { s.Image = "missing" }, http.StatusBadGateway},
		"egress":  {func(s *invokewire.Spec) { s.Egress = true }, http.StatusInternalServerError},
	} {
		r.start(id, "", spec(c.change))
		if resp := r.do("GET", "/instances/"+id+"/ready", nil); resp.StatusCode != c.status {
			t.Errorf("%s: %s", id, resp.Status)
		}
		if got := r.invoke(id, "r", "1"); got.status != c.status {
			t.Errorf("%s: %+v", id, got)
		}
		r.until("it is gone", func() bool { return r.phase(id) == "" })
		if resp := r.do("GET", "/instances/"+id+"/ready", nil); resp.StatusCode != c.status {
			t.Errorf("%s, later: %s", id, resp.Status)
		}
	}
}

// Starts beyond those that run wait in their turn, beyond the queue they are
// refused at once; one that waits can be taken back.
func TestQueue(t *testing.T) {
	found := make(chan struct{}) // the image, for which the first start waits
	find := sync.OnceFunc(func() { close(found) })
	r := newRig(t, func(o *Options) {
		o.MaxStarts, o.Queue = 1, 1
		image := o.Image
		o.Image = func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error) {
			<-found
			return image(ctx, tenant, id, root)
		}
	})
	t.Cleanup(find)
	r.start("runs", "", spec(nil))
	r.until("it runs", func() bool { return r.phase("runs") == invokewire.PhaseInit })
	r.start("waits", "", spec(nil))
	if resp := r.do("POST", "/instances", invokewire.Start{ID: "more", Spec: spec(nil)}); resp.StatusCode != http.StatusTooManyRequests {
		t.Error(resp.Status)
	}
	if s := r.w.state(true); s.Queued != 1 || s.Running != 1 {
		t.Errorf("%+v", s)
	}
	waits := make(chan int)
	go func() { waits <- r.do("GET", "/instances/waits/ready", nil).StatusCode }()
	if resp := r.do("DELETE", "/instances/runs?queued", nil); resp.StatusCode != http.StatusConflict {
		t.Errorf("one that has begun: %s", resp.Status)
	}
	if resp := r.do("DELETE", "/instances/waits?queued", nil); resp.StatusCode != http.StatusNoContent {
		t.Error(resp.Status)
	}
	if status := <-waits; status != http.StatusGone {
		t.Errorf("who waits for it is told %d", status)
	}
	r.start("next", "", spec(nil))
	find()
	var both sync.WaitGroup
	for _, id := range []string{"runs", "next"} {
		both.Go(func() {
			if got := r.invoke(id, "r", "1"); got.body != "1" {
				t.Errorf("%s: %+v", id, got)
			}
			if resp := r.do("GET", "/instances/"+id+"/ready", nil); resp.StatusCode != http.StatusNoContent {
				t.Errorf("%s: %s", id, resp.Status)
			}
		})
	}
	both.Wait()
}

// A start whose image does not come keeps its own account's starts waiting, and
// soon no other's.
func TestSlowImage(t *testing.T) {
	found := make(chan struct{})
	find := sync.OnceFunc(func() { close(found) })
	r := newRig(t, func(o *Options) {
		o.MaxStarts = 1
		image := o.Image
		o.Image = func(ctx context.Context, tenant, id, root string) (host.Image, []byte, error) {
			if root == "away" {
				<-found
			}
			return image(ctx, tenant, id, root)
		}
	})
	t.Cleanup(find)
	r.start("slow", "", spec(func(s *invokewire.Spec) { s.Root = "away" }))
	r.until("it runs", func() bool { return r.phase("slow") == invokewire.PhaseInit })
	r.start("mine", "", spec(nil))
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Account = "111111111111" }))
	if got := r.invoke("i", "r", "1"); got.body != "1" {
		t.Errorf("%+v", got)
	}
	r.until("the other's start is over", func() bool { return r.w.state(true).Running == 1 })
	if s := r.w.state(true); s.Queued != 1 {
		t.Errorf("%d wait", s.Queued)
	}
}

// A function that waits for something in its init keeps nobody from starting, not
// even its own.
func TestSlowInits(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxStarts = 1 })
	for _, id := range []string{"slow1", "slow2"} {
		r.start(id, "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_DO"] = `{"sleep_ms":600000}` }))
	}
	r.start("i", "", spec(nil))
	if got := r.invoke("i", "r", "1"); got.body != "1" {
		t.Errorf("%+v", got)
	}
	for _, id := range []string{"slow1", "slow2"} {
		if phase := r.phase(id); phase != invokewire.PhaseInit {
			t.Errorf("%s is %s", id, phase)
		}
	}
}

// Who waits no longer is told, and the instance is the next caller's.
func TestDeadline(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_SLEEP_MS"] = "1500" }))
	req, err := http.NewRequest("POST", r.url+"/instances/i/invoke", strings.NewReader("1"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(invokewire.HeaderToken, "token")
	req.Header.Set(invokewire.HeaderRequestID, "r1")
	req.Header.Set(invokewire.HeaderDeadline, "1000")
	if resp := r.send(req); resp.StatusCode != http.StatusGatewayTimeout {
		t.Error(resp.Status)
	}
	if got := r.invoke("i", "r2", "2"); got.body != "2" {
		t.Errorf("%+v", got)
	}
}

// A client that hangs up does not stop the function.
func TestHangUp(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(nil))
	open := r.gate("i")
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", r.url+"/instances/i/invoke", strings.NewReader(`{"do":{"log_text":"begun","write_mb":1,`+gated+`}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(invokewire.HeaderToken, "token")
	req.Header.Set(invokewire.HeaderRequestID, "r1")
	done := make(chan error, 1)
	go func() {
		_, err := r.client.Do(req)
		done <- err
	}()
	r.until("it works", func() bool { return r.phase("i") == invokewire.PhaseBusy })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	open()
	r.until("it has worked", func() bool { return r.phase("i") == invokewire.PhaseIdle })
	if v, _ := r.ask("i", "r2", `{}`); v.Invokes != 2 {
		t.Errorf("%+v", v)
	}
	if log := strings.Join(lines(t, r.w.logs, query{}), "\n"); strings.Contains(log, "Status:") || !strings.Contains(log, "begun\nEND RequestId: r1") {
		t.Error(log)
	}
}

// streamed has a function answer piece by piece.
func (r *rig) streamed(id, request, stream string) *http.Response {
	r.t.Helper()
	req, err := http.NewRequest("POST", r.url+"/instances/"+id+"/invoke", strings.NewReader(`{"do":{"stream":`+stream+`}}`))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set(invokewire.HeaderToken, "token")
	req.Header.Set(invokewire.HeaderRequestID, request)
	req.Header.Set(invokewire.HeaderStreaming, "1")
	return r.send(req)
}

// A streamed answer comes piece by piece.
func TestStreaming(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Memory = 1769 }))
	resp := r.streamed("i", "r1", `{"pieces":2,"bytes":10,"every_ms":100}`)
	if all, err := io.ReadAll(resp.Body); err != nil || len(all) != 20 || resp.Trailer.Get(invokewire.HeaderStart) == "" {
		t.Errorf("%q, %v, %v", all, err, resp.Trailer)
	}
	resp.Body.Close()
	resp = r.streamed("i", "r2", `{"pieces":2,"bytes":10,"every_ms":600000}`) // the second never comes
	defer resp.Body.Close()
	var first [10]byte
	if _, err := io.ReadFull(resp.Body, first[:]); err != nil {
		t.Fatal(err)
	}
	if phase := r.phase("i"); phase != invokewire.PhaseBusy {
		t.Errorf("the first byte came when the instance was %s", phase)
	}
	if resp := r.do("DELETE", "/instances/i?force", nil); resp.StatusCode != http.StatusNoContent {
		t.Error(resp.Status)
	}
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 || resp.Trailer.Get(invokewire.HeaderFunctionError) == "" {
		t.Errorf("%q, %v, %v", rest, err, resp.Trailer)
	}
}

// Logs are listed, read and followed over HTTP.
func TestLogsOverHTTP(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(nil))
	got := r.invoke("i", "r1", `{"do":{"log_text":"hello"}}`)
	var streams []invokewire.LogStream
	resp := r.do("GET", "/logs/streams?account=000000000000&function=f", nil)
	r.decode(resp, &streams)
	resp.Body.Close()
	if len(streams) != 1 || streams[0].Name != got.stream {
		t.Errorf("%+v, want %s", streams, got.stream)
	}
	resp = r.do("GET", "/logs?account=000000000000&function=f&follow", nil)
	defer resp.Body.Close()
	late := time.AfterFunc(patience, func() { resp.Body.Close() })
	defer late.Stop()
	in, seen := bufio.NewScanner(resp.Body), ""
	for in.Scan() && !strings.Contains(seen, "second") {
		var e invokewire.LogEvent
		if err := json.Unmarshal(in.Bytes(), &e); err != nil || e.Stream != got.stream || e.Time == 0 {
			t.Fatalf("%s: %v", in.Bytes(), err)
		}
		if seen += e.Message + "\n"; strings.HasPrefix(e.Message, "REPORT RequestId: r1") {
			r.invoke("i", "r2", `{"do":{"log_text":"second"}}`)
		}
	}
	if !strings.HasPrefix(seen, "START RequestId: r1 Version: $LATEST\nhello\nEND RequestId: r1\nREPORT RequestId: r1\t") || !strings.Contains(seen, "START RequestId: r2") {
		t.Error(seen)
	}
	for _, path := range []string{"/logs?account=..&function=f", "/logs/streams?account=1&function=", "/logs?account=1&function=f&since=x"} {
		if resp := r.do("GET", path, nil); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
}

// lease is a worker's registration, as a test sees it.
type lease struct {
	mu    sync.Mutex
	value invokewire.WorkerState
	count int
	ended bool
}

func (l *lease) Renew(_ context.Context, value []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	return json.Unmarshal(value, &l.value)
}

func (l *lease) Release(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	return nil
}

// A worker registers, renews with what it has, and gives the lease back.
func TestRegister(t *testing.T) {
	l := &lease{}
	r := newRig(t, func(o *Options) {
		o.TTL = 30 * time.Millisecond
		o.Register = func(_ context.Context, key string, _ []byte) (Registration, error) {
			if key != "workers/w1" {
				t.Errorf("key %q", key)
			}
			return l, nil
		}
	})
	r.start("i", "", spec(nil))
	r.invoke("i", "r1", "1")
	r.until("it is told", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.value.ID == "w1" && l.value.Starts[invokewire.StartFull]+l.value.Starts[invokewire.StartPartial] == 1 && l.value.Used > 0 && len(l.value.Instances) == 0
	})
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if !l.ended {
		t.Error("the lease was kept")
	}
}
