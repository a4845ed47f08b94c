package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
)

// The figures below are ext4's own, from the kernel's documentation
// (Documentation/filesystems/ext4): offsets are of bytes, numbers little-endian.
const (
	blockSize   = 4096     // the only block size read here: the one of our devices
	superOffset = 1024     // of the superblock, 1024 bytes long
	superMagic  = 0xEF53   // at 0x38 of it
	rootInode   = 2        // the root directory's inode
	maxDevice   = 1 << 44  // 2^32 blocks of 4 KiB: block numbers here need no more
	maxPerGroup = 8 * 4096 // inodes of a group at most, and its blocks: the bits of its bitmap block
)

// Feature bits: those that say how bytes are to be read, and the sets that are
// needed and known. Compatible features are only asked for, never refused.
const (
	compatDirIndex   = 0x20
	incompatFiletype = 0x2
	incompatExtents  = 0x40
	incompat64bit    = 0x80
	incompatFlexBG   = 0x200
	incompatEAInode  = 0x400
	incompatCsumSeed = 0x2000
	incompatNeeded   = incompatFiletype | incompatExtents
	incompatKnown    = incompatNeeded | incompat64bit | incompatFlexBG | incompatEAInode | incompatCsumSeed

	roCompatGDTCsum  = 0x10
	roCompatMetaCsum = 0x400
	// sparse_super, large_file, huge_file, dir_nlink and extra_isize
	roCompatKnown = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | roCompatGDTCsum | roCompatMetaCsum
)

const (
	unsignedHash     = 0x2 // of the superblock's flags: names are hashed as unsigned chars
	groupInodeUninit = 0x1 // of a group's flags: no inode is in use
	groupBlockUninit = 0x2 // of a group's flags: only its own metadata is in use
	firstDescriptor  = 1   // block of the first descriptor, the one after the superblock's
)

// fsys is an ext4 file system opened for reading. It trusts nothing on the
// device: what contradicts itself gives an error that wraps ErrCorrupt. It is
// not safe for concurrent use.
type fsys struct {
	ctx context.Context
	dev io.ReaderAt

	blocks         uint64 // in the file system
	inodes         uint32
	firstInode     uint32 // lower numbers but the root's are reserved
	inodesPerGroup uint32
	inodeSize      int
	descriptorSize int
	compat         uint32
	incompat       uint32
	roCompat       uint32
	unsigned       bool      // name hashes take chars as unsigned
	hashSeed       [4]uint32 // of name hashes
	csumSeed       uint32    // of crc32c checksums
	groups         []group

	claimed   claims              // blocks found in use
	used      claims              // inodes likewise
	shared    map[uint64]struct{} // xattr blocks seen, which several inodes may name
	valueInos map[uint32]struct{} // inodes of large xattr values seen, likewise
}

// group is one block group's descriptor.
type group struct {
	blockBitmap, inodeBitmap, inodeTable uint64 // block numbers
	flags                                uint16
	unusedInodes                         uint32 // at the table's end, never written
}

// openFS reads superblock and descriptors of the file system that fills the
// first size bytes of dev at most.
func openFS(ctx context.Context, dev io.ReaderAt, size int64) (*fsys, error) {
	f := &fsys{ctx: ctx, dev: dev, shared: map[uint64]struct{}{}, valueInos: map[uint32]struct{}{}}
	sb := make([]byte, 1024)
	if size < superOffset+int64(len(sb)) {
		return nil, corrupt("device of %d bytes has no superblock", size)
	}
	if err := f.readAt(sb, superOffset); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	if err := f.parseSuper(sb, size); err != nil {
		return nil, err
	}
	if err := f.readGroups(sb); err != nil {
		return nil, err
	}
	return f, f.claimMetadata()
}

// parseSuper takes what is needed of the superblock and refuses what this
// reader doesn't know. Offsets into the superblock, in bytes:
//
//	0x00  inodes u32            0x58  bytes of an inode u16
//	0x04  blocks u32            0x5C  compatible features u32
//	0x14  first block u32       0x60  incompatible features u32
//	0x18  log2(block) - 10 u32  0x64  read-only compatible features u32
//	0x20  blocks a group u32    0x68  UUID, 16 bytes
//	0x28  inodes a group u32    0xEC  hash seed, 4 × u32
//	0x38  magic u16             0xFE  bytes of a descriptor u16, with 64bit
//	0x4C  revision u32          0x150 blocks, upper half u32, with 64bit
//	0x54  first inode u32       0x160 flags u32; 0x270 checksum seed u32
//
// Features that only e2fsck or a writer cares for are read over; one that may
// hide or move data is refused by its bit.
func (f *fsys) parseSuper(sb []byte, size int64) error {
	if m := u16(sb, 0x38); m != superMagic {
		return corrupt("superblock: magic %#x, not ext4's", m)
	}
	f.compat, f.incompat, f.roCompat = u32(sb, 0x5C), u32(sb, 0x60), u32(sb, 0x64)
	if missing := incompatNeeded &^ f.incompat; missing != 0 {
		return corrupt("superblock: features filetype and extents needed, incompatible set is %#x", f.incompat)
	}
	if u := f.incompat &^ incompatKnown; u != 0 {
		return corrupt("superblock: incompatible features %#x are not read here (%#x: the journal needs recovery)", u, 4)
	}
	if u := f.roCompat &^ roCompatKnown; u != 0 {
		return corrupt("superblock: read-only compatible features %#x are not read here", u)
	}
	if s := u32(sb, 0x18); s != 2 || u32(sb, 0x14) != 0 || u32(sb, 0x4C) == 0 {
		return corrupt("superblock: block size 2^(10+%d) or revision not read here: want 4096 bytes, first block 0, revision 1", s)
	}
	f.blocks = uint64(u32(sb, 4))
	if f.incompat&incompat64bit != 0 {
		f.blocks |= uint64(u32(sb, 0x150)) << 32
	}
	if f.blocks < 2 || size > maxDevice || f.blocks > uint64(size)/blockSize {
		return corrupt("superblock: %d blocks on a device of %d bytes", f.blocks, size)
	}
	return f.parseGeometry(sb)
}

// parseGeometry takes the numbers that say where inodes and names are.
func (f *fsys) parseGeometry(sb []byte) error {
	f.inodes, f.firstInode = u32(sb, 0), u32(sb, 0x54)
	f.inodesPerGroup = u32(sb, 0x28)
	f.inodeSize = int(u16(sb, 0x58))
	if n := u32(sb, 0x20); n != maxPerGroup {
		return corrupt("superblock: groups of %d blocks are not read here, only of %d", n, maxPerGroup)
	}
	if f.inodesPerGroup == 0 || f.inodesPerGroup > maxPerGroup || f.inodesPerGroup%8 != 0 {
		return corrupt("superblock: %d inodes per group", f.inodesPerGroup)
	}
	if f.inodeSize < 128 || f.inodeSize > blockSize || bits.OnesCount(uint(f.inodeSize)) != 1 {
		return corrupt("superblock: inodes of %d bytes", f.inodeSize)
	}
	if f.firstInode < 11 || f.firstInode > f.inodes || uint64(f.inodes) != f.groupCount()*uint64(f.inodesPerGroup) {
		return corrupt("superblock: %d inodes, first %d, in %d groups of %d", f.inodes, f.firstInode, f.groupCount(), f.inodesPerGroup)
	}
	f.unsigned = u32(sb, 0x160)&unsignedHash != 0
	for i := range f.hashSeed {
		f.hashSeed[i] = u32(sb, 0xEC+4*i)
	}
	f.csumSeed = crc32c(^uint32(0), sb[0x68:0x78])
	if f.incompat&incompatCsumSeed != 0 {
		f.csumSeed = u32(sb, 0x270)
	}
	return nil
}

// groupCount gives the number of block groups, at most 2^17.
func (f *fsys) groupCount() uint64 { return (f.blocks + maxPerGroup - 1) / maxPerGroup }

// descriptorBlocks gives the blocks that the descriptors take.
func (f *fsys) descriptorBlocks() uint64 {
	return (f.groupCount()*uint64(f.descriptorSize) + blockSize - 1) / blockSize
}

// tableBlocks gives the blocks of one group's inode table.
func (f *fsys) tableBlocks() uint64 {
	return (uint64(f.inodesPerGroup)*uint64(f.inodeSize) + blockSize - 1) / blockSize
}

// readGroups reads the group descriptors, of 32 bytes, or 64 with feature
// 64bit.
func (f *fsys) readGroups(sb []byte) error {
	f.descriptorSize = 32
	if f.incompat&incompat64bit != 0 {
		if f.descriptorSize = int(u16(sb, 0xFE)); f.descriptorSize != 64 {
			return corrupt("superblock: descriptors of %d bytes", f.descriptorSize)
		}
	}
	if f.descriptorBlocks() >= f.blocks {
		return corrupt("superblock: %d groups leave no room", f.groupCount())
	}
	n, size := int(f.groupCount()), f.descriptorSize
	buf := make([]byte, blockSize)
	for at := 0; at < n*size; at += blockSize {
		if err := f.readBlock(buf, firstDescriptor+uint64(at/blockSize)); err != nil {
			return fmt.Errorf("group descriptors: %w", err)
		}
		for d := 0; d < min(blockSize, n*size-at); d += size {
			if err := f.parseGroup(buf[d:d+size], sb[0x68:0x78]); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseGroup appends one descriptor and checks its sum. Of 64 bytes the second
// 32 hold the upper halves, in the same order:
//
//	0x00  block bitmap's block u32   0x12  flags u16
//	0x04  inode bitmap's block u32   0x1C  inodes never used, at the end u16
//	0x08  inode table's block u32    0x1E  checksum u16
//
// The sum is a CRC-16 of UUID, group number as u32 and descriptor without it.
// Without it flags and unused count mean nothing, as for the kernel.
func (f *fsys) parseGroup(b, uuid []byte) error {
	n := len(f.groups)
	g := group{
		blockBitmap: uint64(u32(b, 0)), inodeBitmap: uint64(u32(b, 4)), inodeTable: uint64(u32(b, 8)),
		flags: u16(b, 0x12), unusedInodes: uint32(u16(b, 0x1C)),
	}
	if len(b) == 64 {
		g.blockBitmap |= uint64(u32(b, 0x20)) << 32
		g.inodeBitmap |= uint64(u32(b, 0x24)) << 32
		g.inodeTable |= uint64(u32(b, 0x28)) << 32
		g.unusedInodes |= uint32(u16(b, 0x32)) << 16
	}
	switch {
	case f.roCompat&roCompatMetaCsum != 0: // sums of such file systems are not checked
	case f.roCompat&roCompatGDTCsum == 0:
		g.flags, g.unusedInodes = 0, 0
	default:
		sum := crc16(crc16(0xFFFF, uuid), binary.LittleEndian.AppendUint32(nil, uint32(n)))
		sum = crc16(crc16(sum, b[:0x1E]), b[0x20:])
		if sum != u16(b, 0x1E) {
			return corrupt("descriptor of group %d: checksum %#x, computed %#x", n, u16(b, 0x1E), sum)
		}
	}
	f.groups = append(f.groups, g)
	return nil
}

// claimMetadata marks the blocks of superblock, descriptors, bitmaps and inode
// tables as in use, so that a file over one of them is found.
func (f *fsys) claimMetadata() error {
	if err := f.claim(0, firstDescriptor+f.descriptorBlocks()); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	for i, g := range f.groups {
		for _, r := range [][2]uint64{{g.blockBitmap, 1}, {g.inodeBitmap, 1}, {g.inodeTable, f.tableBlocks()}} {
			if err := f.claim(r[0], r[1]); err != nil {
				return fmt.Errorf("metadata of group %d: %w", i, err)
			}
		}
	}
	return nil
}

// claim marks n blocks from start as in use, and refuses any that lie outside
// of the file system or are in use already.
func (f *fsys) claim(start, n uint64) error {
	if start >= f.blocks || n > f.blocks-start {
		return corrupt("blocks %d+%d lie outside of the file system's %d", start, n, f.blocks)
	}
	if at, ok := f.claimed.add(start, n); !ok {
		return corrupt("block %d is used twice", at)
	}
	return nil
}

// readBlock fills buf with whole blocks from number n on.
func (f *fsys) readBlock(buf []byte, n uint64) error {
	if n >= f.blocks || uint64(len(buf)/blockSize) > f.blocks-n {
		return corrupt("block %d lies outside of the file system's %d", n, f.blocks)
	}
	return f.readAt(buf, int64(n)*blockSize)
}

// readAt fills buf from byte off of the device. With a device that takes a
// context, cancelling stops the read itself; with any other, the next one.
func (f *fsys) readAt(buf []byte, off int64) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
	var n int
	var err error
	if d, ok := f.dev.(contextReader); ok {
		n, err = d.ReadAtContext(f.ctx, buf, off)
	} else {
		n, err = f.dev.ReadAt(buf, off)
	}
	if n == len(buf) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d of the device: %w", len(buf), off, err)
}

// contextReader is a device whose reads can be cancelled, such as Reader.
type contextReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// corrupt makes an error that wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, args...)...)
}

func u16(b []byte, at int) uint16 { return binary.LittleEndian.Uint16(b[at:]) }
func u32(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }

// crc16 continues the sum of group descriptors: CRC-16 with the polynomial
// x^16+x^15+x^2+1, least significant bit first.
func crc16(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum ^= uint16(c)
		for range 8 {
			sum = sum>>1 ^ 0xA001*(sum&1)
		}
	}
	return sum
}

// crc32c continues a Castagnoli sum as ext4 does, without the inversion at
// either end.
func crc32c(sum uint32, b []byte) uint32 {
	return ^crc32.Update(^sum, crc32.MakeTable(crc32.Castagnoli), b)
}
