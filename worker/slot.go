package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"thaw/host"
)

// stages are how long each part of a start took, in µs.
type stages map[string]int64

// stopwatch measures them.
type stopwatch struct {
	began, last time.Time
	stages      stages
}

func newStopwatch() *stopwatch {
	now := time.Now()
	return &stopwatch{now, now, stages{}}
}

// lap ends a stage.
func (s *stopwatch) lap(stage string) {
	now := time.Now()
	s.stages[stage] += now.Sub(s.last).Microseconds()
	s.last = now
}

// slotTmp is the size of /tmp, in MB, that slots are prepared with: Lambda's
// default, which nearly all functions have.
const slotTmp = 512

// slot is what an instance needs and no function decides: its folder, its name in
// the cgroups, its /tmp.
type slot struct {
	host *host.Instance
	tmp  string // folder
	mb   int    // of tmp
}

func makeSlot(ctx context.Context, h *host.Host, mb int) (*slot, error) {
	i, err := h.NewInstance(host.KindFunction, nil, nil)
	if err != nil {
		return nil, err
	}
	tmp, err := i.MountScratch(ctx, int64(mb)<<20)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a slot: %w", err), i.End(context.WithoutCancel(ctx)))
	}
	return &slot{i, tmp, mb}, nil
}

// slots are kept prepared by one goroutine, fill. It is safe for concurrent use.
type slots struct {
	host *host.Host
	want int
	kick chan struct{} // holds something when one was taken

	making sync.Mutex // held while fill prepares one; taken before mu
	mu     sync.Mutex // guards what follows
	free   []*slot
	empty  bool // none are to be prepared until one is asked for
}

func newSlots(h *host.Host, want int) *slots {
	s := &slots{host: h, want: max(0, want), kick: make(chan struct{}, 1)}
	return s
}

// take gives a prepared slot, or nil. It does not wait.
func (s *slots) take(mb int) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty = false
	defer s.wake()
	if mb != slotTmp || len(s.free) == 0 {
		return nil
	}
	last := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return last
}

// fill keeps slots prepared until ctx ends, then removes them.
func (s *slots) fill(ctx context.Context, failed func(error)) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-s.kick:
		case <-retry.C:
		case <-ctx.Done():
			return s.clear(context.WithoutCancel(ctx))
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = s.prepare(ctx); err != nil {
				if ctx.Err() == nil {
					failed(err)
				}
				retry.Reset(time.Second) // what is missing, disk or loop devices, may come back
				break
			}
		}
	}
}

// wake has fill look what is missing.
func (s *slots) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// prepare makes one slot, unless none is missing.
func (s *slots) prepare(ctx context.Context) (made bool, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	if !s.missing() {
		return false, nil
	}
	one, err := makeSlot(ctx, s.host, slotTmp)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, one)
	return true, nil
}

// drain removes those that are prepared; the next start has new ones prepared.
func (s *slots) drain(ctx context.Context) error {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	s.empty = true
	s.mu.Unlock()
	return s.clear(ctx)
}

// ensure sees to it that a slot is prepared.
func (s *slots) ensure(ctx context.Context, mb int) error {
	if s.count() > 0 || mb != slotTmp {
		return nil
	}
	made, err := makeSlot(ctx, s.host, slotTmp)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, made)
	return nil
}

func (s *slots) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.empty && len(s.free) < s.want
}

func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.free)
}

func (s *slots) clear(ctx context.Context) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.free {
		err = errors.Join(err, f.host.End(ctx))
	}
	s.free = nil
	return err
}
