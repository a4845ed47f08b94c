package mount

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted mounts a file system of a kind that needs no device.
func mounted(t *testing.T, kind, dir string) {
	t.Helper()
	try(t, unix.Mount("none", dir, kind, 0, ""))
}

// A mount is unmounted for itself: neither what lies over it nor what lies below it goes, and one that has gone is no error.
func TestUnmountExactly(t *testing.T) {
	base := place(t)
	from, to := mkdir(t, base, "from"), mkdir(t, base, "to")
	if _, root, err := At(to); err != nil || root {
		t.Errorf("a plain folder: %v, %v", root, err)
	}
	var stack []Mount
	for range 3 {
		id, err := Bind(from, to, true)
		try(t, err)
		mounts, err := Under(to)
		try(t, err)
		if seen, root, err := At(to); err != nil || !root || seen != id || mounts[0].ID != id {
			t.Errorf("at the folder is %d, %v, %v; the table has %+v; want %d", seen, root, err, mounts, id)
		}
		stack = append(stack, mounts[0])
	}
	mounted(t, "tmpfs", to)
	try(t, os.WriteFile(filepath.Join(to, "precious"), nil, 0o600))
	for _, m := range stack {
		if err := m.Unmount(); !errors.Is(err, ErrCovered) {
			t.Errorf("a covered mount: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(to, "precious")); err != nil {
		t.Error(err)
	}
	try(t, Unmount(to))
	for n := len(stack) - 1; n >= 0; n-- {
		busy, err := os.Open(to)
		try(t, err)
		try(t, stack[n].Unmount(), stack[n].Unmount(), busy.Close())
		if mounts, err := Under(to); err != nil || len(mounts) != n {
			t.Errorf("%d are left of %d: %v", len(mounts), n, err)
		}
	}
	gone := Mount{Dir: filepath.Join(base, "none"), ID: 1}
	try(t, gone.Unmount())
	if _, _, err := At(gone.Dir); err == nil {
		t.Error("something is at no path")
	}
}

// A tree has all that is mounted below, read-only where that is asked for, mapped where it can be; and says where not.
func TestTree(t *testing.T) {
	for _, readOnly := range []bool{true, false} {
		base := place(t)
		source, to := mkdir(t, base, "source"), mkdir(t, base, "to")
		link := filepath.Join(base, "link")
		try(t, os.Symlink(source, link))
		sub := mkdir(t, base, "source/sub")
		mounted(t, "tmpfs", sub)
		deep := mkdir(t, base, "source/sub/deep")
		mounted(t, "ramfs", deep) // maps no owners
		mounted(t, "tmpfs", mkdir(t, base, "source/away"))
		covered := mkdir(t, base, "source/covered")
		mounted(t, "ramfs", covered)
		mounted(t, "tmpfs", covered)
		alone := mkdir(t, base, "source/alone")
		mounted(t, "tmpfs", alone)
		try(t, unix.Mount("", alone, "", unix.MS_UNBINDABLE, ""))
		for _, dir := range []string{source, sub, deep, covered} {
			try(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
		}
		tree := Tree{Source: link, ReadOnly: readOnly, Users: userNamespace(t), Without: filepath.Join(source, "away")}
		try(t, tree.Mount(to))
		if !slices.Equal(tree.Unmapped, []string{deep}) || !slices.Equal(tree.Unseen, []string{alone}) {
			t.Errorf("unmapped %q, unseen %q", tree.Unmapped, tree.Unseen)
		}
		if !slices.Equal(tree.Below, []string{"sub", "covered", "sub/deep"}) {
			t.Errorf("below are %q", tree.Below)
		}
		for dir, owner := range map[string]uint32{"": hostID, "sub": hostID, "sub/deep": 0, "covered": hostID} {
			var st unix.Stat_t
			try(t, unix.Stat(filepath.Join(to, dir, "file"), &st))
			if st.Uid != owner {
				t.Errorf("%q: its owner is %d, want %d", dir, st.Uid, owner)
			}
			var fs unix.Statfs_t
			try(t, unix.Statfs(filepath.Join(to, dir), &fs))
			if got := fs.Flags&unix.ST_RDONLY != 0; got != readOnly {
				t.Errorf("%q is read-only: %v, want %v", dir, got, readOnly)
			}
		}
		mounts, err := Under(to)
		if err != nil || len(mounts) != 4 {
			t.Errorf("%+v, %v", mounts, err)
		}
		try(t, DetachAll(to))
		if _, err := os.Stat(filepath.Join(deep, "file")); err != nil {
			t.Errorf("the source's own mounts: %v", err)
		}
		try(t, DetachAll(source))
	}
}

// A file is a tree too, and what is not there is none.
func TestTreeOfAFile(t *testing.T) {
	base := place(t)
	source, to := filepath.Join(base, "source"), filepath.Join(base, "to")
	try(t, os.WriteFile(source, []byte("text"), 0o600), os.WriteFile(to, nil, 0o600))
	tree := Tree{Source: source, ReadOnly: true, Users: userNamespace(t)}
	try(t, tree.Mount(to))
	if data, err := os.ReadFile(to); err != nil || string(data) != "text" || len(tree.Unmapped)+len(tree.Unseen)+len(tree.Below) > 0 {
		t.Errorf("%q, %v, %+v", data, err, tree)
	}
	try(t, Unmount(to))
	if err := (&Tree{Source: source + "x", Users: userNamespace(t)}).Mount(to); err == nil {
		t.Error("mounted nothing")
	}
}

// Whose folder a volume is may put a symbolic link where something is mounted: it is not followed out of the tree.
func TestTreeIsNotLeft(t *testing.T) {
	base := place(t)
	source, to, victim := mkdir(t, base, "source"), mkdir(t, base, "to"), mkdir(t, base, "victim")
	tree := Tree{Source: source, Users: userNamespace(t)}
	mounted(t, "tmpfs", mkdir(t, base, "source/dir"))
	mounts, err := Under(filepath.Join(source, "dir"))
	try(t, err, bound(Bind(victim, to, false)), os.Symlink(victim, filepath.Join(victim, "dir")))
	root, err := unix.Open(to, unix.O_PATH|unix.O_CLOEXEC, 0)
	try(t, err)
	defer unix.Close(root)
	if _, err := tree.graft(root, "dir", mounts[0]); !errors.Is(err, errUnseen) {
		t.Errorf("a link was followed: %v", err)
	}
	if _, err := tree.graft(root, "../victim", mounts[0]); err == nil {
		t.Error("the tree was left")
	}
	mounts[0].Dir = strings.Replace(mounts[0].Dir, "source", "none", 1)
	if _, err := tree.graft(root, "dir", mounts[0]); !errors.Is(err, errHidden) {
		t.Errorf("what is not there: %v", err)
	}
	try(t, DetachAll(to), DetachAll(source))
	if mounts, err := Under(victim); err != nil || len(mounts) > 0 {
		t.Errorf("mounted on another's folder: %v, %v", mounts, err)
	}
}

// The server of a mount whose copy is detached is not ours: it serves on.
func TestDetachAllLeavesOthersFUSE(t *testing.T) {
	if (Mount{Type: "fuse"}).fuse() || (Mount{Type: "fuse.sshfs"}).fuse() || !(Mount{Type: "fuse.thaw"}).fuse() {
		t.Error("whose is it")
	}
}
