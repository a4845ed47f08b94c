// Package events keeps asynchronous invokes until they have been done: in
// streams of the cluster, durable before anybody is told that one was accepted.
//
// # Streams
//
//	EVENTS        thaw.events.q.<account>.<function>             what waits to be tried, or is being tried
//	EVENTS_LATER  thaw.events.later.<due>.<account>.<function>.<id>   what is to be tried later; due: ms since 1970
//	EVENTS_DEAD   thaw.events.dead.<account>.<function>.<id>     what will not be tried again
//
// Account, function and id are lower case hex. A message's data is the event's
// payload; what else is known of it is JSON in the header Thaw-Event. Each
// function has a consumer of its own, as long as something waits for it, so that
// no function waits for another.
//
// An event is tried at least once, under one request id. It is moved by writing
// it to its new place first: killed in between, it is in both, and the copy is
// recognised by its message id for two minutes; later, it is tried twice.
package events

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a caller can tell apart.
var (
	// ErrNotFound says that there is no such dead letter.
	ErrNotFound = errors.New("no such dead letter")
	// ErrFull says that too many events wait.
	ErrFull = errors.New("too many events wait")
	// ErrUnavailable says that the cluster did not answer in time: the event may
	// have been accepted, and may not.
	ErrUnavailable = errors.New("the queue of events is unavailable")
)

const (
	// MaxPayload is the longest payload of an event in bytes, as in Lambda.
	MaxPayload = 1 << 20
	// maxText bounds each text of an event: a client's context is the longest,
	// with 3,583 bytes of base64.
	maxText = 8 << 10
	// maxLast bounds what is kept of how a try ended.
	maxLast = 1 << 10
	// maxName bounds ids and names, which become hex in subjects.
	maxName = 256
)

// Event is an asynchronous invoke. Its payload and context are never logged.
type Event struct {
	ID        string // request id: the same for all tries
	Account   string // twelve digits
	Function  string // name
	Qualifier string // version or alias as it was invoked, or empty
	Payload   []byte `json:"-"`

	ClientContext string `json:",omitempty"` // base64 of JSON
	Trace         string `json:",omitempty"` // X-Ray's header
	Source        string `json:",omitempty"` // who sent it, if not a client: "s3.amazonaws.com"

	Accepted time.Time // when it was put; its age counts from here
	// Attempt counts the tries that were made.
	Attempt int `json:",omitempty"`
	// Failures counts those at whose end the function had failed.
	Failures int `json:",omitempty"`
	// Refusals counts those since the last failure that were throttled or ended
	// with an error of the system.
	Refusals int `json:",omitempty"`
	// Last is how the last try ended, for people; at most 1 KiB, and may be empty.
	Last string `json:",omitempty"`
}

// Invoker tries events. Many events are tried at a time.
type Invoker interface {
	// Invoke runs the function and returns how that ended. It runs the code as
	// of now. When ctx ends, it returns soon; whatever it returns then does not
	// count, and the event will be tried again.
	Invoke(ctx context.Context, e Event) Outcome
}

// check refuses what cannot be an event.
func (e *Event) check() error {
	for what, s := range map[string]string{"id": e.ID, "account": e.Account, "function": e.Function} {
		if s == "" || len(s) > maxName {
			return fmt.Errorf("events: the %s of an event has 1 to %d bytes, not %d", what, maxName, len(s))
		}
	}
	for what, s := range map[string]string{"qualifier": e.Qualifier, "client context": e.ClientContext, "trace": e.Trace, "source": e.Source, "last outcome": e.Last} {
		if len(s) > maxText {
			return fmt.Errorf("events: the %s of an event has %d bytes, more than %d", what, len(s), maxText)
		}
	}
	switch {
	case len(e.Payload) > MaxPayload:
		return fmt.Errorf("events: a payload has at most %d bytes, not %d", MaxPayload, len(e.Payload))
	case e.Accepted.IsZero() || e.Attempt < 0 || e.Failures < 0 || e.Refusals < 0:
		return errors.New("events: an event without its time, or with impossible counts")
	}
	return nil
}
