package host

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
	"thaw/sandbox"
)

// A scratch file system takes its size and no byte of the next MiB, also as one
// file, and ends with its instance.
func TestScratch(t *testing.T) {
	h := openTest(t)
	ctx, cancel := contextOf()
	defer cancel()
	const size = 64 << 20
	for range 2 { // the second is made from the first's template
		i, err := h.NewInstance(KindFunction, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		dir, err := i.MountScratch(ctx, size)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || st.Mode&0o7777 != 0o1777 || st.Uid != sandbox.IDBase {
			t.Errorf("mode %o, user %d, %v", st.Mode, st.Uid, err)
		}
		if n, err := i.ScratchSize(); err != nil || n > size/16 {
			t.Errorf("empty, it takes %d bytes, %v", n, err)
		}
		fill(t, filepath.Join(dir, "file"), size)
		if n, err := i.ScratchSize(); err != nil || n < size || n > size+size/8 {
			t.Errorf("full, it takes %d bytes, %v", n, err)
		}
		if items, err := os.ReadDir(filepath.Join(h.overlays(), i.ID)); err != nil || len(items) > 0 {
			t.Errorf("its file has a name: %v, %v", items, err)
		}
		if err := i.End(ctx); err != nil {
			t.Error(err)
		}
	}
	h.empty(t)
}

// A template is whole as soon as it is made, although somebody has a copy of the
// mount that it was made by; and one that was killed in making it is in nobody's
// way.
func TestScratchTemplate(t *testing.T) {
	openTest(t)
	ctx, cancel := contextOf()
	defer cancel()
	const size = 8 << 20
	name := filepath.Join(t.TempDir(), "template")
	left := name + ".at"
	if err := errors.Join(makeScratch(ctx, name, size), makeDir(left, 0o700), mountFile(name, left)); err != nil {
		t.Fatal(err)
	}
	if err := makeScratch(ctx, name, size); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where it was mounted: %v", err)
	}
	cleanFile(t, name)
	again := filepath.Join(t.TempDir(), "again")
	if err := errors.Join(copySparse(again, name), makeDir(left, 0o700), mountFile(again, left), os.RemoveAll(left+"/"+scratchData), os.Remove(left+"/filler")); err != nil {
		t.Fatal(err)
	}
	release := copyMount(t, left)
	if err := errors.Join(fillScratch(left, size), mount.Unmount(left)); err != nil {
		t.Fatal(err)
	}
	before := cleanFile(t, again)
	release()
	noLoops(t, filepath.Dir(again))
	if !bytes.Equal(cleanFile(t, again), before) {
		t.Error("something was written to a template that was made")
	}
}

// fill writes MiB after MiB; size must fit, one more must not.
func fill(t *testing.T, name string, size int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for at := 0; at < size; at += len(block) {
		if _, err := f.Write(block); err != nil {
			t.Fatalf("after %d MiB of %d: %v", at>>20, size>>20, err)
		}
	}
	if _, err := f.Write(block); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("one MiB more: %v", err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
}

// A skeleton belongs to the root of containers, and programs are shared.
func TestSkeleton(t *testing.T) {
	h := openTest(t)
	ctx, cancel := contextOf()
	defer cancel()
	i, err := h.NewInstance(KindRoot, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(program, []byte("program"), 0o600); err != nil {
		t.Fatal(err)
	}
	kept, err := i.KeepProgram(program)
	if err != nil {
		t.Fatal(err)
	}
	top, err := i.MakeSkeleton(map[string]string{"etc/": "", "etc/hosts": "127.0.0.1\tlocalhost\n", ".thaw/": ""}, map[string]string{".thaw/init": kept})
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"": 0o755, "etc": 0o755, "etc/hosts": 0o644, ".thaw/init": 0o755} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(top, name), &st); err != nil || st.Mode&0o7777 != mode || st.Uid != sandbox.IDBase {
			t.Errorf("%q: mode %o, user %d, %v", name, st.Mode, st.Uid, err)
		}
	}
	if err := i.End(ctx); err != nil {
		t.Error(err)
	}
	h.empty(t)
}
