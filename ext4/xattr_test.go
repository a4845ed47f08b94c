package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"thaw/internal/testmount"
)

// acl is an access control list as getxattr(2) has it: tag, permissions, id.
func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

const noID = 1<<32 - 1

var fullACL = acl([3]uint32{aclOwner, 7, noID}, [3]uint32{aclUser, 6, 1000}, [3]uint32{aclUser, 4, 70_000}, [3]uint32{aclGroup, 5, noID}, [3]uint32{aclNamed, 1, 2000}, [3]uint32{aclMask, 7, noID}, [3]uint32{aclOther, 4, noID})

func TestNewXattr(t *testing.T) {
	long := strings.Repeat("n", MaxName)
	for _, c := range []struct {
		name  string
		value []byte
		index uint8
		rest  string
		err   error
	}{
		{"user.a", []byte("v"), 1, "a", nil},
		{"user." + long, nil, 1, long, nil},
		{"user." + long + "n", nil, 0, "", errXattr},
		{"trusted.overlay.opaque", []byte("y"), 4, "overlay.opaque", nil},
		{"security.capability", make([]byte, 20), 6, "capability", nil},
		{"user.big", make([]byte, maxXattrValue), 1, "big", nil},
		{"user.big", make([]byte, maxXattrValue+1), 0, "", errXattr},
		{"system.posix_acl_access", fullACL, 2, "", nil},
		{"system.posix_acl_default", fullACL, 3, "", nil},
		{"system.posix_acl_accessx", fullACL, 0, "", ErrXattrNamespace},
		{"system.data", nil, 0, "", ErrXattrNamespace},
		{"user.", nil, 0, "", ErrXattrNamespace},
		{"user", nil, 0, "", ErrXattrNamespace},
		{"", nil, 0, "", ErrXattrNamespace},
		{"com.apple.quarantine", nil, 0, "", ErrXattrNamespace},
	} {
		x, err := NewXattr(c.name, c.value)
		if !errors.Is(err, c.err) || c.err != nil && err == nil {
			t.Errorf("%.40q: error %v, want %v", c.name, err, c.err)
		} else if err == nil && (x.Index != c.index || x.Name != c.rest || int(x.Size) != len(x.Value)) {
			t.Errorf("%.40q: %+v", c.name, x)
		}
	}
}

func TestACLsThatTheKernelWouldRefuse(t *testing.T) {
	o, g, e, m := [3]uint32{aclOwner, 7, noID}, [3]uint32{aclGroup, 5, noID}, [3]uint32{aclOther, 4, noID}, [3]uint32{aclMask, 7, noID}
	u := [3]uint32{aclUser, 7, 5}
	for about, value := range map[string][]byte{
		"empty value":              {},
		"version 1":                append([]byte{1, 0, 0, 0}, acl(o, g, e)[4:]...),
		"half an entry":            acl(o, g, e)[:24],
		"unknown tag":              acl(o, g, e, [3]uint32{0x40, 7, noID}),
		"no owner":                 acl(g, e),
		"no group":                 acl(o, e),
		"no other":                 acl(o, g),
		"owner twice":              acl(o, o, g, e),
		"named user, no mask":      acl(o, u, g, e),
		"wrong order":              acl(o, g, u, m, e),
		"other is not the last":    acl(o, g, e, m),
		"permissions of 4 bits":    acl(o, g, [3]uint32{aclOther, 8, noID}),
		"named user without an id": acl(o, [3]uint32{aclUser, 7, noID}, g, m, e),
	} {
		if x, err := NewXattr("system.posix_acl_access", value); !errors.Is(err, errXattr) {
			t.Errorf("%s: %+v, %v", about, x, err)
		}
	}
	for _, value := range [][]byte{acl(), acl(o, g, e), acl(o, g, m, e), fullACL} {
		if _, err := NewXattr("system.posix_acl_access", value); err != nil {
			t.Error(err)
		}
	}
}

func TestPlanXattrs(t *testing.T) {
	sized := func(sizes ...int) (xs []Xattr) {
		for i, n := range sizes {
			xs = append(xs, Xattr{Index: 1, Name: fmt.Sprintf("n%02d", len(sizes)-i), Value: pattern(i, n), Size: uint32(n)})
		}
		return xs
	}
	for _, c := range []struct {
		about    string
		xs       []Xattr
		external int
		block    bool
	}{
		{"none", nil, 0, false},
		{"all of the inode", sized(68), 0, false},
		{"one byte too many for the inode", sized(69), 0, true},
		{"all of a block", sized(4096 - 32 - 4 - 16 - 4), 0, true},
		{"one byte too many for a block", sized(4096 - 32 - 4 - 16 - 4 + 1), 1, true},
		{"the largest goes first", sized(10, 3000, 2000, 20), 1, true},
		{"64 KiB", sized(maxXattrValue), 1, true},
		{"many", sized(1000, 1000, 1000, 1000, 1000, 1000), 3, true},
	} {
		external, err := PlanXattrs(c.xs)
		if err != nil || len(external) != c.external {
			t.Errorf("%s: %d external, %v", c.about, len(external), err)
			continue
		}
		for i, x := range external {
			if i > 0 && x.Size > external[i-1].Size {
				t.Errorf("%s: not the largest first", c.about)
			}
			x.Value, x.Inode, x.Hash = nil, uint32(100+i), 1
		}
		body, block, err := EncodeXattrs(c.xs)
		if err != nil || (block != nil) != c.block || (body != nil) == c.block && len(c.xs) > 0 {
			t.Errorf("%s: body of %d, block of %d bytes, %v", c.about, len(body), len(block), err)
		}
	}
	names := make([]Xattr, 20)
	for i := range names {
		names[i] = Xattr{Index: 1, Name: fmt.Sprintf("%0255d", i), Value: []byte("1234"), Size: 4}
	}
	if _, err := PlanXattrs(names); !errors.Is(err, errXattr) {
		t.Errorf("names that pass a block: %v", err)
	}
	if _, _, err := EncodeXattrs(names); !errors.Is(err, errXattr) {
		t.Errorf("attributes that pass a block: %v", err)
	}
}

// xattrDisk has files with attributes of all kinds of storage.
func xattrDisk(t *testing.T) (path string, want map[string]map[string][]byte) {
	want = map[string]map[string][]byte{
		"body":   {"user.a": []byte("1"), "user.empty": {}, "security.x": []byte("odd")},
		"block":  {"user.a": pattern(1, 90), "user.bc": pattern(2, 1001), "trusted.overlay.redirect": []byte("/x")},
		"inode":  {"user.k64": pattern(3, maxXattrValue), "user.k64b": pattern(4, maxXattrValue-1), "user.small": []byte("s")},
		"bytes":  {"user.\xff\x80\xc3\xa4": pattern(5, 200), "user.\xe4big": pattern(6, 5000)},
		"acl":    {"system.posix_acl_access": fullACL},
		"mixed":  {"system.posix_acl_access": fullACL, "user.big": pattern(7, 4000), "user.x": pattern(8, 60)},
		"caps":   {"security.capability": {1, 0, 0, 2, 0x20, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
		"shared": {"user.k64": pattern(3, maxXattrValue)},
	}
	many := map[string][]byte{}
	for i := range 150 {
		many[fmt.Sprintf("user.n%03d", i)] = []byte{}
	}
	want["many"] = many
	d := newDisk(t)
	for name, attrs := range want {
		var xs []Xattr
		for k, v := range attrs {
			x, err := NewXattr(k, v)
			if err != nil {
				t.Fatal(err)
			}
			xs = append(xs, x)
		}
		n := d.data(&Inode{Mode: modeRegular | 0o674}, pattern(9, 100))
		d.attributes(n, xs)
		d.add(name, n)
	}
	x, _ := NewXattr("trusted.big", pattern(1, 5000))
	for _, target := range []string{"f", "fast", "fast!", strings.Repeat("t", FastSymlink)} {
		link := &Inode{Mode: modeSymlink | 0o777, Size: int64(len(target)), Target: target}
		d.attributes(link, []Xattr{x})
		d.add("link to "+target, link)
	}
	return d.finish(), want
}

func TestXattrsThroughDebugfs(t *testing.T) {
	path, want := xattrDisk(t)
	for file, attrs := range want {
		for name, value := range attrs {
			if len(value) == 0 || len(value) > 100 || strings.HasPrefix(name, "system") {
				continue // debugfs prints few bytes, and ACLs in ext4's form
			}
			out := debugfs(t, path, fmt.Sprintf("ea_get -x %s %s", file, name))
			hex := strings.TrimSpace(strings.ReplaceAll(fmt.Sprintf("% x", value), "  ", " "))
			if !strings.Contains(out, hex) {
				t.Errorf("%s of %s: want %s\n%s", name, file, hex, out)
			}
		}
	}
}

func TestXattrsThroughTheKernel(t *testing.T) {
	path, want := xattrDisk(t)
	dir, _ := testmount.Ext4(t, path, "ro")
	for file, attrs := range want {
		for name, value := range attrs {
			got, err := lgetxattr(dir+"/"+file, name)
			if err != nil || !bytes.Equal(got, value) {
				t.Errorf("%s of %s: %d bytes, want %d; %v", name, file, len(got), len(value), err)
			}
		}
	}
}
