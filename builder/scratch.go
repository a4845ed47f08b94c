package builder

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// scratchPrefix starts the names of folders for what is being built. Each is
// locked (flock(2)) as long as its builder lives.
const scratchPrefix = "thaw-build-"

// scratch makes a folder in parent, or in the system's for what is temporary, and
// removes those whose builders were killed: a package or an image may be in them.
// The caller calls remove.
func scratch(parent string) (dir string, remove func(), err error) {
	if parent == "" {
		parent = os.TempDir()
	}
	left, _ := filepath.Glob(filepath.Join(parent, scratchPrefix+"*")) // a folder that cannot be read fails below
	for _, old := range left {
		if held, err := hold(old); err == nil {
			_ = os.RemoveAll(old) // as with what is temporary: whoever can
			held.Close()
		}
	}
	for range 10 { // another builder may take a new one for one that was left
		dir, err = os.MkdirTemp(parent, scratchPrefix)
		if err != nil {
			return "", nil, err
		}
		var held *os.File
		if held, err = hold(dir); err == nil {
			return dir, func() { _ = os.RemoveAll(dir); held.Close() }, nil
		}
	}
	return "", nil, fmt.Errorf("make a folder in %s: %w", parent, err)
}

// hold locks a folder that nobody else has locked or removed.
func hold(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_, err = os.Lstat(dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
