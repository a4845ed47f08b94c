package runtimeapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"thaw/runtimeapi/http1"
)

// recorder is a Sink that writes down what it is told.
type recorder struct {
	mu     sync.Mutex
	events []string
	body   bytes.Buffer
	fail   error // of Begin, Data and End
}

func (r *recorder) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

// took gives what has been told since the last time, as words.
func (r *recorder) took() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	events := strings.Join(r.events, " ")
	r.events = nil
	return events
}

func (r *recorder) sink() Sink {
	return Sink{
		InitDone:   func() { r.note("init-done") },
		InitFailed: func(kind string, body []byte) { r.note("init-failed:%s:%s", kind, body) },
		Begin: func(b Begin) error {
			r.note("begin:%s:%s:%v:%s", b.RequestID, b.ContentType, b.Streamed, b.ErrorType)
			return r.fail
		},
		Data: func(p []byte) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.body.Write(p)
			return r.fail
		},
		End:  func(e End) error { r.note("end:%s:%s", e.ErrorType, e.Body); return r.fail },
		Done: func(id string) { r.note("done:%s", id) },
	}
}

// bench is an API under test.
type bench struct {
	*API
	rec *recorder
}

func newBench(t *testing.T, o Options) *bench {
	b := &bench{rec: new(recorder)}
	o.Sink = b.rec.sink()
	if o.Function == "" {
		o.Function, o.Version, o.Handler, o.Account = "f", "$LATEST", "main", "000000000000"
	}
	b.API = New(o)
	t.Cleanup(b.Close)
	return b
}

const apiRoot, extensionRoot = "/2018-06-01/runtime/", "/2020-01-01/extension/"

// call makes a request; fields are name, value, name, value …
func (b *bench) call(method, path, body string, fields ...string) http1.Answer {
	r := &http1.Request{Method: method, Path: path, Header: http1.Header{}, Body: strings.NewReader(body), Length: int64(len(body))}
	for i := 0; i < len(fields); i += 2 {
		r.Header[strings.ToLower(fields[i])] = fields[i+1]
	}
	return b.Answer(r)
}

// begin makes a request that waits, and gives its answer once it has one.
func (b *bench) begin(method, path string, fields ...string) <-chan http1.Answer {
	c := make(chan http1.Answer, 1)
	go func() { c <- b.call(method, path, "", fields...) }()
	synctest.Wait()
	return c
}

// register gives the identifier of an extension that has.
func (b *bench) register(t *testing.T, name string, events ...string) string {
	t.Helper()
	text, _ := json.Marshal(map[string]any{"events": events})
	answer := b.call("POST", extensionRoot+"register", string(text), "Lambda-Extension-Name", name)
	if answer.Status != 200 {
		t.Fatalf("%d %s", answer.Status, answer.Body)
	}
	return field(answer, identifierHeader)
}

func field(a http1.Answer, name string) string {
	for _, f := range a.Header {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

func check(t *testing.T, a http1.Answer, status int, kind, text string) {
	t.Helper()
	var f fault
	_ = json.Unmarshal(a.Body, &f)
	if a.Status != status || f.Type != kind || f.Message != text {
		t.Errorf("%d %s, want %d %s: %s", a.Status, a.Body, status, kind, text)
	}
}

func (b *bench) told(t *testing.T, want string) {
	t.Helper()
	synctest.Wait()
	if got := b.rec.took(); got != want {
		t.Errorf("told %q, want %q", got, want)
	}
}

var oneInvoke = Invoke{RequestID: "r1", DeadlineMs: 1234, ARN: "arn:f", Trace: "Root=1", ClientContext: `{"a":1}`, Cognito: `{"b":2}`, Payload: []byte(`{"in":1}`)}

// running gives an API whose runtime works on oneInvoke.
func runningBench(t *testing.T, o Options) *bench {
	b := newBench(t, o)
	next := b.begin("GET", apiRoot+"invocation/next")
	b.told(t, "init-done")
	if err := b.Invoke(oneInvoke); err != nil {
		t.Fatal(err)
	}
	if a := <-next; a.Status != 200 {
		t.Fatal(a)
	}
	return b
}

func TestInvoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		if err := b.Invoke(oneInvoke); !errors.Is(err, ErrState) {
			t.Error(err)
		}
		next := b.begin("GET", apiRoot+"invocation/next")
		b.told(t, "init-done")
		for range 2 { // the second comes while it runs, and gets the same
			_ = b.Invoke(oneInvoke)
			a := <-next
			for name, want := range map[string]string{
				"Lambda-Runtime-Aws-Request-Id": "r1", "Lambda-Runtime-Deadline-Ms": "1234", "Lambda-Runtime-Invoked-Function-Arn": "arn:f",
				"Lambda-Runtime-Trace-Id": "Root=1", "Lambda-Runtime-Client-Context": `{"a":1}`, "Lambda-Runtime-Cognito-Identity": `{"b":2}`,
				"Content-Type": "application/json",
			} {
				if got := field(a, name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
			if a.Status != 200 || string(a.Body) != `{"in":1}` {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			next = b.begin("GET", apiRoot+"invocation/next")
		}
		if a := b.call("POST", apiRoot+"invocation/r1/response", `{"out":2}`, "Content-Type", "text/x"); a.Status != 202 || string(a.Body) != "{\"status\":\"OK\"}\n" {
			t.Errorf("%d %s", a.Status, a.Body)
		}
		b.told(t, "begin:r1:text/x:false: end::")
		if got := b.rec.body.String(); got != `{"out":2}` {
			t.Error(got)
		}
		<-next
		next = b.begin("GET", apiRoot+"invocation/next")
		b.told(t, "done:r1")
		_ = b.Invoke(Invoke{RequestID: "r2"})
		a := <-next
		if field(a, "Lambda-Runtime-Trace-Id") != "" || len(a.Header) != 3 {
			t.Errorf("%v: what is empty is left out", a.Header)
		}
		if err := b.Invoke(oneInvoke); !errors.Is(err, ErrState) {
			t.Error(err)
		}
	})
}

func TestErrors(t *testing.T) {
	for given, want := range map[string]string{
		"":                            "Runtime.Unknown",
		"errorString":                 "Runtime.Unknown",
		"Runtime.ExitError":           "Runtime.ExitError",
		"Function.MyError":            "Function.MyError",
		"a Function.Xy b":             "a Function.Xy b",
		"Function.x":                  "Function.Unknown",
		"Function.X":                  "Function.Unknown",
		"Runtime.x Runtime.Ab":        "Runtime.x Runtime.Ab",
		"Runtime.1":                   "Runtime.Unknown",
		"Runtime.":                    "Runtime.Unknown",
		"Function.":                   "Function.Unknown",
		"Sandbox.Timedout":            "Runtime.Unknown",
		"Runtime.ImportModuleError\t": "Runtime.ImportModuleError\t",
	} {
		synctest.Test(t, func(t *testing.T) {
			b := runningBench(t, Options{})
			body := `{"errorMessage":"m"}`
			if a := b.call("POST", apiRoot+"invocation/r1/error", body, "Lambda-Runtime-Function-Error-Type", given, "Content-Type", "application/json"); a.Status != 202 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			b.told(t, "begin:r1:application/json:false:"+want+" end::")
			if b.rec.body.String() != body {
				t.Error(b.rec.body.String())
			}
		})
	}
}

// The cause is for X-Ray, not for the caller.
func TestErrorWithCause(t *testing.T) {
	for body, want := range map[string]string{
		`{"errorMessage":"m","errorType":"t","stackTrace":["s"],"errorCause":{"x":1}}`: `{"errorMessage":"m","errorType":"t","stackTrace":["s"]}`,
		`{"errorMessage":`: `"Invalid error body"`,
	} {
		synctest.Test(t, func(t *testing.T) {
			b := runningBench(t, Options{})
			if a := b.call("POST", apiRoot+"invocation/r1/error", body, "Content-Type", causeType); a.Status != 202 || b.rec.body.String() != want {
				t.Errorf("%d %s: %s", a.Status, a.Body, b.rec.body.String())
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		b := runningBench(t, Options{})
		a := b.call("POST", apiRoot+"invocation/r1/error", strings.Repeat("x", MaxPayload+1), "Content-Type", causeType)
		check(t, a, 413, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).")
	})
}

// Each state refuses what has no arrow from it, and stays.
func TestRefusals(t *testing.T) {
	const text = "State transition from %s to %s failed for runtime. Error: State transition is not allowed"
	calls := []struct {
		method, path string
		to           state
	}{
		{"GET", "invocation/next", ready}, {"POST", "invocation/r1/response", response}, {"POST", "invocation/r1/error", errorResponse},
		{"POST", "init/error", initError}, {"GET", "restore/next", ready}, {"POST", "restore/error", restoreError},
	}
	for at, refused := range map[state][]int{
		started:       {5},
		initError:     {0, 3, 4, 5},
		ready:         {3, 4, 5},
		running:       {3, 4, 5},
		response:      {0, 1, 2, 3, 4, 5},
		errorResponse: {0, 1, 2, 3, 4, 5},
		responseSent:  {1, 2, 3, 4, 5},
		restoreReady:  {0, 3, 4, 5},
		restoring:     {4},
		restoreError:  {0, 3, 4, 5},
	} {
		for _, i := range refused {
			t.Run(fmt.Sprint(at, " ", calls[i].path), func(t *testing.T) {
				b := newBench(t, Options{})
				b.runtime = at
				if at == response || at == errorResponse || at == responseSent {
					b.current = &invocation{Invoke: oneInvoke, delivered: true}
				}
				a := b.call(calls[i].method, apiRoot+calls[i].path, "{}")
				check(t, a, 403, "InvalidStateTransition", fmt.Sprintf(text, at, calls[i].to))
				if b.runtime != at || b.rec.took() != "" {
					t.Errorf("now %s", b.runtime)
				}
			})
		}
	}
	for what, prepare := range map[string]func(*bench){
		"none yet":   func(*bench) {},
		"not handed": func(b *bench) { b.current = &invocation{Invoke: oneInvoke} },
		"another": func(b *bench) {
			b.runtime, b.current = running, &invocation{Invoke: Invoke{RequestID: "r2"}, delivered: true}
		},
	} {
		for _, verb := range []string{"response", "error"} {
			b := newBench(t, Options{})
			prepare(b)
			t.Log(what)
			check(t, b.call("POST", apiRoot+"invocation/r1/"+verb, ""), 400, "InvalidRequestID", "Invalid request ID")
		}
	}
}

func TestUnknownCalls(t *testing.T) {
	b := newBench(t, Options{})
	for _, path := range []string{"/", "/2018-06-01/runtime", apiRoot + "invocation", apiRoot + "invocation/r1/other", apiRoot + "invocation/r1/response/x", apiRoot + "x/error", "/2020-01-01/extension/x", "/2019-01-01/ping"} {
		if a := b.call("GET", path, ""); a.Status != 404 {
			t.Errorf("%s: %d", path, a.Status)
		}
	}
	for path, method := range map[string]string{apiRoot + "invocation/next": "GET", apiRoot + "init/error": "POST", extensionRoot + "register": "POST", "/2022-07-01/telemetry": "PUT", "/2018-06-01/ping": "GET"} {
		if a := b.call("DELETE", path, ""); a.Status != 405 || field(a, "Allow") != method {
			t.Errorf("%s: %d %v", path, a.Status, a.Header)
		}
	}
	if a := b.call("GET", "/2018-06-01/ping", ""); a.Status != 200 || string(a.Body) != "pong" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	check(t, b.call("PUT", "/2022-07-01/telemetry", "{}"), 202, "Telemetry.NotSupported", "Telemetry API is not supported")
	check(t, b.call("PUT", "/2020-08-15/logs", "{}"), 202, "Logs.NotSupported", "Logs API is not supported")
}

func TestInitError(t *testing.T) {
	for _, body := range []string{`{"errorMessage":"no handler"}`, ""} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, Options{})
			if a := b.call("POST", apiRoot+"init/error", body, "Lambda-Runtime-Function-Error-Type", "Runtime.HandlerNotFound"); a.Status != 202 {
				t.Errorf("%d %s", a.Status, a.Body)
			}
			b.told(t, "init-failed:Runtime.HandlerNotFound:"+body)
			if b.FailInit() {
				t.Error("init fails twice")
			}
		})
	}
	b := newBench(t, Options{})
	check(t, b.call("POST", apiRoot+"init/error", strings.Repeat("x", maxErrorBody+1)), 413, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (524288 bytes).")
	if got := b.rec.took(); got != "init-failed:Runtime.Unknown:" {
		t.Error(got)
	}
}

// Whoever ends init first has ended it.
func TestFailInit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{})
		if !b.FailInit() || b.FailInit() {
			t.Error("it is the first that counts")
		}
		b.begin("GET", apiRoot+"invocation/next")
		b.told(t, "")
	})
}

func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // nobody waits if there is no snapshot
		b := newBench(t, Options{})
		if a := b.call("GET", apiRoot+"restore/next", ""); a.Status != 200 || len(a.Body) != 0 {
			t.Errorf("%d %s", a.Status, a.Body)
		}
		b.told(t, "")
		b.begin("GET", apiRoot+"invocation/next")
		b.told(t, "init-done")
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{Snapshot: true})
		wait := b.begin("GET", apiRoot+"restore/next")
		b.told(t, "init-done")
		if err := b.Invoke(oneInvoke); !errors.Is(err, ErrState) {
			t.Error(err)
		}
		b.Restore()
		b.Restore()
		if a := <-wait; a.Status != 200 {
			t.Error(a)
		}
		next := b.begin("GET", apiRoot+"invocation/next")
		if err := b.Invoke(oneInvoke); err != nil {
			t.Error(err)
		}
		if a := <-next; string(a.Body) != `{"in":1}` {
			t.Error(a)
		}
	})
	for _, path := range []string{"restore/error", "init/error"} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, Options{})
			b.call("GET", apiRoot+"restore/next", "")
			if a := b.call("POST", apiRoot+path, "{}", "Lambda-Runtime-Function-Error-Type", "Runtime.AfterRestoreError"); a.Status != 202 {
				t.Error(a)
			}
			b.told(t, "init-failed:Runtime.AfterRestoreError:{}")
		})
	}
}

// endless is a body that never ends by itself.
type endless struct{ n, cut int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.cut > 0 {
		p = p[:min(int64(len(p)), e.cut-e.n)]
	}
	if e.n += int64(len(p)); len(p) == 0 {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

func TestSizes(t *testing.T) {
	const large = `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (%d bytes)."}`
	for name, c := range map[string]struct {
		length    int64
		chunked   bool
		mode      string
		streaming bool
		most      int64 // 0: it fits
	}{
		"as much as may be":      {MaxPayload, false, "", false, 0},
		"a byte more":            {MaxPayload + 1, false, "", false, MaxPayload},
		"the same in chunks":     {MaxPayload, true, "", false, 0},
		"a byte more in chunks":  {MaxPayload + 1, true, "", false, MaxPayload},
		"streamed to a buffer":   {MaxPayload + 1, true, "streaming", false, MaxPayload},
		"unsaid for a stream":    {MaxPayload + 1, true, "", true, 0},
		"streamed":               {MaxPayload + 1, true, "streaming", true, 0},
		"streamed, all":          {8 << 20, true, "streaming", true, 0},
		"streamed, a byte more":  {8<<20 + 1, true, "streaming", true, 8 << 20},
		"streamed, by its label": {8<<20 + 1, false, "streaming", true, 8 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, Options{MaxStreamed: 8 << 20})
			i := oneInvoke
			i.Streaming = c.streaming
			b.runtime, b.current = running, &invocation{Invoke: i, delivered: true}
			r := &http1.Request{Method: "POST", Path: apiRoot + "invocation/r1/response", Header: http1.Header{modeHeader: c.mode}, Length: c.length, Body: io.LimitReader(new(endless), c.length)}
			if c.chunked {
				r.Length = -1
			}
			a := b.Answer(r)
			got, begin := b.rec.took(), fmt.Sprintf("begin:r1::%v:", c.mode != "")
			switch text := fmt.Sprintf(large, c.most); {
			case c.most == 0:
				if a.Status != 202 || got != begin+" end::" || int64(b.rec.body.Len()) != c.length {
					t.Errorf("%d %s, %s, %d bytes", a.Status, a.Body, got, b.rec.body.Len())
				}
			case c.chunked:
				if got != begin+" end:Function.ResponseSizeTooLarge:"+text || int64(b.rec.body.Len()) > c.most {
					t.Errorf("%s, %d bytes", got, b.rec.body.Len())
				}
			case got != strings.Replace(begin, "::", ":application/json:", 1)+"Function.ResponseSizeTooLarge end::" || b.rec.body.String() != text:
				t.Errorf("%s, %.200s", got, b.rec.body.String())
			}
			if c.most > 0 {
				check(t, a, 413, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", c.most))
			}
			if b.runtime != responseSent {
				t.Error(b.runtime)
			}
		})
	}
}

func TestBrokenAnswers(t *testing.T) {
	post := func(b *bench, body io.Reader, h http1.Header, trailer http1.Header) http1.Answer {
		return b.Answer(&http1.Request{Method: "POST", Path: apiRoot + "invocation/r1/response", Header: h, Length: -1, Body: body, Trailer: trailer})
	}
	prepare := func() *bench {
		b := newBench(t, Options{})
		b.runtime, b.current = running, &invocation{Invoke: oneInvoke, delivered: true}
		return b
	}
	b := prepare()
	check(t, post(b, &endless{cut: 1000}, nil, nil), 400, "TruncatedHTTPRequest", "HTTP request detected as truncated")
	if got := b.rec.took(); !strings.HasPrefix(got, `begin:r1::false: end:Runtime.TruncatedResponse:{"errorType":"Runtime.TruncatedResponse"`) {
		t.Error(got)
	}
	b = prepare()
	check(t, post(b, strings.NewReader(""), http1.Header{modeHeader: "Streaming"}, nil), 400, "InvalidFunctionResponseMode", "Invalid function response mode")
	if got := b.rec.took(); got != "begin:r1::false:Runtime.InvalidResponseModeHeader end::" || b.runtime != responseSent {
		t.Error(got, b.runtime)
	}
	b = prepare()
	b.rec.fail = errors.New("gone")
	check(t, post(b, strings.NewReader("x"), nil, nil), 500, "InternalServerError", "Internal Server Error")

	// Trailers are read in both modes.
	text := base64.StdEncoding.EncodeToString([]byte("{\"errorMessage\":\"late\n\"}"))
	for _, mode := range []string{"", "streaming"} {
		for given, want := range map[string]string{text: "{\"errorMessage\":\"late\n\"}", "not base64": "", base64.StdEncoding.EncodeToString(make([]byte, maxErrorBody+1)): ""} {
			b = prepare()
			a := post(b, strings.NewReader("part"), http1.Header{modeHeader: mode}, http1.Header{errorTypeHeader: "Function.Late", errorBodyTrailer: given})
			if got := b.rec.took(); a.Status != 202 || !strings.HasSuffix(got, " end:Function.Late:"+want) || b.rec.body.String() != "part" {
				t.Errorf("%d, %.200s", a.Status, got)
			}
		}
	}
}

// Closing frees all who wait, and mutes the sink.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, Options{External: []string{"e"}})
		id := b.register(t, "e", "INVOKE")
		event := b.begin("GET", extensionRoot+"event/next", identifierHeader, id)
		next := b.begin("GET", apiRoot+"invocation/next")
		b.told(t, "init-done")
		b.Close()
		b.Close()
		for _, c := range []<-chan http1.Answer{event, next} {
			check(t, <-c, 500, "InternalServerError", "Internal Server Error")
		}
		b.runtime, b.current = running, &invocation{Invoke: oneInvoke, delivered: true}
		if a := b.call("POST", apiRoot+"invocation/r1/response", "x"); a.Status != 500 {
			t.Error(a)
		}
		b.told(t, "")
	})
}
