// Package flatten turns the layers of an image into one ext4 device whose
// bytes depend on nothing but the layers.
//
// It works in two steps. Pack reads one layer's tar and lays out its file data
// by itself, so layers are packed in parallel and a layer packed once need not
// be read again: the result, a Layer, is small and can be kept. Tree then
// applies Layers in order, decides which names and inodes the image has, and
// writes all metadata.
//
// # Where bytes lie
//
// Every layer has a region that starts on a fresh block group (128 MiB), behind
// ext4's front:
//
//	data runs   file contents, long symlink targets, values of large attributes;
//	            they hold no block or inode number, so the same layer gives the
//	            same bytes wherever its region starts
//	meta runs   from the next multiple of 2 MiB: attribute blocks and extent
//	            blocks, then every directory that the layer changed, whole, as
//	            it stands after the layer
//
// A run starts on a multiple of 2 MiB, the largest chunk size. Files below 512
// KiB lie in tar order in runs of 512 KiB to 2 MiB. When the next file would
// pass 2 MiB, the run is cut behind the file whose path hashes lowest of those
// past 512 KiB, and the files behind it begin the next run: so one that grows
// or is inserted moves its own run, seldom the one behind it, and no others. A
// larger file has a run of its own, with an eighth of its size free behind it
// to grow into. Space between runs is zero, and zeros are never stored.
//
// Inodes of a layer's files start a fresh inode group and are numbered in the
// order of the runs, each run rounded up to 16. Directories have one sequence
// of inodes for all layers, so that a layer that changes many directories
// changes few chunks of inodes.
//
// What an upper layer hides stays where it is: its chunks are stored already,
// and no one reads them. Its blocks are free in the bitmap and its inode is
// zero.
//
// # What a layer means
//
// Entries follow the OCI image specification's layer rules (whiteouts, opaque
// directories). Parents are resolved inside the tree, through symlinks; no
// entry can name anything outside it. What ext4 cannot hold is refused by name.
//
// Pack may run on many goroutines at once; a Tree is for one. Neither starts
// goroutines.
package flatten

import (
	"errors"

	"thaw/ext4"
)

// LayoutVersion names the rules above. It is part of the salt and of every
// manifest and recipe: a change of layout never mixes with what is stored.
const LayoutVersion = 1

const (
	blockSize = ext4.BlockSize
	groupSize = ext4.BlocksPerGroup * blockSize

	// runSize is the address space of a run of small files in bytes, and the
	// grid on which runs start.
	runSize = 2 << 20
	// runMin is where a run of files may first be cut: its last chunk, half
	// full as a rule, then comes to one in three or more.
	runMin = 512 << 10
	// metaMin is where a run of directories may first be cut, and metaMean the
	// mean distance in bytes from there to the cut, so that one run in fifty
	// reaches runSize and is cut by it.
	metaMin  = 1 << 20
	metaMean = 256 << 10
	// largeFile is the size in bytes from which a file has its own run: a chunk
	// of the default size.
	largeFile = 512 << 10
	// holeBlocks is how many zero blocks in a row make a hole of a large file:
	// a chunk's worth, so that extents stay fewer than chunks.
	holeBlocks = 512 << 10 / blockSize
	// slotAlign is what a run's count of inodes is rounded up to.
	slotAlign = 16

	maxEntries    = 4 << 20   // entries of a layer: the inodes of the largest file system
	maxPath       = 4095      // bytes (PATH_MAX - 1)
	maxTarget     = 4095      // bytes of a symlink target, which must fit a block with its NUL
	maxDepth      = 2048      // directories above one another; a path can name no more
	maxXattrValue = 64 << 10  // bytes of an extended attribute (XATTR_SIZE_MAX)
	maxSymlinks   = 40        // links followed for one path (MAXSYMLINKS)
	maxFile       = 256 << 30 // logical bytes of one file: the largest file system
	maxLayer      = 1 << 40   // logical bytes of a layer's files
	maxLayers     = 1<<16 - 1 // layers of an image
	maxID         = 1<<32 - 2 // of a user or group; -1 means "leave as it is" to chown(2)
	maxMajor      = 1<<12 - 1 // device numbers: 12 and 20 bits (linux/kdev_t.h)
	maxMinor      = 1<<20 - 1
	implicitMode  = 0o755 // of a parent that no layer names
)

// ErrLayer says that a layer's content is malformed, hostile or more than ext4
// can hold; the text names the entry and the reason.
var ErrLayer = errors.New("bad layer")

// ErrRecipe says that an encoded Layer is not one.
var ErrRecipe = errors.New("bad recipe")
