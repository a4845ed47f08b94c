package ext4

import "encoding/binary"

const (
	extentMagic   = 0xF30A
	rootExtents   = 4   // (60 - 12) / 12 entries in the inode
	blockExtents  = 340 // (4096 - 12) / 12 entries in a block
	extentEntry   = 12  // bytes of a header, an index and an extent alike
	maxTreeLevels = 5   // EXT4_MAX_EXTENT_DEPTH
)

// Extent maps Count blocks of a file from block Logical on to blocks from
// Physical on. All are in units of BlockSize.
type Extent struct {
	Logical, Physical, Count uint32
}

// SplitExtents cuts extents longer than the on-disk limit. It gives its
// argument if there is nothing to cut.
func SplitExtents(in []Extent) []Extent {
	for i, e := range in {
		if e.Count > maxExtent {
			out := append([]Extent(nil), in[:i]...)
			for _, e := range in[i:] {
				for e.Count > maxExtent {
					out = append(out, Extent{e.Logical, e.Physical, maxExtent})
					e = Extent{e.Logical + maxExtent, e.Physical + maxExtent, e.Count - maxExtent}
				}
				out = append(out, e)
			}
			return out
		}
	}
	return in
}

// extentBlocks tells how many blocks of their own n extents need: none up to
// four, which the inode holds.
func extentBlocks(n int) int {
	total := 0
	for n > rootExtents {
		n = (n + blockExtents - 1) / blockExtents
		total += n
	}
	return total
}

// ExtentTree gives the inode's 60 bytes for extents (ascending, none above the
// on-disk limit: SplitExtents) and the contents of extentBlocks(len(extents))
// blocks that lie from block at on.
func ExtentTree(extents []Extent, at uint32) (root [60]byte, blocks []byte) {
	type ref struct{ logical, block uint32 }
	depth := 0
	var level []ref
	for n := len(extents); n > rootExtents; depth++ {
		if depth == maxTreeLevels {
			panic("ext4: extent tree too deep")
		}
		var next []ref
		for i := 0; i < n; i += blockExtents {
			end := min(i+blockExtents, n)
			b := make([]byte, BlockSize)
			putExtentHeader(b, end-i, blockExtents, depth)
			for j := i; j < end; j++ {
				entry := b[extentEntry*(1+j-i):]
				if depth == 0 {
					putExtent(entry, extents[j])
				} else {
					putIndex(entry, level[j].logical, level[j].block)
				}
			}
			first := binary.LittleEndian.Uint32(b[extentEntry:])
			next = append(next, ref{first, at + uint32(len(blocks)/BlockSize)})
			blocks = append(blocks, b...)
		}
		level, n = next, len(next)
	}
	if depth == 0 {
		putExtentHeader(root[:], len(extents), rootExtents, 0)
		for i, e := range extents {
			putExtent(root[extentEntry*(1+i):], e)
		}
		return root, blocks
	}
	putExtentHeader(root[:], len(level), rootExtents, depth)
	for i, r := range level {
		putIndex(root[extentEntry*(1+i):], r.logical, r.block)
	}
	return root, blocks
}

func putExtentHeader(b []byte, entries, limit, depth int) {
	binary.LittleEndian.PutUint16(b, extentMagic)
	binary.LittleEndian.PutUint16(b[2:], uint16(entries))
	binary.LittleEndian.PutUint16(b[4:], uint16(limit))
	binary.LittleEndian.PutUint16(b[6:], uint16(depth))
}

func putExtent(b []byte, e Extent) {
	binary.LittleEndian.PutUint32(b, e.Logical)
	binary.LittleEndian.PutUint16(b[4:], uint16(e.Count))
	binary.LittleEndian.PutUint32(b[8:], e.Physical)
}

func putIndex(b []byte, logical, block uint32) {
	binary.LittleEndian.PutUint32(b, logical)
	binary.LittleEndian.PutUint32(b[4:], block)
}
