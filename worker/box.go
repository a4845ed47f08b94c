package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/invokewire"
	"thaw/quiet"
	"thaw/sandbox"
)

const (
	// initMemory is what an instance may take beyond the function's memory, for
	// thaw-init.
	initMemory = 16 << 20
	// processLimit is how many processes and threads a function may have: Lambda's
	// 1024, and thaw-init's. gVisor's own count as well.
	processLimit      = 1024 + 64
	processLimitRunsc = 4096
	// fullCPU is the memory, in MB, that comes with one processor.
	fullCPU = 1769
	// cpuPeriod is what a share of a processor is counted over: a function with a
	// tenth of one waits 18 ms at most.
	cpuPeriod = 20 * time.Millisecond
	// functionWeight is an instance's weight once it has started, where any process
	// of the host has 100: with the same, invokes of all functions took seven to
	// twenty times as long beside one that kept starting processes.
	functionWeight = 25
	// startLimit bounds the platform's part of a start.
	startLimit = 60 * time.Second
)

// box is the sandbox of an instance, and the connection to its thaw-init: a slot
// that is somebody's.
type box struct {
	*slot
	w     *Worker
	root  *root
	share time.Duration // of each cpuPeriod

	mu      sync.Mutex // guards what follows
	peak    int64      // bytes
	most    int64      // bytes of any kind, when it was looked at
	sampled time.Time
}

// newBox makes a slot the sandbox of an instance of a function version, on a root
// that it takes over. What it has taken it gives back by close, also after an error.
func (w *Worker) newBox(ctx context.Context, s *invokewire.Spec, prepared *slot, v *root, watch *stopwatch) (*box, error) {
	b := &box{slot: prepared, w: w, root: v, share: cpuShare(s.Memory)}
	i := prepared.host
	i.Image, i.ImageID, i.Runtime, i.Command = v.keeper.Image, v.keeper.ImageID, w.runtime.Name, []string{s.ARN + ":" + s.Version}
	i.Assign(v.image, w.fetcher)
	if err := i.Save(); err != nil {
		return b, err
	}
	memory := int64(s.Memory)<<20 + initMemory
	if b.process == nil {
		return b, w.launch(ctx, prepared, v.path, memory, watch)
	}
	err := w.supervisor.GiveRoot(b.process, v.path)
	if err == nil {
		err = b.group.SetMemory(memory)
	}
	watch.lap("sandbox")
	return b, err
}

// launch starts a slot's sandbox on a root file system, with thaw-init in it.
func (w *Worker) launch(ctx context.Context, s *slot, root string, memory int64, watch *stopwatch) (err error) {
	i, pids := s.host, int64(processLimit)
	function := &sandbox.Function{Init: []string{initPath}, Tmp: s.tmp}
	if w.runtime.Name == "runsc" {
		pids = processLimitRunsc
		if s.kind.egress && s.network == nil { // it looks at its network when it starts
			if s.network, err = w.egress(ctx, s); err != nil {
				return err
			}
		}
		if s.network != nil {
			function.NetNS = s.network.Path
		}
	}
	err = sandbox.WriteBundle(sandbox.Config{
		Root: root, Bundle: i.Dir("bundle"), Cgroup: i.Cgroup(), Hostname: "localhost", Filters: w.o.Host.Filters(),
		Memory: memory, Pids: pids, Function: function,
	})
	if err != nil {
		return err
	}
	watch.lap("bundle")
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	s.conn, s.frames = ours, invokewire.NewFrames(quiet.Conn(ours))
	s.process, err = w.supervisor.Start(ctx, sandbox.Instance{ID: i.ID, Bundle: i.Dir("bundle"), State: i.Dir("runtime"), Files: []*os.File{theirs}})
	if err != nil {
		return err
	}
	watch.lap("sandbox")
	if s.group, err = w.groups.Open(i.Cgroup()); err == nil && s.kind.egress && s.network == nil {
		if w.o.Network == nil {
			return errNoNetwork
		}
		s.network, err = w.o.Network.Attach(ctx, i.ID, s.process.PID)
		watch.lap("network")
	}
	return err
}

// cpuShare is how much of each cpuPeriod a function of so much memory may run.
func cpuShare(mb int) time.Duration {
	return max(time.Millisecond, cpuPeriod*time.Duration(mb)/fullCPU) // the kernel's least is 1 ms
}

// socketpair gives two ends, the second one for another process.
func socketpair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "instance"), os.NewFile(uintptr(fds[1]), "instance")
	conn, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return conn, theirs, nil
}

// boost lifts the limit of CPU time, for an init.
func (b *box) boost() error { return b.group.Unlimited() }

// limit sets it, and has the function give way to the processes that serve all
// functions, where processors are short.
func (b *box) limit() error {
	return errors.Join(b.group.SetQuota(b.share, cpuPeriod), b.group.SetWeight(functionWeight))
}

// The memory of a busy instance is looked at after each invoke that has taken
// sampleAfter or more memory of any kind than was ever taken before, and every
// sampleEvery: a look takes some 200 µs, and what single processes had at most is
// remembered between.
const (
	sampleAfter = 20 * time.Millisecond
	sampleEvery = 100 * time.Millisecond
)

// memory gives the most anonymous and shared memory that the processes have had,
// after an invoke that took so long, or has failed.
func (b *box) memory(took time.Duration, failed bool) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, most := time.Now(), b.group.MostMemory()
	if failed || took > sampleAfter || most > b.most || now.Sub(b.sampled) > sampleEvery {
		if peak, err := b.group.PeakMemory(); err == nil {
			b.peak = max(b.peak, peak)
		}
		b.sampled, b.most = now, most
	}
	return b.peak
}

// kill ends all processes. What waits for them learns it from the connection.
func (b *box) kill() {
	if b.process != nil {
		_ = b.process.Signal(unix.SIGKILL) // the first process's end is all others'
	}
	if b.group != nil {
		_ = b.group.Thaw() // on v1 a frozen process does not die
	}
}

// wait returns when the first process has ended, if there was one.
func (b *box) wait() {
	if b.process != nil {
		_, _ = b.process.Wait()
	}
}

// close ends what is left and gives everything back.
func (b *box) close(ctx context.Context) error {
	err := b.slot.close(ctx)
	b.w.roots.release(b.root)
	return err
}
