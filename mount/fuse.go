package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxTransfer is the longest read or write that the kernel asks for at once, in bytes: its own limit (256 pages).
const maxTransfer = 1 << 20

// OpenFUSE mounts a FUSE file system on dir and gives the descriptor to serve it by. Nobody may look into the mount before a server
// has it. The caller passes the descriptor on and closes its copy.
func OpenFUSE(dir string) (*os.File, error) {
	// Not os.OpenFile, which would make it non-blocking.
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount: /dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxTransfer)
	if err := unix.Mount("thaw", dir, "fuse.thaw", hardened|unix.MS_NOEXEC, data); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("mount: FUSE on %s: %w", dir, err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// AbortFUSE ends the FUSE connection of the mount on dir: every request of it fails at once, also those that wait for a server that
// hangs, and all that come. The mount goes too, unless it is in use. No FUSE mount there is success. It never waits for the server.
// Abort before Unmount: a connection whose mount is detached but in use cannot be found any more.
func AbortFUSE(dir string) error {
	mounts, err := Under(dir)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.Dir == filepath.Clean(dir) && m.fuse() {
			return m.abort()
		}
	}
	return nil
}

// abort forces the unmount of a FUSE mount, which ends its connection first and then may or may not find the mount busy. To the server
// it looks like an unmount. The control file, which is for those who mounted its file system, is the second way.
func (m Mount) abort() error {
	err := unix.Unmount(m.Dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EBUSY) {
		return nil
	}
	control := fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", m.minor)
	if second := os.WriteFile(control, []byte("1"), 0); second != nil {
		return fmt.Errorf("mount: abort FUSE on %s: %w; %w", m.Dir, err, second)
	}
	return nil
}
