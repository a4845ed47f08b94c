package runtimeapi

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"

	"thaw/runtimeapi/http1"
)

const (
	identifierHeader     = "Lambda-Extension-Identifier"
	extensionErrorHeader = "Lambda-Extension-Function-Error-Type"
	// maxRegister bounds what an extension registers with, in bytes.
	maxRegister = 64 << 10
)

// extension is one that is started or has registered.
type extension struct {
	name     string
	internal bool
	id       string
	state    state
	events   []string
	wait     chan event // its call of event/next
	pending  *event     // for its next call
	busy     bool       // has an invoke to be done with
}

// event is what event/next gives.
type event struct {
	Type       string   `json:"eventType"`
	DeadlineMs int64    `json:"deadlineMs"`
	RequestID  string   `json:"requestId,omitempty"`
	ARN        string   `json:"invokedFunctionArn,omitempty"`
	Tracing    *tracing `json:"tracing,omitempty"`
	Reason     string   `json:"shutdownReason,omitempty"`
}

type tracing struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// Extension is one as logs show it.
type Extension struct {
	Name     string
	Internal bool
	State    string
	Events   []string
}

func newExtension(name string, internal bool) *extension {
	return &extension{name: name, internal: internal, id: newID(), state: started}
}

// newID gives a random UUID. It is no secret: all who can see it are of one function.
func newID() string {
	a, b := rand.Uint64(), rand.Uint64()
	a, b = a&^(0xf<<12)|4<<12, b&^(3<<62)|1<<63 // version 4, and its variant
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", a>>32, a>>16&0xffff, a&0xffff, b>>48, b&(1<<48-1))
}

// isID tells whether s has the form of one.
func isID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !hex {
			return false
		}
	}
	return true
}

func (e *extension) subscribed(event string) bool { return slices.Contains(e.events, event) }

// send gives an event to the call that waits, or to the next one.
func (e *extension) send(ev event) {
	if e.wait == nil {
		e.pending = &ev
		return
	}
	e.wait <- ev
	e.wait, e.state = nil, running
}

// invokeEvent is the current invoke, for extensions.
func (a *API) invokeEvent() event {
	ev := event{Type: "INVOKE", DeadlineMs: a.current.DeadlineMs, RequestID: a.current.RequestID, ARN: a.current.ARN}
	if a.current.Trace != "" {
		ev.Tracing = &tracing{"X-Amzn-Trace-Id", a.current.Trace}
	}
	return ev
}

// Shutdown sends SHUTDOWN to the external extensions that asked for it, and gives
// their names. The deadline is in ms since 1970.
func (a *API) Shutdown(reason string, deadlineMs int64) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, e := range a.extensions {
		if e.subscribed("SHUTDOWN") && (e.state == ready || e.state == running || e.state == registeredState) {
			e.send(event{Type: "SHUTDOWN", DeadlineMs: deadlineMs, Reason: reason})
			names = append(names, e.name)
		}
	}
	return names
}

// Exited notes that a process has ended by itself, the runtime's (no name) or an
// external extension's, and gives the error that is.
func (a *API) Exited(name string) (errorType string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name == "" {
		return "Runtime.ExitError"
	}
	for _, e := range a.extensions {
		if e.name != name || e.internal {
			continue
		}
		switch e.state {
		case initError:
			return "Extension.InitError"
		case exitError:
			return "Extension.ExitError"
		}
		e.state = exited
	}
	return "Extension.Crash"
}

// Extensions lists them, external ones first, in the order they were started and
// registered in.
func (a *API) Extensions() []Extension {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []Extension
	for _, e := range a.extensions {
		list = append(list, Extension{e.name, e.internal, string(e.state), slices.Clone(e.events)})
	}
	return list
}

// register is POST extension/register.
func (a *API) register(r *http1.Request) http1.Answer {
	name := r.Header["lambda-extension-name"]
	if name == "" {
		return refuse(403, "Extension.InvalidExtensionName", "Empty extension name")
	}
	events, err := readRegister(r.Body)
	if err != nil {
		return refuse(403, "InvalidRequestFormat", err.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e, refusal := a.registering(name, events)
	if refusal != nil {
		return *refusal
	}
	e.state, e.events = registeredState, events
	if !e.internal && !slices.ContainsFunc(a.extensions, func(e *extension) bool { return e.state == started }) {
		close(a.registered) // this was the last: none registers twice
	}
	about := struct {
		Account  string `json:"accountId,omitempty"`
		Function string `json:"functionName"`
		Version  string `json:"functionVersion"`
		Handler  string `json:"handler"`
	}{"", a.o.Function, a.o.Version, a.o.Handler}
	for feature := range strings.SplitSeq(r.Header["lambda-extension-accept-feature"], ",") {
		if strings.TrimSpace(feature) == "accountId" {
			about.Account = a.o.Account
		}
	}
	return jsonAnswer(200, about, http1.Field{Name: identifierHeader, Value: e.id})
}

// readRegister gives the events that an extension asks for, each once.
func readRegister(body io.Reader) ([]string, error) {
	text, err := io.ReadAll(io.LimitReader(body, maxRegister+1))
	if err == nil && len(text) > maxRegister {
		err = fmt.Errorf("more than %d bytes", maxRegister)
	}
	var wish struct {
		Events []string `json:"events"`
		Keys   []string `json:"configurationKeys"`
	}
	if err == nil {
		err = json.Unmarshal(text, &wish)
	}
	if err == nil && len(wish.Keys) > 0 {
		err = fmt.Errorf("configurationKeys are deprecated; use environment variables instead")
	}
	var events []string
	for _, ev := range wish.Events {
		if !slices.Contains(events, ev) {
			events = append(events, ev)
		}
	}
	return events, err
}

// registering finds or makes the extension that may register, or gives the refusal.
func (a *API) registering(name string, events []string) (*extension, *http1.Answer) {
	no := func(kind, format string, args ...any) (*extension, *http1.Answer) {
		refusal := refuse(403, kind, fmt.Sprintf(format, args...))
		return nil, &refusal
	}
	at := slices.IndexFunc(a.extensions, func(e *extension) bool { return e.name == name })
	external := at >= 0 && !a.extensions[at].internal
	for _, ev := range events {
		switch {
		case ev == "INVOKE", ev == "SHUTDOWN" && external:
		case ev == "SHUTDOWN":
			return no("Extension.InvalidEventType", "%s: ShutdownEventNotSupportedForInternalExtension", ev)
		default:
			return no("Extension.InvalidEventType", "%s: ErrorInvalidEventType", ev)
		}
	}
	switch {
	case external && a.extensions[at].state != started:
		refusal := a.extensions[at].refuseState(registeredState, name)
		return nil, &refusal
	case external:
		return a.extensions[at], nil
	case a.closed:
		return no("Extension.RegistrationClosed", "Extension registration closed already")
	case len(a.extensions) >= MaxExtensions:
		return no("Extension.TooManyExtensions", "Extension limit (%d) reached", MaxExtensions)
	case at >= 0:
		return no("Extension.InvalidExtensionState", "Extension with this name already registered")
	}
	e := newExtension(name, true)
	a.extensions = append(a.extensions, e)
	return e, nil
}

func (e *extension) refuseState(to state, who string) http1.Answer {
	return refuse(403, "Extension.InvalidExtensionState",
		fmt.Sprintf("State transition from %s to %s failed for extension %s. Error: State transition is not allowed", e.state, to, who))
}

// identify reads the identifier, or gives the refusal.
func identify(r *http1.Request) (string, *http1.Answer) {
	id := r.Header[strings.ToLower(identifierHeader)]
	var refusal http1.Answer
	switch {
	case id == "":
		refusal = refuse(403, "Extension.MissingExtensionIdentifier", "Missing Lambda-Extension-Identifier header")
	case !isID(id):
		refusal = refuse(403, "Extension.InvalidExtensionIdentifier", "Invalid Lambda-Extension-Identifier")
	default:
		return strings.ToLower(id), nil
	}
	return "", &refusal
}

// identified gives the extension that has registered under an identifier.
func (a *API) identified(id string) *extension {
	for _, e := range a.extensions {
		if e.id == id && e.state != started {
			return e
		}
	}
	return nil
}

// eventNext is GET extension/event/next.
func (a *API) eventNext(r *http1.Request) http1.Answer {
	id, refusal := identify(r)
	if refusal != nil {
		return *refusal
	}
	a.mu.Lock()
	e := a.identified(id)
	switch {
	case e == nil:
		defer a.mu.Unlock()
		return refuse(403, "Extension.UnknownExtensionIdentifier", "Unknown extension "+id)
	case e.state == registeredState, e.state == running, e.state == ready && e.wait == nil: // its last call is gone
	default:
		defer a.mu.Unlock()
		return e.refuseState(ready, id)
	}
	if e.state == running {
		e.busy = false
	}
	e.state = ready
	wait := make(chan event, 1)
	e.wait = wait
	if e.pending != nil {
		ev := *e.pending
		e.pending = nil
		e.send(ev)
	}
	tell := a.progress()
	a.mu.Unlock()
	tell()
	select {
	case ev := <-wait:
		return jsonAnswer(200, ev, http1.Field{Name: "Lambda-Extension-Event-Identifier", Value: newID()})
	case <-r.Gone():
		a.mu.Lock()
		defer a.mu.Unlock()
		if e.wait == wait {
			e.wait = nil
		}
	case <-a.ended:
	}
	return endedAnswer()
}

// extensionInitError is POST extension/init/error.
func (a *API) extensionInitError(r *http1.Request) http1.Answer {
	return a.extensionError(r, initError, "Extension.InitError", registeredState)
}

// extensionExitError is POST extension/exit/error.
func (a *API) extensionExitError(r *http1.Request) http1.Answer {
	return a.extensionError(r, exitError, "Extension.ExitError", registeredState, ready, running)
}

// extensionError takes the report of an extension that gives up. It may report it
// more than once. What it fails is an init; in an invoke its exit is waited for.
func (a *API) extensionError(r *http1.Request, to state, kind string, from ...state) http1.Answer {
	id, refusal := identify(r)
	if refusal != nil {
		return *refusal
	}
	if r.Header[strings.ToLower(extensionErrorHeader)] == "" {
		return refuse(403, "Extension.MissingHeader", extensionErrorHeader+" not found")
	}
	a.mu.Lock()
	e := a.identified(id)
	switch {
	case e == nil:
		defer a.mu.Unlock()
		return refuse(403, "Extension.UnknownExtensionIdentifier", "Unknown "+identifierHeader)
	case e.state != to && !slices.Contains(from, e.state):
		defer a.mu.Unlock()
		if to == exitError {
			to = exited // as Lambda words it
		}
		return e.refuseState(to, id)
	}
	e.state = to
	a.mu.Unlock()
	a.failed(kind, nil)
	return accepted()
}
