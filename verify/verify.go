// Package verify checks what a conversion made, from three sides: the chunks
// in a store are those of the manifest (Chunks), the bytes of the device come
// out of them (Device), and the file system on the device holds exactly what
// the image's layers say (Tree).
//
// It is the check on the code that writes devices and shares nothing with it:
// the ext4 reader is its own, after the kernel's documentation of the format,
// and so is the code that applies layers. It reads what mke2fs and the kernel
// write too, as long as blocks have 4 KiB, and that is how it is tested.
//
// A device is taken as hostile: what contradicts itself gives an error, and
// time and memory are bounded by the device's blocks and the names found.
// Memory is some 550 bytes an entry, garbage included, whatever the files' sizes.
package verify

import (
	"context"
	"errors"
	"fmt"
	"io"

	"thaw/chunk"
)

var (
	// ErrCorrupt says that the file system contradicts itself, or uses what
	// this package does not read. Chunks that are missing or damaged are
	// chunk.ErrNotFound and chunk.ErrCorrupt instead.
	ErrCorrupt = errors.New("file system corrupt")
	// ErrRefused says that the layers hold something no device can hold.
	ErrRefused = errors.New("layer refused")
)

// Layers gives the layers of an image, base first. Open gives layer i, from 0
// to Len()-1, as an uncompressed tar, which is read to its end and closed; an
// error at the end, such as for a wrong digest, is an error of Tree.
type Layers interface {
	Len() int
	Open(ctx context.Context, i int) (io.ReadCloser, error)
}

// Report says what Chunks found.
type Report struct {
	Chunks int        // chunks asked for
	Bytes  int64      // sealed bytes of the good ones
	Bad    []BadChunk // ascending by index
}

// BadChunk is a chunk that is not as the manifest says. Err wraps
// chunk.ErrNotFound or chunk.ErrCorrupt.
type BadChunk struct {
	Index uint32
	Name  chunk.Name
	Err   error
}

// TreeReport says what Tree found. The file system is that of the layers if
// Total is zero.
type TreeReport struct {
	Entries     int          // names of the layers' tree looked at, the root included
	Bytes       int64        // of file contents compared
	LookupReads int          // most directory blocks that finding one name reads
	Differences []Difference // the first 100 found, sorted by path
	Total       int          // of all differences
}

// Difference is one thing that the layers say and the device does not, or the
// other way round. A name missing or too many is one difference, whatever lies
// below it.
type Difference struct {
	Path string // from the root, "/" first
	// What: "missing", "extra", "type", "mode", "uid", "gid", "mtime", "size",
	// "content", "target", "device", "flags", "link count", "hard link",
	// "directory entry type" or "xattr NAME".
	What string
	Want string // by the layers
	Got  string // on the device
}

// String gives the difference as one line.
func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: want %s, got %s", d.Path, d.What, d.Want, d.Got)
}

// maxDifferences bounds a report: who has that many needs no more to look for
// the cause.
const maxDifferences = 100

// refuse makes an error that wraps ErrRefused.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}
