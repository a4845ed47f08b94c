package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

// What is mounted below a volume's source is part of it: to be written where it
// belongs, and not at all with :ro, also if it cannot map owners.
func TestVolumesHaveWhatIsMountedBelow(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 3)
	source := t.TempDir()
	t.Cleanup(func() {
		if err := mount.DetachAll(source); err != nil {
			t.Error(err)
		}
	})
	for dir, kind := range map[string]string{"mapped": "tmpfs", "plain": "ramfs"} {
		at := filepath.Join(source, dir)
		if err := errors.Join(os.Mkdir(at, 0o755), unix.Mount("none", at, kind, 0, ""), os.Chmod(at, 0o777)); err != nil {
			t.Fatal(err)
		}
	}
	for _, runtime := range []string{"crun", "runc"} {
		for dir, uid := range map[string]uint32{"mapped": 0, "plain": 1 << 30} {
			file := filepath.Join(source, dir, runtime)
			e := m.thaw("run", "--runtime", runtime, "-v", source+":/volume", "app", "/bin/inside", "write", filepath.Join("/volume", dir, runtime), "text")
			var st unix.Stat_t
			if err := unix.Stat(file, &st); e.out != "written\n" || err != nil || st.Uid != uid {
				t.Errorf("%s: %v, owner %d, want %d\n%+v", file, err, st.Uid, uid, e)
			}
			if !strings.Contains(e.stderr, "thaw: "+source+"/plain: its file system cannot map owners") {
				t.Errorf("it says %q", e.stderr)
			}
			e = m.thaw("run", "--runtime", runtime, "-v", source+":/volume:ro", "app", "/bin/inside", "write", filepath.Join("/volume", dir, "more"), "text")
			if _, err := os.Stat(filepath.Join(source, dir, "more")); err == nil || e.out != "error: read-only file system\n" {
				t.Errorf("%s: written to with :ro: %+v", dir, e)
			}
		}
	}
	// The source's own mounts are as they were.
	if mounts, err := mount.Under(source); err != nil || len(mounts) != 2 {
		t.Errorf("%v, %v", mounts, err)
	}
}

// A source that cannot map owners at all is read-only too.
func TestVolumeWithoutOwners(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 3)
	source := t.TempDir()
	if err := errors.Join(unix.Mount("none", source, "ramfs", 0, ""), os.Chmod(source, 0o777), os.Mkdir(source+"/below", 0o777),
		unix.Mount("none", source+"/below", "ramfs", 0, ""), os.Chmod(source+"/below", 0o777)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.DetachAll(source); err != nil {
			t.Error(err)
		}
	})
	for _, runtime := range []string{"crun", "runc"} {
		for _, dir := range []string{"", "below/"} {
			e := m.thaw("run", "--runtime", runtime, "-v", source+":/volume:ro", "app", "/bin/inside", "write", "/volume/"+dir+"x", "text")
			if e.out != "error: read-only file system\n" || strings.Count(e.stderr, "cannot map owners") != 1 {
				t.Errorf("%s %q: %+v", runtime, dir, e)
			}
		}
	}
}

func TestFew(t *testing.T) {
	for want, names := range map[string][]string{"a": {"a"}, "a, b, c": {"a", "b", "c"}, "a, b, c and 2 more": {"a", "b", "c", "d", "e"}} {
		if got := few(names); got != want {
			t.Errorf("%q: %q", names, got)
		}
	}
}
