// Package mount hands a device to the kernel and takes it back.
//
//	Device ── Server (FUSE) ── DIR/image ───── loop, read-only ── ext4, read-only ── [id-mapped copy] ── overlayfs, one an instance
//	                       └── DIR/rw/NAME ─── loop ───────────── ext4
//
// Two processes share the work. The privileged one mounts: OpenFUSE, AttachLoop, MountExt4, IDMap, MountOverlay; and Mount.Settle,
// Unmount, AbortFUSE, DetachAll to take it all back. The other, which may be jailed and without any privilege, gets the open FUSE
// descriptor and answers the kernel's requests with a Server. They must not be the same process: a process that waits for a file that
// it serves itself can wait forever.
//
// The privileged process closes its copy of the descriptor once the server has it. Then the end of the server, whatever its cause,
// fails all requests with ENOTCONN (EIO through a loop device) in place of leaving them to wait.
//
// Everything is mounted nosuid and nodev, and nothing follows from what an image holds: paths may contain any byte but zero.
// Everything here needs Linux 6.1 and, but for Server, CAP_SYS_ADMIN.
package mount

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hardened are the flags of every file system mounted here: an image's set-user-ID files and device nodes mean nothing to the host.
const hardened = unix.MS_NOSUID | unix.MS_NODEV

// Mount is one line of the mount table.
type Mount struct {
	Dir    string // where it is mounted
	Type   string // of file system, as "ext4"; a FUSE mount of ours is "fuse.thaw"
	Source string // the device, or what was given for it
	ID     int    // the kernel's; another mount may get it once this one has gone
	minor  int    // of the anonymous device number: the id of a FUSE connection
}

// fuse tells whether the mount is one of OpenFUSE's. Others' servers are not ours to end, even if a copy of their mount is ours.
func (m Mount) fuse() bool { return m.Type == "fuse.thaw" }

// Under lists the mounts at and below a path, those to unmount first before the others. It touches no mount, so it cannot hang.
// The prefix must be absolute and without symbolic links.
func Under(prefix string) ([]Mount, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Clean(prefix)))
	if err != nil {
		return nil, fmt.Errorf("mount: list mounts under %s: %w", prefix, err)
	}
	slices.Reverse(infos) // of mounts on one directory the last is on top
	mounts := make([]Mount, 0, len(infos))
	for _, i := range infos {
		mounts = append(mounts, Mount{Dir: i.Mountpoint, Type: i.FSType, Source: i.Source, ID: i.ID, minor: i.Minor})
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { return cmp.Compare(depth(b.Dir), depth(a.Dir)) })
	return mounts, nil
}

func depth(dir string) int { return strings.Count(dir, "/") }

// Unmount takes the topmost mount off a directory, which must not be a symbolic link. One that is busy is detached: it is gone from
// here at once, and from the kernel with its last user, who may be one that has a copy of it: what was written is on its device only
// then, or after Mount.Settle. No mount there, or no such directory, is success.
func Unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("mount: unmount %s: %w", dir, err)
}

// ErrCovered says that a mount cannot be unmounted, since another lies over it: the kernel reaches mounts by paths, which lead to the
// topmost.
var ErrCovered = errors.New("something else is mounted over it: unmount that first")

// At gives the id of the mount that a path is in, the topmost of those on it, and whether the path is that mount's root.
func At(path string) (id int, root bool, err error) {
	fd, err := openPath(path)
	if err != nil {
		return 0, false, fmt.Errorf("mount: %s: %w", path, err)
	}
	defer unix.Close(fd)
	if id, root, err = mountOf(fd); err != nil {
		return 0, false, fmt.Errorf("mount: %s: %w", path, err)
	}
	return id, root, nil
}

// openPath opens what is on top at a path, which must not be a symbolic link, to name it.
func openPath(path string) (int, error) {
	return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
}

// mountOf is At for an open file.
func mountOf(fd int) (id int, root bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, false, err
	}
	return int(st.Mnt_id), st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// Unmount takes off exactly this mount, also if it is busy, and no other that has come to lie over it, which is ErrCovered. One that has
// gone is success.
func (m Mount) Unmount() error {
	fd, err := m.open()
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd)
	err = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", fd), unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) { // it has gone meanwhile
		return fmt.Errorf("mount: unmount %s: %w", m.Dir, err)
	}
	return nil
}

// open opens the root of exactly this mount, -1 of one that has gone.
func (m Mount) open() (fd int, err error) {
	fd, err = openPath(m.Dir)
	if errors.Is(err, unix.ENOENT) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("mount: open %s: %w", m.Dir, err)
	}
	id, root, err := mountOf(fd)
	if err == nil && id == m.ID && root {
		return fd, nil
	}
	_ = unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("mount: open %s: %w", m.Dir, err)
	}
	return -1, m.covered()
}

// covered tells a mount that another lies over from one that has gone.
func (m Mount) covered() error {
	mounts, err := Under(m.Dir)
	if err != nil {
		return err
	}
	for _, other := range mounts {
		if other.ID == m.ID && other.Dir == m.Dir {
			return fmt.Errorf("mount: %s: %w", m.Dir, ErrCovered)
		}
	}
	return nil
}

// DetachAll clears what was left at and below a path by processes that are gone: it aborts FUSE mounts, so that nothing waits for a
// server, then unmounts everything. Writes that a server had not been given yet are lost. It goes on after errors and joins them.
func DetachAll(prefix string) error {
	mounts, err := Under(prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if m.fuse() {
			errs = append(errs, m.abort())
		}
	}
	for _, m := range mounts {
		errs = append(errs, Unmount(m.Dir))
	}
	return errors.Join(errs...)
}

// MountExt4 mounts the ext4 file system of a block device on dir. Read-only it neither replays nor writes anything.
func MountExt4(device, dir string, readOnly bool) error {
	flags, data := uintptr(hardened), ""
	if readOnly {
		flags, data = flags|unix.MS_RDONLY, "noload"
	}
	if err := unix.Mount(device, dir, "ext4", flags, data); err != nil {
		return fmt.Errorf("mount: ext4 of %s on %s: %w", device, dir, err)
	}
	return nil
}
