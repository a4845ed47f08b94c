package flatten

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/verify"
)

const chunkSize = 512 << 10

// image is a sparse space of bytes in memory, by chunk.
type image map[int64][]byte

func (m image) WriteAt(p []byte, off int64) (int, error) {
	total := len(p)
	for len(p) > 0 {
		c := m[off/chunkSize]
		if c == nil {
			c = make([]byte, chunkSize)
			m[off/chunkSize] = c
		}
		n := copy(c[off%chunkSize:], p)
		p, off = p[n:], off+int64(n)
	}
	return total, nil
}

func (m image) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(chunkSize-at%chunkSize))]
		clear(part)
		if c := m[at/chunkSize]; c != nil {
			copy(part, c[at%chunkSize:])
		}
		n += len(part)
	}
	return len(p), nil
}

// add puts another image's chunks at an offset of this one, without a copy.
func (m image) add(other image, off int64) {
	for i, c := range other {
		m[i+off/chunkSize] = c
	}
}

// chunks gives the hashes of the contents that are not all zero.
func (m image) chunks(seed maphash.Seed) map[uint64]bool {
	set, zero := map[uint64]bool{}, make([]byte, chunkSize)
	for _, c := range m {
		if !bytes.Equal(c, zero) {
			set[maphash.Bytes(seed, c)] = true
		}
	}
	return set
}

// newChunks counts the contents of after that before does not have.
func newChunks(before, after image) (n int) {
	seed := maphash.MakeSeed()
	had := before.chunks(seed)
	for c := range after.chunks(seed) {
		if !had[c] {
			n++
		}
	}
	return n
}

// file writes the image to a sparse file of size bytes.
func (m image) file(t testing.TB, size int64) string {
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, i := range slices.Sorted(maps.Keys(m)) {
		if _, err := f.WriteAt(m[i], i*chunkSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// packed is a layer with its data.
type packed struct {
	*Layer
	data image
}

func pack(tarball []byte) (packed, error) {
	p := packed{data: image{}}
	var err error
	p.Layer, err = Pack(bytes.NewReader(tarball), p.data, nil)
	return p, err
}

func mustPack(t testing.TB, tarball []byte) packed {
	t.Helper()
	p, err := pack(tarball)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var defaultFree = Free{Bytes: 512 << 20, Inodes: 16_384}

// build joins layers into a device.
func build(layers ...packed) (image, *Tree, Summary, error) {
	m := image{}
	tree := NewTree(m)
	for _, l := range layers {
		at, err := tree.Apply(l.Layer)
		if err != nil {
			return nil, nil, Summary{}, err
		}
		m.add(l.data, at)
	}
	s, err := tree.Finish(defaultFree)
	return m, tree, s, err
}

func mustBuild(t testing.TB, layers ...packed) (image, *Tree, Summary) {
	t.Helper()
	m, tree, s, err := build(layers...)
	if err != nil {
		t.Fatal(err)
	}
	return m, tree, s
}

// item is a tar entry.
type item struct {
	tar.Header
	content string
}

// epoch is the time of all entries that do not care.
var epoch = time.Unix(1_700_000_000, 0)

// tarball writes items as a tar. A zero mode becomes 0755 and a zero time epoch.
func tarball(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		it.Mode = cmp.Or(it.Mode, 0o755)
		it.Size = int64(len(it.content))
		if it.ModTime.IsZero() {
			it.ModTime = epoch
		}
		if it.Format == tar.FormatUnknown {
			it.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&it.Header); err != nil {
			t.Fatalf("%.100q: %v", it.Name, err)
		}
		if _, err := io.WriteString(w, it.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// parse reads the small language of the tables: entries separated by spaces,
//
//	d/   f=content   symlink->target   link=>target   fifo|   char%   .wh.name
func parse(text string) (items []item) {
	for _, s := range strings.Fields(text) {
		var it item
		name, rest, _ := strings.Cut(s, "=")
		switch {
		case strings.HasPrefix(rest, ">"):
			it.Typeflag, it.Name, it.Linkname = tar.TypeLink, name, rest[1:]
		case strings.Contains(s, "->"):
			it.Typeflag = tar.TypeSymlink
			it.Name, it.Linkname, _ = strings.Cut(s, "->")
		case strings.HasSuffix(s, "/"):
			it.Typeflag, it.Name = tar.TypeDir, s
		case strings.HasSuffix(s, "|"):
			it.Typeflag, it.Name = tar.TypeFifo, s[:len(s)-1]
		case strings.HasSuffix(s, "%"):
			it.Typeflag, it.Name, it.Devmajor, it.Devminor = tar.TypeChar, s[:len(s)-1], 1, 3
		default:
			it.Typeflag, it.Name, it.content = tar.TypeReg, name, rest
		}
		items = append(items, it)
	}
	return items
}

// list writes the tree in the language that parse reads, sorted; of several
// names of one file all but the first are links.
func list(m image, t *Tree) string {
	var lines []string
	seen := map[*node]string{}
	var walk func(n *node, path string)
	walk = func(n *node, path string) {
		for _, name := range slices.Sorted(maps.Keys(n.dir.children)) {
			c, at := n.dir.children[name], path+name
			if c.dir != nil {
				lines = append(lines, at+"/")
				walk(c.node, at+"/")
				continue
			}
			if first, ok := seen[c.node]; ok {
				lines = append(lines, at+"=>"+first)
				continue
			}
			seen[c.node] = at
			switch c.mode & syscall.S_IFMT {
			case syscall.S_IFLNK:
				lines = append(lines, at+"->"+c.extra.target)
			case syscall.S_IFIFO:
				lines = append(lines, at+"|")
			case syscall.S_IFCHR:
				lines = append(lines, at+"%")
			default:
				lines = append(lines, at+"="+string(content(m, c.node)))
			}
		}
	}
	walk(t.root, "")
	return strings.Join(lines, " ")
}

// content reads a file by its extents.
func content(m image, n *node) []byte {
	b := make([]byte, n.size)
	for _, e := range n.extents() {
		at := int64(e.Logical) * blockSize
		m.ReadAt(b[at:min(n.size, at+int64(e.Count)*blockSize)], int64(e.Physical)*blockSize)
	}
	return b
}

// fsck fails the test unless e2fsck finds nothing at all to change.
func fsck(t testing.TB, path string) {
	t.Helper()
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Fatalf("%v: install e2fsprogs", err)
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%.4000s", err, out)
	}
}

// tars are layers for verify, base first.
type tars [][]byte

func (l tars) Len() int { return len(l) }

func (l tars) Open(_ context.Context, i int) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l[i])), nil
}

// verified has package verify, which shares no code with this one, apply the
// layers and compare its tree with the device. It gives what differs.
func verified(m image, size int64, layers tars) error {
	report, err := verify.Tree(context.Background(), m, size, layers)
	if err != nil {
		return err
	}
	var all []error
	for _, d := range report.Differences {
		all = append(all, fmt.Errorf("%+v", d))
	}
	return errors.Join(all...)
}
