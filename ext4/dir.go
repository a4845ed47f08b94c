package ext4

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	// MaxName is the longest name in bytes.
	MaxName = 255

	rootEntries = (BlockSize - 32) / 8 // index entries in a directory's first block
	nodeEntries = (BlockSize - 8) / 8  // index entries in an interior block

	// maxDirBlocks is what an inode maps without blocks of its own. Two levels
	// of index could name twice as many leaves.
	maxDirBlocks = rootExtents * maxExtent
)

// Dirent is one name of a directory.
type Dirent struct {
	Name  string // 1 to MaxName bytes, neither "." nor ".."
	Inode uint32
	Mode  uint16 // of the inode, as in stat(2); its type counts
}

// AppendDirectory appends the blocks of the directory self in parent to dst.
// It sorts entries. One block is linear; more are an htree (half-MD4) of one
// or two levels, whose leaves are cut at prefixes of the hash: a new name
// changes its own leaf and, if that is full, splits it, and leaves the others
// as they are.
func AppendDirectory(dst []byte, self, parent uint32, entries []Dirent) ([]byte, error) {
	size := direntSize(1) + direntSize(2)
	for _, e := range entries {
		size += direntSize(len(e.Name))
	}
	if size <= BlockSize {
		slices.SortFunc(entries, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
		dots := []Dirent{{".", self, modeDir}, {"..", parent, modeDir}}
		return appendBlock(dst, dots, entries), nil
	}
	return appendIndexed(dst, self, parent, entries)
}

// direntSize is the space in bytes of an entry with a name of n bytes.
func direntSize(n int) int { return (8 + n + 3) &^ 3 }

// appendBlock appends one block of entries; the last reaches to its end.
func appendBlock(dst []byte, lists ...[]Dirent) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, BlockSize)...)
	b := dst[start:]
	at, last := 0, 0
	for _, list := range lists {
		for _, e := range list {
			n := direntSize(len(e.Name))
			putDirent(b[at:], e, n)
			last, at = at, at+n
		}
	}
	binary.LittleEndian.PutUint16(b[last+4:], uint16(BlockSize-last))
	return dst
}

// entryType gives the type in a directory entry (EXT4_FT_*) for an inode's mode.
func entryType(mode uint16) uint8 {
	switch mode & modeType {
	case modeRegular:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFIFO:
		return 5
	case modeSymlink:
		return 7
	}
	return 0 // unused entries
}

func putDirent(b []byte, e Dirent, length int) {
	binary.LittleEndian.PutUint32(b, e.Inode)
	binary.LittleEndian.PutUint16(b[4:], uint16(length))
	b[6], b[7] = uint8(len(e.Name)), entryType(e.Mode)
	copy(b[8:], e.Name)
}

// leaf is a run of entries in one block; hash is the lowest it may hold, with
// bit 0 set if equal hashes continue from the leaf before.
type leaf struct {
	hash    uint32
	entries []hashed
}

type hashed struct {
	hash uint32
	Dirent
}

// appendIndexed writes: root block, interior blocks if the root alone cannot
// name all leaves, leaves in the order of their hashes.
func appendIndexed(dst []byte, self, parent uint32, entries []Dirent) ([]byte, error) {
	list := make([]hashed, len(entries))
	for i, e := range entries {
		list[i] = hashed{nameHash(e.Name), e}
	}
	slices.SortFunc(list, func(a, b hashed) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), strings.Compare(a.Name, b.Name))
	})
	leaves := cutLeaves(nil, list, 0, 31)
	leaves[0].hash = 0
	nodes := 0
	if len(leaves) > rootEntries {
		nodes = (len(leaves) + nodeEntries - 1) / nodeEntries
	}
	if blocks := 1 + nodes + len(leaves); blocks > maxDirBlocks {
		return nil, fmt.Errorf("%w: its directory has %d blocks, %d are the limit", ErrTooLarge, blocks, maxDirBlocks)
	}
	dst = appendIndex(dst, self, parent, leaves, nodes)
	block := make([]Dirent, 0, BlockSize/12)
	for _, l := range leaves {
		block = block[:0]
		for _, e := range l.entries {
			block = append(block, e.Dirent)
		}
		dst = appendBlock(dst, block)
	}
	return dst, nil
}

// cutLeaves halves a range of hashes, by the bit below the prefix that its
// members share, until the entries of each part fit a block. base is the
// lowest hash of the range and bit the one to cut by.
func cutLeaves(leaves []leaf, list []hashed, base uint32, bit int) []leaf {
	size := 0
	for _, e := range list {
		size += direntSize(len(e.Name))
	}
	switch {
	case len(list) == 0:
		return leaves
	case size <= BlockSize:
		return append(leaves, leaf{base, list})
	case bit == 0: // all have one hash: the parts continue each other
		return cutEqual(leaves, list, base)
	}
	half := base | 1<<bit
	at, _ := slices.BinarySearchFunc(list, half, func(e hashed, h uint32) int { return cmp.Compare(e.hash, h) })
	leaves = cutLeaves(leaves, list[:at], base, bit-1)
	return cutLeaves(leaves, list[at:], half, bit-1)
}

func cutEqual(leaves []leaf, list []hashed, hash uint32) []leaf {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && size+direntSize(len(list[n].Name)) <= BlockSize {
			size += direntSize(len(list[n].Name))
			n++
		}
		leaves = append(leaves, leaf{hash, list[:n]})
		list, hash = list[n:], hash|1
	}
	return leaves
}

// appendIndex appends the root and the interior blocks (struct dx_root and
// dx_node of fs/ext4/namei.c).
func appendIndex(dst []byte, self, parent uint32, leaves []leaf, nodes int) []byte {
	root := make([]byte, BlockSize)
	putDirent(root, Dirent{".", self, modeDir}, 12)
	putDirent(root[12:], Dirent{"..", parent, modeDir}, BlockSize-12)
	root[28], root[29] = 1, 8 // half-MD4; length of this info
	first := uint32(1 + nodes)
	if nodes == 0 {
		putIndexEntries(root[32:], rootEntries, leaves, first)
		return append(dst, root...)
	}
	root[30] = 1 // one level of interior blocks
	heads := make([]leaf, 0, nodes)
	interior := make([]byte, 0, nodes*BlockSize)
	for i := 0; i < len(leaves); i += nodeEntries {
		part := leaves[i:min(i+nodeEntries, len(leaves))]
		heads = append(heads, part[0])
		b := make([]byte, BlockSize)
		binary.LittleEndian.PutUint16(b[4:], BlockSize) // an unused entry over all
		putIndexEntries(b[8:], nodeEntries, part, first+uint32(i))
		interior = append(interior, b...)
	}
	putIndexEntries(root[32:], rootEntries, heads, 1)
	return append(append(dst, root...), interior...)
}

// putIndexEntries writes hash and block of each part, the parts lying from
// block at on; the first one's hash gives way to limit and count.
func putIndexEntries(b []byte, limit int, parts []leaf, at uint32) {
	for i, p := range parts {
		binary.LittleEndian.PutUint32(b[8*i:], p.hash)
		binary.LittleEndian.PutUint32(b[8*i+4:], at+uint32(i))
	}
	binary.LittleEndian.PutUint16(b, uint16(limit))
	binary.LittleEndian.PutUint16(b[2:], uint16(len(parts)))
}
