package worker

import (
	"context"
	"slices"
	"sync"

	"thaw/host"
)

// mostBlanks is how many agents are kept started ahead: a worker gets to know new
// versions now and then, and seldom more than two in the time that it takes to
// start another agent. Each takes 1 MB of its own.
const mostBlanks = 2

// blanks are agents that are started ahead by one goroutine, fill, and that wait
// for an image. It is safe for concurrent use.
type blanks struct {
	start func(context.Context) (*host.Blank, error)
	want  int
	kick  kick

	making sync.Mutex // held while fill starts one; taken before mu
	mu     sync.Mutex // guards what follows
	free   []*host.Blank
	empty  bool // none are to be started until one is asked for
}

func newBlanks(want int, start func(context.Context) (*host.Blank, error)) *blanks {
	return &blanks{start: start, want: want, kick: make(kick, 1)}
}

// take gives a blank agent, or nil. It does not wait for one. The next is started
// once whoever took this one is done, and wakes refill: the machine has better to do.
func (b *blanks) take() *host.Blank {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.empty = false
	for len(b.free) > 0 {
		one := b.free[0]
		b.free = slices.Delete(b.free, 0, 1)
		if one.Alive() {
			return one
		}
		one.Close() // it has ended already
	}
	return nil
}

// fill keeps agents started until ctx ends, then ends them.
func (b *blanks) fill(ctx context.Context, failed func(error)) {
	refill(ctx, b.kick, b.prepare, failed)
	b.drain()
}

// prepare starts an agent, unless none is missing.
func (b *blanks) prepare(ctx context.Context) (made bool, err error) {
	b.making.Lock()
	defer b.making.Unlock()
	b.mu.Lock()
	missing := !b.empty && len(b.free) < b.want
	b.mu.Unlock()
	if !missing {
		return false, nil
	}
	one, err := b.start(ctx)
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = append(b.free, one)
	return true, nil
}

// drain ends the agents; the next start has new ones started.
func (b *blanks) drain() {
	b.making.Lock()
	defer b.making.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, one := range b.free {
		one.Close()
	}
	b.free, b.empty = nil, true
}

func (b *blanks) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.free)
}
