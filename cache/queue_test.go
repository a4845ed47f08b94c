package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"thaw/chunk"
)

// wantedOf names a chunk of one byte.
func wantedOf(i int) wanted { return wanted{"r1", chunk.Name{byte(i), byte(i >> 8)}, 1} }

// line lets fetches wait behind one that holds the only place.
type line struct {
	*queue
	first *waiter

	mu    sync.Mutex // guards order
	order []int
	all   sync.WaitGroup
}

func newLine(t *testing.T) *line {
	l := &line{queue: newQueue(1, 100)}
	l.join(wantedOf(0), 1, false)
	var err error
	if l.first, err = l.enter(t.Context(), wantedOf(0)); err != nil {
		t.Fatal(err)
	}
	return l
}

// add has a fetch wait, and returns once it does.
func (l *line) add(t *testing.T, i int, start uint64, prefetch bool) {
	l.join(wantedOf(i), start, prefetch)
	l.all.Go(func() {
		w, err := l.enter(t.Context(), wantedOf(i))
		if err != nil {
			t.Error(err)
			return
		}
		l.mu.Lock()
		l.order = append(l.order, i)
		l.mu.Unlock()
		l.exit(w, nil)
		l.free(1)
		l.leave(wantedOf(i))
	})
	synctest.Wait()
}

// run lets the line go.
func (l *line) run() []int {
	l.exit(l.first, nil)
	l.free(1)
	l.leave(wantedOf(0))
	l.all.Wait()
	return l.order
}

// TestQueueOrder: reads before prefetches, older starts first, then who came
// first; a start of unknown age is the youngest.
func TestQueueOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		l.add(t, 1, 10, true)
		l.add(t, 2, 0, false)
		l.add(t, 3, 30, false)
		l.add(t, 4, 20, false)
		l.add(t, 5, 20, false)
		l.add(t, 6, 5, true)
		if got := l.run(); !slices.Equal(got, []int{4, 5, 3, 2, 6, 1}) {
			t.Errorf("order %v", got)
		}
		if len(l.wants) != 0 || l.busy != 0 || l.behind != 0 || l.bytes != 0 {
			t.Errorf("left over: %+v", l.queue)
		}
	})
}

// TestQueuePromotes: a read of what is being prefetched, and an older start's
// read of what a younger one waits for, move the fetch forward.
func TestQueuePromotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLine(t)
		for i := 1; i <= 3; i++ {
			l.add(t, i, 10, true)
		}
		l.add(t, 4, 30, false)
		l.join(wantedOf(3), 20, false)
		l.join(wantedOf(2), 40, false)
		l.join(wantedOf(1), 99, true) // changes nothing
		if got := l.run(); !slices.Equal(got, []int{3, 4, 2, 1}) {
			t.Errorf("order %v", got)
		}
	})
}

// TestQueuePrefetches: reads find a place while prefetches fill their half, and
// a single place is for both.
func TestQueuePrefetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(4, 100)
		var in atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		enter := func(i int, prefetch bool) {
			q.join(wantedOf(i), 1, prefetch)
			all.Go(func() {
				if _, err := q.enter(ctx, wantedOf(i)); err == nil {
					in.Add(1)
				}
			})
			synctest.Wait()
		}
		for i := range 6 {
			enter(i, true)
		}
		if n := in.Load(); n != 2 {
			t.Errorf("%d prefetches in 4 places, want 2", n)
		}
		for i := range 4 {
			enter(10+i, false)
		}
		if n := in.Load(); n != 4 {
			t.Errorf("%d of 4 places taken", n)
		}
		cancel()
		all.Wait()
		if q.gaveUp != 6 || len(q.waiting) != 0 || q.busy != 4 || q.bytes != 4 {
			t.Errorf("left over: %+v", q)
		}
	})
}

// TestQueueBytes: what was fetched counts until it is freed; one chunk gets in
// whatever its length.
func TestQueueBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(10, 100)
		large := wanted{"r1", chunk.Name{9}, 1000}
		w, err := q.enter(t.Context(), large)
		if err != nil {
			t.Fatal(err)
		}
		q.exit(w, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := q.enter(ctx, wantedOf(1)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("more than the bytes allow: %v", err)
		}
		q.free(1000)
		if _, err := q.enter(t.Context(), wantedOf(1)); err != nil {
			t.Error(err)
		}
	})
}

// tooFast is what a bucket says that wants fewer requests.
type tooFast struct{ pause time.Duration }

func (e tooFast) Error() string           { return "slow down" }
func (e tooFast) SlowDown() time.Duration { return e.pause }

// TestQueueSlowsDown: the places are halved once for what was under way
// together, and come back one by one; a pause that was asked for is kept.
func TestQueueSlowsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(16, 1000)
		round := func(err error) {
			t.Helper()
			var in []*waiter
			for i := range 4 {
				q.join(wantedOf(i), 1, false)
				defer q.leave(wantedOf(i))
				w, err := q.enter(t.Context(), wantedOf(i))
				if err != nil {
					t.Fatal(err)
				}
				in = append(in, w)
			}
			_ = sleep(t.Context(), time.Millisecond)
			for _, w := range in {
				q.exit(w, err)
				q.free(1)
			}
		}
		slow := fmt.Errorf("get: %w", tooFast{})
		for _, want := range []float64{8, 4} {
			if round(slow); q.limit != want {
				t.Errorf("%v places, want %v", q.limit, want)
			}
		}
		if round(errors.New("other")); q.limit != 4 {
			t.Errorf("another error made it %v places", q.limit)
		}
		if round(nil); q.limit < 4.8 || q.limit > 5 {
			t.Errorf("%v places after four answers in 4 places", q.limit)
		}
		for range 100 {
			round(nil)
		}
		if q.limit != 16 {
			t.Errorf("%v places in the end, want 16", q.limit)
		}
		round(tooFast{time.Second})
		start := time.Now()
		round(nil)
		if waited := time.Since(start); waited < time.Second {
			t.Errorf("asked again after %v, should be a second", waited)
		}
		round(tooFast{time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := q.enter(ctx, wantedOf(1)); !errors.Is(err, context.DeadlineExceeded) || q.busy != 0 || q.bytes != 0 {
			t.Errorf("%v in a pause; left over %+v", err, q)
		}
		start = time.Now()
		round(nil)
		if waited := time.Since(start); waited > longestPause {
			t.Errorf("was held up for %v", waited)
		}
	})
}

// TestQueueModel lets fetches come, go and give up in any order: the bounds
// hold, who has no place is less urgent than those that had a choice, and
// nothing is left in the end.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			const places, bytes = 4, 40
			q := newQueue(places, bytes)
			var in, most, held atomic.Int64
			var all sync.WaitGroup
			for i := range rapid.IntRange(1, 40).Draw(rt, "fetches") {
				w := wanted{"r1", chunk.Name{byte(rapid.IntRange(0, 9).Draw(rt, "chunk"))}, rapid.IntRange(1, 60).Draw(rt, "size")}
				patience := time.Duration(rapid.IntRange(1, 50).Draw(rt, "patience")) * time.Second
				work := time.Duration(rapid.IntRange(1, 9).Draw(rt, "work")) * time.Second
				after := time.Duration(rapid.IntRange(0, 9).Draw(rt, "after")) * time.Second
				prefetch, fails := rapid.Bool().Draw(rt, "prefetch"), rapid.Bool().Draw(rt, "fails")
				all.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), after+patience)
					defer cancel()
					_ = sleep(t.Context(), after)
					q.join(w, uint64(i%3), prefetch)
					defer q.leave(w)
					place, err := q.enter(ctx, w)
					if err != nil {
						return
					}
					if n := in.Add(1); n > places {
						t.Errorf("%d in %d places", n, places)
					}
					if n := held.Add(int64(w.size)); n > bytes && n > int64(w.size) {
						t.Errorf("%d bytes of %d", n, bytes)
					}
					most.Store(max(most.Load(), in.Load()))
					_ = sleep(t.Context(), work)
					in.Add(-1)
					if fails {
						err = tooFast{}
					}
					q.exit(place, err)
					_ = sleep(t.Context(), work)
					held.Add(-int64(w.size))
					q.free(int64(w.size))
				})
			}
			all.Wait()
			if len(q.wants)+len(q.waiting)+q.busy+q.behind != 0 || q.bytes != 0 || q.limit < 1 || q.limit > places {
				t.Errorf("left over: %+v", q)
			}
		})
	})
}

// TestOriginLimit has more starts read than the origin may be asked for: never
// more than the limit, and the oldest start's first.
func TestOriginLimit(t *testing.T) {
	var now, most atomic.Int64
	var mu sync.Mutex
	var order []chunk.Name
	o := newOrigin(func(ctx context.Context, name chunk.Name) error {
		mu.Lock()
		order = append(order, name)
		mu.Unlock()
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		return sleep(ctx, 10*time.Millisecond)
	})
	chunks := o.put(t, 60, small)
	folder := newFolder(t, 1<<20)
	filled(t, folder, sample(999, small)) // it is counted: nobody waits for another with a mutex, which would stop the bubble's time
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f, done := NewFetcher(FetcherOptions{Folder: folder, Upstreams: upstream(o), OriginRequests: 2}), make(chan error)
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		go func() { done <- f.Serve(ctx, l) }()
		var all sync.WaitGroup
		for i, age := range []time.Duration{time.Second, time.Hour, time.Minute} {
			c := newClient(t, ClientOptions{Folder: t.TempDir(), Dial: l.dial, Start: time.Now().Add(-age)})
			for _, want := range chunks[20*i : 20*i+20] {
				all.Go(func() { read(t, c, want) })
			}
			defer c.Close()
		}
		all.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if n := most.Load(); n > 2 {
		t.Errorf("%d at a time, want 2", n)
	}
	place := map[chunk.Name]int{}
	for i, name := range order {
		place[name] = i
	}
	var sums [3]int
	for i, c := range chunks {
		sums[i/20] += place[c.Name]
	}
	if sums[1] >= sums[2] || sums[2] >= sums[0] {
		t.Errorf("places of the youngest, oldest and middle start: %v", sums)
	}
}
