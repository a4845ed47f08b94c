package verify

import "slices"

// indexReader checks a directory's htree. Block 0 holds the root behind "." and
// "..", inner blocks look like one unused entry of the whole block:
//
//	root:  12 bytes "." | 12 bytes ".." | 0 u32 | hash version u8 | 8 u8 | inner levels u8 | flags u8 | table
//	inner: 0 u32 | 4096 u16 | 0 u16 | table
//	table: limit u16 | count u16 | block u32 | (count - 1) × (hash u32 | block u32) | unused up to limit
//
// The first entry of a table has no hash: it takes over the one that led
// there. A hash with its lowest bit set says that the leaf before ends with
// names of the same hash. With 4 KiB blocks a root has room for 508 entries
// and an inner block for 511, one less each where there are checksums.
type indexReader struct {
	directory *inode
	fs        *fsys
	blocks    uint64
	inner     map[uint32][]byte // kept copies of block 0 and what looks like an inner block
	seen      []bool            // blocks the index leads to, itself included
	leaves    []leaf            // in the order of the index
}

// leaf is one entry of the index, that of a block with names.
type leaf struct {
	hash  uint32
	block uint32
}

// keep remembers a block that may be a part of the index.
func (x *indexReader) keep(n uint32, b []byte) {
	if n == 0 || u32(b, 0) == 0 && u16(b, 4) == blockSize {
		if x.inner == nil {
			x.inner = map[uint32][]byte{}
		}
		x.inner[n] = slices.Clone(b)
	}
}

// check walks the index, then looks every name up in it.
func (x *indexReader) check(l *listing) error {
	root := x.inner[0]
	version, levels := root[28], int(root[30])
	if u32(root, 24) != 0 || root[29] != 8 || root[31]&1 != 0 || u16(root, 4) != 12 || u16(root, 16) != blockSize-12 {
		return corrupt("index: the root's head is %x", root[24:32])
	}
	if version > hashTEA || levels > 1 {
		return corrupt("index: hash version %d, %d inner levels", version, levels)
	}
	x.seen = make([]bool, x.blocks)
	x.seen[0] = true
	if err := x.table(root[32:], 0, levels); err != nil {
		return err
	}
	if n := slices.Index(x.seen, false); n >= 0 {
		return corrupt("index: nothing leads to block %d", n)
	}
	for n := 1; n < len(x.leaves); n++ {
		if x.leaves[n].hash < x.leaves[n-1].hash {
			return corrupt("index: hash %#x comes after %#x", x.leaves[n].hash, x.leaves[n-1].hash)
		}
	}
	hash := nameHash{version: version, unsigned: x.fs.unsigned, seed: x.fs.hashSeed}
	for _, d := range l.entries {
		steps, ok := x.find(hash.sum(d.name), d.block)
		if !ok {
			return corrupt("index: does not lead to %q in block %d", d.name, d.block)
		}
		l.lookup = max(l.lookup, 1+levels+steps)
	}
	return nil
}

// table reads one table, which hash led to.
func (x *indexReader) table(b []byte, hash uint32, levels int) error {
	room := len(b) / 8
	if x.fs.roCompat&roCompatMetaCsum != 0 {
		room--
	}
	limit, count := int(u16(b, 0)), int(u16(b, 2))
	if limit != room || count < 1 || count > limit {
		return corrupt("index: table of %d of %d entries, room for %d", count, limit, room)
	}
	for n := range count {
		if n > 0 {
			hash = u32(b, 8*n)
		}
		block := u32(b, 8*n+4)
		if uint64(block) >= x.blocks || x.seen[block] {
			return corrupt("index: block %d of %d is out of bounds or there twice", block, x.blocks)
		}
		x.seen[block] = true
		if levels == 0 {
			x.leaves = append(x.leaves, leaf{hash, block})
			continue
		}
		inner := x.inner[block]
		if inner == nil {
			return corrupt("index: block %d is no inner block", block)
		}
		if err := x.table(inner[8:], hash, levels-1); err != nil {
			return err
		}
	}
	return nil
}

// find looks for a hash as the kernel does: in the last leaf whose hash is not
// above it, then on while leaves continue that hash. It gives the number of
// leaves read until block.
func (x *indexReader) find(hash, block uint32) (int, bool) {
	n, _ := slices.BinarySearchFunc(x.leaves[1:], hash, func(l leaf, h uint32) int {
		if l.hash <= h {
			return -1
		}
		return 1
	})
	for steps := 1; ; steps++ {
		if x.leaves[n].block == block {
			return steps, true
		}
		if n++; n == len(x.leaves) || x.leaves[n].hash != hash|1 {
			return steps, false
		}
	}
}
