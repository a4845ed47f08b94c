package verify

import (
	"errors"
	"fmt"
)

const (
	extentMagic = 0xF30A
	// maxExtentDepth is the deepest tree ext4 has: with 340 entries a block
	// five levels address more than 2^32 blocks.
	maxExtentDepth = 5
	// maxExtentLen is the longest written extent in blocks; a length above it
	// is that of an unwritten one, which reads as zeros.
	maxExtentLen = 32768
	// maxFileBlocks bounds logical block numbers, which have 32 bits.
	maxFileBlocks = 1 << 32
)

// extent maps count blocks of a file to the device.
type extent struct {
	logical   uint64 // first block in the file
	physical  uint64 // first block on the device
	count     uint64
	unwritten bool
}

// errStop ends a walk of extents early without an error.
var errStop = errors.New("stop")

// extentWalk is one pass over an inode's extent tree.
type extentWalk struct {
	f     *fsys
	claim bool   // mark every block as in use
	next  uint64 // logical blocks below have been passed
	visit func(extent) error
}

// walkExtents calls visit for each extent in ascending order. Order, bounds and
// depth are checked; with claim every block of data or tree is marked as in use
// and may be so once. Time is bounded by the blocks of the device, as each leaf
// has to take the logical blocks on, which only go up; memory by the depth. A
// tree's root is the inode's block area, other nodes are a block:
//
//	head:   magic u16 | entries u16 | room for entries u16 | depth u16 | u32
//	inner:  first logical block u32 | node's block u32 | upper half u16 | u16
//	leaf:   first logical block u32 | blocks u16 | block, upper half u16 | block u32
//
// An empty file may go without a tree, as files of debugfs do.
func (f *fsys) walkExtents(i *inode, claim bool, visit func(extent) error) error {
	if i.flags&flagExtents == 0 {
		if i.size == 0 && i.area == [blockArea]byte{} {
			return nil
		}
		return corrupt("inode %d: has a block map instead of extents", i.number)
	}
	w := &extentWalk{f: f, claim: claim, visit: visit}
	depth := int(u16(i.area[:], 6))
	if depth > maxExtentDepth {
		return corrupt("inode %d: extent tree of depth %d", i.number, depth)
	}
	err := w.node(i.area[:], depth, maxFileBlocks)
	if err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("inode %d: %w", i.number, err)
	}
	return nil
}

// node walks one node, whose blocks have to lie below end.
func (w *extentWalk) node(b []byte, depth int, end uint64) error {
	entries, limit := int(u16(b, 2)), int(u16(b, 4))
	if u16(b, 0) != extentMagic || int(u16(b, 6)) != depth || entries > limit || limit > (len(b)-12)/12 {
		return corrupt("extent node: magic %#x, %d of %d entries, depth %d where %d is due", u16(b, 0), entries, limit, u16(b, 6), depth)
	}
	if entries == 0 && len(b) != blockArea {
		return corrupt("extent node without entries")
	}
	for n := range entries {
		e := b[12+12*n : 24+12*n]
		if depth == 0 {
			if err := w.leaf(e, end); err != nil {
				return err
			}
			continue
		}
		upper := end
		if n+1 < entries {
			upper = min(end, uint64(u32(b, 12+12*(n+1))))
		}
		if err := w.index(e, depth, upper); err != nil {
			return err
		}
	}
	return nil
}

// index walks the node that one index entry names.
func (w *extentWalk) index(e []byte, depth int, end uint64) error {
	first, block := uint64(u32(e, 0)), uint64(u32(e, 4))|uint64(u16(e, 8))<<32
	if first < w.next || first >= end {
		return corrupt("extent index of logical block %d is out of order", first)
	}
	w.next = first
	if w.claim {
		if err := w.f.claim(block, 1); err != nil {
			return err
		}
	}
	b := make([]byte, blockSize)
	if err := w.f.readBlock(b, block); err != nil {
		return err
	}
	return w.node(b, depth-1, end)
}

// leaf hands on one extent.
func (w *extentWalk) leaf(e []byte, end uint64) error {
	x := extent{
		logical: uint64(u32(e, 0)), count: uint64(u16(e, 4)),
		physical: uint64(u32(e, 8)) | uint64(u16(e, 6))<<32,
	}
	if x.count > maxExtentLen {
		x.count, x.unwritten = x.count-maxExtentLen, true
	}
	if x.count == 0 || x.logical < w.next || x.logical+x.count > end {
		return corrupt("extent of %d blocks at logical block %d is out of order", x.count, x.logical)
	}
	if x.physical >= w.f.blocks || x.count > w.f.blocks-x.physical {
		return corrupt("extent of blocks %d+%d lies outside of the file system's %d", x.physical, x.count, w.f.blocks)
	}
	w.next = x.logical + x.count
	if w.claim {
		if err := w.f.claim(x.physical, x.count); err != nil {
			return err
		}
	}
	return w.visit(x)
}

// firstBlock gives the first block of an inode's content on the device, 0 for
// none. With claim all its blocks are marked as in use.
func (f *fsys) firstBlock(i *inode, claim bool) (uint64, error) {
	switch k := i.kind(); {
	case k != typeRegular && k != typeDir && k != typeSymlink, k == typeSymlink && i.size < blockArea:
		return 0, nil
	}
	first := uint64(0)
	err := f.walkExtents(i, claim, func(x extent) error {
		if first == 0 {
			first = x.physical
		}
		if !claim {
			return errStop
		}
		return nil
	})
	return first, err
}

// readInodeBlock reads logical block n of an inode. A hole is an error: what
// is read with this (directories, long symlinks) has none.
func (f *fsys) readInodeBlock(i *inode, buf []byte, n uint64) error {
	found := false
	err := f.walkExtents(i, false, func(x extent) error {
		if n < x.logical || n >= x.logical+x.count {
			return nil
		}
		if x.unwritten {
			return errStop
		}
		found = true
		if err := f.readBlock(buf, x.physical+n-x.logical); err != nil {
			return err
		}
		return errStop
	})
	if err == nil && !found {
		err = corrupt("inode %d: block %d is a hole", i.number, n)
	}
	return err
}

// readContent gives an inode's content in order, as pieces of at most len(buf)
// bytes, a whole number of blocks; the last is cut at the inode's size. Holes
// and unwritten extents read as zeros, and cost as much: callers look at the
// size first. A piece is valid until emit returns.
func (f *fsys) readContent(i *inode, buf []byte, emit func([]byte) error) error {
	at := int64(0) // bytes given so far
	zeros := func(until int64) error {
		for until = min(until, i.size); at < until; {
			piece := buf[:min(int64(len(buf)), until-at)]
			clear(piece)
			if err := f.ctx.Err(); err != nil {
				return err
			}
			if err := emit(piece); err != nil {
				return err
			}
			at += int64(len(piece))
		}
		return nil
	}
	err := f.walkExtents(i, false, func(x extent) error {
		if err := zeros(int64(x.logical) * blockSize); err != nil || x.unwritten {
			return err
		}
		for n := uint64(0); n < x.count && at < i.size; {
			k := min(x.count-n, uint64(len(buf)/blockSize))
			if err := f.readBlock(buf[:k*blockSize], x.physical+n); err != nil {
				return err
			}
			piece := buf[:min(int64(k)*blockSize, i.size-at)]
			if err := emit(piece); err != nil {
				return err
			}
			at, n = at+int64(len(piece)), n+k
		}
		return nil
	})
	if err != nil {
		return err
	}
	return zeros(i.size)
}
