package verify

import "fmt"

const (
	xattrMagic     = 0xEA020000
	xattrBlockHead = 32
	// maxXattrValue is the most that the kernel takes as a value, in bytes.
	maxXattrValue = 65536
)

// readXattrs gives an inode's extended attributes as the kernel would show
// them: from the inode's tail and from its xattr block, large values from their
// own inodes, ACLs in the form of version 2.
func (f *fsys) readXattrs(i *inode) (xattrs, error) {
	var set xattrs
	if i.inline != nil {
		if err := f.parseXattrs(&set, i.inline, i.inline, false); err != nil {
			return nil, fmt.Errorf("xattrs in inode %d: %w", i.number, err)
		}
	}
	if i.acl != 0 {
		if err := f.readXattrBlock(&set, i.acl); err != nil {
			return nil, fmt.Errorf("xattr block %d of inode %d: %w", i.acl, i.number, err)
		}
	}
	if err := set.sort(); err != nil {
		return nil, fmt.Errorf("xattrs of inode %d: %w", i.number, err)
	}
	return set, nil
}

// readXattrBlock adds what an xattr block holds. Several inodes may name it. Its
// head is of 32 bytes:
//
//	magic u32 | inodes that name it u32 | blocks, 1 u32 | hash u32 | …
func (f *fsys) readXattrBlock(set *xattrs, n uint64) error {
	if _, ok := f.shared[n]; !ok {
		if err := f.claim(n, 1); err != nil {
			return err
		}
		f.shared[n] = struct{}{}
	}
	b := make([]byte, blockSize)
	if err := f.readBlock(b, n); err != nil {
		return err
	}
	if u32(b, 0) != xattrMagic || u32(b, 8) != 1 {
		return corrupt("magic %#x, %d blocks", u32(b, 0), u32(b, 8))
	}
	return f.parseXattrs(set, b[xattrBlockHead:], b, true)
}

// parseXattrs adds the attributes of one area: entries of 16 bytes and a name,
// rounded up to 4, until four zero bytes; offsets of values count from base.
//
//	name length u8 | name space u8 | offset u16 | inode of the value u32 | size u32 | hash u32 | name
//
// In a block the hash has to be that of name and value.
func (f *fsys) parseXattrs(set *xattrs, b, base []byte, hashed bool) error {
	for len(b) >= 4 && u32(b, 0) != 0 {
		if len(b) < 16 {
			return corrupt("entry without room")
		}
		nameLen, at, inum, size := int(b[0]), int(u16(b, 2)), u32(b, 4), u32(b, 8)
		next := (16 + nameLen + 3) &^ 3
		if next+4 > len(b) || size > maxXattrValue {
			return corrupt("entry with a name of %d and a value of %d bytes", nameLen, size)
		}
		name, hash := b[16:16+nameLen], u32(b, 12)
		var value []byte
		if inum != 0 {
			var err error
			if value, err = f.readValueInode(inum, size, name, hash); err != nil {
				return fmt.Errorf("value inode %d: %w", inum, err)
			}
		} else {
			padded := (int(size) + 3) &^ 3
			if at > len(base) || padded > len(base)-at {
				return corrupt("value of %d bytes at %d of %d", size, at, len(base))
			}
			value = base[at : at+int(size)]
			if (hashed || hash != 0) && !xattrHashOK(name, base[at:at+padded], hash) {
				return corrupt("hash %#x of %q is wrong", hash, name)
			}
		}
		if err := set.addFromDisk(b[1], string(name), value); err != nil {
			return err
		}
		b = b[next:]
	}
	if len(b) < 4 {
		return corrupt("entries without an end")
	}
	return nil
}

// readValueInode reads a large value from its inode, whose access time holds
// the value's crc32c. The hash of the entry covers name and sum.
func (f *fsys) readValueInode(n, size uint32, name []byte, hash uint32) ([]byte, error) {
	if f.incompat&incompatEAInode == 0 {
		return nil, corrupt("feature ea_inode is not set")
	}
	i, err := f.readInode(n)
	if err != nil {
		return nil, err
	}
	if i.kind() != typeRegular || i.flags&flagEAInode == 0 || i.size != int64(size) || i.links == 0 {
		return nil, corrupt("mode %#o, flags %#x, %d bytes, %d links", i.mode, i.flags, i.size, i.links)
	}
	if _, ok := f.valueInos[n]; !ok {
		if err := f.walkExtents(i, true, func(extent) error { return nil }); err != nil {
			return nil, err
		}
		f.valueInos[n] = struct{}{}
	}
	value := make([]byte, 0, size)
	err = f.readContent(i, make([]byte, maxXattrValue), func(p []byte) error {
		value = append(value, p...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum := crc32c(f.csumSeed, value)
	word := []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)}
	if sum != i.atime || !xattrHashOK(name, word, hash) {
		return nil, corrupt("value does not match its checksum")
	}
	return value, nil
}

// xattrHashOK reports whether hash is that of an entry. The name's chars were
// signed on some machines, so both readings count, as they do for the kernel.
func xattrHashOK(name, padded []byte, hash uint32) bool {
	var s, u uint32
	for _, c := range name {
		s = (s<<5 | s>>27) ^ uint32(int32(int8(c)))
		u = (u<<5 | u>>27) ^ uint32(c)
	}
	for ; len(padded) >= 4; padded = padded[4:] {
		w := u32(padded, 0)
		s = (s<<16 | s>>16) ^ w
		u = (u<<16 | u>>16) ^ w
	}
	return hash == s || hash == u
}
