package verify

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Tree applies the layers by itself, walks the ext4 file system on the first
// size bytes of dev, and compares the two name by name and byte by byte.
// Differences are in the report; an error says that no comparison was possible:
// ErrCorrupt for a file system that contradicts itself, ErrRefused for layers
// that no device can hold, or an error of dev or layers. dev is read by one
// goroutine in an order that suits chunks: inodes by number, contents by place.
func Tree(ctx context.Context, dev io.ReaderAt, size int64, layers Layers) (TreeReport, error) {
	t, err := applyLayers(ctx, layers)
	if err != nil {
		return TreeReport{}, fmt.Errorf("apply layers: %w", err)
	}
	return compareTree(ctx, dev, size, t)
}

// compareTree compares a file system with a tree, which it marks and so can be
// used once.
func compareTree(ctx context.Context, dev io.ReaderAt, size int64, t *tree) (TreeReport, error) {
	f, err := openFS(ctx, dev, size)
	if err != nil {
		return TreeReport{}, err
	}
	c := &comparison{fs: f}
	for _, pass := range []func() error{
		func() error { return c.directories(t.root) }, c.inodes, c.contents, f.checkBitmaps,
	} {
		if err := pass(); err != nil {
			return c.report, err
		}
	}
	slices.SortStableFunc(c.report.Differences, func(a, b Difference) int { return strings.Compare(a.Path, b.Path) })
	return c.report, nil
}

// comparison is one run of Tree over an open file system.
type comparison struct {
	fs     *fsys
	report TreeReport
	pairs  []pair // names of all but directories, on the device
	jobs   []job  // contents left to compare
}

// path is a name and where it is, the root having none.
type path struct {
	dir  *path
	name string
}

// String gives the path from the root.
func (p *path) String() string {
	if p == nil || p.dir == nil {
		return "/"
	}
	var names []string
	for ; p.dir != nil; p = p.dir {
		names = append(names, p.name)
	}
	slices.Reverse(names)
	return "/" + strings.Join(names, "/")
}

// pair is a name on the device and what the layers say of it; nil for nothing,
// which has been reported already.
type pair struct {
	path  path
	want  *node
	inode uint32
	kind  uint16 // by the directory entry
}

// job is a file whose content is to be compared.
type job struct {
	block uint64 // its first one on the device
	pair  int32
}

// directory is one to be read.
type directory struct {
	path   *path
	want   *node // nil for one the layers do not have
	inode  uint32
	parent uint32
	got    *inode
	block  uint64
}

// differ reports one difference.
func (c *comparison) differ(p *path, what string, want, got any) {
	c.report.Total++
	if len(c.report.Differences) < maxDifferences {
		d := Difference{Path: p.String(), What: what, Want: fmt.Sprint(want), Got: fmt.Sprint(got)}
		c.report.Differences = append(c.report.Differences, d)
	}
}

// directories reads and compares all directories level by level, and collects
// the other names.
func (c *comparison) directories(root *node) error {
	c.report.Entries++
	c.pairs = make([]pair, 0, root.count())
	level := []directory{{path: &path{}, want: root, inode: rootInode, parent: rootInode}}
	seen := map[uint32]struct{}{}
	for len(level) > 0 {
		kept, err := c.openDirectories(level, seen)
		if err != nil {
			return err
		}
		level = nil
		for _, d := range kept {
			below, err := c.directory(d)
			if err != nil {
				return err
			}
			level = append(level, below...)
		}
	}
	return nil
}

// openDirectories reads the inodes of one level's directories in order of their
// numbers, and gives those that are directories in the order of their blocks. A
// directory that has been seen is refused: with a second name it could be its
// own child, and the walk would not end.
func (c *comparison) openDirectories(level []directory, seen map[uint32]struct{}) ([]directory, error) {
	slices.SortStableFunc(level, func(a, b directory) int { return cmp.Compare(a.inode, b.inode) })
	kept := level[:0]
	for _, d := range level {
		if _, ok := seen[d.inode]; ok {
			return nil, corrupt("%q: directory inode %d has a second name", d.path, d.inode)
		}
		seen[d.inode] = struct{}{}
		var err error
		if d.got, err = c.fs.readInode(d.inode); err != nil {
			return nil, fmt.Errorf("%q: %w", d.path, err)
		}
		if d.got.kind() != typeDir {
			if d.want != nil {
				c.differ(d.path, "type", kindName(typeDir), kindName(d.got.kind()))
			}
			continue
		}
		if d.block, err = c.fs.firstBlock(d.got, false); err != nil {
			return nil, fmt.Errorf("%q: %w", d.path, err)
		}
		kept = append(kept, d)
	}
	slices.SortStableFunc(kept, func(a, b directory) int { return cmp.Compare(a.block, b.block) })
	return kept, nil
}

// directory compares one directory and the names in it, and gives the
// directories below. Links are counted by what is found, not by what should be
// there: a name too many is then one difference and not two.
func (c *comparison) directory(d directory) ([]directory, error) {
	l, err := c.fs.readDir(d.got, d.parent)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", d.path, err)
	}
	c.report.LookupReads = max(c.report.LookupReads, l.lookup)
	if d.want != nil {
		c.missing(d, l)
	}
	var below []directory
	for _, e := range l.entries {
		want := c.match(d, e)
		if e.kind == typeDir {
			below = append(below, directory{path: &path{d.path, e.name}, want: want, inode: e.inode, parent: d.inode})
		} else {
			c.pairs = append(c.pairs, pair{path{d.path, e.name}, want, e.inode, e.kind})
		}
	}
	links := len(below) + 2
	if links > maxLinks {
		links = 1 // "too many to count", feature dir_nlink
	}
	if int(d.got.links) != links {
		c.differ(d.path, "link count", links, d.got.links)
	}
	if d.want == nil {
		return below, nil
	}
	return below, c.attributes(d.path, d.want, d.got)
}

// match gives what the layers say of a name on the device, reporting one that
// they do not have or that is of another type.
func (c *comparison) match(d directory, e dirent) *node {
	if d.want == nil {
		return nil
	}
	want := d.want.names[e.name].node
	if want == nil {
		c.differ(&path{d.path, e.name}, "extra", "nothing", kindName(e.kind))
		return nil
	}
	c.report.Entries++
	if want.isDir() != (e.kind == typeDir) {
		c.differ(&path{d.path, e.name}, "type", kindName(want.mode), kindName(e.kind))
		return nil
	}
	return want
}

// missing reports the names that a directory lacks. Those it has become the
// strings that the tree holds anyway.
func (c *comparison) missing(d directory, l *listing) {
	var names []string
	for name := range d.want.names {
		n, ok := slices.BinarySearchFunc(l.entries, name, func(e dirent, n string) int { return strings.Compare(e.name, n) })
		if ok {
			l.entries[n].name = name
		} else {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.report.Entries++
		c.differ(&path{d.path, name}, "missing", kindName(d.want.names[name].node.mode), "nothing")
	}
}

// inodes compares everything but directories and contents, in the order of
// inode numbers.
func (c *comparison) inodes() error {
	slices.SortStableFunc(c.pairs, func(a, b pair) int { return cmp.Compare(a.inode, b.inode) })
	for from := 0; from < len(c.pairs); {
		to := from + 1
		for to < len(c.pairs) && c.pairs[to].inode == c.pairs[from].inode {
			to++
		}
		if err := c.inode(from, to); err != nil {
			return fmt.Errorf("%q: %w", &c.pairs[from].path, err)
		}
		from = to
	}
	return nil
}

// inode compares the inode of pairs from to to-1, which are all its names. Names
// have to share an inode just where the layers' do: the first name found marks
// the node of the layers, and each further one has to lead to the same inode.
// An inode and a node are compared once.
func (c *comparison) inode(from, to int) error {
	first := &c.pairs[from]
	got, err := c.fs.readInode(first.inode)
	if err != nil {
		return err
	}
	if got.flags&flagEAInode != 0 {
		return corrupt("inode %d holds an xattr's value and has a name", got.number)
	}
	block, err := c.fs.firstBlock(got, true)
	if err != nil {
		return err
	}
	if int(got.links) != to-from {
		c.differ(&first.path, "link count", to-from, got.links)
	}
	for n := from; n < to; n++ {
		p := &c.pairs[n]
		if p.want == nil {
			continue
		}
		if p.want != first.want && first.want != nil {
			c.differ(&p.path, "hard link", "an inode of its own", fmt.Sprintf("the inode of %q", &first.path))
		}
		if known := p.want.pair - 1; known < 0 {
			p.want.pair = int32(n) + 1
		} else if other := &c.pairs[known]; other.inode == p.inode {
			continue // this inode has been compared with this node
		} else {
			c.differ(&p.path, "hard link", fmt.Sprintf("the inode of %q", &other.path), "another inode")
		}
		if err := c.file(n, got, block); err != nil {
			return err
		}
	}
	return nil
}

// contents compares the files' bytes by their hash, in the order in which they
// lie on the device. An inode is read once, whatever it is compared with.
func (c *comparison) contents() error {
	slices.SortStableFunc(c.jobs, func(a, b job) int {
		return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(c.pairs[a.pair].inode, c.pairs[b.pair].inode))
	})
	buf, last := make([]byte, hashBuffer), uint32(0)
	var sum [sha256.Size]byte
	for _, j := range c.jobs {
		p := &c.pairs[j.pair]
		if p.inode != last {
			got, err := c.fs.readInode(p.inode)
			if err != nil {
				return fmt.Errorf("%q: %w", &p.path, err)
			}
			h := sha256.New()
			err = c.fs.readContent(got, buf, func(b []byte) error {
				_, err := h.Write(b)
				c.report.Bytes += int64(len(b))
				return err
			})
			if err != nil {
				return fmt.Errorf("%q: %w", &p.path, err)
			}
			h.Sum(sum[:0])
			last = p.inode
		}
		if sum != p.want.sum {
			c.differ(&p.path, "content", fmt.Sprintf("SHA-256 %x", p.want.sum), fmt.Sprintf("SHA-256 %x", sum))
		}
	}
	return nil
}
