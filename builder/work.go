package builder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"thaw/cluster"
	"thaw/functions"
)

// leasePrefix begins the keys of builds' leases.
const leasePrefix = "build/"

func leaseKey(id functions.ID) string { return leasePrefix + id.String() }

// errLost ends jobs whose lease is another's.
var errLost = errors.New("lease lost")

// work tries a job that has begun and whose lease we have, until it is settled
// or not ours any more.
func (b *Builder) work(ctx context.Context, cancel context.CancelCauseFunc, j *Job, lease *cluster.Lease) {
	var beside sync.WaitGroup
	beside.Go(func() { b.keep(ctx, lease, cancel) })
	beside.Go(func() { b.report(ctx, j) })
	began := time.Now()
	err := b.try(ctx, j)
	b.counts.worked(time.Since(began), err)
	cause := context.Cause(ctx)
	cancel(errUnwanted)
	beside.Wait()
	b.release(lease)
	switch {
	case err == nil:
		// settle has said how
	case errors.Is(err, functions.ErrConflict), errors.Is(err, functions.ErrNotFound), errors.Is(cause, errUnwanted):
		b.log.Info("not built: changed or deleted meanwhile", "function", j.ID, "build", j.Build)
	default:
		b.log.Warn("not built yet", "function", j.ID, "build", j.Build, "error", err)
	}
	b.end(j, err == nil)
}

// begin notes that a job is worked on, if it is still to be.
func (b *Builder) begin(j *Job, cancel context.CancelCauseFunc) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pending[j.ID] != j {
		return false
	}
	b.running[j.ID] = &attempt{build: j.Build, cancel: cancel}
	return true
}

// end makes room for the next. A settled job is not begun again while the watch
// has not told of it yet.
func (b *Builder) end(j *Job, settled bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.running, j.ID)
	if settled && b.pending[j.ID] == j {
		delete(b.pending, j.ID)
		b.settled[j.ID] = j.Build
	}
	j.after = time.Now().Add(b.o.pause)
	b.signalLocked()
}

// keep renews the lease, and ends the job once it is lost.
func (b *Builder) keep(ctx context.Context, lease *cluster.Lease, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(b.o.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lease.Lost():
			cancel(errLost)
			return
		case <-tick.C:
			_ = lease.Renew(ctx, []byte(b.o.ID)) // Lost tells if it matters
		}
	}
}

func (b *Builder) release(lease *cluster.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	_ = lease.Release(ctx) // else it ends by itself
}

// report writes what the job says, not too often.
func (b *Builder) report(ctx context.Context, j *Job) {
	tick := time.NewTicker(b.o.every)
	defer tick.Stop()
	written := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		j.mu.Lock()
		said := j.said
		j.mu.Unlock()
		if said == written {
			continue
		}
		if err := b.o.Functions.Progress(ctx, j.ID, j.Build, said); err != nil {
			b.log.Warn("builder: progress not shown", "function", j.ID, "error", err)
			continue
		}
		written = said
	}
}

// try converts until it succeeds, is refused, or has been tried often enough,
// and settles the build.
func (b *Builder) try(ctx context.Context, j *Job) error {
	if f, err := b.o.Functions.Get(ctx, j.ID); err != nil || f.Latest.Build != j.Build {
		return cmp.Or(err, functions.ErrConflict) // the watch lags: somebody has settled it just before the lease was free
	}
	pause := b.o.pause
	last := error(nil)
	for {
		n, err := b.count(ctx, j, 1)
		if err != nil {
			return err
		}
		if n > b.o.Tries {
			return b.settle(ctx, j, gaveUp(last, b.o.Tries))
		}
		result, err := b.o.Convert(ctx, j)
		if err == nil {
			return b.settle(ctx, j, result)
		}
		var no *Refusal
		if errors.As(err, &no) {
			return b.settle(ctx, j, functions.Result{Code: no.Code, Reason: no.Reason, ResolvedURI: j.Version.Package.ResolvedURI})
		}
		if ctx.Err() != nil { // that was not the job's fault
			b.uncount(j)
			return context.Cause(ctx)
		}
		b.log.Warn("builder: a build has failed and is tried again", "function", j.ID, "build", j.Build, "try", n, "error", err)
		last = err
		j.Report(fmt.Sprintf("Try %d of %d has failed: %s", n, b.o.Tries, sentence(err)))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
			pause = min(2*pause, longestPause)
		}
	}
}

func gaveUp(last error, tries int) functions.Result {
	reason := fmt.Sprintf("The builder has ended in each of %d tries: its log says why.", tries)
	if last != nil {
		reason = fmt.Sprintf("Given up after %d tries: %s", tries, sentence(last))
	}
	return functions.Result{Code: InternalError, Reason: reason}
}

// sentence makes an error one that may stand alone.
func sentence(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return strings.TrimSuffix(s, ".") + "."
}

// maxReason keeps a reason readable, in bytes.
const maxReason = 500

// settle writes the result, also while this builder is being ended.
func (b *Builder) settle(ctx context.Context, j *Job, r functions.Result) error {
	if errors.Is(context.Cause(ctx), errLost) || errors.Is(context.Cause(ctx), errUnwanted) {
		return context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := b.o.Functions.Settle(ctx, j.ID, j.Build, r); err != nil {
		return err
	}
	b.counts.settled(r.Code)
	if r.Code != "" {
		b.log.Info("builder: a build was refused", "function", j.ID, "build", j.Build, "code", r.Code, "reason", r.Reason)
	} else {
		b.log.Info("built", "function", j.ID, "build", j.Build)
	}
	b.forget(ctx, j.ID)
	return nil
}

// tally is the record of how often a build was begun.
type tally struct {
	Build string `json:"build"`
	Tries int    `json:"tries"`
}

// count adds to the tries of a build and gives the sum, durably.
func (b *Builder) count(ctx context.Context, j *Job, n int) (int, error) {
	for range countTries {
		r, err := b.o.Records.Get(ctx, j.ID.String())
		t := tally{Build: j.Build}
		if err == nil {
			var old tally
			if json.Unmarshal(r.Value, &old) == nil && old.Build == j.Build {
				t = old
			}
		} else if !errors.Is(err, cluster.ErrNotFound) {
			return 0, err
		}
		t.Tries += n
		value, merr := json.Marshal(t)
		if merr != nil {
			return 0, merr
		}
		if err != nil {
			_, err = b.o.Records.Create(ctx, j.ID.String(), value)
		} else {
			_, err = b.o.Records.Update(ctx, j.ID.String(), value, r.Revision)
		}
		if err == nil {
			return t.Tries, nil
		}
		if !errors.Is(err, cluster.ErrConflict) && !errors.Is(err, cluster.ErrExists) {
			return 0, err
		}
	}
	return 0, errLost // only who has the lease counts
}

// countTries is for answers that were lost.
const countTries = 3

// uncount takes a try back that was ended from outside.
func (b *Builder) uncount(j *Job) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	_, _ = b.count(ctx, j, -1) // then it counts: tries are plenty
}

// forget removes the tally of a settled build.
func (b *Builder) forget(ctx context.Context, id functions.ID) {
	r, err := b.o.Records.Get(ctx, id.String())
	if err == nil {
		_ = b.o.Records.Delete(ctx, id.String(), r.Revision) // else the next build's takes its place
	}
}
