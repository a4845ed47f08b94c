package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"thaw/invokewire"
)

const (
	// freezeAfter is how long an instance is idle before it is frozen.
	freezeAfter = 100 * time.Millisecond
)

// limits bound what an instance does by itself. They are fields for the tests,
// whose machines may be slow, and which do not wait for a long stream.
type limits struct {
	init  time.Duration // of an init outside of an invoke
	reset time.Duration // for thaw-init to end processes that were killed
	// Grace for extensions when their processes are ended.
	internal, external time.Duration
	stream             int // bytes a second of a streamed answer, beyond streamBurst
}

// usualLimits has init, grace and streams as Lambda has them.
func usualLimits() limits {
	return limits{init: 10 * time.Second, reset: 3 * time.Second, internal: 500 * time.Millisecond, external: 2 * time.Second, stream: streamRate}
}

// instance is one execution environment of a function version.
type instance struct {
	w     *Worker
	id    string
	spec  *invokewire.Spec
	force string
	asked time.Time // when it was to be started
	lines platformLines
	log   *stream

	ready  chan struct{} // closed when the start is over: what follows is set
	failed error         // the platform could not start it
	box    *box
	kind   string // StartFull or StartPartial
	record startRecord

	inits   chan initResult // of the init under way
	resets  chan struct{}   // one for each reset that is done
	over    chan struct{}   // closed when the sandbox has ended, and nothing is read any more
	gone    chan struct{}   // closed when nothing is left
	used    atomic.Int64    // bytes of memory, as measured last
	written atomic.Int64    // bytes of disk that /tmp takes, as measured last
	logged  pace            // of what read has taken

	mu         sync.Mutex // guards what follows
	phase      string
	since      time.Time
	invokes    uint64
	call       *call         // claimed by an invoke, until it is done
	init       time.Duration // of the init that no REPORT has told yet
	stale      bool          // it has to be initialised again, within an invoke
	waking     bool          // it is frozen, or about to be
	extensions []invokewire.Extension
	freezer    *time.Timer
	cancel     context.CancelCauseFunc // of the start
	dead       bool                    // the sandbox has ended by itself
	ended      bool                    // by its worker, in the midst of what it does
}

// initResult is how an init ended.
type initResult struct {
	failed *invokewire.InitFailed // nil: it is done
}

func (w *Worker) newInstance(s invokewire.Start) (*instance, error) {
	now := time.Now()
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	i := &instance{
		w: w, id: s.ID, spec: &s.Spec, force: s.Force, phase: invokewire.PhaseQueued, asked: now, since: now,
		lines: platformLines{json: s.Spec.LogJSON, function: s.Spec.Function, version: s.Spec.Version, runtime: s.Spec.Runtime, region: s.Spec.Region},
		ready: make(chan struct{}), inits: make(chan initResult, 1), resets: make(chan struct{}, 1), over: make(chan struct{}), gone: make(chan struct{}),
	}
	i.used.Store(min(reserve, int64(s.Spec.Memory)<<20))
	var err error
	i.log, err = w.logs.open(s.Spec.Account, s.Spec.Function, streamName(i.since, &s.Spec, hex.EncodeToString(random[:])))
	return i, err
}

// setPhase is for those who hold mu.
func (i *instance) setPhase(phase string) { i.phase, i.since = phase, time.Now() }

// state is what others are told.
func (i *instance) state() invokewire.InstanceState {
	i.mu.Lock()
	defer i.mu.Unlock()
	return invokewire.InstanceState{
		ID: i.id, Key: i.spec.Key(), Account: i.spec.Account, Function: i.spec.Function, Version: i.spec.Version,
		Phase: i.phase, Memory: i.spec.Memory, Asked: i.asked, Since: i.since, Invokes: i.invokes, LogStream: i.log.name,
	}
}

// errEnded says that a function ended more than its own processes, such as all
// that shared its memory: another worker starts it no better.
var errEnded = errors.New("the sandbox ended while the function was initialised")

// start runs the platform's part of a start and the init. It is called once, before
// ready is closed.
func (i *instance) start(ctx context.Context) {
	slow := time.AfterFunc(turnTime, func() { i.w.admission.keeps(i, turnAccount) })
	opening, stop := context.WithTimeoutCause(ctx, startLimit, errSlow)
	i.failed = i.open(opening)
	stop()
	slow.Stop()
	if i.failed != nil {
		if ctx.Err() != nil {
			i.failed = context.Cause(ctx)
		}
		close(i.over)
		return
	}
	i.w.work.Go(i.read)
	i.log.platform(i.lines.initStart(time.Now()))
	began, over := time.Now(), make(chan struct{})
	i.w.work.Go(func() { i.w.admission.giveWay(i, i.box.group, over) })
	o, failed := i.initialise(ctx, time.NewTimer(i.w.limits.init))
	close(over)
	took := time.Since(began)
	if o.Status == statusTimeout { // the rest is what its processes took to end
		took = i.w.limits.init
	}
	i.record.Stages["init"] = took.Microseconds()
	if ctx.Err() != nil { // it is to end
		i.failed = context.Cause(ctx)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if failed {
		i.log.platform(i.lines.initReport(time.Now(), took, phaseInit, o))
		i.stale = true
	} else {
		i.init = took
		i.w.initialised(i.box.root, i.spec)
	}
	if i.box.root.lost() {
		i.failed = errAgent
	} else if i.dead {
		i.failed = errEnded
	} else if err := i.box.limit(); err != nil {
		i.failed = err
	}
	i.rest()
}

// rest makes the instance idle, unless it is to end. mu is held.
func (i *instance) rest() {
	if i.phase == invokewire.PhaseEnding || i.dead {
		return
	}
	i.setPhase(invokewire.PhaseIdle)
	if i.freezer == nil {
		i.freezer = time.AfterFunc(freezeAfter, i.freeze)
	} else {
		i.freezer.Reset(freezeAfter)
	}
}

// invoked says that the invoke is done. mu is held.
func (i *instance) invoked(c *call) {
	if c != nil && i.call == c {
		i.call = nil
		close(c.done)
	}
}

// initialise has extensions and runtime started, and waits until they are ready,
// or have failed, or limit fires; then all processes are ended.
func (i *instance) initialise(ctx context.Context, limit *time.Timer) (o outcome, failed bool) {
	defer limit.Stop()
	drain(i.inits)
	setup := setup(i.spec, &i.box.root.config, i.log.name, i.w.userOf(i.spec.Tenant))
	if err := i.box.frames.WriteJSON(invokewire.FrameSetup, setup); err != nil {
		<-i.over // nobody reads it any more: the sandbox ends, or is ended
		return outcome{Status: statusError, ErrorType: errorOf(nil)}, true
	}
	var result initResult
	select {
	case result = <-i.inits:
		if result.failed == nil {
			return outcome{Status: statusSuccess}, false
		}
		o = outcome{Status: statusError, ErrorType: errorOf(result.failed)}
	case <-limit.C:
		o = outcome{Status: statusTimeout}
	case <-i.over:
		return outcome{Status: statusError, ErrorType: errorOf(nil)}, true
	case <-ctx.Done():
		return outcome{Status: statusTimeout}, true
	}
	i.reset("failure", 0)
	return o, true
}

func drain[T any](c chan T) {
	select {
	case <-c:
	default:
	}
}

// errorOf names the failure of an init.
func errorOf(f *invokewire.InitFailed) string {
	if f == nil || f.ErrorType == "" {
		return "Runtime.ExitError"
	}
	return f.ErrorType
}

// reset has thaw-init end all processes but itself, and waits for it. An instance
// that does not do so in time is killed.
func (i *instance) reset(reason string, grace time.Duration) {
	drain(i.resets)
	late := time.NewTimer(grace + i.w.limits.reset)
	defer late.Stop()
	_ = i.box.conn.SetWriteDeadline(time.Now().Add(i.w.limits.reset)) // it may not read any more
	err := i.box.frames.WriteJSON(invokewire.FrameReset, invokewire.Stop{Reason: reason, GraceMs: grace.Milliseconds()})
	_ = i.box.conn.SetWriteDeadline(time.Time{})
	if err == nil {
		select {
		case <-i.resets:
			return
		case <-i.over:
			return
		case <-late.C:
		}
	}
	i.box.kill()
	<-i.over
}

// grace is how long extensions may take to end. mu is held.
func (i *instance) grace() (d time.Duration) {
	for _, e := range i.extensions {
		if e.Internal {
			d = max(d, i.w.limits.internal)
		} else {
			d = i.w.limits.external
		}
	}
	return d
}

// read takes what thaw-init says until the sandbox has ended.
func (i *instance) read() {
	for {
		frame, err := i.box.frames.Read()
		if err == nil {
			err = i.take(frame)
		}
		if err != nil {
			break
		}
	}
	i.box.kill() // if it has only closed the connection, or says what is no frame
	i.box.wait()
	i.box.memory(0, true) // a report may come after the group has gone
	i.mu.Lock()
	i.dead = true
	asked, starting := i.phase == invokewire.PhaseEnding, i.phase == invokewire.PhaseInit
	i.mu.Unlock()
	close(i.over) // who waits for it finds that the sandbox is dead
	if asked {
		return
	}
	i.w.log.Warn("an instance has ended by itself", "instance", i.id, "function", i.spec.Function)
	if !starting { // else who starts it sees to it
		i.w.work.Go(func() { _ = i.w.end(i.w.life, i, true) })
	}
}

// take is read's for one frame.
func (i *instance) take(f invokewire.Frame) error {
	switch f.Kind {
	case invokewire.FrameLog:
		_, text, err := f.Log()
		if err == nil {
			i.log.write(text)
			if ahead := i.logged.take(len(text), logRate, logBurst, time.Now()); ahead > 0 {
				time.Sleep(ahead) // its writers wait meanwhile, and nobody else does
			}
		}
		return err
	case invokewire.FrameInitDone:
		var done invokewire.InitDone
		if err := f.Decode(&done); err != nil {
			return err
		}
		i.initDone(&done)
	case invokewire.FrameInitFailed:
		failed := &invokewire.InitFailed{}
		if err := f.Decode(failed); err != nil {
			return err
		}
		i.initFailed(failed)
	case invokewire.FrameResetDone:
		put(i.resets, struct{}{})
	case invokewire.FrameHello:
		var hello invokewire.Hello
		if err := f.Decode(&hello); err != nil {
			return err
		}
		if hello.Protocol != invokewire.FrameProtocol {
			return fmt.Errorf("thaw-init speaks protocol %d, not %d", hello.Protocol, invokewire.FrameProtocol)
		}
	case invokewire.FrameExited:
		exited := &invokewire.Exited{}
		if err := f.Decode(exited); err != nil {
			return err
		}
		i.exited(exited)
	default:
		return i.takeAnswer(f)
	}
	return nil
}

// put says what somebody may wait for. What was said before is of no interest.
func put[T any](c chan T, v T) {
	drain(c)
	select {
	case c <- v:
	default:
	}
}

// exited is told that a process has ended that should not have. In an init that
// may be why it fails, which is told before or after: initFailed knows more. In one
// that gets done all the same the function is not ready any more, as after it.
func (i *instance) exited(e *invokewire.Exited) {
	i.mu.Lock()
	c := i.call
	switch {
	case c == nil || c.began.IsZero():
		i.stale = true
		c = nil
	case c.initing:
		c.exited = cmp.Or(c.exited, e)
		c = nil
	}
	i.mu.Unlock()
	if c != nil {
		i.fail(c, failure{error: i.exitError(c, e)})
	}
}

// exitError words the end of a process.
func (i *instance) exitError(c *call, e *invokewire.Exited) *functionError {
	how := ""
	switch {
	case e.Signal != 0:
		how = "signal: " + syscall.Signal(e.Signal).String()
	case e.Status != 0:
		how = "exit status " + strconv.Itoa(e.Status)
	}
	if e.Name != "" {
		return &functionError{cmp.Or(e.ErrorType, "Extension.Crash"), "RequestId: " + c.invoke.RequestID + " Error: " + how}
	}
	return exitError(c.invoke.RequestID, how)
}

// freeze stops an idle instance. It runs on a timer's goroutine, never on that of
// a caller.
func (i *instance) freeze() {
	if !i.drowse() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), freezeLimit)
	defer cancel()
	i.frozen(i.box.group.Freeze(ctx))
}

// drowse says that the instance is about to be frozen, if it is idle.
func (i *instance) drowse() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	idle := i.phase == invokewire.PhaseIdle && !i.waking
	i.waking = i.waking || idle
	return idle
}

// frozen undoes a freeze that an invoke came before, even if that has ended: the
// next would find an instance that nobody thaws. One that took too long is tried
// again; else the instance runs on, and costs what it uses.
func (i *instance) frozen(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case !i.waking:
		_ = i.box.group.Thaw()
	case errors.Is(err, context.DeadlineExceeded): // it has been thawed
		i.waking = false
		i.freezer.Reset(freezeAfter)
	}
}

// freezeLimit bounds a freeze: on cgroup v1 it may take 170 ms, on a busy machine
// more.
const freezeLimit = 2 * time.Second

// thaw lets the instance run. mu is held.
func (i *instance) thaw() {
	if i.waking {
		i.waking = false
		_ = i.box.group.Thaw()
	}
}

// errGone says that the instance has ended, or is about to.
var errGone = errors.New("the instance is gone")

// errSlow says that the platform's part of a start has taken startLimit.
var errSlow = errors.New("the sandbox did not start in time")

// errBusy says that the instance works.
var errBusy = errors.New("the instance is busy")
