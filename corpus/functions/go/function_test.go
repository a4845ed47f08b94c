package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asFunction makes the test binary the function itself.
const asFunction = "FUNCTION_TEST"

func TestMain(m *testing.M) {
	if os.Getenv(asFunction) != "" || os.Getenv(childVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// command is the function as a process of its own, against an API.
func command(t *testing.T, api string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(env, asFunction+"=1", "AWS_LAMBDA_RUNTIME_API="+api, "AWS_LAMBDA_FUNCTION_NAME=f", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128")
	return c
}

// answer is what a process posted: to which path, what, and with which trailers.
type answer struct {
	path, body string
	trailer    http.Header
}

// api is a Runtime API that hands out one event after the other.
type api struct {
	events  chan string
	answers chan answer
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/invocation/next") {
		select {
		case e := <-a.events:
			h := w.Header()
			h.Set("Lambda-Runtime-Aws-Request-Id", "request-1")
			h.Set("Lambda-Runtime-Deadline-Ms", "99999999999999")
			h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:x")
			_, _ = io.WriteString(w, e) // the client may be gone
		case <-r.Context().Done():
		}
		return
	}
	body, _ := io.ReadAll(r.Body) // a stream that fails ends with its trailers
	w.WriteHeader(http.StatusAccepted)
	a.answers <- answer{r.URL.Path, string(body), r.Trailer}
}

// start runs the function against an API of its own.
func start(t *testing.T, env ...string) (*api, *exec.Cmd) {
	t.Helper()
	a := &api{make(chan string), make(chan answer, 1)}
	s := httptest.NewServer(a)
	c := command(t, s.Listener.Addr().String(), env...)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
		s.CloseClientConnections()
		s.Close()
	})
	return a, c
}

func (a *api) invoke(t *testing.T, event string) answer {
	t.Helper()
	limit := time.After(3 * time.Minute)
	select {
	case a.events <- event:
	case <-limit:
		t.Fatal("the function does not ask for an event")
	}
	select {
	case got := <-a.answers:
		return got
	case <-limit:
		t.Fatal("the function does not answer")
	}
	panic("unreachable")
}

func TestProcess(t *testing.T) {
	a, _ := start(t, "SHOWN=yes")
	event := `{"z": 1,  "a":[true , null]}`
	if got := a.invoke(t, event); got.body != event || !strings.HasSuffix(got.path, "/request-1/response") {
		t.Errorf("echo gave %+v", got)
	}
	var told Told
	got := a.invoke(t, `{"do":{"env":["SHOWN","ABSENT"],"files":["/nothing"],"calls":["POST /2018-06-01/elsewhere x"],"log_text":"seen"}}`)
	if got.path == "/2018-06-01/elsewhere" { // the call itself came first
		got = <-a.answers
	}
	if err := json.Unmarshal([]byte(got.body), &told); err != nil {
		t.Fatalf("%v in %+v", err, got)
	}
	if told.Invokes != 2 || told.Env["SHOWN"] != "yes" || len(told.Env) != 1 || told.RequestID != "request-1" || told.Function != "f" ||
		!strings.HasPrefix(told.Files["/nothing"], "error: ") || !strings.HasPrefix(told.Calls["POST /2018-06-01/elsewhere x"], "202") {
		t.Errorf("told %+v", told)
	}
	if got := a.invoke(t, `{"do":{"error":"no luck"}}`); !strings.HasSuffix(got.path, "/error") || !strings.Contains(got.body, "no luck") {
		t.Errorf("an error gave %+v", got)
	}
	if got := a.invoke(t, `{"do":{"answer_bytes":100}}`); len(got.body) != 100 || !json.Valid([]byte(got.body)) {
		t.Errorf("100 bytes gave %q", got.body)
	}
	if got := a.invoke(t, `{"do":{"stream":{"pieces":3,"bytes":2}}}`); got.body != "aabbcc" {
		t.Errorf("a stream gave %+v", got)
	}
	got = a.invoke(t, `{"do":{"stream":{"pieces":2,"bytes":1,"fail":"midway"}}}`)
	if got.body != "ab" || got.trailer.Get("Lambda-Runtime-Function-Error-Type") == "" {
		t.Errorf("a failing stream gave %+v", got)
	}
}

func TestProcessEnds(t *testing.T) {
	a, c := start(t)
	a.events <- `{"do":{"exit":7}}`
	if err := c.Wait(); err == nil || c.ProcessState.ExitCode() != 7 {
		t.Errorf("exit 7 gave %v", err)
	}
	_, c = start(t, "FUNCTION_INIT_EXIT=3")
	if err := c.Wait(); err == nil || c.ProcessState.ExitCode() != 3 {
		t.Errorf("exit 3 while starting gave %v", err)
	}
}

func TestSteps(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("AWS_LAMBDA_RUNTIME_API", l.Addr().String())
	f := newFunction()
	f.init(func(string) string { return "" })
	found, err := f.do(context.Background(), &Do{
		CPUMS: 20, HashMB: 1, AllocateMB: 2, WriteMB: 1, Connections: 2, SleepMS: 1,
		Dial: []string{l.Addr().String(), "127.0.0.1:1"}, Resolve: []string{"127.0.0.1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if found.Hash != "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58" || found.Wrote != "1 MiB" || len(f.held) != 2 || len(f.kept) != 2 {
		t.Errorf("found %+v", found)
	}
	if found.Dial[l.Addr().String()] != "ok" || !strings.HasPrefix(found.Dial["127.0.0.1:1"], "error: ") || found.Resolve["127.0.0.1"] != "127.0.0.1" {
		t.Errorf("found %+v", found)
	}
	for _, c := range f.kept {
		c.Close()
	}
}

func TestFlood(t *testing.T) {
	var b strings.Builder
	flood(&b, 2, "text")
	flood(&b, 0, "once")
	if want := "line 0 text\nline 1 text\nonce\n"; b.String() != want {
		t.Errorf("got %q", b.String())
	}
}

func TestForks(t *testing.T) {
	a := &api{make(chan string), make(chan answer, 1)}
	s := httptest.NewServer(a)
	defer s.Close()
	defer s.CloseClientConnections()
	c := command(t, s.Listener.Addr().String())
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL) // the children too
		_ = c.Wait()
	}()
	var told Told
	if err := json.Unmarshal([]byte(a.invoke(t, `{"do":{"forks":2}}`).body), &told); err != nil || told.Forked != "2" {
		t.Errorf("told %+v, %v", told, err)
	}
}

func TestIgnoresSIGTERM(t *testing.T) {
	a, c := start(t, "FUNCTION_IGNORE_SIGTERM=1")
	a.invoke(t, `1`)
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := a.invoke(t, `2`); got.body != "2" {
		t.Errorf("after SIGTERM: %+v", got)
	}
}

func TestWhatCannotBeDone(t *testing.T) {
	if got := write(filepath.Join(t.TempDir(), "absent"), 1); !strings.HasPrefix(got, "error: ") {
		t.Errorf("a file in no folder: %s", got)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	f := newFunction()
	if err := f.connect(address, 1); err == nil {
		t.Error("connected to nobody")
	}
	found := each([]string{"GET http://" + address, "GET", "B AD :"}, func(s string) (string, error) { return request(t.Context(), s) })
	for what, text := range found {
		if !strings.HasPrefix(text, "error: ") {
			t.Errorf("%s gave %s", what, text)
		}
	}
	if _, err := f.do(t.Context(), &Do{Error: "no luck"}); err == nil || err.Error() != "no luck" {
		t.Errorf("asked for an error: %v", err)
	}
	defer func() {
		if r := recover(); r != "oh" {
			t.Errorf("asked for a panic: %v", r)
		}
	}()
	_, _ = f.do(t.Context(), &Do{Panic: "oh"})
}

func TestInitPanics(t *testing.T) {
	defer func() {
		if r := recover(); r != "early" {
			t.Errorf("got %v", r)
		}
	}()
	newFunction().init(func(name string) string {
		return map[string]string{"FUNCTION_INIT_PANIC": "early", "FUNCTION_INIT_SLEEP_MS": "1", "FUNCTION_INIT_HASH_MB": "x"}[name]
	})
}

func TestStreams(t *testing.T) {
	for _, c := range []struct {
		ask         Stream
		want, kind  string
		wantFailure bool
	}{
		{Stream{}, "", "application/octet-stream", false},
		{Stream{Pieces: 2, Bytes: 3, EveryMS: 1}, "aaabbb", "application/octet-stream", false},
		{Stream{Pieces: 27, Type: "text/plain"}, "abcdefghijklmnopqrstuvwxyza", "text/plain", false},
		{Stream{Pieces: 1, Bytes: 1, Fail: "midway"}, "a", "application/octet-stream", true},
	} {
		s := newStream(c.ask)
		got, err := io.ReadAll(s)
		if string(got) != c.want || (err != nil) != c.wantFailure {
			t.Errorf("%+v gave %q, %v", c.ask, got, err)
		}
		if kind := s.(interface{ ContentType() string }).ContentType(); kind != c.kind {
			t.Errorf("%+v is %s", c.ask, kind)
		}
		if j, err := json.Marshal(s); err != nil || string(j) != "{}" {
			t.Errorf("%+v: the library would send %s", c.ask, j)
		}
	}
}

func TestFiller(t *testing.T) {
	for _, n := range []int{2, 3, 1000} {
		b, err := io.ReadAll(filler(n))
		if err != nil || len(b) != n || !json.Valid(b) {
			t.Errorf("%d: %q", n, b)
		}
	}
}

func TestTellsOfTheInvoke(t *testing.T) {
	f := newFunction()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	told := f.tell(ctx, Found{Hash: "h"})
	if told.Instance == "" || told.RemainMS < 1 || told.Hash != "h" || told.User != os.Getuid() {
		t.Errorf("told %+v", told)
	}
}

// What an event can ask for can be asked for before the first one.
func TestInitDo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f := newFunction()
	f.init(func(name string) string {
		if name == "FUNCTION_INIT_DO" {
			return `{"connections":3,"connect_to":"` + l.Addr().String() + `","allocate_mb":1,"hold_ms":1}`
		}
		return ""
	})
	if len(f.kept) != 3 || len(f.held) != 1 {
		t.Errorf("%d connections and %d MiB are kept", len(f.kept), len(f.held))
	}
	for _, c := range f.kept {
		c.Close()
	}
}
