package worker

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"thaw/invokewire"
)

// Emptied tells what POST /empty has done: who measures cold starts has a worker
// end its idle instances, and with them, unless it is asked to keep=images,
// unmount images and remove what is prepared. Whoever holds a lease on an instance
// learns from its next invoke that it is gone, and goes on.
type Emptied struct {
	Ended int // instances
	Busy  int // instances that work, and stay
	// Attached is what the kernel still has of this worker: see host.Attached. It
	// is not asked with keep=images. Ask again: each mount namespace that is made
	// on this machine has copies of what was mounted, for a moment.
	Attached []string `json:",omitempty"`
}

// empty ends what nobody uses. Starts go on, and may find nothing prepared.
func (w *Worker) empty(ctx context.Context, images bool) (e Emptied, err error) {
	w.mu.Lock()
	all := slices.Collect(maps.Values(w.instances))
	w.mu.Unlock()
	var ended, busy atomic.Int64
	var ends errgroup.Group
	ends.SetLimit(endsAtOnce)
	for _, i := range all {
		ends.Go(func() error {
			err := w.end(ctx, i, false)
			if errors.Is(err, errBusy) {
				busy.Add(1)
				return nil
			}
			ended.Add(1)
			return err
		})
	}
	err = ends.Wait()
	e.Ended, e.Busy = int(ended.Load()), int(busy.Load())
	if err != nil || !images {
		return e, err
	}
	w.blanks.drain()
	err = errors.Join(w.slots.drain(ctx), w.roots.drop(ctx, func(*root) bool { return true }))
	if err == nil {
		e.Attached, err = w.o.Host.Attached()
	}
	return e, err
}

func (w *Worker) serveEmpty(rw http.ResponseWriter, r *http.Request) {
	keep := r.URL.Query().Get("keep")
	if keep != "" && keep != "images" {
		refuse(rw, http.StatusBadRequest, errors.New("keep: want images or nothing"))
		return
	}
	e, err := w.empty(context.WithoutCancel(r.Context()), keep == "") // half of it helps nobody
	if err != nil {
		refuse(rw, http.StatusInternalServerError, err)
		return
	}
	reply(rw, http.StatusOK, e)
}

func (w *Worker) servePins(rw http.ResponseWriter, _ *http.Request) {
	pins := []invokewire.Pin{}
	if w.o.Pins != nil {
		pins = append(pins, w.o.Pins()...)
	}
	reply(rw, http.StatusOK, pins)
}
