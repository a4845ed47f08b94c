package mount

import (
	"errors"
	"fmt"
	"os"
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
	var open []*os.File
	defer func() {
		for _, f := range open {
			_ = f.Close()
		}
	}()
	var errs []error
	name := func(dir string) string {
		f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			errs = append(errs, err)
			return ""
		}
		open = append(open, f)
		return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	lowers := make([]string, 0, len(o.Lower))
	for _, dir := range o.Lower {
		lowers = append(lowers, name(dir))
	}
	data := "lowerdir=" + strings.Join(lowers, ":")
	var flags uintptr = hardened
	if o.Upper != "" {
		data += ",upperdir=" + name(o.Upper) + ",workdir=" + name(o.Work) + ",volatile"
	} else {
		flags |= unix.MS_RDONLY
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mount: overlay on %s: %w", dst, err)
	}
	if err := unix.Mount("thaw", dst, "overlay", flags, data); err != nil {
		return fmt.Errorf("mount: overlay of %q and %q on %s: %w", o.Lower, o.Upper, dst, err)
	}
	return nil
}
