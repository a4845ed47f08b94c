package verify

import (
	"fmt"
	"maps"
	"math/bits"
	"slices"
)

// claims is a set of block numbers, kept in pages so that an address space
// that is mostly holes costs nothing.
type claims struct {
	pages map[uint64]*[512]uint64 // 32,768 blocks each
}

// add puts n numbers from start on into the set. It stops at the first that is
// in it already and gives that one and false.
func (c *claims) add(start, n uint64) (uint64, bool) {
	if c.pages == nil {
		c.pages = map[uint64]*[512]uint64{}
	}
	for b, end := start, start+n; b < end; {
		page := c.pages[b>>15]
		if page == nil {
			page = new([512]uint64)
			c.pages[b>>15] = page
		}
		word, from := &page[b>>6&511], b&63
		k := min(64-from, end-b)
		mask := (^uint64(0) >> (64 - k)) << from
		if both := *word & mask; both != 0 {
			return b&^63 + uint64(bits.TrailingZeros64(both)), false
		}
		*word |= mask
		b += k
	}
	return 0, true
}

// all gives the numbers in ascending order until yield returns false.
func (c *claims) all(yield func(uint64) bool) {
	for _, p := range slices.Sorted(maps.Keys(c.pages)) {
		for w, word := range c.pages[p] {
			for ; word != 0; word &= word - 1 {
				if !yield(p<<15 + uint64(w)<<6 + uint64(bits.TrailingZeros64(word))) {
					return
				}
			}
		}
	}
}

// checkBitmaps checks that every block and inode found in use is so in its
// group's bitmap: else the kernel would give it away at the first write.
func (f *fsys) checkBitmaps() error {
	err := f.checkBitmap(&f.claimed, maxPerGroup, func(g int, b []byte) error {
		if f.groups[g].flags&groupBlockUninit != 0 {
			f.ownMetadata(g, b)
			return nil
		}
		return f.readBlock(b, f.groups[g].blockBitmap)
	})
	if err != nil {
		return fmt.Errorf("blocks: %w", err)
	}
	err = f.checkBitmap(&f.used, f.inodesPerGroup, func(g int, b []byte) error {
		return f.readBlock(b, f.groups[g].inodeBitmap)
	})
	if err != nil {
		return fmt.Errorf("inodes: %w", err)
	}
	return nil
}

// checkBitmap checks numbers against the bitmaps that load gives. The other way
// round nothing is wrong: what is marked and not found may be hidden data, the
// journal or a reserved inode.
func (f *fsys) checkBitmap(used *claims, perGroup uint32, load func(group int, b []byte) error) error {
	last, b := -1, make([]byte, blockSize)
	for n := range used.all {
		g, bit := int(n/uint64(perGroup)), n%uint64(perGroup)
		if g != last {
			if err := load(g, b); err != nil {
				return fmt.Errorf("bitmap of group %d: %w", g, err)
			}
			last = g
		}
		if b[bit/8]>>(bit%8)&1 == 0 {
			return corrupt("number %d of group %d is in use and marked as free", bit, g)
		}
	}
	return nil
}

// ownMetadata makes the block bitmap of a group that has none: only what the
// kernel knows of without it is in use, and that is the group's own metadata
// where it lies inside of the group. Backups of the superblock are left out, as
// nothing claims them.
func (f *fsys) ownMetadata(g int, b []byte) {
	clear(b)
	start := uint64(g) * maxPerGroup
	mark := func(from, n uint64) {
		for at := max(from, start); at < min(from+n, start+maxPerGroup); at++ {
			b[(at-start)/8] |= 1 << ((at - start) % 8)
		}
	}
	if g == 0 {
		mark(0, firstDescriptor+f.descriptorBlocks())
	}
	mark(f.groups[g].blockBitmap, 1)
	mark(f.groups[g].inodeBitmap, 1)
	mark(f.groups[g].inodeTable, f.tableBlocks())
}
