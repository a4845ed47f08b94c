package cache

import (
	"container/heap"
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"thaw/latency"
)

// longestPause bounds how long one answer of the origin can hold up all who
// wait for it: the next answer may say so again.
const longestPause = 5 * time.Second

// slowDown is found in the errors of a tier that asks for fewer requests, as a
// bucket does with status 503: the time is for how long to ask nothing, 0 if it
// did not say.
type slowDown interface {
	error
	SlowDown() time.Duration
}

// rank says whose turn it is: reads before prefetches, then the oldest start,
// then who came first.
type rank struct {
	prefetch bool
	start    uint64 // µs since 1970, the largest number for unknown
	arrival  uint64
}

func (r rank) before(o rank) bool {
	switch {
	case r.prefetch != o.prefetch:
		return o.prefetch
	case r.start != o.start:
		return r.start < o.start
	}
	return r.arrival < o.arrival
}

// queue admits fetches from the last tier, which has to last for all workers:
// so many at a time, of so many bytes, the most urgent first. It halves the
// number when the tier asks for that, and raises it by about one with each
// round of answers that do not.
//
// A fetch is as urgent as the most urgent of those who want its chunk, also
// while it waits. Prefetches take half of the places at most, so that a read
// never waits for prefetches alone.
type queue struct {
	most      int   // fetches at a time
	mostBytes int64 // that they and what they brought may take
	times     latency.Histogram

	mu       sync.Mutex // guards what follows
	limit    float64    // fetches at a time, 1 to most
	slowed   time.Time  // when limit was halved last
	resume   time.Time  // nothing is asked before
	busy     int
	behind   int // of busy, prefetches
	bytes    int64
	arrivals uint64
	wants    map[wanted]*want
	waiting  waiters
	gaveUp   int64 // fetches whose ctx ended while they waited
	slows    int64 // answers that asked for fewer requests
}

// want is a chunk that somebody wants.
type want struct {
	users int
	rank  rank // the most urgent's
}

// waiter is a fetch that waits for its place, and then has it.
type waiter struct {
	want     *want
	size     int64
	at       int // in queue.waiting, -1 once it is admitted
	admitted chan struct{}
	behind   bool      // counted so, set with admitted
	began    time.Time // set when enter returns
}

func newQueue(most int, mostBytes int64) *queue {
	return &queue{most: most, mostBytes: mostBytes, limit: float64(most), wants: map[wanted]*want{}}
}

// join notes that one more wants a chunk; each calls leave once.
func (q *queue) join(w wanted, start uint64, prefetch bool) {
	if start == 0 {
		start = math.MaxUint64
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.arrivals++
	r := rank{prefetch, start, q.arrivals}
	found := q.wants[w]
	if found == nil {
		found = &want{rank: r}
		q.wants[w] = found
	}
	found.users++
	if r.before(found.rank) {
		found.rank = r
		heap.Init(&q.waiting)
		q.admit()
	}
}

// leave is for who does not want the chunk any more.
func (q *queue) leave(w wanted) {
	q.mu.Lock()
	defer q.mu.Unlock()
	found := q.wants[w]
	if found.users--; found.users == 0 {
		delete(q.wants, w)
	}
}

// enter waits for the chunk's turn. The caller calls exit for its place, and
// free for its bytes.
func (q *queue) enter(ctx context.Context, w wanted) (*waiter, error) {
	began := time.Now()
	mine := &waiter{size: int64(w.size), admitted: make(chan struct{})}
	q.mu.Lock()
	if mine.want = q.wants[w]; mine.want == nil { // its users have just gone
		mine.want = &want{rank: rank{prefetch: true}}
	}
	heap.Push(&q.waiting, mine)
	q.admit()
	q.mu.Unlock()
	var err error
	select {
	case <-mine.admitted:
		err = q.pause(ctx)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		mine.began = time.Now()
		q.times.Observe(mine.began.Sub(began))
		return mine, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gaveUp++
	if mine.at >= 0 {
		heap.Remove(&q.waiting, mine.at)
	} else {
		q.vacate(mine)
		q.bytes -= mine.size
	}
	q.admit()
	return nil, err
}

// pause waits while the tier wants to be asked nothing.
func (q *queue) pause(ctx context.Context) error {
	q.mu.Lock()
	left := time.Until(q.resume)
	q.mu.Unlock()
	if left <= 0 {
		return nil
	}
	return sleep(ctx, left)
}

// admit gives places to those whose turn it is. It needs mu held.
func (q *queue) admit() {
	places := int(q.limit)
	for len(q.waiting) > 0 && q.busy < places {
		next := q.waiting[0]
		if q.bytes > 0 && q.bytes+next.size > q.mostBytes {
			return // nobody passes by, or the large would wait for ever
		}
		next.behind = next.want.rank.prefetch
		if next.behind && q.behind >= max(places/2, 1) {
			return // and so are all that follow
		}
		heap.Pop(&q.waiting)
		q.busy++
		if next.behind {
			q.behind++
		}
		q.bytes += next.size
		close(next.admitted)
	}
}

// exit gives a place back, for the next to have, and learns from the answer.
func (q *queue) exit(w *waiter, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.vacate(w)
	var slow slowDown
	switch {
	case errors.As(err, &slow):
		q.slows++
		now := time.Now()
		if !w.began.Before(q.slowed) { // else it was asked before we slowed down
			q.limit, q.slowed = max(q.limit/2, 1), now
		}
		if until := now.Add(min(slow.SlowDown(), longestPause)); until.After(q.resume) {
			q.resume = until
		}
	case err == nil:
		q.limit = min(q.limit+1/q.limit, float64(q.most))
	}
	q.admit()
}

// vacate needs mu held.
func (q *queue) vacate(w *waiter) {
	q.busy--
	if w.behind {
		q.behind--
	}
}

// free gives back the bytes of a fetch.
func (q *queue) free(size int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= size
	q.admit()
}

func (q *queue) stats() QueueStats {
	q.mu.Lock()
	defer q.mu.Unlock()
	return QueueStats{
		Limit: q.limit, Most: q.most, Busy: q.busy, Prefetches: q.behind, Waiting: len(q.waiting),
		Bytes: q.bytes, GaveUp: q.gaveUp, SlowDowns: q.slows,
	}
}

// waiters is a heap, the most urgent first.
type waiters []*waiter

// Len, Less, Swap, Push and Pop are heap.Interface's.
func (h waiters) Len() int           { return len(h) }
func (h waiters) Less(i, j int) bool { return h[i].want.rank.before(h[j].want.rank) }
func (h waiters) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push adds at the end.
func (h *waiters) Push(x any) {
	w := x.(*waiter)
	w.at = len(*h)
	*h = append(*h, w)
}

// Pop removes the last.
func (h *waiters) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h, w.at = old[:len(old)-1], -1
	return w
}
