package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Settle makes the mounted file system read-only, for all who see it, once all that was written is on its device. From then on it
// writes nothing more there, so others may read the device, or take it away. A file that is open for writing, or open and removed, is
// EBUSY; a mount that another lies over is ErrCovered, and one that has gone is EINVAL.
//
// Unmount promises none of that. Whoever has a copy of the mount, as each new mount namespace has until it leaves the mounts it was
// made with, keeps the file system alive: what it has not written yet comes some time after Unmount, or never if the device has gone.
func (m Mount) Settle() error {
	fd, err := m.open()
	if err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("mount: settle the file system on %s: it is not mounted any more: %w", m.Dir, unix.EINVAL)
	}
	defer unix.Close(fd)
	if err := settle(fd); err != nil {
		return fmt.Errorf("mount: settle the file system on %s: %w", m.Dir, err)
	}
	return nil
}

// settle reconfigures the file system itself, not one of its mounts.
func settle(root int) error {
	fs, err := unix.Fspick(root, "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
		return err
	}
	return unix.FsconfigReconfigure(fs)
}
