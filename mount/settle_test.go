package mount

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// on gives the mount that is on top at a folder.
func on(t testing.TB, dir string) Mount {
	t.Helper()
	id, root, err := At(dir)
	if try(t, err); !root {
		t.Fatalf("nothing is mounted on %s", dir)
	}
	return Mount{Dir: dir, ID: id}
}

// A file system is read-only wherever it is mounted once it has settled, which it does not while somebody may write.
func TestSettle(t *testing.T) {
	base := place(t)
	dir, other := mkdir(t, base, "dir"), mkdir(t, base, "other")
	mounted(t, "tmpfs", dir)
	m := on(t, dir)
	try(t, bound(Bind(dir, other, false)))
	f, err := os.Create(filepath.Join(other, "file"))
	try(t, err)
	if err := m.Settle(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with a file open for writing: %v", err)
	}
	_, err = f.WriteString("still")
	try(t, err, f.Close(), m.Settle(), m.Settle())
	if err := os.WriteFile(filepath.Join(other, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("written through another mount: %v", err)
	}
	try(t, Unmount(dir), Unmount(other))
	if err := m.Settle(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("once it has gone: %v", err)
	}
}

// What lies over a mount is not settled in its place.
func TestSettleExactly(t *testing.T) {
	base := place(t)
	dir := mkdir(t, base, "dir")
	mounted(t, "tmpfs", dir)
	m := on(t, dir)
	mounted(t, "tmpfs", dir)
	if err := m.Settle(); !errors.Is(err, ErrCovered) {
		t.Errorf("a covered mount: %v", err)
	}
	try(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), Unmount(dir), m.Settle())
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("uncovered and settled, it is written: %v", err)
	}
	try(t, Unmount(dir))
}
