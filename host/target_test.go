package host

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

// plainImage mounts a file system as an image's, without an agent.
func (h *Host) plainImage(t *testing.T) *Use {
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
	loop, err := mount.AttachLoop(file, true)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := mount.MountExt4(loop.Device, h.Rootfs(image, false), true); err != nil {
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
	image, target := h.plainImage(t), t.TempDir()
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
	image, target := h.plainImage(t), t.TempDir()
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
	image, target := h.plainImage(t), t.TempDir()
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
