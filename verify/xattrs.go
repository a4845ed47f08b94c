package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const (
	paxXattr      = "SCHILY.xattr." // what tar writers put before an attribute's name
	accessACL     = "system.posix_acl_access"
	defaultACL    = "system.posix_acl_default"
	maxXattrName  = 255 // bytes behind the name space: ext4 has one byte for the length
	maxKeptValue  = 64  // longer values are remembered by their SHA-256
	noID          = 1<<32 - 1
	aclDiskHead   = 1 // version of ACLs on disk, where only named entries have an id
	aclKernelHead = 2 // version of ACLs in tars and at the system call, always with an id
)

// xattr is an extended attribute: its value, or for one longer than
// maxKeptValue its SHA-256.
type xattr struct {
	name  string
	size  int
	value string
}

// xattrs is a set of attributes, sorted by name once it is complete.
type xattrs []xattr

// String describes a value.
func (x xattr) String() string {
	if x.size > maxKeptValue {
		return fmt.Sprintf("%d bytes, SHA-256 %x", x.size, x.value)
	}
	return fmt.Sprintf("%q", x.value)
}

// add puts one attribute into the set.
func (s *xattrs) add(name string, value []byte) {
	x := xattr{name: name, size: len(value), value: string(value)}
	if x.size > maxKeptValue {
		sum := sha256.Sum256(value)
		x.value = string(sum[:])
	}
	*s = append(*s, x)
}

// sort completes the set and refuses a name that is there twice.
func (s xattrs) sort() error {
	slices.SortFunc(s, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
	for n := 1; n < len(s); n++ {
		if s[n].name == s[n-1].name {
			return corrupt("%q is there twice", s[n].name)
		}
	}
	return nil
}

// addFromDisk puts an attribute into the set as ext4 stores it: name space by
// number, ACLs in version 1. An ACL without entries is none, as for the kernel.
func (s *xattrs) addFromDisk(space byte, name string, value []byte) error {
	prefix := ""
	switch space {
	case 1:
		prefix = "user."
	case 2, 3:
		prefix = accessACL
		if space == 3 {
			prefix = defaultACL
		}
		if name != "" {
			return corrupt("%s has the name %q", prefix, name)
		}
		acl, ok := parseACL(value, aclDiskHead)
		if !ok {
			return corrupt("%s does not parse", prefix)
		}
		if acl == nil {
			return nil
		}
		value = acl
	case 4:
		prefix = "trusted."
	case 6:
		prefix = "security."
	default:
		return corrupt("%q is in the unknown name space %d", name, space)
	}
	if strings.Contains(name, "\x00") {
		return corrupt("attribute with the name %q", name)
	}
	s.add(prefix+name, value)
	return nil
}

// tarXattrs takes the attributes that the device keeps from an entry's PAX
// records. Those of name spaces which the kernel doesn't have are left out.
func tarXattrs(records map[string]string) (xattrs, error) {
	var set xattrs
	for key, value := range records {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		raw := []byte(value)
		if name == accessACL || name == defaultACL {
			acl, ok := parseACL(raw, aclKernelHead)
			if !ok {
				return nil, refuse("%s does not parse", name)
			}
			if acl != nil {
				set.add(name, acl)
			}
			continue
		}
		space, rest, ok := strings.Cut(name, ".")
		if !ok || space != "user" && space != "trusted" && space != "security" {
			continue
		}
		if len(rest) > maxXattrName || len(raw) > maxXattrValue {
			return nil, refuse("xattr %.40q: a name of %d and a value of %d bytes do not fit", name, len(rest), len(raw))
		}
		set.add(name, raw)
	}
	return set, set.sort()
}

// parseACL turns an ACL of either version into version 2, where entries that
// name nobody have the id 2^32-1. It gives nil for one without entries and
// false for one that does not parse.
//
//	version u32 | entries of tag u16, permissions u16, id u32
//
// On disk, in version 1, only the entries of a named user or group have an id.
func parseACL(b []byte, version uint32) ([]byte, bool) {
	if len(b) < 4 || u32(b, 0) != version {
		return nil, false
	}
	if b = b[4:]; len(b) == 0 {
		return nil, true
	}
	out := binary.LittleEndian.AppendUint32(nil, aclKernelHead)
	for len(b) > 0 {
		if len(b) < 4 {
			return nil, false
		}
		tag, id, size := u16(b, 0), uint32(noID), 4
		switch tag {
		case 0x02, 0x08: // a user, a group
			size = 8
		case 0x01, 0x04, 0x10, 0x20: // owner, owning group, mask, others
			if version == aclKernelHead {
				size = 8
			}
		default:
			return nil, false
		}
		if len(b) < size {
			return nil, false
		}
		if tag == 0x02 || tag == 0x08 {
			id = u32(b, 4)
		}
		out = append(out, b[:4]...)
		out = binary.LittleEndian.AppendUint32(out, id)
		b = b[size:]
	}
	return out, true
}
