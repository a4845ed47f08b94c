package worker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"thaw/host"
	"thaw/invokewire"
	"thaw/text"
)

// startRecord tells how an instance was started, and how long each part took.
type startRecord struct {
	Instance string
	Function string
	Kind     string // invokewire.StartFull or StartPartial
	Began    time.Time
	Stages   stages // µs
	Error    string `json:",omitempty"`

	failed error
}

// history keeps the last starts. It is safe for concurrent use.
type history struct {
	mu     sync.Mutex // guards what follows
	last   []startRecord
	counts map[string]uint64 // by kind
}

// keptStarts is how many starts are remembered one by one.
const keptStarts = 1000

func (h *history) add(r startRecord) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Error == "" {
		h.counts[r.Kind]++
	}
	if len(h.last) >= keptStarts {
		h.last = append(h.last[:0], h.last[keptStarts/2:]...)
	}
	h.last = append(h.last, r)
}

func (h *history) list() []startRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.last)
}

func (h *history) byKind() map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// failure says why an instance is not there: what kept it from starting, for an
// invoke that comes late, or errGone.
func (h *history) failure(id string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range slices.Backward(h.last) {
		if r.Instance == id && r.failed != nil {
			return r.failed
		}
	}
	return errGone
}

// begin runs an admitted start on a goroutine of its own.
func (w *Worker) begin(i *instance) {
	w.work.Go(func() {
		defer w.admission.done(i)
		ctx, cancel := context.WithCancelCause(w.life)
		defer cancel(nil)
		i.mu.Lock()
		ending := i.phase == invokewire.PhaseEnding
		if !ending {
			i.setPhase(invokewire.PhaseInit)
		}
		i.cancel = cancel
		i.mu.Unlock()
		if ending {
			cancel(errGone)
		}
		i.start(ctx)
		if i.failed != nil {
			i.record.Error, i.record.failed = text.Line(i.failed.Error()), i.failed
		}
		w.history.add(i.record) // before its first invoke ends, after which one may look
		w.counts.started(&i.record)
		close(i.ready)
		w.blanks.kick.wake()
		if i.failed == nil {
			w.log.Info("started", "instance", i.id, "function", i.spec.Function, "version", i.spec.Version, "start", i.kind, "stages", i.record.Stages)
			return
		}
		if ctx.Err() == nil {
			w.log.Error("an instance cannot be started", "instance", i.id, "function", i.spec.Function, "cause", i.failed)
		}
		_ = w.end(w.life, i, true)
	})
}

// open is the platform's part of a start: slot, root, sandbox.
func (i *instance) open(ctx context.Context) (err error) {
	w := i.w
	i.record = startRecord{Instance: i.id, Function: i.spec.Function}
	if err := w.force(ctx, i); err != nil {
		return err
	}
	watch := newStopwatch()
	i.record.Began, i.record.Stages = watch.began, watch.stages
	prepared, kind := w.takeSlot(i), invokewire.StartPartial
	if prepared == nil {
		kind = invokewire.StartFull
		if prepared, err = w.makeSlot(ctx, kindOf(i.spec), false); err != nil {
			return err
		}
	}
	watch.lap("slot")
	v, fresh, err := w.roots.use(ctx, i.spec, w.blanksFor(i))
	if err != nil {
		return errors.Join(err, prepared.close(context.WithoutCancel(ctx)))
	}
	if fresh {
		kind = invokewire.StartFull
		for stage, took := range v.stages {
			watch.stages[stage] = took
		}
		watch.last = time.Now()
	}
	watch.lap("wait") // for another start's root
	i.kind, i.record.Kind = kind, kind
	i.box, err = w.newBox(ctx, i.spec, prepared, v, watch)
	return err
}

// takeSlot gives a prepared slot, or nil.
func (w *Worker) takeSlot(i *instance) *slot {
	if i.force == invokewire.StartFull {
		return nil
	}
	for {
		s := w.slots.take(kindOf(i.spec))
		if s == nil || s.alive() {
			return s
		}
		w.log.Warn("a sandbox that was prepared has ended by itself")
		w.work.Go(func() { _ = s.close(w.life) }) // what is left of it thaw prune removes
	}
}

// blanksFor tells where a start takes an agent from if its image is not mounted.
func (w *Worker) blanksFor(i *instance) func() *host.Blank {
	if i.force == invokewire.StartFull {
		return nil
	}
	return w.blanks.take
}

// force brings about what a start is to find, for experiments: nothing, or all.
func (w *Worker) force(ctx context.Context, i *instance) error {
	switch i.force {
	case invokewire.StartFull:
		return w.roots.drop(ctx, func(v *root) bool { return v.key == rootKey(i.spec) })
	case invokewire.StartPartial:
		v, _, err := w.roots.use(ctx, i.spec, w.blanks.take)
		if err != nil {
			return err
		}
		w.roots.release(v)
		return w.slots.ensure(ctx, kindOf(i.spec))
	}
	return nil
}

// end ends an instance and waits until nothing is left of it. One that works is
// errBusy, unless forced.
func (w *Worker) end(ctx context.Context, i *instance, force bool) error {
	i.mu.Lock()
	if i.phase == invokewire.PhaseEnding {
		i.mu.Unlock()
		select {
		case <-i.gone:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if i.call != nil && !force {
		i.mu.Unlock()
		return errBusy
	}
	i.setPhase(invokewire.PhaseEnding)
	i.ended = i.ended || !i.dead && w.leaving.Load()
	if i.cancel != nil {
		i.cancel(errGone)
	}
	if i.freezer != nil {
		i.freezer.Stop()
	}
	i.thaw()
	i.mu.Unlock()
	w.unqueue(i)
	<-i.ready
	i.shutDown()
	err := i.close(context.WithoutCancel(ctx))
	w.forget(i)
	close(i.gone)
	if err != nil {
		w.log.Error("something of an instance is left: thaw prune removes it", "instance", i.id, "cause", err)
	}
	return err
}

// endOn ends the instances on a root whose agent has ended; those that start, once
// they have. Their callers may ask again: not the function has failed.
func (w *Worker) endOn(v *root) {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.instances))
	w.mu.Unlock()
	for _, i := range all {
		w.work.Go(func() {
			if <-i.ready; i.failed != nil || i.box.root != v {
				return
			}
			i.mu.Lock()
			i.ended = true
			i.mu.Unlock()
			_ = w.end(w.life, i, true)
		})
	}
}

// withdraw ends an instance whose start has not begun; else it is errBusy.
func (w *Worker) withdraw(ctx context.Context, i *instance) error {
	if !w.unqueue(i) {
		return errBusy
	}
	return w.end(ctx, i, true)
}

// unqueue takes a start back, and says whether it had not begun.
func (w *Worker) unqueue(i *instance) bool {
	if !w.admission.remove(i) {
		return false
	}
	i.failed = errGone
	close(i.over)
	close(i.ready)
	return true
}

// shutDown gives extensions time to end.
func (i *instance) shutDown() {
	i.mu.Lock()
	grace, quiet := i.grace(), i.call == nil && !i.dead
	i.mu.Unlock()
	if i.failed != nil || !quiet || grace == 0 {
		return
	}
	_ = i.box.boost() // what is throttled needs longer
	if i.box.frames.WriteJSON(invokewire.FrameShutdown, invokewire.Stop{Reason: "spindown", GraceMs: grace.Milliseconds()}) != nil {
		return
	}
	late := time.NewTimer(grace + i.w.limits.reset)
	defer late.Stop()
	select {
	case <-i.over:
	case <-late.C:
	}
}

// close ends all that is left of an instance.
func (i *instance) close(ctx context.Context) (err error) {
	if i.box != nil {
		i.box.kill()
	}
	<-i.over
	i.mu.Lock()
	c := i.call
	running := c != nil && !c.began.IsZero()
	ours := running && i.ended && !c.whole
	i.mu.Unlock()
	if running {
		if ours { // not the function has failed, and its caller may ask again
			c.out.abort()
		}
		i.fail(c, failure{error: exitError(c.invoke.RequestID, "signal: killed")})
		<-c.done
	}
	if i.box != nil {
		err = i.box.close(ctx)
	}
	i.log.close()
	return err
}
