package device

import (
	"context"
	"slices"
	"sync"
)

// ranges is a lock on ranges of pages: shared ones may overlap, an exclusive one
// overlaps with nothing. It is granted in order of arrival, so nobody starves.
// Who holds a range asks for no other, so there is no order to keep and no
// deadlock.
type ranges struct {
	mu    sync.Mutex // guards queue and every left in it
	queue []*held    // held and waited for, in order of arrival
}

// held is a range that is locked or waited for.
type held struct {
	from, to  int64 // the pages from … to-1
	exclusive bool
	left      chan struct{} // closed when it leaves the queue; nil while nobody waits for that
}

// lock waits until the pages from … to-1 can be had, or ctx ends.
func (r *ranges) lock(ctx context.Context, from, to int64, exclusive bool) (*held, error) {
	h := &held{from: from, to: to, exclusive: exclusive}
	for _, left := range r.join(h) {
		select {
		case <-left:
		case <-ctx.Done():
			r.unlock(h)
			return nil, ctx.Err()
		}
	}
	return h, nil
}

// join puts h into the queue, and gives what it has to wait for.
func (r *ranges) join(h *held) []chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	var before []chan struct{}
	for _, other := range r.queue {
		if other.from < h.to && h.from < other.to && (other.exclusive || h.exclusive) {
			if other.left == nil {
				other.left = make(chan struct{})
			}
			before = append(before, other.left)
		}
	}
	r.queue = append(r.queue, h)
	return before
}

func (r *ranges) unlock(h *held) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.queue, h)
	r.queue = slices.Delete(r.queue, i, i+1)
	if h.left != nil {
		close(h.left)
	}
}
