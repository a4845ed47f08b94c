package flatten

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"thaw/ext4"
)

// Apply adds the next layer and writes the metadata that belongs to it. It
// gives the offset in bytes of the layer's region, where its data belongs. A
// layer that cannot be applied gives ErrLayer, a damaged one ErrRecipe; the
// tree is of no use then.
func (t *Tree) Apply(l *Layer) (region int64, err error) {
	if t.layer == maxLayers {
		return 0, fmt.Errorf("%w: more than %d layers", ErrLayer, maxLayers)
	}
	t.layer++
	slots := int(l.slots+ext4.InodesPerGroup-1) / ext4.InodesPerGroup
	if t.first, err = t.addInodeGroups(slots); err != nil {
		return 0, err
	}
	t.region = t.nextGroup * ext4.BlocksPerGroup
	base := int64(t.region) * blockSize
	metaStart := (base + l.data + runSize - 1) / runSize * runSize
	if metaStart > ext4.MaxGroups*groupSize {
		return 0, ext4.ErrTooLarge
	}
	t.meta = newRuns(boundedWriter{t.w}, metaStart)
	t.claimed = make([]uint64, (l.data/blockSize+63)/64)
	if err := l.each(t.apply); err != nil {
		return 0, err
	}
	if err := t.linkDeferred(); err != nil {
		return 0, err
	}
	if err := t.writeDirs(); err != nil {
		return 0, err
	}
	if t.meta.next > base {
		t.nextGroup = uint32((t.meta.next + groupSize - 1) / groupSize)
	}
	return base, nil
}

// apply applies one entry.
func (t *Tree) apply(e *entry) error {
	switch e.kind {
	case kindLink:
		kept := *e
		done, err := t.link(&kept)
		if err == nil && !done {
			t.deferred = append(t.deferred, &kept)
		}
		return err
	case kindWhiteout:
		dir, base := splitPath(e.path)
		parent, err := t.walk(dir, false)
		if err != nil || parent == nil {
			return err
		}
		if _, ok := parent.dir.children[base]; ok {
			t.hide(parent, base)
		}
		return nil
	case kindOpaque:
		n, err := t.walk(e.path, false)
		if err == nil && n != nil {
			t.hideChildren(n)
		}
		return err
	case kindDir:
		return t.addDir(e)
	}
	return t.addFile(e)
}

// addDir makes a directory, or gives an existing one new attributes.
func (t *Tree) addDir(e *entry) error {
	n := t.root
	if e.path != "" {
		dir, base := splitPath(e.path)
		parent, err := t.walk(dir, true)
		if err != nil {
			return err
		}
		c, ok := parent.dir.children[base]
		if ok && c.dir == nil {
			t.remove(parent, base)
			ok = false
		}
		if ok {
			parent.dir.children[base] = child{c.node, t.layer}
		} else if c.node, err = t.makeDir(parent, base); err != nil {
			return err
		}
		n = c.node
	}
	t.forgetValues(n)
	n.extra = nil
	return t.setAttributes(n, e, e.kind.mode())
}

// addFile makes anything but a directory.
func (t *Tree) addFile(e *entry) error {
	dir, base := splitPath(e.path)
	parent, err := t.walk(dir, true)
	if err != nil {
		return err
	}
	if _, ok := parent.dir.children[base]; ok {
		t.remove(parent, base)
	}
	n := &node{ino: t.first + e.slot, links: 1, size: e.size}
	switch e.kind {
	case kindSymlink:
		n.size = int64(len(e.target))
		n.extra = &extra{target: e.target}
	case kindChar, kindBlock:
		n.extra = &extra{dev: e.dev}
	}
	if err := t.setExtents(n, e.extents); err != nil {
		return err
	}
	if err := t.setAttributes(n, e, e.kind.mode()); err != nil {
		return err
	}
	t.put(parent, base, n)
	return t.index(n)
}

// more gives the node's extra, made if need be.
func (n *node) more() *extra {
	if n.extra == nil {
		n.extra = &extra{}
	}
	return n.extra
}

// setExtents notes where a file lies, and writes the blocks of an extent tree
// that the inode cannot hold.
func (t *Tree) setExtents(n *node, extents []ext4.Extent) error {
	for i := range extents {
		if err := t.claim(extents[i].Physical, extents[i].Count); err != nil {
			return err
		}
		extents[i].Physical += t.region
	}
	whole := uint32((n.size + blockSize - 1) / blockSize)
	if len(extents) == 1 && extents[0].Logical == 0 && extents[0].Count == whole {
		n.start = extents[0].Physical
		return nil
	}
	if len(extents) == 0 {
		return nil
	}
	x := n.more()
	x.extents = extents
	_, b := ext4.ExtentTree(extents, 0)
	if len(b) == 0 {
		return nil
	}
	off, place, err := t.placeMeta(len(b))
	if err != nil {
		return err
	}
	x.tree, x.treeBlocks = uint32(off/blockSize), uint32(len(b)/blockSize)
	_, b = ext4.ExtentTree(extents, x.tree) // now that it is known where they lie
	return place(b)
}

// claim notes that blocks of the layer's data have an owner. Pack gives none
// two of them.
func (t *Tree) claim(start, count uint32) error {
	for b := start; b < start+count; b++ {
		if t.claimed[b/64]&(1<<(b%64)) != 0 {
			return fmt.Errorf("%w: block %d given twice", ErrRecipe, b)
		}
		t.claimed[b/64] |= 1 << (b % 64)
	}
	return nil
}

// placeMeta finds room for n bytes of metadata and gives the function that
// puts them there.
func (t *Tree) placeMeta(n int) (off int64, place func([]byte) error, err error) {
	if n > runSize {
		off = t.meta.large()
		t.meta.took(int64(n))
		return off, func(b []byte) error { _, err := t.meta.w.WriteAt(b, off); return err }, nil
	}
	off, dst, err := t.meta.place(n)
	return off, func(b []byte) error { copy(dst, b); return nil }, err
}

// setAttributes sets what any inode has; mode has the type bits.
func (t *Tree) setAttributes(n *node, e *entry, mode uint16) error {
	n.mode, n.uid, n.gid = mode|e.mode, e.uid, e.gid
	n.sec, n.nsec = e.mtime.Sec, e.mtime.Nsec
	if len(e.xattrs) == 0 {
		return nil
	}
	x := n.more()
	list := make([]ext4.Xattr, len(e.xattrs))
	for i, a := range e.xattrs {
		list[i] = a.Xattr
		if a.Inode == 0 {
			continue
		}
		blocks := (a.Size + blockSize - 1) / blockSize
		ea := &node{ino: t.first + a.Inode - 1, links: 1, mode: syscall.S_IFREG | 0o600, size: int64(a.Size), start: t.region + a.start}
		ea.extra = &extra{isEA: true, eaHash: a.Hash}
		if err := errors.Join(t.claim(a.start, blocks), t.index(ea)); err != nil {
			return err
		}
		list[i].Inode = ea.ino
		x.eaInodes = append(x.eaInodes, ea.ino)
		x.eaBlocks += blocks
	}
	body, block, err := ext4.EncodeXattrs(list)
	if err != nil {
		return errors.Join(ErrRecipe, err)
	}
	x.xattrBody = body
	if block == nil {
		return nil
	}
	off, place, err := t.placeMeta(blockSize)
	if err != nil {
		return err
	}
	x.xattrBlock = uint32(off / blockSize)
	return place(block)
}

// link makes a hard link; done is false if its other name does not exist.
func (t *Tree) link(e *entry) (done bool, err error) {
	dir, name := splitPath(e.target)
	from, err := t.walk(dir, false)
	if err != nil || from == nil {
		return false, err
	}
	target, ok := from.dir.children[name]
	if !ok {
		if e.target == "" {
			return false, fail(e.path, "a hard link to the root")
		}
		return false, nil
	}
	if target.dir != nil {
		return false, fail(e.path, "a hard link to %.200q, a directory", e.target)
	}
	dir, base := splitPath(e.path)
	parent, err := t.walk(dir, true)
	if err != nil {
		return false, err
	}
	if old, ok := parent.dir.children[base]; ok {
		if old.node == target.node {
			if parent != from || base != name { // a name that a lower layer gave is this one's now
				parent.dir.children[base] = child{old.node, t.layer}
			}
			return true, nil
		}
		t.remove(parent, base)
		if !t.alive(target.node) {
			return false, fail(e.path, "a hard link to %.200q inside of what it replaces", e.target)
		}
	}
	if target.links == ext4.MaxLinks {
		return false, fail(e.path, "more than %d names of one file, %.200q", ext4.MaxLinks, e.target)
	}
	target.links++
	t.put(parent, base, target.node)
	return true, nil
}

// linkDeferred makes the links that came before what they link to, in order
// and as often as one of them succeeds.
func (t *Tree) linkDeferred() error {
	for len(t.deferred) > 0 {
		var left []*entry
		for _, e := range t.deferred {
			done, err := t.link(e)
			if err != nil {
				return err
			}
			if !done {
				left = append(left, e)
			}
		}
		if len(left) == len(t.deferred) {
			return fail(left[0].path, "a hard link to %.200q, which does not exist", left[0].target)
		}
		t.deferred = left
	}
	return nil
}

// writeDirs writes every directory whose names the layer changed, in the order
// of their inodes.
func (t *Tree) writeDirs() error {
	dirs := slices.DeleteFunc(t.dirty, func(n *node) bool { n.dir.dirty = false; return !t.alive(n) })
	slices.SortFunc(dirs, func(a, b *node) int { return cmp.Compare(a.ino, b.ino) })
	var block []byte
	var list []ext4.Dirent
	for _, n := range dirs {
		list = list[:0]
		for name, c := range n.dir.children {
			list = append(list, ext4.Dirent{Name: name, Inode: c.ino, Mode: c.mode})
		}
		var err error
		if block, err = ext4.AppendDirectory(block[:0], n.ino, n.dir.parent.ino, list); err != nil {
			return fail(t.path(n), "a directory of %d names: %w", len(list), err)
		}
		off, place, err := t.placeMeta(len(block))
		if err != nil {
			return err
		}
		if err := place(block); err != nil {
			return err
		}
		n.start, n.size, n.dir.blocks = uint32(off/blockSize), int64(len(block)), uint32(len(block)/blockSize)
		if err := t.meta.end(n.dir.hash, len(block)); err != nil {
			return err
		}
	}
	t.dirty, t.claimed = nil, nil
	return t.meta.flush()
}

// mode gives the type bits of what the entry makes.
func (k kind) mode() uint16 {
	switch k {
	case kindDir:
		return syscall.S_IFDIR
	case kindSymlink:
		return syscall.S_IFLNK
	case kindChar:
		return syscall.S_IFCHR
	case kindBlock:
		return syscall.S_IFBLK
	case kindFIFO:
		return syscall.S_IFIFO
	}
	return syscall.S_IFREG
}
