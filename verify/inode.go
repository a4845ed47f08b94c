package verify

import "fmt"

// File types as the upper four bits of an inode's mode hold them.
const (
	typeMask    = 0o170000
	typeFIFO    = 0o010000
	typeChar    = 0o020000
	typeDir     = 0o040000
	typeBlock   = 0o060000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	typeSocket  = 0o140000
)

// Flags of an inode that matter here.
const (
	flagIndex   = 0x1000   // a directory with an htree
	flagHuge    = 0x40000  // the block count is in blocks and not in sectors
	flagExtents = 0x80000  // the block area holds an extent tree
	flagEAInode = 0x200000 // the content is a large xattr value
	// flagsSilent change nothing that a user of the file system sees. Any other
	// flag, such as immutable, is a difference from what layers can say.
	flagsSilent = flagIndex | flagHuge | flagExtents
)

// blockArea is the size in bytes of an inode's own area for block numbers,
// short symlinks and device numbers.
const blockArea = 60

// inode is one decoded inode.
type inode struct {
	number uint32
	mode   uint16
	links  uint16
	uid    uint32
	gid    uint32
	size   int64
	sec    int64 // of the modification time
	nsec   uint32
	flags  uint32
	atime  uint32 // raw low half: for the inode of an xattr value its checksum
	area   [blockArea]byte
	acl    uint64 // the xattr block, 0 for none
	inline []byte // the in-inode xattrs behind their magic; nil for none
}

// kind gives the type bits.
func (i *inode) kind() uint16 { return i.mode & typeMask }

// readInode reads inode number n, which has to be one that a name may have.
func (f *fsys) readInode(n uint32) (*inode, error) {
	if n == 0 || n > f.inodes || n < f.firstInode && n != rootInode {
		return nil, corrupt("inode %d is none of the %d", n, f.inodes)
	}
	g, at := (n-1)/f.inodesPerGroup, (n-1)%f.inodesPerGroup
	gr := f.groups[g]
	if gr.flags&groupInodeUninit != 0 || at >= f.inodesPerGroup-min(gr.unusedInodes, f.inodesPerGroup) {
		return nil, corrupt("inode %d is in the part of group %d that is marked as never used", n, g)
	}
	f.used.add(uint64(n-1), 1) // counted from 0, as the bitmap does
	b := make([]byte, f.inodeSize)
	if err := f.readAt(b, int64(gr.inodeTable)*blockSize+int64(at)*int64(f.inodeSize)); err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	i, err := parseInode(b)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	i.number = n
	return i, nil
}

// parseInode decodes one inode's bytes, 128 or more:
//
//	0x00  mode u16                0x68  xattr block u32
//	0x02  uid u16                 0x6C  size, upper half u32
//	0x04  size u32                0x76  xattr block, upper half u16
//	0x08  access time i32         0x78  uid, upper half u16
//	0x10  modification time i32   0x7A  gid, upper half u16
//	0x18  gid u16                 0x80  bytes in use behind 128 u16
//	0x1A  links u16               0x88  modification time, upper part u32
//	0x20  flags u32               128 + those bytes: xattrs
//	0x28  block area, 60 bytes
//
// The upper part of a time is 30 bits of nanoseconds over two bits that count
// 2^32 seconds, so times end in 2446.
func parseInode(b []byte) (*inode, error) {
	i := &inode{
		mode: u16(b, 0), links: u16(b, 0x1A),
		uid: uint32(u16(b, 2)) | uint32(u16(b, 0x78))<<16,
		gid: uint32(u16(b, 0x18)) | uint32(u16(b, 0x7A))<<16,
		sec: int64(int32(u32(b, 0x10))), atime: u32(b, 8),
		flags: u32(b, 0x20),
		acl:   uint64(u32(b, 0x68)) | uint64(u16(b, 0x76))<<32,
		area:  [blockArea]byte(b[0x28:]),
	}
	size := uint64(u32(b, 4)) | uint64(u32(b, 0x6C))<<32
	if size > maxDevice {
		return nil, corrupt("size of %d bytes", size)
	}
	i.size = int64(size)
	switch i.kind() {
	case typeFIFO, typeChar, typeDir, typeBlock, typeRegular, typeSymlink, typeSocket:
	default:
		return nil, corrupt("mode %#o has no file type", i.mode)
	}
	if len(b) == 128 {
		return i, nil
	}
	extra := int(u16(b, 0x80))
	if extra%4 != 0 || 128+extra > len(b) {
		return nil, corrupt("extra size of %d bytes", extra)
	}
	if extra >= 12 { // the upper half of the modification time is inside
		i.sec += int64(u32(b, 0x88)&3) << 32
		i.nsec = u32(b, 0x88) >> 2
	}
	// an inode that says it has no extra bytes has never had room for xattrs
	if rest := b[128+extra:]; extra != 0 && len(rest) >= 8 && u32(rest, 0) == xattrMagic {
		i.inline = rest[4:]
	}
	return i, nil
}

// device decodes a device's number: the old form of 8 and 8 bits in the first
// word of the block area, or the new one of 12 and 20 in the second.
func (i *inode) device() (major, minor uint32) {
	if d := u32(i.area[:], 0); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := u32(i.area[:], 4)
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}

// readLink gives a symlink's target: up to 59 bytes are in the block area,
// longer ones in one block. A NUL ends it for the kernel, so none may come
// before its end.
func (f *fsys) readLink(i *inode) (string, error) {
	b := i.area[:]
	if i.size >= blockArea {
		if i.size >= blockSize {
			return "", corrupt("symlink of %d bytes", i.size)
		}
		b = make([]byte, blockSize)
		if err := f.readInodeBlock(i, b, 0); err != nil {
			return "", err
		}
	} else if i.flags&flagExtents != 0 {
		return "", corrupt("symlink of %d bytes outside of its inode", i.size)
	}
	for at, c := range b[:i.size+1] {
		if (c == 0) != (int64(at) == i.size) {
			return "", corrupt("symlink of %d bytes: NUL is not at its end", i.size)
		}
	}
	return string(b[:i.size]), nil
}
