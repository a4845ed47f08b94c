package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// IDMap mounts a copy of src on dst in which owners are mapped as in a user namespace, which may be closed then. Ids outside of the map
// become the overflow id (65534). A container whose user namespace has the same map sees the owners of src. The file system must
// support it (ext4 does), and src must not be mapped itself.
func IDMap(src, dst string, userns *os.File) error {
	_, err := bind(src, dst, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())})
	return err
}

// UserNamespace makes a user namespace, which lasts until closed, in which user and group ids n < count, of a file system and of a
// container, are host+n on the host. It takes 1 to 3 ms, which may pass beside other work, and serves any
// number of IDMaps. A namespace begins with a process: here one that is stopped, because traced, before the first instruction of the
// program that it is given, and killed once the namespace is open.
func UserNamespace(host, count int) (*os.File, error) {
	runtime.LockOSThread() // the thread that forks is the tracer
	defer runtime.UnlockOSThread()
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: count}}
	p, err := os.StartProcess("/proc/self/exe", nil, &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: mapping,
		GidMappings: mapping,
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		return nil, fmt.Errorf("mount: make a user namespace: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", p.Pid))
	killed := p.Kill()
	for {
		// The stop of a traced process is reported first; only a wait4 of our own tells it from the end.
		var status syscall.WaitStatus
		_, waited := syscall.Wait4(p.Pid, &status, 0, nil)
		if errors.Is(waited, syscall.EINTR) || waited == nil && status.Stopped() {
			continue
		}
		_ = p.Release()
		if err := errors.Join(err, killed, waited); err != nil {
			_ = ns.Close() // of none does nothing
			return nil, fmt.Errorf("mount: open a user namespace: %w", err)
		}
		return ns, nil
	}
}
