package frontend

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"time"

	"thaw/functions"
	"thaw/invokewire"
	"thaw/lambdaapi"
)

const (
	// maxTries bounds the instances that one invoke is offered to: each that is
	// busy or gone is known as such afterwards.
	maxTries = 32
	// graceTime is how much later than its deadline a worker's answer is given
	// up: the worker itself ends what takes too long.
	graceTime = 10 * time.Second
	// lifeTime is for a worker to say that it lives, once an invoke has had its time: one that
	// does is given more, for what it has to do before and after.
	lifeTime = 5 * time.Second
	// initTime is for a start's init, which runs again within the invoke.
	initTime = 10 * time.Second
	// systemRetry is what a throttled client is told to wait if nobody says more.
	systemRetry = time.Second
)

// invocation is one invoke of a version.
type invocation struct {
	target        *target
	reserved      *int
	requestID     string
	arn           string // as it was invoked
	trace         string
	clientContext string // base64 of JSON
	tail          bool   // the log's end is wanted
	streaming     bool
	queued        bool // nobody waits for it
	payload       *buffer
	deadline      time.Time // when the worker is to have ended it
	due           time.Time // after when a worker that does not live is not waited for; zero: never
}

// function names whose version it is.
func (inv *invocation) function() functions.ID {
	return functions.ID{Account: inv.target.spec.Account, Name: inv.target.spec.Function}
}

// run gives the invoke to an instance and returns the answer as it comes; done
// must be called once it has been read: alive says whether that went well. ctx
// bounds it, not a client. Errors are of the API.
func (f *Frontend) run(ctx context.Context, inv *invocation) (*answer, func(alive bool), error) {
	began := time.Now()
	f.counts.running.Inc()
	a, done, err := f.offer(ctx, inv)
	if err != nil {
		f.counts.refused(inv, began, err)
		return nil, nil, err
	}
	return a, func(alive bool) {
		f.counts.ended(inv, began, a, alive)
		done(alive)
	}, nil
}

// offer is run, and does not count.
func (f *Frontend) offer(ctx context.Context, inv *invocation) (a *answer, done func(alive bool), err error) {
	id := inv.function()
	if !f.pool.enter(id, inv.reserved) {
		return nil, nil, throttled(&invokewire.Throttle{Reason: invokewire.ReasonReserved, RetryAfter: systemRetry})
	}
	defer func() {
		if err != nil {
			f.pool.exit(id)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, f.options.Start+initTime+inv.target.spec.Timeout+2*graceTime)
	var avoid []string
	for range maxTries {
		l, err := f.instance(ctx, inv, avoid)
		if errors.Is(err, errGone) {
			continue // it was not to be
		}
		if err != nil {
			cancel()
			return nil, nil, f.apiError(err, inv)
		}
		inv.due = time.Now().Add(inv.target.spec.Timeout)
		inv.deadline = inv.due.Add(initTime)
		if l.fresh {
			inv.deadline = inv.deadline.Add(f.options.Start) // a machine that starts others is slow
		}
		a, err := f.workers.invoke(ctx, l, inv)
		if err == nil {
			return a, func(alive bool) {
				a.close()
				cancel()
				f.pool.put(l, alive, time.Now())
				f.pool.exit(id)
			}, nil
		}
		switch {
		case errors.Is(err, errBusy):
			f.pool.drop(l)
			avoid = append(avoid, l.id)
		case errors.Is(err, errGone), errors.Is(err, errUnsent):
			f.pool.put(l, false, time.Now())
			avoid = append(avoid, l.id)
		default:
			f.pool.put(l, false, time.Now())
			cancel()
			return nil, nil, f.apiError(err, inv)
		}
		if ctx.Err() != nil {
			break
		}
	}
	cancel()
	return nil, nil, f.apiError(errGone, inv)
}

// apiError makes an error of the API of what went wrong between the roles.
func (f *Frontend) apiError(err error, inv *invocation) error {
	var t *invokewire.Throttle
	if errors.As(err, &t) {
		return throttled(t)
	}
	f.options.Log.Warn("an invoke failed in the platform", "request", inv.requestID, "function", inv.target.key, "error", err)
	switch {
	case errors.Is(err, errBroken):
		return lambdaapi.ServiceException.Errorf("The worker that ran the function ended or cannot be reached: whether the function has run is not known.")
	case errors.Is(err, errNoImage):
		return lambdaapi.ResourceNotReadyException.Errorf("The function's image is gone. Update the function's code.")
	case errors.Is(err, context.DeadlineExceeded):
		return lambdaapi.ServiceException.Errorf("The function did not start or answer in time.")
	}
	return lambdaapi.ServiceException.Errorf("The function could not be started: the workers' log says why, under request %s.", inv.requestID)
}

// throttled is a 429.
func throttled(t *invokewire.Throttle) error {
	e := lambdaapi.TooManyRequestsException.Errorf("Rate Exceeded.")
	e.Reason, e.RetryAfter = t.Reason, max(t.RetryAfter, time.Millisecond)
	return e
}

// outcome is an answer that has been read to its end.
type outcome struct {
	body     *buffer // to be given back
	failed   bool    // the body is the function's error
	tail     string  // base64
	mimeType string  // that the function gave
}

// tooLarge is what a function gets whose answer is too long.
const tooLarge = `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}`

// collect reads an answer whole. It uses the memory of the payload, which the
// worker has by now. On an error, the platform failed.
func (f *Frontend) collect(ctx context.Context, inv *invocation, a *answer) (outcome, error) {
	b := inv.payload
	inv.payload = nil
	b.b = b.b[:0]
	o := outcome{body: b, failed: a.Header.Get(invokewire.HeaderFunctionError) != "", mimeType: a.Header.Get(invokewire.HeaderResponseType)}
	err := f.buffers.fill(ctx, b, a, a.ContentLength, maxAnswer)
	if errors.Is(err, errTooLong) {
		b.b = append(b.b[:0], tooLarge...)
		o.failed = true
		_, err = io.Copy(io.Discard, a) // it is the instance's invoke still
	}
	if err != nil {
		return o, kindOf(err)
	}
	t := trailersOf(a)
	o.tail = t.tail
	if t.failed { // in the midst of an error, too: then that is not all of it
		o.failed = true
		b.b = append(b.b[:0], t.errorBody...)
	}
	return o, nil
}

// trailers are what is known at the end of an answer.
type trailers struct {
	failed    bool
	errorBody []byte
	tail      string
}

func trailersOf(a *answer) trailers {
	h := a.Trailer
	t := trailers{failed: h.Get(invokewire.HeaderFunctionError) != "", tail: h.Get(invokewire.HeaderLogTail)}
	if text := h.Get(invokewire.HeaderErrorBody); t.failed && len(text) <= maxErrorBody {
		t.errorBody, _ = base64.StdEncoding.DecodeString(text) // or none
	}
	if t.failed && !json.Valid(t.errorBody) {
		t.errorBody = []byte(`{"errorType":"Runtime.Unknown","errorMessage":"The function failed after it had begun to answer."}`)
	}
	return t
}

// call runs an invoke and reads its answer whole. The outcome's body is the
// caller's to give back.
func (f *Frontend) invokeWhole(ctx context.Context, inv *invocation) (outcome, error) {
	a, done, err := f.run(ctx, inv)
	if err != nil {
		return outcome{}, err
	}
	o, err := f.collect(ctx, inv, a)
	done(err == nil)
	if err != nil {
		if o.body != nil {
			f.buffers.put(o.body)
		}
		return outcome{}, f.apiError(err, inv)
	}
	return o, nil
}
