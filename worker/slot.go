package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"thaw/cgroups"
	"thaw/host"
	"thaw/invokewire"
	"thaw/network"
	"thaw/sandbox"
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

// slotTmp is the size of /tmp, in MB, that slots are prepared with at first:
// Lambda's default, which nearly all functions have.
const slotTmp = 512

// slotKind is what slots differ in.
type slotKind struct {
	tmp    int  // MB
	egress bool // there is a way out
}

func kindOf(s *invokewire.Spec) slotKind { return slotKind{s.Tmp, s.Egress} }

// slot is what an instance needs and no version decides: its folder, its name in
// the cgroups, its /tmp. One that is prepared ahead has a sandbox as well, with
// its network and thaw-init running, that waits for the root of a version;
// gVisor's cannot be given one, and has the network only.
type slot struct {
	kind    slotKind
	host    *host.Instance
	tmp     string             // folder
	network *network.Namespace // nil: it has no way out
	process *sandbox.Process   // nil: it is not started
	conn    net.Conn
	frames  *invokewire.Frames
	group   *cgroups.Group
}

// slotMemory is what a sandbox may take in which nothing but thaw-init runs.
const slotMemory = initMemory + 48<<20

// makeSlot makes a slot; ahead: with as much of a sandbox as can be.
func (w *Worker) makeSlot(ctx context.Context, k slotKind, ahead bool) (*slot, error) {
	i, err := w.o.Host.NewInstance(host.KindFunction, nil, nil)
	if err != nil {
		return nil, err
	}
	if ahead { // a runtime that is killed half-way leaves children, which make folders anew
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
		defer cancel()
		ctx = whole
	}
	s := &slot{kind: k, host: i}
	s.tmp, err = i.MountScratch(ctx, int64(k.tmp)<<20)
	switch {
	case err != nil || !ahead:
	case w.bare != "":
		err = i.WithBareRoot(w.bare, func(root string) error { return w.launch(ctx, s, root, slotMemory, newStopwatch()) })
	case k.egress:
		s.network, err = w.egress(ctx, s)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("preparing a slot: %w", err), s.close(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// egress makes a namespace with a way out ahead of the sandbox that is to join it.
func (w *Worker) egress(ctx context.Context, s *slot) (*network.Namespace, error) {
	if w.o.Network == nil {
		return nil, errNoNetwork
	}
	return w.o.Network.New(ctx, s.host.ID, true)
}

// alive tells whether what was started ahead still runs.
func (s *slot) alive() bool {
	if s.process == nil {
		return true
	}
	_, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", s.process.PID)) // one that has ended has none
	return err == nil
}

// close ends what runs and gives everything back.
func (s *slot) close(ctx context.Context) error {
	if s.group != nil {
		_ = s.group.Thaw()
		_ = s.group.Close()
	}
	err := s.host.End(ctx)
	if s.network != nil {
		err = errors.Join(err, s.network.Remove())
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	if s.process != nil {
		_, _ = s.process.Wait() // End has killed it
		err = errors.Join(err, s.process.Close())
	}
	return err
}

// slots are kept prepared by one goroutine, fill, of the kinds that were taken
// last. It is safe for concurrent use.
type slots struct {
	build func(context.Context, slotKind) (*slot, error)
	want  int
	kick  kick

	making sync.Mutex // held while fill prepares one; taken before mu
	mu     sync.Mutex // guards what follows
	free   []*slot    // the oldest first
	recent []slotKind // of the last want that were asked for
	empty  bool       // none are to be prepared until one is asked for
}

// newSlots expects the first ones to be asked for to be of a kind.
func newSlots(want int, first slotKind, build func(context.Context, slotKind) (*slot, error)) *slots {
	s := &slots{build: build, want: max(0, want), kick: make(kick, 1)}
	s.recent = slices.Repeat([]slotKind{first}, s.want)
	return s
}

// take gives a prepared slot, or nil. It does not wait.
func (s *slots) take(k slotKind) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.empty = false
	if s.want > 0 {
		s.recent = append(s.recent[1:], k)
	}
	defer s.kick.wake()
	for i, f := range slices.Backward(s.free) {
		if f.kind == k {
			s.free = slices.Delete(s.free, i, i+1)
			return f
		}
	}
	return nil
}

// fill keeps slots prepared until ctx ends, then removes them.
func (s *slots) fill(ctx context.Context, failed func(error)) error {
	refill(ctx, s.kick, s.prepare, failed)
	return s.clear(context.WithoutCancel(ctx))
}

// kick holds something when what is kept prepared may have become less.
type kick chan struct{}

// wake has refill look what is missing.
func (k kick) wake() {
	select {
	case k <- struct{}{}:
	default:
	}
}

// refill prepares, until ctx ends, at first and when it is woken, as long as
// something is missing.
func refill(ctx context.Context, woken kick, prepare func(context.Context) (made bool, err error), failed func(error)) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-woken:
		case <-retry.C:
		case <-ctx.Done():
			return
		}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = prepare(ctx); err != nil {
				if ctx.Err() == nil {
					failed(err)
				}
				retry.Reset(time.Second) // what is missing, disk or loop devices, may come back
				break
			}
		}
	}
}

// prepare makes one slot, in the place of one that is not asked for any more if
// there are enough, unless none is missing.
func (s *slots) prepare(ctx context.Context) (made bool, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	k, surplus, missing := s.missing()
	if !missing {
		return false, nil
	}
	if surplus != nil {
		if err := surplus.close(context.WithoutCancel(ctx)); err != nil {
			return false, err
		}
	}
	return true, s.add(ctx, k)
}

func (s *slots) add(ctx context.Context, k slotKind) error {
	one, err := s.build(ctx, k)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, one)
	return nil
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

// ensure sees to it that a slot of a kind is prepared.
func (s *slots) ensure(ctx context.Context, k slotKind) error {
	s.mu.Lock()
	there := slices.ContainsFunc(s.free, func(f *slot) bool { return f.kind == k })
	s.mu.Unlock()
	if there {
		return nil
	}
	return s.add(ctx, k)
}

// missing gives the kind of which one is missing, and takes the oldest out that
// is one too many, if its place is needed.
func (s *slots) missing() (k slotKind, surplus *slot, missing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty {
		return k, nil, false
	}
	spare := map[slotKind]int{} // more than there should be; of what is missing, less than none
	for _, f := range s.free {
		spare[f.kind]++
	}
	for _, k := range s.recent {
		spare[k]--
	}
	for _, wanted := range s.recent {
		if missing = spare[wanted] < 0; missing {
			k = wanted
			break
		}
	}
	if !missing || len(s.free) < s.want {
		return k, nil, missing
	}
	i := slices.IndexFunc(s.free, func(f *slot) bool { return spare[f.kind] > 0 })
	surplus = s.free[i] // there is one: as many are free as are wanted, and not the same
	s.free = slices.Delete(s.free, i, i+1)
	return k, surplus, true
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
		err = errors.Join(err, f.close(ctx))
	}
	s.free = nil
	return err
}
