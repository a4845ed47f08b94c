package verify

import (
	"strings"
)

const (
	maxComponent = 255   // bytes: ext4 has one byte for the length of a name
	maxSymlinks  = 40    // the kernel's own limit for one path
	maxLinks     = 65000 // names of one inode: ext4's limit
)

// node is what one inode should be. Several names may lead to one that is no
// directory. It is laid out to be small: there is one for each entry.
type node struct {
	names map[string]entry // of a directory, nil for anything else
	extra *extra           // nil for nothing of it
	sec   int64            // modification time
	size  int64            // bytes of a file; major<<20 | minor of a device
	sum   [32]byte         // SHA-256 of a file's content
	nsec  uint32
	uid   uint32
	gid   uint32
	links uint32 // names in the tree
	pair  int32  // 1 + the index of the first name found on the device, 0 for none
	mode  uint16
}

// extra is what few inodes have.
type extra struct {
	target string // of a symlink
	xattrs xattrs
}

// target gives where a symlink leads.
func (n *node) target() string {
	if n.extra == nil {
		return ""
	}
	return n.extra.target
}

// xattrs gives the extended attributes.
func (n *node) xattrs() xattrs {
	if n.extra == nil {
		return nil
	}
	return n.extra.xattrs
}

// entry is a name of a directory: where it leads, and which layer put it there.
type entry struct {
	node  *node
	layer int32
}

// isDir reports whether the node is a directory.
func (n *node) isDir() bool { return n.mode&typeMask == typeDir }

// newDir makes the directory that stands in for one the layers do not have.
func newDir() *node {
	return &node{mode: typeDir | 0o755, names: map[string]entry{}, links: 1}
}

// tree is the file tree while layers are applied to it.
type tree struct {
	root  *node
	layer int32 // the one being applied
}

// resolve walks the parent directories of a path, following symlinks, and gives
// the last one. It never leaves the tree: an absolute symlink starts at the root
// again, and ".." at the root stays there. Directories that are missing are
// made, or with make unset give nil.
func (t *tree) resolve(components []string, make bool) (*node, error) {
	dirs := []*node{t.root} // from the root to where the walk is
	todo := reversed(nil, components)
	for links := 0; len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		at := dirs[len(dirs)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			dirs = dirs[:max(1, len(dirs)-1)]
			continue
		}
		next := at.names[name].node
		if next == nil {
			if !make {
				return nil, nil
			}
			if len(name) > maxComponent {
				return nil, refuse("a name of %d bytes", len(name))
			}
			next = newDir()
			at.names[strings.Clone(name)] = entry{next, t.layer}
		}
		switch next.mode & typeMask {
		case typeDir:
			dirs = append(dirs, next)
		case typeSymlink:
			if links++; links > maxSymlinks {
				return nil, refuse("more than %d symlinks on the way", maxSymlinks)
			}
			if strings.HasPrefix(next.target(), "/") {
				dirs = dirs[:1]
			}
			todo = reversed(todo, strings.Split(next.target(), "/"))
		default:
			return nil, refuse("%q on the way is no directory", name)
		}
	}
	return dirs[len(dirs)-1], nil
}

// reversed appends names to list, last first.
func reversed(list, names []string) []string {
	for n := len(names) - 1; n >= 0; n-- {
		list = append(list, names[n])
	}
	return list
}

// put gives dir the name, leading to n. What was there goes, with all below,
// unless both are directories: then the old one stays and becomes like n.
func (t *tree) put(dir *node, name string, n *node) {
	old := dir.names[name].node
	if old != nil && old.isDir() && n.isDir() {
		old.become(n)
		n = old
	} else {
		if old != nil {
			old.drop()
		}
		n.links++
	}
	dir.names[strings.Clone(name)] = entry{n, t.layer} // name is a part of a longer string
}

// become takes over the metadata of another directory.
func (n *node) become(m *node) {
	n.mode, n.uid, n.gid, n.sec, n.nsec, n.extra = m.mode, m.uid, m.gid, m.sec, m.nsec, m.extra
}

// count gives the number of names of all but directories below a directory.
func (n *node) count() int {
	sum := 0
	for _, e := range n.names {
		if e.node.isDir() {
			sum += e.node.count()
		} else {
			sum++
		}
	}
	return sum
}

// drop takes one name away from a node, and from all below a directory.
func (n *node) drop() {
	n.links--
	for _, e := range n.names {
		e.node.drop()
	}
}

// hide takes away what lower layers left under a name: the name itself if
// nothing of this layer is there or below, else what is below. A directory of
// a lower layer stays as it was while something of this layer is in it.
func (t *tree) hide(dir *node, name string) {
	e, ok := dir.names[name]
	if !ok {
		return
	}
	t.hideAll(e.node)
	if e.layer < t.layer && len(e.node.names) == 0 {
		e.node.links--
		delete(dir.names, name)
	}
}

// hideAll does so for all names of a directory.
func (t *tree) hideAll(dir *node) {
	for name := range dir.names {
		t.hide(dir, name)
	}
}
