// Package testmount has the kernel mount images for tests.
package testmount

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
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

// cutDisk is the size of the disk whose power is cut, in bytes.
const cutDisk = 256 << 20

// PowerCut gives a folder as a power cut would leave it, and its unmount, as Ext4
// does: what was synced is there, and nothing that was only in the kernel's memory.
// begin starts a process that writes to the folder it is given, and returns once
// what has to be found was acknowledged; the process is stopped at that moment, and
// killed after its disk has been copied.
func PowerCut(t testing.TB, begin func(dir string) *exec.Cmd) (dir string, unmount func()) {
	t.Helper()
	disk, after := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "after")
	run(t, "truncate", "-s", strconv.Itoa(cutDisk), disk)
	run(t, "mkfs.ext4", "-q", "-F", disk)
	live, unmountLive := Ext4(t, disk, "commit=300") // the kernel writes nothing by itself
	cmd := begin(live)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil { // a copy takes longer than a write
		t.Fatal(err)
	}
	run(t, "cp", "--sparse=always", disk, after)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	unmountLive()
	return Ext4(t, after, "")
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
