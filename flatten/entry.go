package flatten

import (
	"encoding/binary"
	"fmt"
	"strings"

	"thaw/ext4"
)

// kind is what an entry of a layer does.
type kind uint8

const (
	kindFile kind = iota
	kindDir
	kindSymlink
	kindLink
	kindChar
	kindBlock
	kindFIFO
	kindWhiteout // hides path
	kindOpaque   // hides what lower layers have in path
	kindEnd
)

// entry is one entry of a layer, with numbers relative to the layer.
type entry struct {
	kind     kind
	path     string // "a/b"; "" is the root
	target   string // of a symlink; the path of a hard link's other name
	mode     uint16 // permission bits
	uid, gid uint32
	mtime    ext4.Time
	size     int64         // bytes of a file
	extents  []ext4.Extent // Physical counts blocks from the start of the layer's data
	slot     uint32        // inode, counted from the layer's first
	dev      [2]uint32     // major, minor
	xattrs   []xattr
}

// xattr is an attribute; if external, Inode and Hash are of the EA inode, a
// slot of the layer plus one, and start is the block of its value.
type xattr struct {
	ext4.Xattr
	start uint32
}

// Layer is one layer, packed: what is in it, and where its data lies relative
// to its region. It is immutable.
type Layer struct {
	data    int64  // bytes of the region that data runs take
	slots   uint32 // inodes
	count   uint32 // entries
	dropped uint32 // attributes in namespaces that the kernel does not have
	table   []byte // entries, each coded against the one before
}

// DataSize is the address space of the layer's data in bytes.
func (l *Layer) DataSize() int64 { return l.data }

// Entries is how many entries the layer has.
func (l *Layer) Entries() int { return int(l.count) }

// Dropped is how many extended attributes were left out because the kernel has
// no such namespace.
func (l *Layer) Dropped() int { return int(l.dropped) }

// Encode gives the layer's recipe: uvarints of data, slots, count and dropped,
// then the entries. Each entry is
//
//	kind u8, bytes shared with the path before uvarint, rest of the path string
//	mode uid gid (uvarint), seconds (varint), nanoseconds, slot,
//	by kind: size, target, or device numbers, then extents, attributes
//
// where a string is its length (uvarint) and its bytes. Of the second and third
// line a hard link has only its target, a whiteout or opaque nothing.
func (l *Layer) Encode() []byte {
	b := make([]byte, 0, len(l.table)+40)
	for _, v := range []uint64{uint64(l.data), uint64(l.slots), uint64(l.count), uint64(l.dropped)} {
		b = binary.AppendUvarint(b, v)
	}
	return append(b, l.table...)
}

// DecodeLayer reads what Encode wrote, and checks every entry. It keeps b.
func DecodeLayer(b []byte) (*Layer, error) {
	d := decoder{b: b}
	l := &Layer{data: int64(d.max(ext4.MaxGroups * groupSize))}
	l.slots = uint32(d.max(maxEntries))
	l.count = uint32(d.max(maxEntries))
	l.dropped = uint32(d.max(1<<32 - 1))
	l.table = d.b
	if d.failed || l.data%blockSize != 0 {
		return nil, fmt.Errorf("%w: damaged head", ErrRecipe)
	}
	if err := l.each(func(*entry) error { return nil }); err != nil {
		return nil, err
	}
	return l, nil
}

// appendEntry appends e, coded against the path before it.
func appendEntry(b []byte, before string, e *entry) []byte {
	uv := func(v uint64) { b = binary.AppendUvarint(b, v) }
	str := func(s string) { uv(uint64(len(s))); b = append(b, s...) }
	shared := 0
	for shared < min(len(before), len(e.path)) && before[shared] == e.path[shared] {
		shared++
	}
	b = append(b, byte(e.kind))
	uv(uint64(shared))
	str(e.path[shared:])
	switch e.kind {
	case kindWhiteout, kindOpaque:
		return b
	case kindLink:
		str(e.target)
		return b
	}
	uv(uint64(e.mode))
	uv(uint64(e.uid))
	uv(uint64(e.gid))
	b = binary.AppendVarint(b, e.mtime.Sec)
	uv(uint64(e.mtime.Nsec))
	uv(uint64(e.slot))
	switch e.kind {
	case kindFile:
		uv(uint64(e.size))
	case kindSymlink:
		str(e.target)
	case kindChar, kindBlock:
		uv(uint64(e.dev[0]))
		uv(uint64(e.dev[1]))
	}
	uv(uint64(len(e.extents)))
	for _, x := range e.extents {
		uv(uint64(x.Logical))
		uv(uint64(x.Physical))
		uv(uint64(x.Count))
	}
	uv(uint64(len(e.xattrs)))
	for _, x := range e.xattrs {
		b = append(b, x.Index)
		str(x.Name)
		str(string(x.Value))
		uv(uint64(x.Size))
		uv(uint64(x.Inode))
		uv(uint64(x.Hash))
		uv(uint64(x.start))
	}
	return b
}

// decoder reads uvarints and strings; after a failure all reads give zero.
type decoder struct {
	b      []byte
	failed bool
}

// max reads a number of at most limit.
func (d *decoder) max(limit uint64) uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > limit {
		d.failed = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 { return uint32(d.max(1<<32 - 1)) }

func (d *decoder) str(limit uint64) string {
	n := d.max(limit)
	if n > uint64(len(d.b)) {
		d.failed = true
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.failed = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

// each calls f for the entries in order; the entry is f's only until it
// returns, its slices may be kept.
func (l *Layer) each(f func(e *entry) error) error {
	d, path := decoder{b: l.table}, ""
	for i := range l.count {
		var e entry
		d.entry(&e, path)
		if d.failed || !l.sane(&e) {
			return fmt.Errorf("%w: damaged entry %d", ErrRecipe, i)
		}
		path = e.path
		if err := f(&e); err != nil {
			return err
		}
	}
	if len(d.b) != 0 {
		return fmt.Errorf("%w: bytes behind the last entry", ErrRecipe)
	}
	return nil
}

func (d *decoder) entry(e *entry, before string) {
	e.kind = kind(d.byte())
	shared := d.max(uint64(len(before)))
	e.path = before[:shared] + d.str(maxPath)
	switch e.kind {
	case kindWhiteout, kindOpaque:
		return
	case kindLink:
		e.target = d.str(maxPath)
		return
	}
	e.mode = uint16(d.max(0o7777))
	e.uid, e.gid = d.u32(), d.u32()
	d.time(e)
	e.slot = d.u32()
	switch e.kind {
	case kindFile:
		e.size = int64(d.max(maxFile))
	case kindSymlink:
		e.target = d.str(maxTarget)
	case kindChar, kindBlock:
		e.dev = [2]uint32{d.u32(), d.u32()}
	}
	for n := d.u32(); n > 0 && !d.failed; n-- {
		e.extents = append(e.extents, ext4.Extent{Logical: d.u32(), Physical: d.u32(), Count: d.u32()})
	}
	for n := d.u32(); n > 0 && !d.failed; n-- {
		var x xattr
		x.Index, x.Name = d.byte(), d.str(ext4.MaxName)
		x.Value = []byte(d.str(maxXattrValue))
		x.Size, x.Inode, x.Hash, x.start = d.u32(), d.u32(), d.u32(), d.u32()
		e.xattrs = append(e.xattrs, x)
	}
}

func (d *decoder) time(e *entry) {
	sec, n := binary.Varint(d.b)
	if n <= 0 || (ext4.Time{Sec: sec}).Clamp().Sec != sec {
		d.failed = true
		return
	}
	d.b = d.b[n:]
	e.mtime = ext4.Time{Sec: sec, Nsec: uint32(d.max(1e9 - 1))}
}

// sane reports whether Pack can have made an entry: a damaged recipe must not
// reach into another layer or bring in what an inode cannot hold.
func (l *Layer) sane(e *entry) bool {
	if e.kind >= kindEnd || !isClean(e.path) || e.path == "" && e.kind != kindDir && e.kind != kindOpaque {
		return false
	}
	switch e.kind {
	case kindWhiteout, kindOpaque:
		return true
	case kindLink:
		return isClean(e.target)
	case kindSymlink:
		if e.target == "" || strings.IndexByte(e.target, 0) >= 0 || (len(e.target) > ext4.FastSymlink) != (len(e.extents) == 1) {
			return false
		}
		e.size = int64(len(e.target)) // bounds the extent
	}
	return l.saneExtents(e) && l.saneXattrs(e.xattrs) && (e.kind == kindDir || e.slot < l.slots) &&
		e.uid <= maxID && e.gid <= maxID && e.dev[0] <= maxMajor && e.dev[1] <= maxMinor
}

// saneExtents wants them in order, within the file and within the layer's data.
func (l *Layer) saneExtents(e *entry) bool {
	next, end := uint64(0), uint64(e.size+blockSize-1)/blockSize
	for _, x := range e.extents {
		if uint64(x.Logical) < next || x.Count == 0 || uint64(x.Physical)+uint64(x.Count) > uint64(l.data/blockSize) {
			return false
		}
		next = uint64(x.Logical) + uint64(x.Count)
	}
	return next <= end && len(ext4.SplitExtents(e.extents)) == len(e.extents) // none is too long
}

// saneXattrs wants the values here or within the layer's data.
func (l *Layer) saneXattrs(xs []xattr) bool {
	for _, x := range xs {
		blocks := uint64(x.Size+blockSize-1) / blockSize
		if x.Inode == 0 && int(x.Size) != len(x.Value) ||
			x.Inode != 0 && (len(x.Value) != 0 || x.Size == 0 || x.Size > maxXattrValue || x.Inode > l.slots || uint64(x.start)+blocks > uint64(l.data/blockSize)) {
			return false
		}
	}
	return true
}
