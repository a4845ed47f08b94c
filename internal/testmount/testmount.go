// Package testmount has the kernel mount images for tests.
package testmount

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const (
	// released bounds the wait for a file system that has been unmounted: only
	// processes that are about to leave their copy of our mounts hold it.
	released = 3 * time.Minute
	poll     = 5 * time.Millisecond
)

// Ext4 mounts an image file over a loop device, with more options such as "ro"
// or "". A user without the right skips the test, loudly. unmount may be called
// before the test's end; when it returns the kernel has written all, and has let
// go of the file.
func Ext4(t testing.TB, image, options string) (dir string, unmount func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: the kernel's view needs root to mount; run the tests as root too")
	}
	dir = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "ext4", "-o", "loop,nosuid,"+options, image, dir)
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			run(t, "umount", dir)
			waitReleased(t, image)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// waitReleased waits for the loop device, which goes with its file system. A
// container that another process starts meanwhile has a copy of the mount for
// some milliseconds, and until then the superblock may be that of a live one.
func waitReleased(t testing.TB, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), released)
	defer cancel()
	for tick := time.NewTicker(poll); run(t, "losetup", "--associated", image) != ""; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s is still in use %v after it was unmounted", image, released)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}
