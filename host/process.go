package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process for good: a pid alone may be another's tomorrow, and
// after a boot one that starts at the same moment of it may have it too.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/PID/stat, clock ticks since boot
	Boot  string `json:"boot"`  // the kernel's name for the time since it was started
}

// identify names a running process.
func identify(pid int) (process, error) {
	start, err := startTime(pid)
	if err != nil {
		return process{}, err
	}
	boot, err := bootID()
	return process{pid, start, boot}, err
}

// bootID reads a UUID that is another after each boot (random(4)).
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// startTime reads /proc/PID/stat (proc(5)); the command in it may hold anything
// but ends with the last bracket. A zombie counts as gone, unless threads of its
// are on their way: those still hold its files and locks.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[0][0] == 'X' || fields[0][0] == 'Z' && string(fields[17]) == "1" {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// alive reports whether it still runs. One of another boot does not.
func (p process) alive() bool {
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		return false
	}
	boot, err := bootID()
	return err == nil && boot == p.Boot
}

// open gives a pidfd, readable once the process has ended, or nil if it has. Go's
// poller can wait for it.
func (p process) open() (*os.File, error) {
	if p.PID <= 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", p.PID, err)
	}
	if !p.alive() { // asked after opening: the pidfd is of whoever had the pid then
		_ = unix.Close(fd)
		return nil, nil
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// killPatience is how long a process may take to be gone after SIGKILL: one with
// much memory, on a busy machine.
const killPatience = 10 * time.Second

// end waits until the process has gone; after patience it is killed.
func (p process) end(ctx context.Context, patience time.Duration) error {
	f, err := p.open()
	if f == nil {
		return err
	}
	defer f.Close()
	if waitFd(ctx, int(f.Fd()), patience) {
		return nil
	}
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	if patience = max(patience, killPatience); !waitFd(context.WithoutCancel(ctx), int(f.Fd()), patience) {
		return fmt.Errorf("process %d does not end, %v after SIGKILL", p.PID, patience)
	}
	return nil
}

// signal sends a signal, if the process is still there.
func (p process) signal(sig unix.Signal) error {
	f, err := p.open()
	if f == nil {
		return err
	}
	defer f.Close()
	err = unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// waitFd waits until fd is readable: in slices, so that ctx can end it.
func waitFd(ctx context.Context, fd int, patience time.Duration) bool {
	const slice = 20 // ms
	deadline := time.Now().Add(patience)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, slice)
		if n > 0 {
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) || ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
	}
}
