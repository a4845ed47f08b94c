package builder

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"thaw/cluster"
	"thaw/functions"
)

// stock is an origin with what functions need of it, in a world that goes on
// whenever the sweeper looks or does something.
type stock struct {
	t     *testing.T
	r     *rand.Rand
	now   time.Time
	keep  time.Duration
	next  int
	there map[Thing]bool
	born  map[Thing]time.Time // stored by requests under way, that will refer to it or die before this
	used  map[Thing]bool
	calm  bool // nothing happens any more
}

var errKilled = errors.New("killed")

// step lets something happen, and tells whether the sweeper is killed.
func (s *stock) step() error {
	if s.calm {
		return nil
	}
	for range s.r.IntN(4) {
		switch s.r.IntN(5) {
		case 0: // a request, or a build, stores something
			s.next++
			t := Thing{functions.ID{Account: account, Name: string(rune('a' + s.r.IntN(4)))}, fmt.Sprint("key", s.next)}
			s.there[t], s.born[t] = true, s.now.Add(s.keep-1)
		case 1: // and refers to it, in time
			for t, until := range s.born {
				if !s.now.After(until) && s.r.IntN(2) == 0 {
					s.used[t] = true
					delete(s.born, t)
				}
			}
		case 2: // or is killed
			for t := range s.born {
				if s.r.IntN(4) == 0 {
					delete(s.born, t)
				}
			}
		case 3: // a version is deleted, or replaced
			for t := range s.used {
				if s.r.IntN(3) == 0 {
					delete(s.used, t)
				}
			}
		case 4:
			s.pass(s.keep / 4)
		}
	}
	if s.r.IntN(60) == 0 {
		return errKilled
	}
	return nil
}

// pass lets time pass: requests that have not got on until theirs are dead.
func (s *stock) pass(d time.Duration) {
	s.now = s.now.Add(d)
	maps.DeleteFunc(s.born, func(_ Thing, until time.Time) bool { return s.now.After(until) })
}

func (s *stock) Each(_ context.Context, f func(Thing) error) error {
	all := slices.SortedFunc(maps.Keys(s.there), func(a, b Thing) int { return cmpText(a.String()+a.Key, b.String()+b.Key) })
	for _, t := range all {
		if err := s.step(); err != nil {
			return err
		}
		if err := f(t); err != nil {
			return err
		}
	}
	return nil
}

func cmpText(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func (s *stock) Remove(_ context.Context, things []Thing) error {
	for _, t := range things {
		if err := s.step(); err != nil {
			return err
		}
		if _, soon := s.born[t]; soon || s.used[t] {
			s.t.Errorf("%v is removed, and needed", t)
		}
		delete(s.there, t)
	}
	return nil
}

func (s *stock) unused(_ context.Context, id functions.ID, keys []string) ([]string, error) {
	if err := s.step(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return s.used[Thing{id, key}] }), nil
}

func (s *stock) sweeper() *sweeper {
	return &sweeper{
		kept: s, unused: s.unused, keep: s.keep, now: func() time.Time { return s.now }, warn: func(string, ...any) {}, marks: map[Thing]mark{},
	}
}

// TestSweepModel sweeps while things are stored, referred to and dropped, and
// sweepers, requests and builds are killed: nothing that is needed, or about to
// be, is removed, and in the end nothing else is left.
func TestSweepModel(t *testing.T) {
	for seed := range uint64(40) {
		s := &stock{
			t: t, r: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(0, 0), keep: defaultKeep,
			there: map[Thing]bool{}, born: map[Thing]time.Time{}, used: map[Thing]bool{},
		}
		w := s.sweeper()
		for range 40 {
			_ = s.step()
			if _, err := w.sweep(t.Context()); err != nil {
				w = s.sweeper() // the next process
			}
			s.pass(time.Duration(s.r.Int64N(int64(s.keep))))
		}
		s.calm = true
		s.pass(s.keep)
		for range 2 + len(s.there)/maxRemoved { // the first may only mark, and each removes so many
			if _, err := w.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			s.pass(s.keep)
		}
		if !maps.Equal(s.there, s.used) {
			t.Errorf("seed %d: %d things are left, %d are needed", seed, len(s.there), len(s.used))
		}
		if len(w.marks) != 0 {
			t.Errorf("seed %d: %d marks are left", seed, len(w.marks))
		}
		if t.Failed() {
			break
		}
	}
}

// Much that is of no use goes bit by bit, and what cannot be told stays.
func TestSweepIsBounded(t *testing.T) {
	s := &stock{t: t, now: time.Unix(0, 0), keep: time.Hour, there: map[Thing]bool{}, used: map[Thing]bool{}, calm: true}
	for i := range 2*maxRemoved + 1 {
		s.there[Thing{functions.ID{Account: account, Name: fmt.Sprint("f", i)}, "key"}] = true
	}
	odd := Thing{functions.ID{Account: account, Name: "odd"}, "key"}
	s.there[odd] = true
	w := s.sweeper()
	w.unused = func(ctx context.Context, id functions.ID, keys []string) ([]string, error) {
		if id == odd.ID {
			return nil, errors.New("its record is damaged")
		}
		return s.unused(ctx, id, keys)
	}
	for i, want := range []int{0, maxRemoved, maxRemoved, 1, 0} {
		if n, err := w.sweep(t.Context()); err != nil || n != want {
			t.Errorf("sweep %d removes %d, %v, want %d", i, n, err, want)
		}
		s.pass(s.keep)
	}
	if len(s.there) != 1 || !s.there[odd] {
		t.Errorf("%d things are left", len(s.there))
	}
}

// seldom is Kept for one whose sweeps are counted.
type seldom struct {
	stock
	rounds chan struct{}
}

func (s *seldom) Each(ctx context.Context, _ func(Thing) error) error {
	select {
	case s.rounds <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A builder sweeps, again and again, and another when it has ended.
func TestSweepsGoOn(t *testing.T) {
	f := newFleet(t)
	first, second := &seldom{rounds: make(chan struct{})}, &seldom{rounds: make(chan struct{})}
	stop := f.start(func(o *Options) { o.Kept, o.Keep = first, 3*time.Millisecond })
	<-first.rounds
	<-first.rounds
	f.start(func(o *Options) { o.ID, o.Kept, o.Keep = "second", second, 3*time.Millisecond })
	stop()
	<-second.rounds
	<-second.rounds
}

// records are those that functions are in.
func (f *fleet) records() *cluster.Records {
	f.t.Helper()
	c, err := cluster.Dial(f.t.Context(), f.url, token)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	records, err := c.Records(f.t.Context(), "functions")
	if err != nil {
		f.t.Fatal(err)
	}
	return records
}

// denied is an origin that cannot be looked through.
type denied struct{ stock }

func (denied) Each(context.Context, func(Thing) error) error { return errKilled }

// A record of a version that no function names goes from a real server's records
// once it was so for long enough, whatever the origin is like; versions stay.
func TestSweepRecords(t *testing.T) {
	f := newFleet(t)
	o, closeAll, err := connect(t.Context(), f.url, f.ttl)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	records := f.records()
	id := functions.ID{Account: account, Name: "f"}
	if err := f.store.Create(t.Context(), functions.NewFunction(id, functions.Version{}, time.Now()), true); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"v/" + account + "/f/left", "v/" + account + "/gone/left"} {
		if _, err := records.Create(t.Context(), key, []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	o.Kept = &denied{}
	b := New(o)
	all, now := b.sweepers(), time.Now()
	for _, s := range all {
		s.now = func() time.Time { return now }
	}
	for round, want := range []int{3, 3, 1, 1} {
		if err := b.sweepOnce(t.Context(), all); !errors.Is(err, errKilled) {
			t.Errorf("the origin's error is %v", err)
		}
		if keys, err := records.Keys(t.Context(), "v/", "", 10); err != nil || len(keys) != want {
			t.Errorf("after sweep %d: %q, %v, want %d", round, keys, err, want)
		}
		now = now.Add(defaultKeep/2 + 1)
	}
	if n := testutil.ToFloat64(b.counts.removed.WithLabelValues(removedRecords)); n != 2 {
		t.Errorf("%v are counted", n)
	}
	fn, err := f.store.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Version(t.Context(), fn, "1"); err != nil {
		t.Error(err)
	}
}
