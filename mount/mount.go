// Package mount hands a device to the kernel and takes it back.
//
//	Device ── Server (FUSE) ── DIR/image ───── loop, read-only ── ext4, read-only ── [id-mapped copy] ── overlayfs, one an instance
//	                       └── DIR/rw/NAME ─── loop ───────────── ext4
//
// Two processes share the work. The privileged one mounts: OpenFUSE, AttachLoop, MountExt4, IDMap, MountOverlay; and Unmount,
// AbortFUSE, DetachAll to take it all back. The other, which may be jailed and without any privilege, gets the open FUSE descriptor
// and answers the kernel's requests with a Server. They must not be the same process: a process that waits for a file that it serves
// itself can wait forever.
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
	minor  int    // of the anonymous device number: the id of a FUSE connection
}

// fuse tells whether a user process serves the mount.
func (m Mount) fuse() bool { return m.Type == "fuse" || strings.HasPrefix(m.Type, "fuse.") }

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
		mounts = append(mounts, Mount{Dir: i.Mountpoint, Type: i.FSType, Source: i.Source, minor: i.Minor})
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int { return cmp.Compare(depth(b.Dir), depth(a.Dir)) })
	return mounts, nil
}

func depth(dir string) int { return strings.Count(dir, "/") }

// Unmount takes the topmost mount off a directory, which must not be a symbolic link. One that is busy is detached: it is gone from
// here at once, and from the kernel with its last user. No mount there, or no such directory, is success.
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

// Private makes dir a mount point of its own, if it is none, that passes nothing on: what is mounted below is not copied to other mount
// namespaces that exist (services, containers), which would keep it alive there.
func Private(dir string) error {
	mounted, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("mount: %s: %w", dir, err)
	}
	if !mounted {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: bind %s on itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: make %s private: %w", dir, err)
	}
	return nil
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

// Bind mounts the directory or file src on dst as well, without mounts below it, nosuid and nodev.
func Bind(src, dst string, readOnly bool) error {
	var set uint64 = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if readOnly {
		set |= unix.MOUNT_ATTR_RDONLY
	}
	return clone(src, dst, unix.MountAttr{Attr_set: set})
}

// clone mounts a copy of src on dst that has the attributes from the start, and shares no mounts below it with src.
func clone(src, dst string, attr unix.MountAttr) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount: clone %s: %w", src, err)
	}
	defer unix.Close(tree)
	attr.Propagation = unix.MS_PRIVATE
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount: set attributes of a copy of %s: %w", src, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, dst, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: copy of %s on %s: %w", src, dst, err)
	}
	return nil
}
