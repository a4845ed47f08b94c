package network

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownNamespace is that of the thread that opens it.
const ownNamespace = "/proc/thread-self/ns/net"

// elsewhere calls f on a thread that enter has moved to another namespace. The
// thread comes back: it may have forked children that die with it (Pdeathsig),
// so it must not be thrown away. One that cannot come back is never used again,
// and not thrown away either.
func elsewhere(enter, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(ownNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("%s: %w", ownNamespace, err)
			return
		}
		err = enter()
		if err == nil {
			err = f()
		}
		back := unix.Setns(home, unix.CLONE_NEWNET)
		unix.Close(home)
		if back != nil {
			done <- errors.Join(err, fmt.Errorf("a thread cannot leave a namespace: %w", back))
			select {}
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// newNamespace makes a namespace, with its loopback up, calls f in it, and binds
// it to a file. If that fails nothing is left of it.
func newNamespace(file string, f func() error) error {
	unshare := func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }
	return elsewhere(unshare, func() error {
		if err := loopbackUp(); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		return bind(ownNamespace, file)
	})
}

// inNamespace calls f in the namespace that a file or descriptor holds.
func inNamespace(fd int, f func() error) error {
	return elsewhere(func() error { return os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET)) }, f)
}

// loopbackUp brings this thread's loopback up, in one ioctl: a netlink socket
// costs more.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return os.NewSyscallError("lo up", unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r))
}

// bind makes file hold a namespace.
func bind(namespace, file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(namespace, file, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s: %w", file, err), os.Remove(file))
	}
	return nil
}

// isOwn tells whether a namespace is this process's.
func isOwn(fd int) (bool, error) {
	var theirs, own unix.Stat_t
	err := errors.Join(unix.Fstat(fd, &theirs), unix.Stat("/proc/self/ns/net", &own))
	return theirs.Dev == own.Dev && theirs.Ino == own.Ino, err
}

// mountSys mounts the /sys of the namespace that a file holds, unless it is
// there.
func mountSys(file, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = inNamespace(fd, func() error {
			return unix.Mount("sysfs", dir, "sysfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
		})
	}
	if err != nil {
		return errors.Join(err, os.Remove(dir))
	}
	return nil
}

// unbind removes a file or folder that may be a mount point. Gone already is fine.
func unbind(file string) error {
	err := unix.Unmount(file, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // not mounted; not there
		return fmt.Errorf("unmount %s: %w", file, err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// sysctl sets one of the networks' numbers in this thread's namespace.
func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0)
}

// sysctls sets several to 1, or those with a minus in front to 0. Of IPv6's, a
// kernel without it has none.
func sysctls(list ...string) error {
	var all error
	for _, name := range list {
		value := "1"
		if name[0] == '-' {
			name, value = name[1:], "0"
		}
		if err := sysctl(name, value); err != nil && (name[:4] != "ipv6" || !errors.Is(err, os.ErrNotExist)) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// index is a link of which nothing is known but its number.
func index(n int) netlink.Link { return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: n}} }
