// Package ext4 lays out ext4 file systems byte for byte: inodes, extents,
// directories, extended attributes and the front matter that ties them
// together. It decides nothing that could vary: the same calls give the same
// bytes on any machine. It knows nothing of containers.
//
// # Layout
//
// Blocks are 4 KiB, block groups 32,768 blocks (128 MiB), inodes 256 bytes. A
// group has 2,048 inodes, so that its inode table is 512 KiB. With flex_bg the
// metadata of all groups lies together at the front, which has one size for
// every file system and never moves:
//
//	block 0              superblock at byte 1,024
//	blocks 1–16          group descriptors, room for 2,048 groups
//	blocks 17–126        block bitmap and inode bitmap of groups 0–54
//	blocks 128–4,113     the same of groups 55–2,047
//	block 4,224 + 128·g  inode table of group g
//
// Space for data begins at group DataGroup. Groups with nothing in them have
// INODE_UNINIT and BLOCK_UNINIT set and all-zero bitmaps and tables.
//
// Features: ext_attr, dir_index, sparse_super2 (without backups), filetype,
// extents, flex_bg, large_file, huge_file, uninit_bg, dir_nlink, extra_isize,
// and ea_inode where an attribute needs it. There is no journal, and no
// metadata_csum, whose checksums hold inode and block numbers. UUID, hash seed
// and times are constants.
//
// The format is that of the Linux kernel's Documentation/filesystems/ext4 and
// fs/ext4; checksums and hashes name their source where they are computed.
//
// Nothing in the package starts a goroutine. A Volume is for one goroutine at
// a time; the functions are safe for concurrent use.
package ext4

import "errors"

const (
	// BlockSize is the size of a block in bytes: the page size, the largest
	// that every kernel mounts.
	BlockSize = 4096
	// BlocksPerGroup is what one block of bitmap can tell of: 8 × 4,096.
	BlocksPerGroup = 8 * BlockSize
	// InodesPerGroup makes a group's inode table 512 KiB.
	InodesPerGroup = 2048
	// inodeSize in bytes leaves 92 for extended attributes.
	inodeSize = 256
	// MaxGroups is how many descriptors of 32 bytes the front has room for;
	// it bounds a file system to 256 GiB.
	MaxGroups = 2048
	// DataGroup is the first group that lies wholly behind the front: 4,224 +
	// 128 × 2,048 blocks are 8.13 groups.
	DataGroup = 9
	// RootInode is the inode of the root directory.
	RootInode = 2
	// FirstInode is the first inode that is not reserved.
	FirstInode = 11
	// MaxLinks is how many names an inode that is no directory can have
	// (EXT4_LINK_MAX).
	MaxLinks = 65000
	// maxExtent is the longest extent in blocks. 32,768 is legal, but some
	// readers take it for an unwritten one.
	maxExtent = 32767
	// minTime and maxTime bound an inode's times in seconds since 1970: 32
	// signed bits, and two epoch bits above them.
	minTime = -1 << 31
	maxTime = 3<<32 + 1<<31 - 1

	descSize    = 32 // bytes of a group descriptor without 64bit
	tableBlocks = InodesPerGroup * inodeSize / BlockSize
	firstTable  = 4224 // chunk 33 of 512 KiB
	descBlocks  = MaxGroups * descSize / BlockSize
	nearBitmaps = 1 + descBlocks          // first bitmap block in the first 512 KiB
	nearGroups  = (128 - nearBitmaps) / 2 // groups whose bitmaps fit there
	farBitmaps  = 128                     // first bitmap block of the others
)

// ErrTooLarge says that a file system would pass 256 GiB or MaxGroups ×
// InodesPerGroup inodes, or a directory 512 MiB.
var ErrTooLarge = errors.New("ext4: larger than 256 GiB, 4,194,304 inodes or 512 MiB of one directory")

// Time is a point in time: seconds since 1970 and nanoseconds. Seconds are
// between -2^31 and 3·2^32 + 2^31 - 1: 32 signed bits, and two epoch bits above.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Clamp gives the nearest time that the disk holds, as the kernel does
// (timestamp_truncate).
func (t Time) Clamp() Time {
	switch {
	case t.Sec < minTime:
		return Time{Sec: minTime}
	case t.Sec > maxTime:
		return Time{Sec: maxTime}
	}
	return t
}
