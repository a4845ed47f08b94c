package ext4

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	// maxXattrValue is the longest value in bytes (XATTR_SIZE_MAX).
	maxXattrValue = 64 << 10

	xattrMagic  = 0xEA020000
	xattrHeader = 32                              // bytes of the header of an attribute block
	xattrBody   = inodeSize - 128 - extraSize - 4 // bytes for entries in an inode, behind the magic
	xattrEntry  = 16                              // bytes of an entry before its name
)

var (
	// errXattr says that an extended attribute cannot be held: the text tells why.
	errXattr = errors.New("ext4: extended attribute")
	// ErrXattrNamespace says that the kernel has no namespace for an attribute's name.
	ErrXattrNamespace = errors.New("ext4: extended attribute of no known namespace")
)

// Xattr is an extended attribute as the disk has it: an index for the prefix,
// the rest of the name, and the value, either here or in an inode of its own.
type Xattr struct {
	Index uint8
	Name  string
	Value []byte // empty if Inode is set
	Size  uint32 // of the value, in bytes
	Inode uint32 // EA inode that holds the value; 0 for none
	Hash  uint32 // valueHash of the value; used with Inode
}

// NewXattr gives the on-disk form of an attribute under its full name
// ("user.x"), as listxattr(2) and getxattr(2) have it. POSIX ACLs change from
// the kernel's form (version 2) to ext4's (version 1).
func NewXattr(name string, value []byte) (Xattr, error) {
	// Indexes of the prefixes (kernel: EXT4_XATTR_INDEX_*).
	for _, p := range [...]struct {
		prefix string
		index  uint8
		whole  bool
	}{{"user.", 1, false}, {"system.posix_acl_access", 2, true}, {"system.posix_acl_default", 3, true}, {"trusted.", 4, false}, {"security.", 6, false}} {
		rest, ok := strings.CutPrefix(name, p.prefix)
		if !ok || p.whole != (rest == "") {
			continue
		}
		if len(rest) > MaxName {
			return Xattr{}, fmt.Errorf("%w %.40q…: name of %d bytes, %d are the limit", errXattr, name, len(rest), MaxName)
		}
		if p.whole {
			acl, err := encodeACL(value)
			if err != nil {
				return Xattr{}, fmt.Errorf("%w %q: %v", errXattr, name, err)
			}
			value = acl
		}
		if len(value) > maxXattrValue {
			return Xattr{}, fmt.Errorf("%w %q: value of %d bytes, %d are the limit", errXattr, name, len(value), maxXattrValue)
		}
		return Xattr{Index: p.index, Name: rest, Value: value, Size: uint32(len(value))}, nil
	}
	return Xattr{}, fmt.Errorf("%w: %q", ErrXattrNamespace, name)
}

// Tags of the entries of an access control list (linux/posix_acl.h).
const (
	aclOwner = 0x01
	aclUser  = 0x02
	aclGroup = 0x04
	aclNamed = 0x08
	aclMask  = 0x10
	aclOther = 0x20
)

// encodeACL turns the form of setxattr(2) (linux/posix_acl_xattr.h) into that
// of the disk (fs/ext4/acl.h), which has an id only where the tag needs one. A
// list that setxattr(2) refuses is refused: one on the disk would make the
// kernel fail each access to the file. A list of no entries is none.
func encodeACL(value []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(value) < 4 || le.Uint32(value) != 2 || len(value)%8 != 4 {
		return nil, errors.New("not an access control list of version 2")
	}
	out := le.AppendUint32(nil, 1)
	var last, seen uint16
	for e := value[4:]; len(e) > 0; e = e[8:] {
		tag, id := le.Uint16(e), le.Uint32(e[4:])
		named := tag == aclUser || tag == aclNamed
		if tag < last || tag == last && !named || le.Uint16(e[2:]) > 7 || named && id == 1<<32-1 {
			return nil, errors.New("an access control list with an entry out of order, twice, or without meaning")
		}
		out = append(out, e[:4]...)
		switch tag {
		case aclUser, aclNamed:
			out = le.AppendUint32(out, id)
		case aclOwner, aclGroup, aclMask, aclOther:
		default:
			return nil, fmt.Errorf("unknown tag %#x in an access control list", tag)
		}
		last, seen = tag, seen|tag
	}
	const always = aclOwner | aclGroup | aclOther
	if seen != 0 && (seen&always != always || seen&(aclUser|aclNamed) != 0 && seen&aclMask == 0) {
		return nil, errors.New("an access control list without owner, group, other or a mask that it needs")
	}
	return out, nil
}

// PlanXattrs sorts attributes as the disk wants them and tells which values
// need an EA inode, the largest first, so that the rest fits one block.
func PlanXattrs(xs []Xattr) (external []*Xattr, err error) {
	sortXattrs(xs)
	var inline []*Xattr
	size := xattrHeader + 4
	for i := range xs {
		size += entrySize(&xs[i])
		inline = append(inline, &xs[i])
	}
	slices.SortStableFunc(inline, func(a, b *Xattr) int { return cmp.Compare(b.Size, a.Size) })
	for size > BlockSize {
		if len(inline) == 0 || inline[0].Size == 0 {
			return nil, fmt.Errorf("%w: the names of one file's attributes alone pass a block of %d bytes", errXattr, BlockSize)
		}
		size -= pad4(int(inline[0].Size))
		inline[0].Hash = valueHash(inline[0].Value)
		external = append(external, inline[0])
		inline = inline[1:]
	}
	return external, nil
}

func sortXattrs(xs []Xattr) {
	slices.SortFunc(xs, func(a, b Xattr) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(len(a.Name), len(b.Name)), strings.Compare(a.Name, b.Name))
	})
}

func pad4(n int) int { return (n + 3) &^ 3 }

func entrySize(x *Xattr) int { return xattrEntry + pad4(len(x.Name)) + pad4(len(x.Value)) }

// EncodeXattrs gives Inode.XattrBody if the attributes fit there and none is
// external, else the contents of one attribute block. Values that PlanXattrs named are external:
// their Value is nil and Inode and Hash are set.
func EncodeXattrs(xs []Xattr) (body, block []byte, err error) {
	if len(xs) == 0 {
		return nil, nil, nil
	}
	sortXattrs(xs)
	size, external := 4, false
	for i := range xs {
		size += entrySize(&xs[i])
		external = external || xs[i].Inode != 0
	}
	le := binary.LittleEndian
	// e2fsck takes a symlink with blocks but no attribute block for one whose
	// target is in a block (ext2fs_inode_has_valid_blocks2).
	if size <= xattrBody && !external {
		body = make([]byte, 4+xattrBody)
		le.PutUint32(body, xattrMagic)
		putXattrs(body[4:], 0, xs, false)
		return body, nil, nil
	}
	if xattrHeader+size > BlockSize {
		return nil, nil, fmt.Errorf("%w: %d bytes of attributes do not fit a block", errXattr, size)
	}
	block = make([]byte, BlockSize)
	le.PutUint32(block[0:], xattrMagic)
	le.PutUint32(block[4:], 1) // references
	le.PutUint32(block[8:], 1) // blocks
	le.PutUint32(block[12:], putXattrs(block, xattrHeader, xs, true))
	return nil, block, nil
}

// putXattrs writes entries from b[at:] upward and values from the end of b
// downward, offsets counting from b's start, and gives the hash over all
// (fs/ext4/xattr.c: ext4_xattr_rehash). Entries in an inode carry no hash but
// those of external values.
func putXattrs(b []byte, at int, xs []Xattr, inBlock bool) uint32 {
	le := binary.LittleEndian
	end, total, unhashed := len(b), uint32(0), false
	for i := range xs {
		x := &xs[i]
		e := b[at:]
		e[0], e[1] = uint8(len(x.Name)), x.Index
		le.PutUint32(e[4:], x.Inode)
		le.PutUint32(e[8:], x.Size)
		copy(e[xattrEntry:], x.Name)
		var hash uint32
		switch {
		case x.Inode != 0:
			hash = entryHash(x.Name, le.AppendUint32(nil, x.Hash))
		case len(x.Value) > 0:
			end -= pad4(len(x.Value))
			copy(b[end:], x.Value)
			le.PutUint16(e[2:], uint16(end))
			if inBlock {
				hash = entryHash(x.Name, b[end:end+pad4(len(x.Value))])
			}
		case inBlock:
			hash = entryHash(x.Name, nil)
		}
		le.PutUint32(e[12:], hash)
		unhashed = unhashed || hash == 0
		total = total<<16 ^ total>>16 ^ hash
		at += xattrEntry + pad4(len(x.Name))
	}
	if unhashed {
		return 0
	}
	return total
}

// entryHash is ext4_xattr_hash_entry over name and value words.
func entryHash(name string, value []byte) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<5 ^ h>>27 ^ uint32(name[i])
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ binary.LittleEndian.Uint32(value)
	}
	return h
}
