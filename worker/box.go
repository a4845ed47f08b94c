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

	"thaw/cgroups"
	"thaw/invokewire"
	"thaw/network"
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
	// startLimit bounds the platform's part of a start.
	startLimit = 60 * time.Second
)

// box is the sandbox of an instance, and the connection to its thaw-init.
type box struct {
	w       *Worker
	slot    *slot
	root    *root
	process *sandbox.Process
	conn    net.Conn
	frames  *invokewire.Frames
	group   *cgroups.Group
	network *network.Namespace // nil: it has no way out
	share   time.Duration      // of each cpuPeriod

	mu      sync.Mutex // guards what follows
	peak    int64      // bytes
	sampled time.Time
}

// newBox starts a sandbox for an instance of a function version, on a root that
// it takes over. What it has taken it gives back by close, also after an error.
func (w *Worker) newBox(ctx context.Context, s *invokewire.Spec, prepared *slot, v *root, watch *stopwatch) (*box, error) {
	b := &box{w: w, slot: prepared, root: v, share: cpuShare(s.Memory)}
	i := prepared.host
	i.Image, i.ImageID, i.Runtime, i.Command = v.keeper.Image, v.keeper.ImageID, w.runtime.Name, []string{s.ARN + ":" + s.Version}
	i.Assign(v.image, w.fetcher)
	pids := int64(processLimit)
	if w.runtime.Name == "runsc" {
		pids = processLimitRunsc
	}
	function := &sandbox.Function{Init: []string{initPath}, Tmp: prepared.tmp}
	if s.Egress && w.runtime.Name == "runsc" { // which looks at its network when it starts
		var err error
		if b.network, err = w.o.Network.New(ctx, i.ID, true); err != nil {
			return b, err
		}
		function.NetNS = b.network.Path
	}
	err := sandbox.WriteBundle(sandbox.Config{
		Root: v.path, Bundle: i.Dir("bundle"), Cgroup: i.Cgroup(), Hostname: "localhost", Filters: w.o.Host.Filters(),
		Memory: int64(s.Memory)<<20 + initMemory, Pids: pids,
		Function: function,
	})
	if err = errors.Join(err, i.Save()); err != nil {
		return b, err
	}
	watch.lap("bundle")
	ours, theirs, err := socketpair()
	if err != nil {
		return b, err
	}
	defer theirs.Close()
	b.conn, b.frames = ours, invokewire.NewFrames(quiet.Conn(ours))
	b.process, err = w.supervisor.Start(ctx, sandbox.Instance{ID: i.ID, Bundle: i.Dir("bundle"), State: i.Dir("runtime"), Files: []*os.File{theirs}})
	if err != nil {
		return b, err
	}
	watch.lap("sandbox")
	if b.group, err = w.groups.Open(i.Cgroup()); err == nil && s.Egress && b.network == nil {
		b.network, err = w.o.Network.Attach(ctx, i.ID, b.process.PID)
		watch.lap("network")
	}
	return b, err
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

// limit sets it.
func (b *box) limit() error { return b.group.SetQuota(b.share, cpuPeriod) }

// sampleEvery is how often the memory of a busy instance is looked at: a look
// takes some 100 µs, and what single processes had at most is remembered between.
const sampleEvery = 20 * time.Millisecond

// memory gives the most anonymous and shared memory that the processes have had.
func (b *box) memory() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := time.Now(); now.Sub(b.sampled) > sampleEvery {
		if peak, err := b.group.PeakMemory(); err == nil {
			b.peak = max(b.peak, peak)
		}
		b.sampled = now
	}
	return b.peak
}

// outOfMemory tells whether the kernel has killed a process of the instance since
// the last call, because they took too much.
func (b *box) outOfMemory() bool {
	n, err := b.group.OOMKills()
	return err == nil && n > 0
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

// close ends what is left and gives everything back.
func (b *box) close(ctx context.Context) error {
	if b.group != nil {
		_ = b.group.Thaw()
		_ = b.group.Close()
	}
	err := b.slot.host.End(ctx)
	if b.network != nil {
		err = errors.Join(err, b.network.Remove())
	}
	if b.conn != nil {
		_ = b.conn.Close()
	}
	if b.process != nil {
		_, _ = b.process.Wait() // End has killed it
		err = errors.Join(err, b.process.Close())
	}
	b.w.roots.release(b.root)
	return err
}
