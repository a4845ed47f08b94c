package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"thaw/invokewire"
)

// call is one invoke of an instance.
type call struct {
	invoke invokewire.Invoke
	tail   bool
	out    *answer

	answered chan struct{} // closed when the caller has all that it waits for
	done     chan struct{} // closed when the instance can take the next
	release  sync.Once     // of answered
	saying   sync.Mutex    // held while thaw-init is told of it; taken before instance.mu

	// What follows is read's alone.
	pace pace
	said invokewire.Kind // the last part of the answer that the function gave
	cut  *invokewire.End // the answer broke off, and why is not known yet

	// instance.mu guards what follows.
	kind    string // StartFull …
	began   time.Time
	init    time.Duration
	timer   *time.Timer
	whole   bool               // the function has answered, or was answered for
	kindOf  string             // of the failure that the function told itself
	decided bool               // how it ends: what the function says is not heard any more
	initing bool               // the function is initialised within the call
	exited  *invokewire.Exited // the first process that ended while it was
	text    []byte
	billed  int64
}

// answer is what goes to the caller. One goroutine writes at a time; what a
// caller that has hung up does not take is dropped.
type answer struct {
	id string // of the invoke

	mu      sync.Mutex // guards what follows
	w       http.ResponseWriter
	begun   bool
	broken  bool
	closed  bool
	aborted bool // it is to break off
}

// begin sends the head. kind is of a failure, or empty.
func (a *answer) begin(contentType, kind string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.head(contentType, kind)
}

func (a *answer) head(contentType, kind string) {
	if a.begun || a.closed {
		return
	}
	a.begun = true
	h := a.w.Header()
	h.Set(invokewire.HeaderRequestID, a.id)
	if contentType != "" {
		h.Set(invokewire.HeaderResponseType, contentType)
	}
	if kind != "" {
		h.Set(invokewire.HeaderFunctionError, "Unhandled")
	}
	a.w.WriteHeader(http.StatusOK)
}

// data sends a part.
func (a *answer) data(p []byte, flush bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.write(p, flush)
}

func (a *answer) write(p []byte, flush bool) {
	if a.broken || a.closed {
		return
	}
	_, err := a.w.Write(p)
	if err == nil && flush {
		err = http.NewResponseController(a.w).Flush()
	}
	a.broken = err != nil
}

// fail sends an error's JSON in the place of an answer, or as a trailer if that
// has begun. It ends the answer: what comes later is not sent.
func (a *answer) fail(body []byte) {
	if !a.mu.TryLock() { // whoever writes waits for the caller: enough of that
		control := http.NewResponseController(a.w)
		_ = control.SetWriteDeadline(time.Now())
		a.mu.Lock()
		_ = control.SetWriteDeadline(time.Time{}) // it may have been about to finish
	}
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if a.begun {
		// What is short and was not sent yet would get a length, and no trailers.
		a.write(nil, true)
		h := a.w.Header()
		h.Set(http.TrailerPrefix+invokewire.HeaderFunctionError, "Unhandled")
		h.Set(http.TrailerPrefix+invokewire.HeaderErrorBody, base64.StdEncoding.EncodeToString(shorten(body)))
	} else {
		a.head("", "Unhandled")
		a.write(body, true)
	}
	a.closed = true
}

// maxTrailer is how long an error's JSON may be in a trailer, beside the tail of
// the log: net/http reads trailers from one buffer.
const maxTrailer = 6 << 10

// shorten gives an error's JSON that fits: without what is not type or message.
func shorten(body []byte) []byte {
	if len(body) <= maxTrailer {
		return body
	}
	var e struct {
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}
	_ = json.Unmarshal(body, &e)                                                                    // what it has, it has
	cut := func(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxTrailer/12)], "") } // JSON may write a byte as six
	return (&functionError{cut(e.Type), cut(e.Message)}).body()
}

// abort has the answer break off, as if the worker had died.
func (a *answer) abort() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.aborted = a.aborted || !a.closed
	a.closed = true
}

// close ends the use of the writer, and says whether the answer is to break off.
func (a *answer) close() (aborted bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return a.aborted
}

// failure is what ends an invoke that the function does not end.
type failure struct {
	error   *functionError // nil: body
	body    []byte         // an error's JSON of the function's own
	kind    string         // of body
	timeout bool
}

func (f *failure) outcome() outcome {
	switch {
	case f.timeout:
		return outcome{Status: statusTimeout}
	case f.error != nil:
		return outcome{Status: statusError, ErrorType: f.error.kind}
	}
	return outcome{Status: statusError, ErrorType: f.kind}
}

// claim makes a call the instance's, or says errBusy, errGone or what kept the
// instance from starting. A call that has been answered, and whose function has not
// asked for the next yet, is waited for.
func (i *instance) claim(ctx context.Context, c *call) error {
	for {
		i.mu.Lock()
		if i.phase == invokewire.PhaseEnding || i.dead {
			i.mu.Unlock()
			return i.lost()
		}
		before := i.call
		if before == nil {
			i.call = c
			i.mu.Unlock()
			return nil
		}
		ending := before.whole || before.decided
		i.mu.Unlock()
		if !ending {
			return errBusy
		}
		select {
		case <-before.done:
		case <-i.gone:
			return errGone
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lost says why an instance that is about to end takes no call.
func (i *instance) lost() error {
	select {
	case <-i.ready:
		if i.failed != nil {
			return i.failed
		}
	default: // it is ended before it has started
	}
	return errGone
}

// abandon gives back a claim that came to nothing.
func (i *instance) abandon(c *call) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.invoked(c)
}

// run gives a claimed call to the function, when it is ready, and waits until the
// caller has all that it waits for. The payload is read when it can go on at once.
// An error says that the function has not seen the call.
func (i *instance) run(ctx context.Context, c *call, read func(context.Context) (*payload, error)) error {
	select {
	case <-i.ready:
	case <-ctx.Done():
	}
	if ctx.Err() != nil { // also if it is ready at the same moment: nobody waits for the answer
		i.abandon(c)
		return context.Cause(ctx)
	}
	if i.failed != nil {
		i.abandon(c)
		return i.failed
	}
	p, err := read(ctx)
	if err != nil {
		i.abandon(c)
		return err
	}
	again, err := i.begin(c)
	if err != nil {
		p.done()
		i.abandon(c)
		return err
	}
	if again {
		p.yield()
	}
	if !again || i.initAgain(c) {
		i.say(c, func() error { return i.hand(c, p) })
	}
	p.done() // the function may take a while
	<-c.answered
	return nil
}

// hand gives thaw-init a call. It returns when that has all of it, or is killed:
// by a timeout, or here because a long payload has had its turn for long enough.
func (i *instance) hand(c *call, p *payload) error {
	if p.large {
		_ = i.box.conn.SetWriteDeadline(time.Now().Add(p.of.handing))
		defer func() { _ = i.box.conn.SetWriteDeadline(time.Time{}) }()
	}
	return i.box.frames.WriteInvoke(c.invoke, p.bytes.Bytes())
}

// begin makes the instance busy. again: it has to be initialised before.
func (i *instance) begin(c *call) (again bool, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.phase == invokewire.PhaseEnding || i.dead {
		return false, errGone
	}
	i.setPhase(invokewire.PhaseBusy)
	i.freezer.Stop()
	i.thaw()
	i.invokes++
	c.kind = invokewire.StartWarm
	if i.invokes == 1 {
		c.kind = i.kind
	}
	c.init, i.init = i.init, 0
	c.began, c.initing = i.since, i.stale
	c.invoke.DeadlineMs = c.began.Add(i.spec.Timeout).UnixMilli()
	i.log.begin(c.tail, i.lines.start(c.began, c.invoke.RequestID))
	c.timer = time.AfterFunc(i.spec.Timeout, func() {
		i.fail(c, failure{error: timeoutError(c.invoke.RequestID, i.spec.Timeout), timeout: true})
	})
	return i.stale, nil
}

// sayLimit is how long thaw-init may still take to hear of a call that has failed: it
// has had the call's time.
const sayLimit = time.Second

// say tells thaw-init of a call, and reports whether it was told: not of one that
// is decided, since what comes after a reset is of the next.
func (i *instance) say(c *call, write func() error) bool {
	c.saying.Lock()
	defer c.saying.Unlock()
	i.mu.Lock()
	decided := c.decided
	i.mu.Unlock()
	if decided {
		return false
	}
	if err := write(); err != nil {
		i.box.kill() // read fails the call
		return false
	}
	return true
}

// initAgain runs the init that has failed, or that a failure undid, within an
// invoke, whose time it takes. It reports whether the function is ready.
func (i *instance) initAgain(c *call) bool {
	drain(i.inits)
	told := i.say(c, func() error {
		i.mu.Lock()
		grace := i.grace()
		i.mu.Unlock()
		i.reset("failure", grace) // what an exit between invokes has left
		i.mu.Lock()
		c.exited = nil
		i.mu.Unlock()
		return i.box.frames.WriteJSON(invokewire.FrameSetup, setup(i.spec, &i.box.root.config, i.log.name, i.w.userOf(i.spec.Tenant)))
	})
	if !told {
		return false
	}
	select {
	case <-i.inits: // it is done: a failure ends the call
	case <-c.answered: // by a failure or a timeout
		return false
	case <-i.over:
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.stale = c.decided
	return !c.decided
}

// initDone is told that an init is done. A process may have ended since.
func (i *instance) initDone(d *invokewire.InitDone) {
	i.mu.Lock()
	i.extensions = d.Extensions
	c := i.call
	var e *invokewire.Exited
	if c != nil && c.initing {
		c.initing, e = false, c.exited
	}
	i.mu.Unlock()
	if e != nil {
		i.fail(c, failure{error: i.exitError(c, e)})
	}
	put(i.inits, initResult{})
}

// initFailed is told why an init has failed. Of one within a call that is what the
// caller gets, whatever else comes of it.
func (i *instance) initFailed(f *invokewire.InitFailed) {
	i.mu.Lock()
	c := i.call
	within := c != nil && c.initing
	i.mu.Unlock()
	if within {
		i.fail(c, i.initFailure(c, f))
		return
	}
	put(i.inits, initResult{f})
}

// initFailure is what a caller gets whose function's init failed.
func (i *instance) initFailure(c *call, f *invokewire.InitFailed) failure {
	switch {
	case len(f.Body) > 0:
		return failure{body: f.Body, kind: errorOf(f)}
	case f.Exit != nil:
		return failure{error: i.exitError(c, f.Exit)}
	}
	return failure{error: &functionError{errorOf(f), "RequestId: " + c.invoke.RequestID + " Error: " + f.Cause}}
}

// takeAnswer takes what the function says of a call.
func (i *instance) takeAnswer(f invokewire.Frame) error {
	i.mu.Lock()
	c := i.call
	heard := c != nil && !c.began.IsZero() && !c.decided
	i.mu.Unlock()
	if !heard {
		return nil // the end of what was given up
	}
	if err := c.follow(f.Kind); err != nil {
		return err
	}
	switch f.Kind {
	case invokewire.FrameBegin:
		var begin invokewire.Begin
		if err := c.decode(f, &begin, &begin.RequestID); err != nil {
			return err
		}
		i.mu.Lock()
		c.kindOf = begin.ErrorType
		i.mu.Unlock()
		c.out.begin(begin.ContentType, begin.ErrorType)
	case invokewire.FrameData:
		if c.invoke.Streaming {
			c.hold(len(f.Data), i.w.limits.stream)
		}
		c.out.data(f.Data, c.invoke.Streaming)
	case invokewire.FrameEnd:
		end := &invokewire.End{}
		if err := f.Decode(end); err != nil {
			return err
		}
		if end.ErrorType == invokewire.ErrorTruncated {
			c.cut = end // most likely its process has ended: that comes
			return nil
		}
		i.answered(c, end)
	case invokewire.FrameDone:
		var done invokewire.Done
		if err := c.decode(f, &done, &done.RequestID); err != nil {
			return err
		}
		if c.cut != nil {
			i.answered(c, c.cut) // nothing has ended: the function has sent no more
		}
		i.doneWith(c)
	}
	return nil
}

// follow checks that a part of an answer comes after the right one.
func (c *call) follow(k invokewire.Kind) error {
	fits := false
	switch k {
	case invokewire.FrameBegin:
		fits = c.said == 0
	case invokewire.FrameData, invokewire.FrameEnd:
		fits = c.said == invokewire.FrameBegin || c.said == invokewire.FrameData
	case invokewire.FrameDone: // without an answer: the runtime's fault
		fits = c.said == 0 || c.said == invokewire.FrameEnd
	}
	if !fits {
		return fmt.Errorf("%w: %v is not what follows in an answer", invokewire.ErrFrame, k)
	}
	c.said = k
	return nil
}

// decode reads a frame that names the call it is of.
func (c *call) decode(f invokewire.Frame, v any, id *string) error {
	if err := f.Decode(v); err != nil {
		return err
	}
	if *id != c.invoke.RequestID {
		return fmt.Errorf("%w: %v is of another invoke", invokewire.ErrFrame, f.Kind)
	}
	return nil
}

// answered is told that the function has given its whole answer.
func (i *instance) answered(c *call, end *invokewire.End) {
	if end.ErrorType != "" {
		c.out.fail(end.ErrorBody)
	}
	i.mu.Lock()
	c.whole = true
	if end.ErrorType != "" {
		c.kindOf = end.ErrorType
	}
	i.mu.Unlock()
	if c.tail { // what comes still is the log
		c.out.data(nil, true)
	} else {
		c.let()
	}
}

// let gives the caller what there is.
func (c *call) let() { c.release.Do(func() { close(c.answered) }) }

// doneWith is told that the function waits for its next invoke.
func (i *instance) doneWith(c *call) {
	i.mu.Lock()
	late, whole, kind := c.decided, c.whole, c.kindOf
	c.decided = late || whole
	i.mu.Unlock()
	switch {
	case late: // a timeout came just before
		return
	case !whole:
		i.fail(c, failure{error: &functionError{"Runtime.NoResponse", "RequestId: " + c.invoke.RequestID + " Error: the runtime asked for the next invoke before it had answered"}})
		return
	}
	o := outcome{Status: statusSuccess}
	if kind != "" {
		o = outcome{Status: statusError, ErrorType: kind, told: true}
	}
	i.finish(c, o, time.Since(c.began))
}

// fail ends a call that the function does not end: the caller is told, and all
// processes of the instance are ended, to be started again within the next call.
// It does not wait.
func (i *instance) fail(c *call, f failure) {
	i.mu.Lock()
	if i.call != c || c.decided {
		i.mu.Unlock()
		return
	}
	took := time.Since(c.began)
	if f.timeout {
		took = i.spec.Timeout
	}
	whole, grace, initing := c.whole, i.grace(), c.initing
	c.decided, c.whole, i.stale = true, true, true
	i.mu.Unlock()
	c.timer.Stop()
	lost := !f.timeout && i.box.root.lost() // most likely that is why: the caller may ask again
	i.w.work.Go(func() {
		switch {
		case whole:
		case lost:
			c.out.abort()
		default:
			c.out.fail(f.json())
		}
		if !c.tail {
			c.let()
		}
		if initing {
			i.log.platform(i.lines.initReport(time.Now(), took, phaseInvoke, f.outcome()))
		}
		i.settle(c, f, took, grace)
	})
}

// json is the error's.
func (f *failure) json() []byte {
	if f.error != nil {
		return f.error.body()
	}
	return f.body
}

// settle ends what is left of a failed call.
func (i *instance) settle(c *call, f failure, took, grace time.Duration) {
	reason := "failure"
	if f.timeout {
		reason = "timeout"
	}
	mute := time.AfterFunc(sayLimit, i.box.kill)
	c.saying.Lock() // what is being said of the call comes before
	c.saying.Unlock()
	mute.Stop()
	i.reset(reason, grace)
	switch {
	case f.timeout:
		i.log.platform(i.lines.timedOut(time.Now(), c.invoke.RequestID, i.spec.Timeout))
	case f.error != nil:
		i.log.platform(i.lines.failed(f.error))
	}
	i.finish(c, f.outcome(), took)
}

// finish writes a call's last lines and makes the instance idle.
func (i *instance) finish(c *call, o outcome, took time.Duration) {
	c.timer.Stop()
	now := time.Now()
	r := report{outcome: o, requestID: c.invoke.RequestID, duration: took, init: c.init, memory: i.spec.Memory, peak: i.box.memory(took, o.failed())}
	i.used.Store(r.peak)
	i.w.counts.invoked(c.kind, o, took)
	tail := i.log.end(i.lines.end(now, &r), i.lines.report(now, &r))
	c.text, c.billed = tail, r.billed() // read once answered is closed
	i.mu.Lock()
	i.rest()
	i.invoked(c)
	i.mu.Unlock()
	c.let()
}
