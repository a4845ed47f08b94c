package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is seen inside the jail.
const (
	jailCache   = "/cache"
	jailFetcher = "/fetch"
)

// jail says what an agent's is made of.
type jail struct {
	place   string // an empty folder to build it on; others may do the same meanwhile
	cache   string // the worker's cache
	fetcher string // the folder with the fetcher's socket
}

// enter makes everything but the two folders unreachable, for all threads and
// for good. The parent has given namespaces of their own (mount, network,
// IPC, UTS, PID); a process without them is refused, since it would cut up its
// parent's.
func (j jail) enter() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("process %d is not the first of a namespace of its own", os.Getpid())
	}
	if err := closeInherited(); err != nil {
		return fmt.Errorf("closing what was inherited: %w", err)
	}
	if err := j.build(); err != nil {
		return err
	}
	return dropRights()
}

// closeInherited closes what whoever called our parent had left open: a folder
// would be a way out of the jail, and a pipe would have no end before ours. What
// this process has opened itself is close-on-exec, and what came through an
// exec(2) cannot be.
func closeInherited() error {
	items, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, item := range items {
		fd, err := strconv.Atoi(item.Name())
		if err != nil {
			return err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if fd > FDParent && err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// build makes the jail the root of the mount namespace and lets go of the old
// root.
func (j jail) build() error {
	const sealed = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("jail", j.place, "tmpfs", sealed, "size=64k,nr_inodes=16,mode=0755") },
		func() error { return bind(j.cache, filepath.Join(j.place, jailCache), sealed|unix.MS_RDONLY) },
		// A socket is connected to also on a read-only mount.
		func() error { return bind(j.fetcher, filepath.Join(j.place, jailFetcher), sealed|unix.MS_RDONLY) },
		func() error { return unix.Chdir(j.place) },
		func() error { return unix.PivotRoot(".", ".") }, // pivot_root(2), "pivot_root(".", ".")"
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/") },
		func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|sealed, "") },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i+1, err)
		}
	}
	return nil
}

// bind shows a folder at another place, with these flags.
func bind(from, to string, flags uintptr) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: from, Err: err}
	}
	if err := unix.Mount("", to, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
		return &os.PathError{Op: "remount", Path: from, Err: err}
	}
	return nil
}

// dropRights becomes the agents' user. Leaving user 0 clears all capabilities
// (capabilities(7)); nothing that is executed later could bring one back.
func dropRights() error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setgid(UID); err != nil {
		return fmt.Errorf("setgid: %w", err)
	}
	if err := syscall.Setuid(UID); err != nil {
		return fmt.Errorf("setuid: %w", err)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 {
		return fmt.Errorf("no_new_privs: %w", errno)
	}
	// No core file and no debugger sees the keys.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("dumpable: %w", err)
	}
	return nil
}
