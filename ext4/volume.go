package ext4

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// Volume keeps what is in use and writes the front of a file system. It holds
// a bitmap for each group that is touched and nothing for the others.
type Volume struct {
	groups  []group
	eaInode bool
}

// group counts blocks and inodes of one block group. A nil bitmap is all free.
type group struct {
	blocks     []byte // BlockSize bytes, one bit a block
	inodes     []byte // InodesPerGroup / 8 bytes
	usedBlocks int
	usedInodes int
	lastInode  int // highest used index, plus one
	dirs       int
}

// NewVolume gives a volume with the reserved inodes in use and no blocks: those
// of the front are added by WriteFront.
func NewVolume() *Volume {
	v := &Volume{}
	for n := uint32(1); n < FirstInode; n++ {
		v.UseInode(n, n == RootInode)
	}
	return v
}

func (v *Volume) group(g uint32) *group {
	for uint32(len(v.groups)) <= g {
		v.groups = append(v.groups, group{})
	}
	return &v.groups[g]
}

// UseBlocks marks count blocks from start on as used. It panics if one of them
// is used already or lies past MaxGroups.
func (v *Volume) UseBlocks(start, count uint32) {
	for count > 0 {
		if start/BlocksPerGroup >= MaxGroups {
			panic("ext4: block past the largest file system")
		}
		g := v.group(start / BlocksPerGroup)
		if g.blocks == nil {
			g.blocks = make([]byte, BlockSize)
		}
		at := start % BlocksPerGroup
		n := min(count, BlocksPerGroup-at)
		setBits(g.blocks, at, n)
		g.usedBlocks += int(n)
		start, count = start+n, count-n
	}
}

// setBits sets n bits from at on, all of which must be clear.
func setBits(b []byte, at, n uint32) {
	for n > 0 {
		k := min(n, 8-at%8)
		mask := byte((1<<k - 1) << (at % 8))
		if b[at/8]&mask != 0 {
			panic("ext4: block or inode used twice")
		}
		b[at/8] |= mask
		at, n = at+k, n-k
	}
}

// UseInode marks inode n as used, and counts it among the directories.
func (v *Volume) UseInode(n uint32, dir bool) {
	g := v.group((n - 1) / InodesPerGroup)
	if g.inodes == nil {
		g.inodes = make([]byte, InodesPerGroup/8)
	}
	at := (n - 1) % InodesPerGroup
	setBits(g.inodes, at, 1)
	g.usedInodes++
	g.lastInode = max(g.lastInode, int(at)+1)
	if dir {
		g.dirs++
	}
}

// UseEAInodes turns on the ea_inode feature, without which the kernel refuses
// attributes whose values have an inode.
func (v *Volume) UseEAInodes() { v.eaInode = true }

// Groups tells how many groups a file system needs that holds what is in use
// and has that many blocks and inodes free, so that statfs(2) says so too: the
// kernel sets blocks aside that no one can use (ext4_set_resv_clusters).
func (v *Volume) Groups(freeBlocks, freeInodes int64) (int, error) {
	var usedBlocks, usedInodes int64
	for i := range v.groups {
		usedBlocks += int64(v.groups[i].usedBlocks)
		usedInodes += int64(v.groups[i].usedInodes)
	}
	for n := max(DataGroup, len(v.groups)); n <= MaxGroups; n++ {
		front := int64(1 + descriptorBlocks(n) + n*(2+tableBlocks))
		setAside := min(int64(n)*BlocksPerGroup/50, 4096)
		if int64(n)*BlocksPerGroup-usedBlocks-front-setAside >= freeBlocks && int64(n)*InodesPerGroup-usedInodes >= freeInodes {
			return n, nil
		}
	}
	return 0, ErrTooLarge
}

func descriptorBlocks(groups int) int {
	return (groups*descSize + BlockSize - 1) / BlockSize
}

// bitmapBlock is where the block bitmap of group g lies; its inode bitmap
// follows.
func bitmapBlock(g int) uint32 {
	if g < nearGroups {
		return uint32(nearBitmaps + 2*g)
	}
	return uint32(farBitmaps + 2*(g-nearGroups))
}

// WriteFront writes superblock, descriptors, bitmaps and inode tables of a file
// system of so many groups, in ascending order and without the parts that are
// all zeros. encode fills in one inode (inodeSize zero bytes); it is called
// for each used inode that is not reserved, and for the root.
func (v *Volume) WriteFront(w io.WriterAt, groups int, encode func(n uint32, b []byte)) error {
	v.group(uint32(groups) - 1)
	v.UseBlocks(0, uint32(1+descriptorBlocks(groups)))
	for g := range groups {
		v.UseBlocks(bitmapBlock(g), 2)
		v.UseBlocks(firstTable+uint32(g)*tableBlocks, tableBlocks)
	}
	head := make([]byte, (1+descriptorBlocks(groups))*BlockSize)
	v.putSuperblock(head[1024:2048], groups)
	for g := range groups {
		v.putDescriptor(head[BlockSize+g*descSize:], g)
	}
	if _, err := w.WriteAt(head, 0); err != nil {
		return err
	}
	for g := range groups {
		if err := v.writeBitmaps(w, g); err != nil {
			return err
		}
	}
	table := make([]byte, InodesPerGroup*inodeSize)
	for g := range groups {
		if v.groups[g].inodes == nil {
			continue
		}
		clear(table)
		v.fillTable(table, g, encode)
		if _, err := w.WriteAt(table, int64(firstTable+g*tableBlocks)*BlockSize); err != nil {
			return err
		}
	}
	return nil
}

func (v *Volume) fillTable(table []byte, g int, encode func(n uint32, b []byte)) {
	for i, b := range v.groups[g].inodes {
		for ; b != 0; b &= b - 1 {
			at := 8*i + bits.TrailingZeros8(b)
			n := uint32(g*InodesPerGroup + at + 1)
			if n == RootInode || n >= FirstInode {
				encode(n, table[at*inodeSize:(at+1)*inodeSize])
			}
		}
	}
}

func (v *Volume) writeBitmaps(w io.WriterAt, g int) error {
	gr := &v.groups[g]
	at := int64(bitmapBlock(g)) * BlockSize
	if gr.blocks != nil {
		if _, err := w.WriteAt(gr.blocks, at); err != nil {
			return err
		}
	}
	if gr.inodes == nil {
		return nil
	}
	b := make([]byte, BlockSize)
	copy(b, gr.inodes)
	for i := InodesPerGroup / 8; i < len(b); i++ {
		b[i] = 0xFF // bits past the last inode are set
	}
	_, err := w.WriteAt(b, at+BlockSize)
	return err
}

func (v *Volume) putDescriptor(b []byte, g int) {
	const inodeUninit, blockUninit, inodeZeroed = 1, 2, 4
	le := binary.LittleEndian
	gr := &v.groups[g]
	flags := uint16(inodeZeroed)
	if gr.inodes == nil {
		flags |= inodeUninit
	}
	if gr.blocks == nil && g < len(v.groups)-1 { // e2fsck wants the last group's bitmap, all zeros as it may be
		flags |= blockUninit
	}
	le.PutUint32(b[0x00:], bitmapBlock(g))
	le.PutUint32(b[0x04:], bitmapBlock(g)+1)
	le.PutUint32(b[0x08:], firstTable+uint32(g)*tableBlocks)
	le.PutUint16(b[0x0C:], uint16(BlocksPerGroup-gr.usedBlocks))
	le.PutUint16(b[0x0E:], uint16(InodesPerGroup-gr.usedInodes))
	le.PutUint16(b[0x10:], uint16(gr.dirs))
	le.PutUint16(b[0x12:], flags)
	le.PutUint16(b[0x1C:], uint16(InodesPerGroup-gr.lastInode))
	le.PutUint16(b[0x1E:], descChecksum(uint32(g), b))
}

// putSuperblock fills in struct ext4_super_block (fs/ext4/ext4.h).
func (v *Volume) putSuperblock(b []byte, groups int) {
	const (
		compat   = 0x8 | 0x20 | 0x200             // ext_attr, dir_index, sparse_super2
		incompat = 0x2 | 0x40 | 0x200             // filetype, extents, flex_bg
		roCompat = 0x2 | 0x8 | 0x10 | 0x20 | 0x40 // large_file, huge_file, uninit_bg, dir_nlink, extra_isize
		eaInode  = 0x400
	)
	var usedBlocks, usedInodes int
	for i := range v.groups {
		usedBlocks += v.groups[i].usedBlocks
		usedInodes += v.groups[i].usedInodes
	}
	le := binary.LittleEndian
	put32 := func(at, x int) { le.PutUint32(b[at:], uint32(x)) }
	put16 := func(at, x int) { le.PutUint16(b[at:], uint16(x)) }
	put32(0x00, groups*InodesPerGroup)
	put32(0x04, groups*BlocksPerGroup)
	put32(0x0C, groups*BlocksPerGroup-usedBlocks)
	put32(0x10, groups*InodesPerGroup-usedInodes)
	put32(0x18, 2) // log2(block size / 1024)
	put32(0x1C, 2) // the same of a cluster
	put32(0x20, BlocksPerGroup)
	put32(0x24, BlocksPerGroup)
	put32(0x28, InodesPerGroup)
	put16(0x36, 0xFFFF) // never check for the number of mounts
	put16(0x38, 0xEF53) // magic
	put16(0x3A, 1)      // clean
	put16(0x3C, 1)      // on errors: go on
	put32(0x4C, 1)      // revision with features
	put32(0x54, FirstInode)
	put16(0x58, inodeSize)
	put32(0x5C, compat)
	put32(0x60, incompat)
	if v.eaInode {
		put32(0x60, incompat|eaInode)
	}
	put32(0x64, roCompat)
	copy(b[0x68:], uuid)
	copy(b[0x78:], "thaw")
	for i, s := range hashSeed {
		le.PutUint32(b[0xEC+4*i:], s)
	}
	b[0xFC] = 1           // half-MD4 directory hashes
	put32(0x100, 0x8|0x4) // mount options: acl, user_xattr
	put16(0x15C, extraSize)
	put16(0x15E, extraSize)
	put32(0x160, 2) // hashes over unsigned chars
	b[0x174] = 4    // groups of a flex group: 16, as mke2fs
}
