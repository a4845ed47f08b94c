// Package runtimeapi is the part of Lambda that a function sees: the Runtime API
// (2018-06-01) and the Extensions API (2020-01-01) of one instance, as one state
// machine. It knows nothing of processes, and of who wants an invoke: thaw-init
// tells it what happens, and it tells a Sink.
//
// # The runtime
//
//	Started ──next──▶ Ready ──an invoke──▶ Running ──response──▶ InvocationResponse ──────┐
//	   │                ▲                     │                                            ▼
//	   │                │                     └─error─▶ InvocationErrorResponse ─▶ RuntimeResponseSentState
//	   │                └──────────────────────────────next───────────────────────────────┘
//	   ├─init/error────▶ InitError
//	   └─restore/next──▶ RestoreReady ─▶ Restoring ──next──▶ Ready
//	                                        └─restore/error─▶ RuntimeRestoreErrorState
//
// A call that has no arrow is refused with 403 InvalidStateTransition; but next in
// Ready waits too, and in Running gives the same invoke again: the one before may
// have got lost with its connection.
//
// # Extensions
//
// External ones are known by their names before they register, internal ones are
// not. Registration is closed once the runtime has called next. Then
//
//	Started ──register──▶ Registered ──event/next──▶ Ready ◀──an event, event/next──▶ Running
//	                           └─init/error─▶ InitError        └─exit/error─▶ ExitError ◀─┘
//
// Init is over when the runtime and all extensions wait in next, an invoke when the
// runtime does and those extensions that were told of it.
package runtimeapi

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"thaw/runtimeapi/http1"
)

const (
	// MaxPayload is the most that a function takes and gives at once, in bytes:
	// Lambda's 6 MiB, and 100 bytes for what wraps an event.
	MaxPayload = 6<<20 + 100
	// MaxStreamed is the most that a streamed answer has unless Options say
	// otherwise, in bytes.
	MaxStreamed = 200 << 20
	// MaxExtensions bounds the external and internal ones together.
	MaxExtensions = 10
	// maxErrorBody bounds the error of an init, and one in a trailer, in bytes.
	maxErrorBody = 512 << 10
)

// ErrState is wrapped by errors of an invoke that comes when none may.
var ErrState = errors.New("runtimeapi: no invoke is expected now")

// errEnded is what a Sink's caller gets after Close.
var errEnded = errors.New("runtimeapi: the instance's processes are gone")

// Options say what an API serves.
type Options struct {
	// What extensions are told when they register.
	Function, Version, Handler, Account string
	// External are the names of the extensions that are started.
	External []string
	// Snapshot: restore/next waits for Restore, and is the end of init.
	Snapshot bool
	// MaxStreamed in bytes; 0: the constant.
	MaxStreamed int64
	Sink        Sink
}

// Sink is told what happens. Its functions are called one at a time, by whoever
// serves the call that made it happen, and not after Close has returned. They may block: that
// call waits.
type Sink struct {
	// InitDone and InitFailed: one of them, once.
	InitDone   func()
	InitFailed func(errorType string, body []byte)
	// Begin, Data (whose bytes are valid until it returns) and End are an answer.
	// Their errors end it with a 500 for the runtime.
	Begin func(Begin) error
	Data  func([]byte) error
	End   func(End) error
	// Done: runtime and extensions wait for the next invoke.
	Done func(requestID string)
}

// Invoke is what the runtime gets from next.
type Invoke struct {
	RequestID     string
	DeadlineMs    int64 // ms since 1970
	ARN           string
	Trace         string
	ClientContext string // JSON
	Cognito       string // JSON
	Payload       []byte // not to be changed until it is done
	// Streaming: the answer may have MaxStreamed bytes.
	Streaming bool
}

// Begin is the start of an answer, or with an ErrorType that of an error.
type Begin struct {
	RequestID, ContentType string
	Streamed               bool
	ErrorType              string
}

// End is that of an answer. With an ErrorType it is broken; Body is then the
// error's JSON, if there is one.
type End struct {
	ErrorType string
	Body      []byte
}

// API is one instance's, for one start of its processes. Its methods may be called
// by several goroutines.
type API struct {
	o     Options
	ended chan struct{}
	// registered is closed once all external extensions have.
	registered chan struct{}

	mu         sync.Mutex // guards what follows; taken before out
	runtime    state
	waiters    []chan *Invoke // the runtime's calls of next, oldest first
	restored   chan struct{}  // closed by Restore
	extensions []*extension   // external ones first
	closed     bool           // registration
	initOver   bool
	current    *invocation

	out  sync.Mutex // held while the sink is told
	mute bool       // after Close
}

// invocation is the invoke that is under way.
type invocation struct {
	Invoke
	delivered bool
}

// state is one of the runtime's or an extension's, by its name as clients see it.
type state string

const (
	started         state = "Started"
	ready           state = "Ready"
	running         state = "Running"
	initError       state = "InitError"
	response        state = "InvocationResponse"
	errorResponse   state = "InvocationErrorResponse"
	responseSent    state = "RuntimeResponseSentState"
	restoreReady    state = "RestoreReady"
	restoring       state = "Restoring"
	restoreError    state = "RuntimeRestoreErrorState"
	registeredState state = "Registered"
	exitError       state = "ExitError"
	exited          state = "Exited"
)

// New gives the API of an instance whose processes are about to start.
func New(o Options) *API {
	if o.MaxStreamed == 0 {
		o.MaxStreamed = MaxStreamed
	}
	a := &API{o: o, ended: make(chan struct{}), registered: make(chan struct{}), restored: make(chan struct{}), runtime: started}
	if !o.Snapshot {
		close(a.restored)
	}
	for _, name := range o.External {
		a.extensions = append(a.extensions, newExtension(name, false))
	}
	if len(o.External) == 0 {
		close(a.registered)
	}
	return a
}

// Registered is closed once all external extensions have registered: the runtime
// is started then.
func (a *API) Registered() <-chan struct{} { return a.registered }

// Close makes all calls that wait return, and the sink be told nothing more. It
// waits for a call of the sink that is under way.
func (a *API) Close() {
	a.out.Lock()
	defer a.out.Unlock()
	if !a.mute {
		a.mute = true
		close(a.ended)
	}
}

// tell calls the sink.
func (a *API) tell(f func() error) error {
	a.out.Lock()
	defer a.out.Unlock()
	if a.mute {
		return errEnded
	}
	return f()
}

// Invoke hands an invoke to the runtime and the extensions. There must be none
// under way, and init must be over.
func (a *API) Invoke(i Invoke) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.initOver || a.current != nil || a.runtime != ready {
		return ErrState
	}
	a.current = &invocation{Invoke: i}
	for _, e := range a.extensions {
		if e.subscribed("INVOKE") && e.state == ready {
			e.busy = true
			e.send(a.invokeEvent())
		}
	}
	a.deliver()
	return nil
}

// deliver hands the invoke to a call of next, if there are both.
func (a *API) deliver() {
	if a.runtime != ready || a.current == nil || a.current.delivered || len(a.waiters) == 0 {
		return
	}
	a.waiters[0] <- &a.current.Invoke
	a.waiters = a.waiters[1:]
	a.current.delivered = true
	a.runtime = running
}

// Restore lets restore/next return: this is the copy that goes on.
func (a *API) Restore() {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.restored:
	default:
		close(a.restored)
	}
}

// FailInit ends the init, unless it is over, and tells whether it was not: then
// the sink is not told either.
func (a *API) FailInit() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	over := a.initOver
	a.initOver = true
	return !over
}

// progress finds out what the last change has brought about. What it returns tells
// the sink, and is called without the lock.
func (a *API) progress() func() {
	switch {
	case !a.initOver && a.runtimeInit() && !slices.ContainsFunc(a.extensions, func(e *extension) bool { return e.state != ready }):
		a.initOver = true
		return func() { _ = a.tell(func() error { a.o.Sink.InitDone(); return nil }) }
	case a.initOver && a.current != nil && a.current.delivered && a.runtime == ready && !slices.ContainsFunc(a.extensions, func(e *extension) bool { return e.busy }):
		id := a.current.RequestID
		a.current = nil
		return func() { _ = a.tell(func() error { a.o.Sink.Done(id); return nil }) }
	}
	return func() {}
}

// runtimeInit tells whether the runtime's own init is over.
func (a *API) runtimeInit() bool {
	return a.runtime == ready || a.o.Snapshot && a.runtime == restoreReady
}

// failed tells the sink of an init that has failed by what was posted.
func (a *API) failed(errorType string, body []byte) {
	if a.FailInit() {
		_ = a.tell(func() error { a.o.Sink.InitFailed(errorType, body); return nil })
	}
}

// Answer serves both APIs.
func (a *API) Answer(r *http1.Request) http1.Answer {
	type handler func(*http1.Request) http1.Answer
	var methods map[string]handler
	path, isRuntime := strings.CutPrefix(r.Path, "/2018-06-01/runtime/")
	switch {
	case isRuntime && strings.HasPrefix(path, "invocation/") && strings.Count(path, "/") == 2:
		id, verb, _ := strings.Cut(strings.TrimPrefix(path, "invocation/"), "/")
		methods = map[string]handler{
			"response": func(r *http1.Request) http1.Answer { return a.respond(r, id) },
			"error":    func(r *http1.Request) http1.Answer { return a.respondError(r, id) },
		}
		return dispatch(r, "POST", methods[verb])
	case isRuntime && path == "invocation/next":
		return dispatch(r, "GET", a.next)
	case isRuntime && path == "init/error":
		return dispatch(r, "POST", a.initError)
	case isRuntime && path == "restore/next":
		return dispatch(r, "GET", a.restoreNext)
	case isRuntime && path == "restore/error":
		return dispatch(r, "POST", a.restoreError)
	case r.Path == "/2018-06-01/ping":
		return dispatch(r, "GET", func(*http1.Request) http1.Answer { return http1.Answer{Status: 200, Body: []byte("pong")} })
	case r.Path == "/2020-01-01/extension/register":
		return dispatch(r, "POST", a.register)
	case r.Path == "/2020-01-01/extension/event/next":
		return dispatch(r, "GET", a.eventNext)
	case r.Path == "/2020-01-01/extension/init/error":
		return dispatch(r, "POST", a.extensionInitError)
	case r.Path == "/2020-01-01/extension/exit/error":
		return dispatch(r, "POST", a.extensionExitError)
	case r.Path == "/2022-07-01/telemetry":
		return dispatch(r, "PUT", func(*http1.Request) http1.Answer {
			return refuse(202, "Telemetry.NotSupported", "Telemetry API is not supported")
		})
	case r.Path == "/2020-08-15/logs":
		return dispatch(r, "PUT", func(*http1.Request) http1.Answer {
			return refuse(202, "Logs.NotSupported", "Logs API is not supported")
		})
	}
	return dispatch(r, "", nil)
}

func dispatch(r *http1.Request, method string, handler func(*http1.Request) http1.Answer) http1.Answer {
	switch {
	case handler == nil:
		return http1.Answer{Status: 404, Body: []byte("404 page not found\n")}
	case r.Method != method:
		return http1.Answer{Status: 405, Header: []http1.Field{{Name: "Allow", Value: method}}}
	}
	return handler(r)
}
