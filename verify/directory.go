package verify

import (
	"fmt"
	"slices"
	"strings"
)

// dirent is one name of a directory, "." and ".." excepted.
type dirent struct {
	name  string
	inode uint32
	kind  uint16 // as the entry says: a type of mode, 0 for one that is unknown
	block uint32 // the directory's block that holds it
}

// listing is a directory read whole.
type listing struct {
	entries []dirent // sorted by name
	lookup  int      // blocks read by the look-up of a name, at most
}

// readDir reads a directory block by block, checks that each name can be found
// the way the kernel looks for it, and that "." and ".." are itself and parent.
// Blocks are marked as in use, so that a directory can be read once only.
func (f *fsys) readDir(i *inode, parent uint32) (*listing, error) {
	if i.size == 0 || i.size%blockSize != 0 || i.size/blockSize > maxFileBlocks/2 {
		return nil, corrupt("directory inode %d: size of %d bytes", i.number, i.size)
	}
	l, blocks := &listing{}, uint64(i.size/blockSize)
	x := &indexReader{directory: i, fs: f, blocks: blocks}
	indexed := i.flags&flagIndex != 0 && f.compat&compatDirIndex != 0
	buf, next := make([]byte, blockSize), uint64(0)
	err := f.walkExtents(i, true, func(e extent) error {
		if e.logical != next || e.unwritten || next+e.count > blocks {
			return corrupt("directory of %d blocks has a hole or an extra block at %d", blocks, next)
		}
		for n := range e.count {
			if err := f.readBlock(buf, e.physical+n); err != nil {
				return err
			}
			if err := l.add(buf, uint32(next), [2]uint32{i.number, parent}); err != nil {
				return err
			}
			if indexed {
				x.keep(uint32(next), buf)
			}
			next++
		}
		return nil
	})
	if err == nil && next != blocks {
		err = corrupt("directory of %d blocks ends after %d", blocks, next)
	}
	if err == nil {
		err = l.sort()
	}
	if err == nil && indexed {
		err = x.check(l)
	} else if err == nil {
		l.lookup = int(blocks)
	}
	if err != nil {
		return nil, fmt.Errorf("directory inode %d: %w", i.number, err)
	}
	return l, nil
}

// add decodes the entries of one block, which fill it up:
//
//	inode u32, 0 for unused | bytes up to the next u16 | name's length u8 | type u8 | name
//
// The first two of block 0 are "." and
// "..", of the inodes in dots. Inner blocks of an htree read as one unused
// entry, which is how ext4 keeps them readable for those who know no htree.
func (l *listing) add(b []byte, block uint32, dots [2]uint32) error {
	for at, n := 0, 0; at < len(b); n++ {
		if len(b)-at < 8 {
			return corrupt("block %d: %d bytes left over", block, len(b)-at)
		}
		e := b[at:]
		ino, size, nameLen := u32(e, 0), int(u16(e, 4)), int(e[6])
		if size < 8 || size%4 != 0 || size > len(e) || ino != 0 && 8+nameLen > size {
			return corrupt("block %d: entry at byte %d of %d bytes with a name of %d", block, at, size, nameLen)
		}
		at += size
		if block == 0 && n < 2 {
			if want := ".."[:n+1]; ino != dots[n] || string(e[8:8+min(nameLen, size-8)]) != want || e[7] != 2 {
				return corrupt("entry %q is not inode %d in its place", want, dots[n])
			}
			continue
		}
		if ino == 0 {
			continue
		}
		d := dirent{name: string(e[8 : 8+nameLen]), inode: ino, kind: direntKind(e[7]), block: block}
		if d.name == "" || d.name == "." || d.name == ".." || strings.ContainsAny(d.name, "/\x00") {
			return corrupt("block %d: entry with the name %q", block, d.name)
		}
		l.entries = append(l.entries, d)
	}
	return nil
}

// sort orders the names and refuses one that is there twice.
func (l *listing) sort() error {
	slices.SortFunc(l.entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	for n := 1; n < len(l.entries); n++ {
		if l.entries[n].name == l.entries[n-1].name {
			return corrupt("name %q is there twice", l.entries[n].name)
		}
	}
	return nil
}

// direntKind turns an entry's file type into a mode's. One beyond the known ones
// gives 0, which then differs from the inode's.
func direntKind(t byte) uint16 {
	kinds := [...]uint16{0, typeRegular, typeDir, typeChar, typeBlock, typeFIFO, typeSocket, typeSymlink}
	if int(t) >= len(kinds) {
		return 0
	}
	return kinds[t]
}
