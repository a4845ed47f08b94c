package ext4

import "encoding/binary"

// File types and permission bits of Inode.Mode, as in stat(2).
const (
	modeType    = 0xF000
	modeFIFO    = 0x1000
	modeChar    = 0x2000
	modeDir     = 0x4000
	modeBlock   = 0x6000
	modeRegular = 0x8000
	modeSymlink = 0xA000

	flagIndex   = 0x1000   // a directory with an htree
	flagExtents = 0x80000  // i_block is an extent tree
	flagEAInode = 0x200000 // holds the value of an extended attribute

	extraSize = 32 // bytes of inode fields behind the first 128, up to i_projid
	// FastSymlink is the longest symlink target in bytes that the inode holds.
	FastSymlink = 59
)

// Inode is what an inode says, in the units of the disk.
type Inode struct {
	Mode       uint16
	Links      uint32 // MaxLinks at most; a directory beyond it has 1 (dir_nlink)
	UID, GID   uint32
	Size       int64     // bytes
	Blocks     uint64    // 4 KiB blocks of data, extent tree, attributes and what their EA inodes hold
	Mtime      Time      // also atime, ctime and birth time
	Indexed    bool      // a directory of more than one block
	Map        [60]byte  // ExtentTree's root, of what has blocks
	Target     string    // of a symlink of at most FastSymlink bytes
	Device     [2]uint32 // major and minor of a device node
	XattrBlock uint32    // 0 for none
	XattrBody  []byte    // EncodeXattrs's first result
	EAHash     uint32    // valueHash; used if IsEA
	IsEA       bool      // this inode is the value of an attribute
}

// symlinkMap gives the field of a symlink whose target is short.
func symlinkMap(target string) (m [60]byte) {
	copy(m[:FastSymlink], target)
	return m
}

// deviceMap gives the field of a device node, in the old 16-bit form where it
// fits and the new 32-bit form else (kernel: old_encode_dev, new_encode_dev).
func deviceMap(major, minor uint32) (m [60]byte) {
	if major < 256 && minor < 256 {
		binary.LittleEndian.PutUint32(m[0:], major<<8|minor)
	} else {
		binary.LittleEndian.PutUint32(m[4:], minor&0xff|major<<8|(minor&^0xff)<<12)
	}
	return m
}

// Encode writes the inode into b, inodeSize zero bytes.
func (n *Inode) Encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint16(b[0x00:], n.Mode)
	le.PutUint16(b[0x02:], uint16(n.UID))
	le.PutUint32(b[0x04:], uint32(n.Size))
	le.PutUint16(b[0x18:], uint16(n.GID))
	le.PutUint16(b[0x1A:], uint16(n.Links))
	sectors := n.Blocks * (BlockSize / 512)
	le.PutUint32(b[0x1C:], uint32(sectors))
	le.PutUint32(b[0x20:], n.flags())
	m := n.blockMap()
	copy(b[0x28:0x64], m[:])
	le.PutUint32(b[0x68:], n.XattrBlock)
	le.PutUint32(b[0x6C:], uint32(n.Size>>32))
	le.PutUint16(b[0x74:], uint16(sectors>>32))
	le.PutUint16(b[0x78:], uint16(n.UID>>16))
	le.PutUint16(b[0x7A:], uint16(n.GID>>16))
	le.PutUint16(b[0x80:], extraSize)
	copy(b[0x80+extraSize:inodeSize], n.XattrBody)
	if n.IsEA {
		// fs/ext4/xattr.c keeps the value's hash in atime and the reference
		// count in ctime (high) and version (low); mtime must not look like a
		// parent's inode number.
		le.PutUint32(b[0x08:], n.EAHash)
		le.PutUint32(b[0x24:], 1)
		return
	}
	sec, extra := encodeTime(n.Mtime)
	for _, at := range [...][2]int{{0x08, 0x8C}, {0x0C, 0x84}, {0x10, 0x88}, {0x90, 0x94}} {
		le.PutUint32(b[at[0]:], sec)
		le.PutUint32(b[at[1]:], extra)
	}
}

// blockMap gives the i_block field.
func (n *Inode) blockMap() [60]byte {
	switch n.Mode & modeType {
	case modeChar, modeBlock:
		return deviceMap(n.Device[0], n.Device[1])
	case modeSymlink:
		if n.Size <= FastSymlink {
			return symlinkMap(n.Target)
		}
	}
	return n.Map
}

func (n *Inode) flags() uint32 {
	var f uint32
	switch n.Mode & modeType {
	case modeRegular, modeDir:
		f = flagExtents
	case modeSymlink:
		if n.Size > FastSymlink {
			f = flagExtents
		}
	}
	if n.Indexed {
		f |= flagIndex
	}
	if n.IsEA {
		f |= flagEAInode
	}
	return f
}

// encodeTime gives the seconds' low 32 bits, and the extra field: two epoch
// bits below 30 bits of nanoseconds.
func encodeTime(t Time) (sec, extra uint32) {
	low := int32(t.Sec)
	epoch := uint32((t.Sec-int64(low))>>32) & 3
	return uint32(low), t.Nsec<<2 | epoch
}
