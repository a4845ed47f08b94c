package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// passFiles are the arguments with which runsc, which knows no --preserve-fds, passes the descriptors 3 and on.
func passFiles(n int) []string {
	var args []string
	for fd := 3; fd < 3+n; fd++ {
		args = append(args, fmt.Sprintf("--pass-fd=%d:%d", fd, fd))
	}
	return args
}

// watch has Wait wait for this process alone. It holds up no thread.
func (p *Process) watch(l *launcher) error {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("instance: %w", err)
	}
	l.instances.Store(p.PID, true)
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	p.wait = sync.OnceValues(func() (int, error) {
		defer pidfd.Close()
		defer l.instances.Delete(p.PID)
		status, err := waitPidfd(pidfd, p.PID)
		return p.end(status, err)
	})
	return nil
}

// waitPidfd waits for a child's end, and reaps it.
func waitPidfd(pidfd *os.File, pid int) (status syscall.WaitStatus, err error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("wait for an instance: %w", err)
	}
	var werr error
	err = raw.Read(func(uintptr) bool {
		var got int
		for {
			if got, werr = syscall.Wait4(pid, &status, syscall.WNOHANG, nil); !errors.Is(werr, unix.EINTR) {
				return got != 0
			}
		}
	})
	if err = errors.Join(err, werr); err != nil {
		err = fmt.Errorf("wait for process %d: %w", pid, err)
	}
	return status, err
}

// linger is how long one who has ended stays for who started it, however late that one gets the processor to wait: a child that was taken
// away from under it would look as if it had failed. Who has ended holds a process id and next to no memory.
const linger = 10 * time.Second

// Sweep reaps, in a process with a shared supervisor, children that have ended some time ago, as it has seen whenever it was called since,
// and that nobody has waited for: what instances and their runtimes left behind. It is for one goroutine.
func (s *Supervisor) Sweep() {
	l, dead, now := s.launcher, map[int]time.Time{}, time.Now()
	for _, pid := range zombies() {
		l.mu.Lock()
		_, running := l.running[pid]
		l.mu.Unlock()
		if _, instance := l.instances.Load(pid); running || instance {
			continue
		}
		first, known := l.dead[pid]
		switch {
		case !known:
			dead[pid] = now
		case now.Sub(first) < l.linger:
			dead[pid] = first
		default:
			_, _ = syscall.Wait4(pid, nil, syscall.WNOHANG, nil) // somebody may have waited meanwhile
		}
	}
	l.dead = dead
}

// zombies lists this process's children that have ended. It looks at all processes if there is one.
func zombies() (pids []int) {
	var info [128]byte
	if err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil); err != nil || siginfoPID(&info) == 0 {
		return nil
	}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range files {
		data, err := os.ReadFile(name)
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if err != nil || len(fields) < 2 || fields[0] != "Z" || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// siginfoPID is si_pid, which on 64-bit Linux is at offset 16.
func siginfoPID(info *[128]byte) int { return int(int32(binary.NativeEndian.Uint32(info[16:]))) }
