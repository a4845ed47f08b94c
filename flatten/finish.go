package flatten

import (
	"fmt"
	"io"
	"syscall"

	"thaw/ext4"
)

// Summary tells what a device holds.
type Summary struct {
	Size    int64 // bytes of the device
	Entries int   // inodes in use, names' values not counted
	Bytes   int64 // sum of the sizes of its regular files
}

// Free is the room a device has for writes: at least so much, or what is left
// in a device of exactly Size bytes.
type Free struct {
	Bytes  int64
	Inodes int64
	Size   int64 // 0 for the smallest that has the room; else a multiple of a block group
}

// Finish writes the front of the device, with room for free. The tree is of no
// use after it.
func (t *Tree) Finish(free Free) (Summary, error) {
	if t.layer == 0 { // an image without layers still has a root directory
		if _, err := t.Apply(&Layer{}); err != nil {
			return Summary{}, err
		}
	}
	var s Summary
	v := ext4.NewVolume()
	for _, group := range t.inodes {
		for _, n := range group {
			if n != nil {
				t.use(v, n, &s)
			}
		}
	}
	groups, err := v.Groups((free.Bytes+blockSize-1)/blockSize, free.Inodes)
	if err != nil {
		return s, err
	}
	groups = max(groups, int(t.nextGroup))
	if free.Size > 0 {
		if int64(groups)*groupSize > free.Size || free.Size%groupSize != 0 {
			return s, fmt.Errorf("a device of %d bytes does not hold these layers", free.Size)
		}
		groups = int(free.Size / groupSize)
	}
	if groups > ext4.MaxGroups {
		return s, ext4.ErrTooLarge
	}
	s.Size = int64(groups) * groupSize
	err = v.WriteFront(boundedWriter{t.w}, groups, func(ino uint32, b []byte) {
		n := t.inodes[(ino-1)/ext4.InodesPerGroup][(ino-1)%ext4.InodesPerGroup]
		inode := n.encode()
		inode.Encode(b)
	})
	return s, err
}

// use marks what a node has.
func (t *Tree) use(v *ext4.Volume, n *node, s *Summary) {
	if n.ino != ext4.RootInode {
		v.UseInode(n.ino, n.dir != nil)
	}
	for _, e := range n.extents() {
		v.UseBlocks(e.Physical, e.Count)
	}
	if x := n.extra; x != nil {
		if x.xattrBlock != 0 {
			v.UseBlocks(x.xattrBlock, 1)
		}
		if x.tree != 0 {
			v.UseBlocks(x.tree, x.treeBlocks)
		}
		if x.isEA {
			v.UseEAInodes()
			return
		}
	}
	s.Entries++
	if n.mode&syscall.S_IFMT == syscall.S_IFREG {
		s.Bytes += n.size
	}
}

// extents gives where a node's blocks lie.
func (n *node) extents() []ext4.Extent {
	if n.extra != nil && n.extra.extents != nil {
		return n.extra.extents
	}
	if n.start == 0 {
		return nil
	}
	count := uint32((n.size + blockSize - 1) / blockSize)
	return ext4.SplitExtents([]ext4.Extent{{Physical: n.start, Count: count}})
}

// encode gives the node's inode.
func (n *node) encode() ext4.Inode {
	i := ext4.Inode{Mode: n.mode, Links: n.links, UID: n.uid, GID: n.gid, Size: n.size, Mtime: ext4.Time{Sec: n.sec, Nsec: n.nsec}}
	if n.dir != nil {
		i.Links = dirLinks(n.dir)
		i.Indexed = n.dir.blocks > 1
	}
	extents := n.extents()
	for _, e := range extents {
		i.Blocks += uint64(e.Count)
	}
	var tree uint32
	if x := n.extra; x != nil {
		i.XattrBody, i.XattrBlock, i.IsEA, i.EAHash = x.xattrBody, x.xattrBlock, x.isEA, x.eaHash
		i.Blocks += uint64(x.eaBlocks)
		if x.xattrBlock != 0 {
			i.Blocks++
		}
		if x.tree != 0 {
			tree = x.tree
			i.Blocks += uint64(x.treeBlocks)
		}
	}
	switch n.mode & syscall.S_IFMT {
	case syscall.S_IFREG, syscall.S_IFDIR:
		i.Map, _ = ext4.ExtentTree(extents, tree)
	case syscall.S_IFLNK:
		if n.size <= ext4.FastSymlink {
			i.Target = n.extra.target
		} else {
			i.Map, _ = ext4.ExtentTree(extents, tree)
		}
	case syscall.S_IFCHR, syscall.S_IFBLK:
		i.Device = n.extra.dev
	}
	return i
}

// dirLinks counts "." and the entry of each subdirectory's ".."; beyond what
// the field holds it is 1 (dir_nlink).
func dirLinks(d *dir) uint32 {
	links := uint32(2)
	for _, c := range d.children {
		if c.dir != nil {
			links++
		}
	}
	if links > ext4.MaxLinks {
		return 1
	}
	return links
}

// boundedWriter refuses what lies behind the largest file system, which a
// layer may pass before Finish can tell.
type boundedWriter struct{ w io.WriterAt }

func (b boundedWriter) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > ext4.MaxGroups*groupSize {
		return 0, ext4.ErrTooLarge
	}
	return b.w.WriteAt(p, off)
}
