package runtimeapi

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"thaw/runtimeapi/http1"
)

const errorTypeHeader = "lambda-runtime-function-error-type"

// next is GET invocation/next.
func (a *API) next(r *http1.Request) http1.Answer {
	a.mu.Lock()
	switch a.runtime {
	case running:
		defer a.mu.Unlock()
		return invokeAnswer(&a.current.Invoke)
	case started, restoring, responseSent, ready:
		a.runtime = ready
		a.closed = true
	default:
		defer a.mu.Unlock()
		return a.refuseState(ready)
	}
	// One more than fits would be of a runtime that loses its connections: the
	// oldest of them gets nothing, as from one that is lost.
	if len(a.waiters) >= http1.MaxConns {
		a.waiters = a.waiters[1:]
	}
	wait := make(chan *Invoke, 1)
	a.waiters = append(a.waiters, wait)
	a.deliver()
	tell := a.progress()
	a.mu.Unlock()
	tell()
	select {
	case i := <-wait:
		return invokeAnswer(i)
	case <-r.Gone(): // what it got meanwhile, the next call gets again
		a.mu.Lock()
		defer a.mu.Unlock()
		a.waiters = slices.DeleteFunc(a.waiters, func(w chan *Invoke) bool { return w == wait })
	case <-a.ended:
	}
	return endedAnswer()
}

// invokeAnswer is an invoke as the runtime gets it; empty headers are left out.
func invokeAnswer(i *Invoke) http1.Answer {
	answer := http1.Answer{Status: 200, Body: i.Payload, Header: []http1.Field{{Name: "Content-Type", Value: "application/json"}}}
	for _, f := range []http1.Field{
		{Name: "Lambda-Runtime-Aws-Request-Id", Value: i.RequestID},
		{Name: "Lambda-Runtime-Trace-Id", Value: i.Trace},
		{Name: "Lambda-Runtime-Client-Context", Value: i.ClientContext},
		{Name: "Lambda-Runtime-Cognito-Identity", Value: i.Cognito},
		{Name: "Lambda-Runtime-Invoked-Function-Arn", Value: i.ARN},
		{Name: "Lambda-Runtime-Deadline-Ms", Value: strconv.FormatInt(i.DeadlineMs, 10)},
	} {
		if f.Value != "" {
			answer.Header = append(answer.Header, f)
		}
	}
	return answer
}

// initError is POST init/error.
func (a *API) initError(r *http1.Request) http1.Answer {
	a.mu.Lock()
	at := a.runtime
	a.mu.Unlock()
	if at == restoring { // as runtimes do that do not know restore/error
		return a.restoreError(r)
	}
	return a.failInit(r, started, initError)
}

// restoreError is POST restore/error.
func (a *API) restoreError(r *http1.Request) http1.Answer {
	return a.failInit(r, restoring, restoreError)
}

// failInit takes the error that ends an init.
func (a *API) failInit(r *http1.Request, from, to state) http1.Answer {
	a.mu.Lock()
	if a.runtime != from {
		defer a.mu.Unlock()
		return a.refuseState(to)
	}
	a.runtime = to
	a.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, maxErrorBody+1))
	if err != nil || len(body) > maxErrorBody {
		a.failed(errorType(r.Header[errorTypeHeader]), nil)
		return tooLarge(maxErrorBody)
	}
	a.failed(errorType(r.Header[errorTypeHeader]), body)
	return accepted()
}

// restoreNext is GET restore/next: init is over, and what comes after is in each
// copy of a snapshot. Without snapshots there is nothing to wait for.
func (a *API) restoreNext(r *http1.Request) http1.Answer {
	a.mu.Lock()
	if a.runtime != started {
		defer a.mu.Unlock()
		return a.refuseState(ready)
	}
	a.runtime = restoreReady
	a.closed = true
	tell := a.progress()
	a.mu.Unlock()
	tell()
	select {
	case <-a.restored:
	case <-r.Gone():
		return endedAnswer()
	case <-a.ended:
		return endedAnswer()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.runtime = restoring
	return http1.Answer{Status: 200}
}

// refuseState is the answer to a call that has no arrow from the runtime's state.
func (a *API) refuseState(to state) http1.Answer {
	return refuse(403, "InvalidStateTransition", fmt.Sprintf("State transition from %s to %s failed for runtime. Error: State transition is not allowed", a.runtime, to))
}

// errorType is the type of an error as callers get it: what runtimes make up
// becomes Unknown, but for the two families that are Lambda's.
func errorType(given string) string {
	for _, family := range []string{"Runtime.", "Function."} {
		for at := 0; ; {
			i := strings.Index(given[at:], family)
			if i < 0 {
				break
			}
			at += i + len(family)
			if rest := given[at:]; len(rest) > 1 && 'A' <= rest[0] && rest[0] <= 'Z' && isLetter(rest[1]) {
				return given
			}
		}
	}
	if strings.HasPrefix(given, "Function.") {
		return "Function.Unknown"
	}
	return "Runtime.Unknown"
}

func isLetter(c byte) bool { return 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z' }

// fault is an error in Lambda's form.
type fault struct {
	Message string   `json:"errorMessage"`
	Type    string   `json:"errorType"`
	Stack   []string `json:"stackTrace,omitempty"`
}

func jsonAnswer(status int, v any, fields ...http1.Field) http1.Answer {
	body, err := json.Marshal(v)
	if err != nil {
		panic("runtimeapi: " + err.Error()) // only strings and numbers come here
	}
	return http1.Answer{Status: status, Header: append(fields, http1.Field{Name: "Content-Type", Value: "application/json"}), Body: append(body, '\n')}
}

func refuse(status int, errorType, message string) http1.Answer {
	return jsonAnswer(status, fault{Message: message, Type: errorType})
}

func tooLarge(most int64) http1.Answer {
	return refuse(413, "RequestEntityTooLarge", fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", most))
}

func accepted() http1.Answer {
	return jsonAnswer(202, struct {
		Status string `json:"status"`
	}{"OK"})
}

// endedAnswer is for a client that most likely is not there.
func endedAnswer() http1.Answer {
	return refuse(500, "InternalServerError", "Internal Server Error")
}
