package builder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"thaw/cluster"
	"thaw/functions"
)

// Bounds of sweeping.
const (
	// defaultKeep is the longest invoke: what has been replaced or deleted may
	// still run. It is also longer than any request takes, from the package that
	// it stores to the record that refers to it.
	defaultKeep = 15 * time.Minute
	// sweepsPerKeep is how often all is looked through within that time.
	sweepsPerKeep = 3
	// maxMarks bounds the things that are known to be of no use, some 200 bytes
	// each. The others are marked once there is room.
	maxMarks = 50_000
	// maxRemoved bounds what is removed at a time.
	maxRemoved = 500
	// sweepLease is the lease of the builder that sweeps.
	sweepLease = "sweep"
)

// Thing is what is kept for a function. In the origin: a package, by the key that
// versions have of it, or a reference to an image, by its name.
type Thing struct {
	functions.ID
	Key string
}

// Kept is what the origin keeps for functions, or the records.
type Kept interface {
	// Each calls f for every thing, those of a function one after the other, and
	// ends with f's error. It first mends what a Remove that was killed has left.
	Each(ctx context.Context, f func(Thing) error) error
	// Remove removes things that nothing refers to, or will. What is gone already
	// is no error. Killed or failed anywhere, it can be called again.
	Remove(ctx context.Context, things []Thing) error
}

// sweeper removes from the origin what no version of a function refers to any
// more: a function or a version was deleted, its code was replaced, a build has
// failed, or a process was killed before it had written who needs what it stored.
// Another removes, in the same way, records of versions that no function names.
//
// A thing is marked when it is first found to be of no use, and removed if it
// still is a while after. Keys are used once (functions.Store.Unused, Unnamed), so only
// what is younger than a request may be referred to later, and that is younger
// than its mark. Marks are in memory: a builder that starts again waits again.
type sweeper struct {
	kept   Kept
	unused func(ctx context.Context, id functions.ID, keys []string) ([]string, error)
	keep   time.Duration
	now    func() time.Time
	warn   func(message string, args ...any)

	marks map[Thing]mark
	round int
}

// mark is since when a thing is of no use, and in which round it was seen last.
type mark struct {
	since time.Time
	round int
}

// sweep looks through all that is kept once. It gives how many things it has removed.
func (s *sweeper) sweep(ctx context.Context) (removed int, err error) {
	s.round++
	var due, group []Thing
	look := func() error {
		found, err := s.ripe(ctx, group)
		due, group = append(due, found...), group[:0]
		if err == nil && len(due) >= maxRemoved {
			err = errEnough
		}
		return err
	}
	err = s.kept.Each(ctx, func(t Thing) error {
		if len(group) > 0 && group[0].ID != t.ID {
			if err := look(); err != nil {
				return err
			}
		}
		group = append(group, t)
		return nil
	})
	if err == nil {
		err = look()
	}
	whole := err == nil
	if err != nil && !errors.Is(err, errEnough) {
		return 0, err
	}
	if len(due) > 0 {
		if err := s.kept.Remove(ctx, due); err != nil {
			return 0, err
		}
	}
	for _, t := range due {
		delete(s.marks, t)
	}
	for t, m := range s.marks { // gone, or used after all
		if whole && m.round != s.round {
			delete(s.marks, t)
		}
	}
	return len(due), nil
}

// errEnough ends such a look before its end.
var errEnough = errors.New("enough for this time")

// ripe marks what is of no use among one function's things, and gives what has
// been for long enough.
func (s *sweeper) ripe(ctx context.Context, group []Thing) (due []Thing, err error) {
	if len(group) == 0 {
		return nil, nil
	}
	keys := make([]string, len(group))
	for i, t := range group {
		keys[i] = t.Key
	}
	unused, err := s.unused(ctx, group[0].ID, keys)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil { // of this function nothing is removed
		s.warn("builder: cannot tell what a function needs, and removes nothing of it", "function", group[0].ID, "error", err)
		return nil, nil
	}
	for _, key := range unused {
		t := Thing{group[0].ID, key}
		m, marked := s.marks[t]
		if !marked {
			if len(s.marks) >= maxMarks {
				continue
			}
			m.since = s.now()
		}
		m.round = s.round
		s.marks[t] = m
		if s.now().Sub(m.since) >= s.keep {
			due = append(due, t)
		}
	}
	return due, nil
}

// orphans is Kept over the records of versions: their things' keys are words.
type orphans struct{ store *functions.Store }

// Each implements Kept.
func (o orphans) Each(ctx context.Context, f func(Thing) error) error {
	return o.store.EachVersion(ctx, func(id functions.ID, word string) error { return f(Thing{id, word}) })
}

// Remove implements Kept.
func (o orphans) Remove(ctx context.Context, things []Thing) error {
	words := map[functions.ID][]string{}
	for _, t := range things {
		words[t.ID] = append(words[t.ID], t.Key)
	}
	for id, of := range words {
		if err := o.store.RemoveUnnamed(ctx, id, of); err != nil {
			return err
		}
	}
	return nil
}

// sweepers are those of what the origin keeps and of the records, by what is counted.
func (b *Builder) sweepers() map[string]*sweeper {
	all := map[string]*sweeper{removedRecords: {kept: orphans{b.o.Functions}, unused: b.o.Functions.Unnamed}}
	if b.o.Kept != nil {
		all[removedThings] = &sweeper{kept: b.o.Kept, unused: b.o.Functions.Unused}
	}
	for _, s := range all {
		s.keep, s.now, s.warn, s.marks = b.o.Keep, time.Now, b.log.Warn, map[Thing]mark{}
	}
	return all
}

// sweeps has one of all builders sweep, now and then, until ctx ends.
func (b *Builder) sweeps(ctx context.Context) error {
	all := b.sweepers()
	tick := time.NewTicker(b.o.Keep / sweepsPerKeep)
	defer tick.Stop()
	for {
		if err := b.sweepOnce(ctx, all); err != nil && ctx.Err() == nil {
			b.log.Warn("builder: what no function needs stays for now", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// sweepOnce sweeps if no other builder does.
func (b *Builder) sweepOnce(ctx context.Context, all map[string]*sweeper) error {
	lease, err := b.o.Leases.Take(ctx, sweepLease, []byte(b.o.ID))
	if errors.Is(err, cluster.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	defer b.release(lease)
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.keep(ctx, lease, cancel)
	}()
	removed := map[string]int{}
	for what, s := range all { // one that fails does not keep the other from its work
		n, failed := s.sweep(ctx)
		removed[what] = n
		b.counts.removed.WithLabelValues(what).Add(float64(n))
		err = errors.Join(err, failed)
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	cancel(nil)
	<-done
	if things, records := removed[removedThings], removed[removedRecords]; things+records > 0 {
		b.log.Info("builder: removed what no function needs", removedThings, things, removedRecords, records)
	}
	return err
}
