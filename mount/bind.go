package mount

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bind mounts the directory or file src on dst as well, without mounts below it, nosuid and nodev. It gives the new mount's id.
func Bind(src, dst string, readOnly bool) (id int, err error) {
	return bind(src, dst, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | readOnlyAttr(readOnly)})
}

func readOnlyAttr(readOnly bool) uint64 {
	if readOnly {
		return unix.MOUNT_ATTR_RDONLY
	}
	return 0
}

// bind mounts a copy of src on dst that has the attributes from the start, and shares no mounts below it with src.
func bind(src, dst string, attr unix.MountAttr) (id int, err error) {
	copied, err := unix.OpenTree(unix.AT_FDCWD, src, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("mount: clone %s: %w", src, err)
	}
	defer unix.Close(copied)
	if err := setAttr(copied, attr); err != nil {
		return 0, fmt.Errorf("mount: set attributes of a copy of %s: %w", src, err)
	}
	if id, _, err = mountOf(copied); err == nil {
		err = unix.MoveMount(copied, "", unix.AT_FDCWD, dst, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return 0, fmt.Errorf("mount: copy of %s on %s: %w", src, dst, err)
	}
	return id, nil
}

// setAttr changes a copy that is not mounted yet.
func setAttr(copied int, attr unix.MountAttr) error {
	attr.Propagation = unix.MS_PRIVATE
	return unix.MountSetattr(copied, "", unix.AT_EMPTY_PATH, &attr)
}

// Tree is a directory or file to be mounted elsewhere as well, with what is mounted below it.
type Tree struct {
	Source   string
	ReadOnly bool     // also what is mounted below
	Users    *os.File // maps owners, as IDMap does
	Without  string   // what is mounted at and below this path stays away; an absolute path without symbolic links

	// What Mount has found.
	Below    []string // where in the tree something is mounted that is shown, relative paths, each before what is mounted on it
	Unmapped []string // what is shown with the owners as they are: its file system cannot map them, or does so already
	Unseen   []string // what is mounted below and may not be mounted twice
}

// Mount mounts the tree on dst. After an error DetachAll(dst) is due.
func (t *Tree) Mount(dst string) error {
	source, err := filepath.EvalSymlinks(t.Source)
	if err != nil {
		return err
	}
	below, err := Under(source)
	if err != nil {
		return err
	}
	root, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mount: clone %s: %w", source, err)
	}
	defer unix.Close(root)
	mapped, err := t.set(root)
	if err == nil {
		err = unix.MoveMount(root, "", unix.AT_FDCWD, dst, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("mount: copy of %s on %s: %w", source, dst, err)
	}
	if !mapped {
		t.Unmapped = append(t.Unmapped, source)
	}
	slices.Reverse(below) // first what others are mounted on
	for _, m := range below {
		name, isBelow := strings.CutPrefix(m.Dir, strings.TrimSuffix(source, "/")+"/")
		if !isBelow || t.Without != "" && strings.HasPrefix(m.Dir+"/", t.Without+"/") {
			continue
		}
		mapped, err := t.graft(root, name, m)
		if errors.Is(err, errHidden) {
			continue
		}
		if errors.Is(err, errUnseen) {
			t.Unseen = append(t.Unseen, m.Dir)
			continue
		}
		if err != nil {
			return fmt.Errorf("mount: copy of %s on %s: %w", m.Dir, dst, err)
		}
		t.Below = append(t.Below, name)
		if !mapped {
			t.Unmapped = append(t.Unmapped, m.Dir)
		}
	}
	return nil
}

var (
	errHidden = errors.New("not to be seen")
	errUnseen = errors.New("may not be mounted again")
)

// graft mounts a copy of m at the same place of a mounted copy, root. Neither way follows a symbolic link: the places may be somebody's
// who would like others to be mounted on.
func (t *Tree) graft(root int, name string, m Mount) (mapped bool, err error) {
	open := func(dir int, name string, resolve uint64) (int, error) {
		return unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS})
	}
	from, err := open(unix.AT_FDCWD, m.Dir, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, errHidden
	}
	if err != nil { // such as of a server that has ended
		return false, errUnseen
	}
	defer unix.Close(from)
	if id, isRoot, err := mountOf(from); err != nil || id != m.ID || !isRoot { // another lies over it
		return false, cmp.Or(err, errHidden)
	}
	part, err := unix.OpenTree(from, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.EINVAL) {
		return false, errUnseen
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(part)
	if mapped, err = t.set(part); err != nil {
		return false, err
	}
	at, err := open(root, name, unix.RESOLVE_BENEATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) { // it is on what is not shown
		return false, errUnseen
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(at)
	return mapped, unix.MoveMount(part, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// set gives a copy the tree's attributes, with the owners mapped if they can be.
func (t *Tree) set(copied int) (mapped bool, err error) {
	only := unix.MountAttr{Attr_set: readOnlyAttr(t.ReadOnly)}
	all := unix.MountAttr{Attr_set: only.Attr_set | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(t.Users.Fd())}
	if err = setAttr(copied, all); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return false, setAttr(copied, only)
	}
	return err == nil, err
}
