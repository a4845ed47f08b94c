package sandbox

import (
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// RootPlace is a folder that the root of a function's instance must have if GiveRoot is to give it another.
const RootPlace = "/.thaw/root"

// SharesKernel tells whether instances of this runtime run on the host's kernel, so that GiveRoot works.
func (r Runtime) SharesKernel() bool { return r.Name != "runsc" }

// GiveRoot gives an instance of a function, whose init has looked at nothing yet, another root file system than the one that it was started
// on: what is mounted at root on the host, with the same folders, to be read only. What the function's specification mounts stays where it
// is. It takes less than a millisecond, where a start takes tens. After an error the instance is of no use.
func (s *Supervisor) GiveRoot(p *Process, root string) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("root %s: %w", root, err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("root %s: %w", root, err)
	}
	theirs, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", p.PID))
	if err != nil {
		return fmt.Errorf("the instance has ended: %w", err)
	}
	defer theirs.Close()
	done := make(chan error, 1)
	s.launcher.jobs <- func() error {
		err := elsewhere(func() error { return os.NewSyscallError("setns", unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNS)) }, func() error { return replaceRoot(tree) })
		done <- err
		return err
	}
	if err := <-done; err != nil {
		return fmt.Errorf("root %s of an instance: %w", root, err)
	}
	return nil
}

// replaceRoot mounts a tree, moves there what is mounted in the root, and makes it the root of all processes of this namespace.
func replaceRoot(tree int) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, RootPlace, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	for _, at := range []string{"/proc", "/dev", "/sys", "/tmp"} { // of functionMounts those that lie in no other
		if err := unix.Mount(at, path.Join(RootPlace, at), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", at, err)
		}
	}
	if err := unix.Chdir(RootPlace); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil { // pivot_root(2), "pivot_root(".", ".")"
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the former root: %w", err)
	}
	return nil
}
