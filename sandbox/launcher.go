package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// launcher starts the runtime's commands from one OS thread that lives as long as this process does, so that they, who are to die with
// the thread that forked them, die with the process. It is go-runc's ProcessMonitor, and the only one who reaps: it knows which children
// are commands, which are instances that somebody waits for, and which are orphans.
type launcher struct {
	jobs        chan func() error
	hideUnified bool
	shared      bool          // each waits for its own
	reaping     chan struct{} // holds something while one who waits reaps for all

	dead   map[int]time.Time // of Sweep: who had ended when it was called last, and when that was first seen
	linger time.Duration     // how long Sweep leaves them

	mu      sync.Mutex // guards running; held while a command starts, so that none is taken for an orphan
	running map[int]chan struct{}

	// starting is held by those who start an instance, and by one who reaps, against them: what a start has made is known by then.
	starting  sync.RWMutex
	instances sync.Map // process id → chan ending, until reaped
	files     sync.Map // *exec.Cmd → []*os.File that it gets besides
}

func newLauncher(hideUnified bool) (*launcher, error) {
	// The instances' first processes become our children when the runtime that made them exits.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become a child subreaper: %w", err)
	}
	l := &launcher{jobs: make(chan func() error), hideUnified: hideUnified, reaping: make(chan struct{}, 1), linger: linger, running: map[int]chan struct{}{}}
	go l.work()
	return l, nil
}

// work does jobs on a thread of its own. One that is astray does nothing any more, since what it ran next would run in another's file
// system; it must not end either, as commands that it has started would die with it.
func (l *launcher) work() {
	runtime.LockOSThread() // for ever
	for job := range l.jobs {
		if errors.Is(job(), errAstray) {
			go l.work()
			select {}
		}
	}
}

// Start is StartLocked: all commands start from the one thread.
func (l *launcher) Start(cmd *exec.Cmd) (chan runc.Exit, error) { return l.StartLocked(cmd) }

// StartLocked starts a command; its exit comes over the channel.
func (l *launcher) StartLocked(cmd *exec.Cmd) (chan runc.Exit, error) {
	if files, ok := l.files.LoadAndDelete(cmd); ok {
		cmd.ExtraFiles = files.([]*os.File)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	started := make(chan error)
	l.jobs <- func() error {
		start := cmd.Start
		if l.hideUnified {
			start = func() error { return withoutUnified(cmd.Start) }
		}
		err := start()
		started <- err
		return err
	}
	if err := <-started; err != nil {
		return nil, err
	}
	gone := make(chan struct{})
	l.running[cmd.Process.Pid] = gone
	exit := make(chan runc.Exit, 1)
	go func() {
		_ = cmd.Wait() // the status tells
		l.mu.Lock()
		delete(l.running, cmd.Process.Pid)
		l.mu.Unlock()
		close(gone)
		exit <- runc.Exit{Timestamp: time.Now(), Pid: cmd.Process.Pid, Status: cmd.ProcessState.ExitCode()}
	}()
	return exit, nil
}

// Wait gives the exit status of a command: 0 … 255, or -1 if a signal ended it.
func (l *launcher) Wait(_ *exec.Cmd, exit chan runc.Exit) (int, error) { return (<-exit).Status, nil }

// withoutUnified calls f on this thread while the thread, and what it forks, does not see the cgroup v2 hierarchy of a hybrid host. The
// thread leaves that mount namespace at once: it holds copies of all mounts, which nobody could unmount for good while it exists.
func withoutUnified(f func() error) error {
	enter := func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare the mount namespace: %w", err)
		}
		return nil
	}
	return elsewhere(enter, func() error {
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
		if err == nil {
			err = unix.Unmount(unified, unix.MNT_DETACH)
		}
		if err != nil {
			return fmt.Errorf("hide %s: %w", unified, err)
		}
		return f()
	})
}

// errAstray says that a thread could not leave a mount namespace.
var errAstray = errors.New("a thread cannot leave a mount namespace")

// elsewhere calls f on this thread in the mount namespace that enter brings it to, with a working directory of its own.
func elsewhere(enter, f func() error) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns wants it
		return fmt.Errorf("unshare: %w", err)
	}
	home, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	defer home.Close()
	return away(home, enter, f)
}

// away is elsewhere for a thread that is at home.
func away(home *os.File, enter, f func() error) error {
	if err := enter(); err != nil {
		return err
	}
	err := f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS); back != nil {
		return errors.Join(err, fmt.Errorf("%w: %w", errAstray, back))
	}
	return err
}

// adopt starts an instance by start, which gives its process id, and gives where its end will be told.
func (l *launcher) adopt(start func() (int, error)) (int, <-chan ending, error) {
	l.starting.RLock()
	defer l.starting.RUnlock()
	pid, err := start()
	if err != nil {
		return 0, nil, err
	}
	end := make(chan ending, 1)
	l.instances.Store(pid, end)
	return pid, end, nil
}

// wait waits for an instance's end. Of many who wait, one reaps for all.
func (l *launcher) wait(end <-chan ending) (ending, error) {
	for {
		select {
		case status := <-end:
			return status, nil
		case l.reaping <- struct{}{}:
			if len(end) > 0 {
				<-l.reaping
				continue
			}
			err := l.reap()
			<-l.reaping
			if err != nil {
				return ending{}, err
			}
		}
	}
}

// ending is how a process ended.
type ending struct {
	syscall.WaitStatus
	unborn bool // it never became another program than the one that forked it
}

// neverExecuted asks the kernel about a process that may have ended but not been reaped: field 9 of /proc/PID/stat (proc_pid_stat(5))
// has PF_FORKNOEXEC until execve(2) has succeeded.
func neverExecuted(pid int) bool {
	const forkNoExec = 0x40
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if err != nil || len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err == nil && flags&forkNoExec != 0
}

// reap waits until some child has ended, tells who waits for it, and takes it away if nobody does.
func (l *launcher) reap() error {
	pid, err := peek()
	if err != nil {
		return err
	}
	l.mu.Lock()
	gone := l.running[pid]
	l.mu.Unlock()
	if gone != nil { // a command: its own waiter takes it
		<-gone
		return nil
	}
	l.starting.Lock()
	end, ok := l.instances.LoadAndDelete(pid)
	l.starting.Unlock()
	how := ending{unborn: ok && neverExecuted(pid)}
	if _, err := syscall.Wait4(pid, &how.WaitStatus, 0, nil); err != nil && !errors.Is(err, unix.ECHILD) {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	if ok {
		end.(chan ending) <- how
	}
	return nil
}

// peek waits until some child has ended, and leaves it to be reaped.
func peek() (int, error) {
	var info [128]byte // siginfo_t
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait for an instance: %w", err)
		}
		return siginfoPID(&info), nil
	}
}
