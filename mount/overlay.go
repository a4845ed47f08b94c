package mount

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay is what an overlay file system joins.
type Overlay struct {
	Lower       []string // directories that are only read, topmost first
	Upper, Work string   // where writes go, and an empty directory beside it; both empty for a read-only overlay of two lowers or more
}

// MountOverlay mounts an overlay on dst. What is written to it is an instance's and ends with it: nothing is synced to disk, neither by
// fsync nor when unmounting, and Upper must not be mounted again. The owner of Upper is the owner of the root directory.
func MountOverlay(dst string, o Overlay) error {
	if len(o.Lower) == 0 || o.Upper == "" && len(o.Lower) < 2 {
		return fmt.Errorf("mount: overlay on %s: too few directories to join: %d to read, none to write", dst, len(o.Lower))
	}
	// Directories are named by descriptor: options are limited to a page and split at commas and colons, paths are not.
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	var errs []error
	name := func(dir string) string {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			errs = append(errs, fmt.Errorf("%q: %w", dir, err))
			return ""
		}
		fds = append(fds, fd)
		return fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	lowers := make([]string, len(o.Lower))
	for i, dir := range o.Lower {
		lowers[i] = name(dir)
	}
	data, flags := "lowerdir="+strings.Join(lowers, ":"), uintptr(hardened|unix.MS_RDONLY)
	if o.Upper != "" {
		data, flags = data+",volatile,upperdir="+name(o.Upper)+",workdir="+name(o.Work), hardened
	}
	if len(errs) > 0 {
		return fmt.Errorf("mount: overlay on %s: %w", dst, errs[0])
	}
	if err := unix.Mount("thaw", dst, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount: overlay of %q and %q on %s: %w", o.Lower, o.Upper, dst, err)
	}
	return nil
}
