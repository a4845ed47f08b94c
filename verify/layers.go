package verify

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	whiteout     = ".wh."
	opaque       = ".wh..wh..opq"
	minTime      = -1 << 31          // s: the least that an inode's 34 bits hold
	maxTime      = 1<<31 - 1 + 3<<32 // s: the most
	maxID        = 1<<32 - 2         // the kernel takes 2^32-1 for "none"
	maxMajor     = 1<<12 - 1         // of device numbers
	maxMinor     = 1<<20 - 1         //
	maxFile      = 256 << 30         // bytes of one file
	maxLayer     = 1 << 40           // bytes of all files of a layer
	hashBuffer   = 256 << 10         // bytes read at a time
	checkContext = 16                // deferred links tried between two looks at the context
)

// applyLayers gives the tree that the layers make, base first, by the rules of
// flattening. Entries count in the order of their tar.
//
//   - Parents are found inside the tree, through symlinks; those that are
//     missing are made. The last component is never followed.
//   - A directory over a directory keeps what is in it. Anything else takes the
//     place of what was there, with all below it.
//   - A whiteout hides what lower layers left under a name, an opaque one what
//     they left in its directory. What the same layer added stays, before or
//     after, and so do the directories that lead there.
//   - A hard link leads to the inode that its target has by then. One whose
//     target is not there yet waits for the end of its layer.
//
// What no device can hold is refused with the path, and so is all that would
// leave the tree.
func applyLayers(ctx context.Context, layers Layers) (*tree, error) {
	t := &tree{root: newDir()}
	for i := range layers.Len() {
		t.layer = int32(i)
		if err := applyLayer(ctx, t, layers); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return t, t.checkLinks(t.root, "")
}

// applyLayer reads layer t.layer and puts it over the tree. What follows the
// tar's end is read too: the reader tells there whether the digest was right.
func applyLayer(ctx context.Context, t *tree, layers Layers) (err error) {
	r, err := layers.Open(ctx, int(t.layer))
	if err != nil {
		return err
	}
	defer func() {
		if e := r.Close(); err == nil {
			err = e
		}
	}()
	a := &applier{ctx: ctx, tree: t, buf: make([]byte, hashBuffer)}
	a.in = tar.NewReader(&cancelReader{ctx, r})
	for {
		h, err := a.in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // paths are checked here
			return err
		}
		if err := a.entry(h); err != nil {
			return fmt.Errorf("%q: %w", h.Name, err)
		}
	}
	if _, err := io.CopyBuffer(io.Discard, &cancelReader{ctx, r}, a.buf); err != nil {
		return err
	}
	return a.retryLinks()
}

// applier applies the entries of one layer.
type applier struct {
	ctx      context.Context
	tree     *tree
	in       *tar.Reader
	buf      []byte
	bytes    int64 // of the layer's files so far
	deferred []link
}

// link is a hard link by the components of its name and its target.
type link struct{ name, target []string }

// entry applies one entry.
func (a *applier) entry(h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	path, err := components(h.Name)
	if err != nil {
		return err
	}
	if len(path) > 0 && strings.HasPrefix(path[len(path)-1], whiteout) {
		return a.whiteout(path[:len(path)-1], path[len(path)-1])
	}
	if h.Typeflag == tar.TypeLink {
		target, err := components(h.Linkname)
		if err != nil {
			return err
		}
		if len(path) == 0 {
			return refuse("the root can only be a directory")
		}
		l := link{path, target}
		if done, err := a.link(l); done || err != nil {
			return err
		}
		a.deferred = append(a.deferred, l)
		return nil
	}
	n, err := a.node(h)
	if err != nil {
		return err
	}
	return a.place(path, n)
}

// place puts a node at a path.
func (a *applier) place(path []string, n *node) error {
	if len(path) == 0 {
		if !n.isDir() {
			return refuse("the root can only be a directory")
		}
		a.tree.root.become(n)
		return nil
	}
	dir, err := a.tree.resolve(path[:len(path)-1], true)
	if err != nil {
		return err
	}
	a.tree.put(dir, path[len(path)-1], n)
	return nil
}

// components splits a path as a tar has it, "." and empty ones left out; none
// are left of the root. A ".." is refused wherever it stands: what it means
// would depend on symlinks that other programs follow otherwise.
func components(path string) ([]string, error) {
	var list []string
	for c := range strings.SplitSeq(path, "/") {
		switch {
		case c == "" || c == ".":
			continue
		case c == "..":
			return nil, refuse("path %.100q escapes the tree", path)
		case len(c) > maxComponent:
			return nil, refuse("a name of %d bytes", len(c))
		case strings.Contains(c, "\x00"):
			return nil, refuse("path %.100q has a NUL", path)
		}
		list = append(list, c)
	}
	return list, nil
}

// whiteout applies an entry whose name starts with ".wh.", of any type. Where
// its directory is missing there is nothing to hide.
func (a *applier) whiteout(parent []string, base string) error {
	name := base[len(whiteout):]
	if name == "" || name == "." || name == ".." {
		return refuse("a whiteout of %q", name)
	}
	if base != opaque && strings.HasPrefix(name, whiteout) {
		return nil // other marks of aufs, which hide nothing
	}
	dir, err := a.tree.resolve(parent, false)
	if err != nil || dir == nil {
		return err
	}
	if base == opaque {
		a.tree.hideAll(dir)
	} else {
		a.tree.hide(dir, name)
	}
	return nil
}

// link makes a hard link, or gives false if its target is not there; nothing
// is changed then, parents of the name included. The entry's own metadata does
// not count, and a link to itself changes nothing.
func (a *applier) link(l link) (bool, error) {
	if len(l.target) == 0 {
		return false, refuse("link to a directory")
	}
	from, err := a.tree.resolve(l.target[:len(l.target)-1], false)
	if err != nil || from == nil {
		return false, err
	}
	last := l.target[len(l.target)-1]
	n := from.names[last].node
	if n == nil {
		return false, nil
	}
	if n.isDir() {
		return false, refuse("link to %q, a directory", strings.Join(l.target, "/"))
	}
	dir, err := a.tree.resolve(l.name[:len(l.name)-1], true)
	if err != nil {
		return false, err
	}
	if base := l.name[len(l.name)-1]; dir != from || base != last {
		a.tree.put(dir, base, n)
		if n.links == 1 { // the new name is the only one
			return false, refuse("link to %q inside of what it replaces", strings.Join(l.target, "/"))
		}
	}
	return true, nil
}

// retryLinks tries the links whose targets were not there, in order, until
// none of them moves. A chain written backwards takes as many rounds as it has
// links, so the context is looked at meanwhile.
func (a *applier) retryLinks() error {
	for moved, tries := true, 0; moved && len(a.deferred) > 0; {
		left := a.deferred[:0]
		for _, l := range a.deferred {
			if tries++; tries%checkContext == 0 && a.ctx.Err() != nil {
				return a.ctx.Err()
			}
			done, err := a.link(l)
			if err != nil {
				return fmt.Errorf("%q: %w", strings.Join(l.name, "/"), err)
			}
			if !done {
				left = append(left, l)
			}
		}
		moved = len(left) < len(a.deferred)
		a.deferred = left
	}
	if len(a.deferred) == 0 {
		return nil
	}
	l := a.deferred[0]
	return fmt.Errorf("%q: %w", strings.Join(l.name, "/"), refuse("link to %q, which does not exist", strings.Join(l.target, "/")))
}

// node makes what an entry says, content hashed. A time that ext4's 34 bits do
// not hold becomes the nearest one that they do, as in the kernel.
func (a *applier) node(h *tar.Header) (*node, error) {
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return nil, refuse("owner %d:%d is none", h.Uid, h.Gid)
	}
	n := &node{mode: uint16(h.Mode & 0o7777), uid: uint32(h.Uid), gid: uint32(h.Gid)}
	n.sec, n.nsec = h.ModTime.Unix(), uint32(h.ModTime.Nanosecond())
	if at := min(max(n.sec, minTime), maxTime); at != n.sec {
		n.sec, n.nsec = at, 0
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		n.mode |= typeRegular
	case tar.TypeDir:
		n.mode |= typeDir
		n.names = map[string]entry{}
	case tar.TypeSymlink:
		n.mode |= typeSymlink
	case tar.TypeChar:
		n.mode |= typeChar
	case tar.TypeBlock:
		n.mode |= typeBlock
	case tar.TypeFifo:
		n.mode |= typeFIFO
	default:
		return nil, refuse("entries of type %q are not known", h.Typeflag)
	}
	return n, a.fill(n, h)
}

// fill adds what only some types have, and xattrs.
func (a *applier) fill(n *node, h *tar.Header) error {
	set, err := tarXattrs(h.PAXRecords)
	if err != nil {
		return err
	}
	if set != nil || h.Typeflag == tar.TypeSymlink {
		n.extra = &extra{xattrs: set}
	}
	switch n.mode & typeMask {
	case typeSymlink:
		n.extra.target, n.size = h.Linkname, int64(len(h.Linkname))
	case typeChar, typeBlock:
		if h.Devmajor < 0 || h.Devmajor > maxMajor || h.Devminor < 0 || h.Devminor > maxMinor {
			return refuse("device number %d:%d does not fit", h.Devmajor, h.Devminor)
		}
		n.size = h.Devmajor<<20 | h.Devminor
	case typeRegular:
		if n.size = h.Size; h.Size < 0 || h.Size > maxFile || a.bytes > maxLayer-h.Size {
			return refuse("%d bytes are too many for a file or its layer", h.Size)
		}
		a.bytes += h.Size
		sum := sha256.New()
		got, err := io.CopyBuffer(sum, readerOnly{a.in}, a.buf)
		if err != nil {
			return err
		}
		if got != h.Size {
			return io.ErrUnexpectedEOF
		}
		sum.Sum(n.sum[:0])
	}
	return nil
}

// checkLinks refuses a tree with an inode of more names than ext4 can count. It
// is for the end, since names come and go with each layer.
func (t *tree) checkLinks(dir *node, path string) error {
	for name, e := range dir.names {
		if !e.node.isDir() && e.node.links > maxLinks {
			return refuse("%q: %d hard links, the limit is %d", path+"/"+name, e.node.links, maxLinks)
		}
		if e.node.isDir() {
			if err := t.checkLinks(e.node, path+"/"+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// readerOnly hides a reader's other methods, so that a copy uses its buffer.
type readerOnly struct{ io.Reader }

// cancelReader ends with the context's error once that is done.
type cancelReader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads unless the context is done.
func (c *cancelReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
