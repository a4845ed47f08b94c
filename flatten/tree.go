package flatten

import (
	"fmt"
	"io"
	"strings"
	"syscall"

	"thaw/ext4"
)

// Tree is the file system as the layers applied so far leave it.
//
//	names   root → dir.children → node      (a name knows the layer that gave it)
//	inodes  number → node                    (nil: free, or hidden by an upper layer)
//
// Use it for one image: Apply each layer in order, base first, then Finish.
type Tree struct {
	w      io.WriterAt
	root   *node
	layer  uint16 // layers begun
	inodes []*[ext4.InodesPerGroup]*node

	nextGroup        uint32 // first block group that no region has
	dirNext, dirLast uint32 // inodes left in the open group of directories

	// What the layer being applied needs until its end.
	meta     *runs
	claimed  []uint64 // a bit for each block of its data that has an owner
	region   uint32   // its first block
	first    uint32   // its first file inode
	dirty    []*node  // directories whose names changed
	deferred []*entry // hard links whose other name has not come yet
}

// node is an inode that has a name, or is the value of an attribute.
type node struct {
	ino      uint32
	links    uint32 // names; of no use for a directory
	uid, gid uint32
	mode     uint16 // type and permission bits
	nsec     uint32
	start    uint32 // first block, if one extent holds all
	sec      int64
	size     int64
	dir      *dir   // of a directory
	extra    *extra // what few nodes have
}

// extra is what few nodes have.
type extra struct {
	extents    []ext4.Extent // if more than one, or with holes
	tree       uint32        // first block of the extent tree's own blocks
	treeBlocks uint32        // how many they are
	target     string        // of a symlink
	dev        [2]uint32
	xattrBody  []byte
	xattrBlock uint32
	isEA       bool
	eaHash     uint32
	eaInodes   []uint32 // inodes that hold this one's attribute values
	eaBlocks   uint32   // blocks of those values; they count as this inode's, too
}

// dir is what a directory has besides.
type dir struct {
	parent   *node
	children map[string]child
	hash     uint64 // of its path when it was made, to cut runs by
	blocks   uint32
	depth    uint16
	dirty    bool // listed in Tree.dirty
}

// child is a name; layer is the last one that gave it.
type child struct {
	*node
	layer uint16
}

// NewTree gives the empty tree, which writes all metadata to w: each byte once
// and a piece of consecutive bytes at a time; what is not written is zero.
func NewTree(w io.WriterAt) *Tree {
	t := &Tree{w: w, nextGroup: ext4.DataGroup, dirNext: ext4.FirstInode, dirLast: ext4.InodesPerGroup}
	t.inodes = append(t.inodes, new([ext4.InodesPerGroup]*node))
	t.root = &node{ino: ext4.RootInode, mode: syscall.S_IFDIR | implicitMode}
	t.root.dir = &dir{parent: t.root, children: map[string]child{}, hash: hashPath(0, "")}
	_ = t.index(t.root) // the first
	t.touch(t.root)
	return t
}

// index makes a node findable by its inode number, which must be free.
func (t *Tree) index(n *node) error {
	at := &t.inodes[(n.ino-1)/ext4.InodesPerGroup][(n.ino-1)%ext4.InodesPerGroup]
	if *at != nil {
		return fmt.Errorf("%w: inode %d given twice", ErrRecipe, n.ino)
	}
	*at = n
	return nil
}

func (t *Tree) forget(ino uint32) {
	t.inodes[(ino-1)/ext4.InodesPerGroup][(ino-1)%ext4.InodesPerGroup] = nil
}

// alive reports whether n is still in the tree.
func (t *Tree) alive(n *node) bool {
	return t.inodes[(n.ino-1)/ext4.InodesPerGroup][(n.ino-1)%ext4.InodesPerGroup] == n
}

// addInodeGroups takes fresh inode groups and gives the first inode of them.
func (t *Tree) addInodeGroups(n int) (uint32, error) {
	first := uint32(len(t.inodes))*ext4.InodesPerGroup + 1
	if len(t.inodes)+n > ext4.MaxGroups {
		return 0, ext4.ErrTooLarge
	}
	for range n {
		t.inodes = append(t.inodes, new([ext4.InodesPerGroup]*node))
	}
	return first, nil
}

// dirInode takes the next inode of the directories' sequence.
func (t *Tree) dirInode() (uint32, error) {
	if t.dirNext > t.dirLast {
		first, err := t.addInodeGroups(1)
		if err != nil {
			return 0, err
		}
		t.dirNext, t.dirLast = first, first+ext4.InodesPerGroup-1
	}
	t.dirNext++
	return t.dirNext - 1, nil
}

// touch notes that a directory's names changed.
func (t *Tree) touch(n *node) {
	if !n.dir.dirty {
		n.dir.dirty = true
		t.dirty = append(t.dirty, n)
	}
}

// fail makes an error about one entry.
func fail(path, format string, args ...any) error {
	return fmt.Errorf("%w: %.200q: %w", ErrLayer, path, fmt.Errorf(format, args...))
}

// path gives the way to a directory, for an error.
func (t *Tree) path(n *node) (path string) {
	for ; n != t.root; n = n.dir.parent {
		for name, c := range n.dir.parent.dir.children {
			if c.node == n {
				path = "/" + name + path
			}
		}
	}
	return path
}

// walk gives the directory at path, following symlinks within the tree. A
// missing one is made if create is set, else nil is given.
func (t *Tree) walk(path string, create bool) (*node, error) {
	cur, rest, links := t.root, path, 0
	for rest != "" {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		switch name {
		case "", ".":
			continue
		case "..":
			cur = cur.dir.parent
			continue
		}
		c, ok := cur.dir.children[name]
		if !ok {
			if !create {
				return nil, nil
			}
			made, err := t.makeDir(cur, name)
			if err != nil {
				return nil, err
			}
			c.node = made
		}
		switch c.mode & syscall.S_IFMT {
		case syscall.S_IFDIR:
			cur = c.node
		case syscall.S_IFLNK:
			if links++; links > maxSymlinks {
				return nil, fail(path, "more than %d symlinks on the way", maxSymlinks)
			}
			if strings.HasPrefix(c.extra.target, "/") {
				cur = t.root
			}
			rest = c.extra.target + "/" + rest
		default:
			return nil, fail(path, "%q on the way is not a directory", name)
		}
	}
	return cur, nil
}

// makeDir adds an empty directory with the attributes of an implied parent.
func (t *Tree) makeDir(parent *node, name string) (*node, error) {
	ino, err := t.dirInode()
	if err != nil {
		return nil, err
	}
	if parent.dir.depth == maxDepth {
		return nil, fail(name, "more than %d directories above one another", maxDepth)
	}
	if len(name) > ext4.MaxName {
		return nil, fail(name, "a name of %d bytes; %d are the limit", len(name), ext4.MaxName)
	}
	n := &node{ino: ino, mode: syscall.S_IFDIR | implicitMode}
	n.dir = &dir{parent: parent, children: map[string]child{}, hash: hashPath(parent.dir.hash, name), depth: parent.dir.depth + 1}
	t.touch(n)
	t.put(parent, name, n)
	return n, t.index(n)
}

// put gives n a name, as the layer being applied.
func (t *Tree) put(parent *node, name string, n *node) {
	// The name is a part of a path; a clone lets go of the rest.
	parent.dir.children[strings.Clone(name)] = child{n, t.layer}
	t.touch(parent)
}

// remove takes a name away, and what has no other one.
func (t *Tree) remove(parent *node, name string) {
	n := parent.dir.children[name].node
	delete(parent.dir.children, name)
	t.touch(parent)
	if n.dir != nil {
		for name := range n.dir.children {
			t.remove(n, name)
		}
	} else if n.links--; n.links > 0 {
		return
	}
	t.forget(n.ino)
	t.forgetValues(n)
}

func (t *Tree) forgetValues(n *node) {
	if n.extra != nil {
		for _, ino := range n.extra.eaInodes {
			t.forget(ino)
		}
	}
}

// hide takes a name away as far as lower layers gave it, and reports whether
// something of this layer keeps it.
func (t *Tree) hide(parent *node, name string) (kept bool) {
	c := parent.dir.children[name]
	if c.dir != nil && t.hideChildren(c.node) || c.layer == t.layer {
		return true
	}
	t.remove(parent, name)
	return false
}

// hideChildren does so with all names in a directory.
func (t *Tree) hideChildren(n *node) (kept bool) {
	for name := range n.dir.children {
		if t.hide(n, name) {
			kept = true
		}
	}
	return kept
}
