package flatten

import (
	"archive/tar"
	"fmt"
	"strings"

	"thaw/ext4"
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh."
)

// newEntry reads a tar header; nil is an entry that means nothing.
func newEntry(hdr *tar.Header) (*entry, error) {
	refuse := func(format string, args ...any) (*entry, error) {
		return nil, fmt.Errorf("%w: %.200q: %s", ErrLayer, hdr.Name, fmt.Sprintf(format, args...))
	}
	path, err := cleanPath(hdr.Name)
	if err != nil {
		return refuse("%v", err)
	}
	if path == "" && hdr.Typeflag != tar.TypeDir {
		return refuse("the root can be nothing but a directory")
	}
	e := &entry{path: path}
	if dir, base := splitPath(path); strings.HasPrefix(base, whiteoutPrefix) {
		return whiteout(e, dir, base)
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // V7 archives have TypeRegA
		e.kind, e.size = kindFile, hdr.Size
	case tar.TypeDir:
		e.kind = kindDir
	case tar.TypeSymlink:
		e.kind, e.target = kindSymlink, hdr.Linkname
		if e.target == "" || len(e.target) > maxTarget || strings.IndexByte(e.target, 0) >= 0 {
			return refuse("a symlink whose target is empty, longer than %d bytes or has a NUL", maxTarget)
		}
	case tar.TypeLink:
		e.kind = kindLink
		if e.target, err = cleanPath(hdr.Linkname); err != nil {
			return refuse("a hard link to %.200q: %v", hdr.Linkname, err)
		}
		return e, nil
	case tar.TypeChar, tar.TypeBlock:
		e.kind = kindChar
		if hdr.Typeflag == tar.TypeBlock {
			e.kind = kindBlock
		}
		if hdr.Devmajor < 0 || hdr.Devmajor > maxMajor || hdr.Devminor < 0 || hdr.Devminor > maxMinor {
			return refuse("device numbers %d:%d; the kernel has up to %d:%d", hdr.Devmajor, hdr.Devminor, maxMajor, maxMinor)
		}
		e.dev = [2]uint32{uint32(hdr.Devmajor), uint32(hdr.Devminor)}
	case tar.TypeFifo:
		e.kind = kindFIFO
	default:
		return refuse("tar entries of type %q are not known", hdr.Typeflag)
	}
	return e, e.attributes(hdr)
}

func whiteout(e *entry, dir, base string) (*entry, error) {
	e.kind, e.path = kindWhiteout, joinPath(dir, strings.TrimPrefix(base, whiteoutPrefix))
	switch {
	case base == opaqueName:
		e.kind, e.path = kindOpaque, dir
	case strings.HasPrefix(base, aufsPrefix):
		return nil, nil // bookkeeping of AUFS
	case base == whiteoutPrefix, base == ".wh..", base == ".wh...":
		return nil, fmt.Errorf("%w: %.200q: a whiteout of nothing", ErrLayer, joinPath(dir, base))
	}
	return e, nil
}

// attributes reads owner, mode and time.
func (e *entry) attributes(hdr *tar.Header) error {
	if hdr.Uid < 0 || hdr.Uid > maxID || hdr.Gid < 0 || hdr.Gid > maxID {
		return fmt.Errorf("%w: %.200q: owner %d:%d; ids go from 0 to %d", ErrLayer, hdr.Name, hdr.Uid, hdr.Gid, uint32(maxID))
	}
	e.mode, e.uid, e.gid = uint16(hdr.Mode&0o7777), uint32(hdr.Uid), uint32(hdr.Gid)
	e.mtime = ext4.Time{Sec: hdr.ModTime.Unix(), Nsec: uint32(hdr.ModTime.Nanosecond())}
	e.mtime = e.mtime.Clamp()
	return nil
}

// cleanPath gives "a/b" for "/a/./b/", and "" for the root.
func cleanPath(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("a NUL in the path")
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return "", fmt.Errorf("the path escapes the tree by \"..\"")
		case len(part) > ext4.MaxName:
			return "", fmt.Errorf("a name of %d bytes; %d are the limit", len(part), ext4.MaxName)
		default:
			parts = append(parts, part)
		}
	}
	path := strings.Join(parts, "/")
	if len(path) > maxPath {
		return "", fmt.Errorf("a path of %d bytes; %d are the limit", len(path), maxPath)
	}
	return path, nil
}

// isClean reports whether cleanPath gives path and has nothing to say.
func isClean(path string) bool {
	if path == "" {
		return true
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || len(part) > ext4.MaxName {
			return false
		}
	}
	return len(path) <= maxPath && strings.IndexByte(path, 0) < 0
}

func splitPath(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func joinPath(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}
