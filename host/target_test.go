package host

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

// plainImage mounts a file system as an image's, without an agent.
func (h *Host) plainImage(t *testing.T, readOnly bool) *Use {
	t.Helper()
	image := &Use{kind: "images", key: "0123456789ab"}
	file := h.dir("images", image.key, "fuse", "image")
	for _, dir := range []string{filepath.Dir(file), h.Rootfs(image, false)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", file, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	loop, err := mount.AttachLoop(file, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := mount.MountExt4(loop.Device, h.Rootfs(image, false), readOnly); err != nil {
		t.Fatal(err)
	}
	return image
}

// mountAt makes an instance that shows an image at a folder.
func (h *Host) mountAt(t *testing.T, image *Use, target string) *Instance {
	t.Helper()
	i, err := h.NewInstance(KindMount, image, &Use{key: "none"})
	if err != nil {
		t.Fatal(err)
	}
	i.Target = target
	if err := errors.Join(i.Save(), i.BindTo(image, target)); err != nil {
		t.Fatal(err)
	}
	return i
}

// at checks which instance a folder shows.
func (h *Host) at(t *testing.T, dir string, want *Instance, wantErr error) {
	t.Helper()
	got, err := h.MountedAt(dir)
	if !errors.Is(err, wantErr) || (got == nil) != (want == nil) || got != nil && got.ID != want.ID {
		t.Errorf("at %s: %+v, %v; want %+v, %v", dir, got, err, want, wantErr)
	}
}

// Each instance's end unmounts its own mount, whatever else is at the folder.
func TestTargets(t *testing.T) {
	h := openTest(t)
	image, target := h.plainImage(t, true), t.TempDir()
	h.at(t, target, nil, nil)
	first, second := h.mountAt(t, image, target), h.mountAt(t, image, target)
	h.at(t, target, second, nil)
	if err := second.End(t.Context()); err != nil || second.Mounted() || !first.Mounted() {
		t.Errorf("the second: %v, mounted %v; the first is %v", err, second.Mounted(), first.Mounted())
	}
	h.at(t, target, first, nil)
	third := h.mountAt(t, image, target)
	if err := first.End(t.Context()); !errors.Is(err, mount.ErrCovered) || !third.Mounted() || !first.Mounted() {
		t.Errorf("below the third: %v", err)
	}
	if err := third.End(t.Context()); err != nil {
		t.Error(err)
	}

	tmpfs(t, target) // somebody's
	if err := os.WriteFile(target+"/precious", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.at(t, target, nil, mount.ErrCovered)
	if err := first.End(t.Context()); !errors.Is(err, mount.ErrCovered) || !first.Mounted() {
		t.Errorf("below another's: %v", err)
	}
	if _, err := os.Stat(target + "/precious"); err != nil {
		t.Error(err)
	}
	if err := mount.Unmount(target); err != nil {
		t.Fatal(err)
	}
	if err := first.End(t.Context()); err != nil || first.Mounted() {
		t.Errorf("at last: %v", err)
	}
	if mounts, err := mount.Under(target); err != nil || len(mounts) > 0 {
		t.Errorf("left: %v, %v", mounts, err)
	}
	if err := mount.Unmount(h.Rootfs(image, false)); err != nil {
		t.Error(err)
	}
}

// A process that is killed between mounting and saying so leaves a mount that is
// found all the same.
func TestTargetWithoutRecord(t *testing.T) {
	h := openTest(t)
	image, target := h.plainImage(t, true), t.TempDir()
	i := h.mountAt(t, image, target)
	i.Mount = 0
	if err := errors.Join(i.Save(), i.lock.Close()); err != nil {
		t.Fatal(err)
	}
	h.at(t, target, i, nil)
	if removed, err := h.Reap(t.Context()); err != nil || !slices.Contains(removed, "instance "+i.ID) || i.Mounted() {
		t.Errorf("reaped %v, %v; mounted %v", removed, err, i.Mounted())
	}
	if err := mount.DetachAll(h.dir("images", image.key)); err != nil {
		t.Error(err)
	}
}

// A mount of an image that is gone is unmounted as soon as nothing lies over it.
func TestReapMounts(t *testing.T) {
	h := openTest(t)
	image, target := h.plainImage(t, true), t.TempDir()
	if _, err := mount.Bind(h.Rootfs(image, false), target, true); err != nil {
		t.Fatal(err)
	}
	if removed, err := h.reapMounts(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped of an image that is there: %v, %v", removed, err)
	}
	tmpfs(t, target)
	if err := errors.Join(mount.Unmount(h.Rootfs(image, false)), os.RemoveAll(h.dir("images", image.key))); err != nil {
		t.Fatal(err)
	}
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("reaped below another's: %v, %v", removed, err)
	}
	if err := unix.Unmount(target, 0); err != nil { // not busy: nobody's fault
		t.Fatal(err)
	}
	if removed, err := h.Reap(t.Context()); err != nil || !slices.Equal(removed, []string{"mount " + target}) {
		t.Errorf("reaped %v, %v", removed, err)
	}
	if mounts, err := mount.Under(target); err != nil || len(mounts) > 0 {
		t.Errorf("left: %v, %v", mounts, err)
	}
}

// What was written is on the device before that goes, and nothing comes later,
// although somebody has a copy of the mount.
func TestWrittenBeforeTheEnd(t *testing.T) {
	h := openTest(t)
	image, target := h.plainImage(t, false), t.TempDir()
	i, err := h.NewInstance(KindMount, image, &Use{key: "none"})
	if err != nil {
		t.Fatal(err)
	}
	i.Target, i.Writes = target, true
	err = errors.Join(i.bind(h.Rootfs(image, false), target, false), mount.Unmount(h.Rootfs(image, false)), os.WriteFile(target+"/new", []byte("text"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	release := copyMount(t, target)
	if err := i.End(t.Context()); err != nil {
		t.Error(err)
	}
	file := h.dir("images", image.key, "fuse", "image")
	before := cleanFile(t, file)
	release()
	noLoops(t, h.run)
	if !bytes.Equal(cleanFile(t, file), before) {
		t.Error("something was written after the end")
	}
}

// copyMount keeps a copy of a mount, as a mount namespace does that was made
// meanwhile.
func copyMount(t *testing.T, dir string) (release func()) {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = unix.Close(fd) })
	t.Cleanup(release)
	return release
}

// cleanFile gives a file whose file system has been left clean.
func cleanFile(t *testing.T, file string) []byte {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", file).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	out, err := exec.Command("dumpe2fs", "-h", file).CombinedOutput()
	if err != nil || !regexp.MustCompile(`(?m)^Filesystem state: +clean$`).Match(out) {
		t.Errorf("not clean: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
