package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"thaw/events"
	"thaw/functions"
	"thaw/lambdaapi"
)

// invoker hands queued events to functions.
type invoker struct{ f *Frontend }

// Invoke runs one try of an event.
func (i invoker) Invoke(ctx context.Context, e events.Event) events.Outcome {
	f := i.f
	id := functions.ID{Account: e.Account, Name: e.Function}
	fn, t, err := f.view.find(ctx, id, e.Qualifier, f.spec)
	switch {
	case errors.Is(err, functions.ErrNotFound):
		return events.Outcome{Kind: events.Refused, Reason: "the function is gone"}
	case err != nil:
		return events.Outcome{Kind: events.SystemError, Reason: err.Error()}
	case fn.Reserved != nil && *fn.Reserved == 0:
		return events.Outcome{Kind: events.Refused, Reason: "its reserved concurrency is 0"}
	}
	if err := invocable(t.version); err != nil {
		return events.Outcome{Kind: events.SystemError, Reason: err.Error()}
	}
	payload := f.buffers.get()
	if err := f.load(ctx, payload, e.Payload); err != nil {
		f.buffers.put(payload)
		return events.Outcome{Kind: events.SystemError, Reason: err.Error()}
	}
	inv := &invocation{
		target: t, reserved: fn.Reserved, requestID: e.ID, arn: id.ARN(f.options.Region, e.Qualifier),
		trace: e.Trace, clientContext: e.ClientContext, payload: payload, queued: true,
		tail: true, // so that what the function wrote is in its log before the event leaves the queue
	}
	o, err := f.invokeWhole(ctx, inv)
	if inv.payload != nil {
		f.buffers.put(inv.payload)
	}
	if err != nil {
		return failure(err)
	}
	defer f.buffers.put(o.body)
	if o.failed {
		return events.Outcome{Kind: events.FunctionError, Reason: errorType(o.body.b)}
	}
	return events.Outcome{Kind: events.Succeeded}
}

// load copies a payload into a buffer.
func (f *Frontend) load(ctx context.Context, b *buffer, payload []byte) error {
	if len(payload) > cap(b.b) {
		if err := f.buffers.grow(ctx, b); err != nil {
			return err
		}
	}
	b.b = append(b.b[:0], payload...)
	return nil
}

func failure(err error) events.Outcome {
	if errors.Is(err, lambdaapi.TooManyRequestsException) {
		return events.Outcome{Kind: events.Throttled, Reason: err.Error()}
	}
	return events.Outcome{Kind: events.SystemError, Reason: err.Error()}
}

// errorType gives the type of a function's error; its message is the function's
// own and is not kept.
func errorType(body []byte) string {
	var e struct {
		Type string `json:"errorType"`
	}
	if json.Unmarshal(body, &e) != nil || e.Type == "" || len(e.Type) > 256 {
		return "the function failed"
	}
	return "the function failed: " + e.Type
}

// EventPolicy gives the retry policies of functions' events, for events.Options.
func EventPolicy(s *functions.Store) func(context.Context, events.Event) events.Policy {
	return func(ctx context.Context, e events.Event) events.Policy {
		p := events.DefaultPolicy()
		f, err := s.Get(ctx, functions.ID{Account: e.Account, Name: e.Function})
		if err != nil {
			return p
		}
		qualifier := e.Qualifier
		if qualifier == "" {
			qualifier = functions.Latest
		}
		c := f.Events[qualifier]
		if c.MaxRetries != nil {
			p.Retries = *c.MaxRetries
		}
		if c.MaxAge != nil {
			p.MaxAge = time.Duration(*c.MaxAge) * time.Second
		}
		return p
	}
}
