package ext4

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk builds a file system in a sparse file with nothing but this package:
// files are added to the root one by one, finish writes the rest.
type disk struct {
	t      testing.TB
	f      *os.File
	v      *Volume
	inodes map[uint32]*Inode
	names  []Dirent
	next   uint32 // first block that has no use
	free   int64  // blocks to leave
	groups int    // after finish
}

func newDisk(t testing.TB) *disk {
	f, err := os.Create(filepath.Join(t.TempDir(), "device"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &disk{t: t, f: f, v: NewVolume(), inodes: map[uint32]*Inode{}, next: DataGroup * BlocksPerGroup, free: 1000}
}

// place puts b on blocks of its own and gives the first.
func (d *disk) place(b []byte) uint32 {
	at, n := d.next, uint32((len(b)+BlockSize-1)/BlockSize)
	if _, err := d.f.WriteAt(b, int64(at)*BlockSize); err != nil {
		d.t.Fatal(err)
	}
	d.v.UseBlocks(at, n)
	d.next += n
	return at
}

// inode gives n a number.
func (d *disk) inode(n *Inode) uint32 {
	ino := uint32(FirstInode + len(d.inodes))
	d.inodes[ino] = n
	d.v.UseInode(ino, n.Mode&modeType == modeDir)
	return ino
}

// add gives n a number and a name in the root.
func (d *disk) add(name string, n *Inode) uint32 {
	ino := d.inode(n)
	if n.Links == 0 {
		n.Links = 1
	}
	d.names = append(d.names, Dirent{name, ino, n.Mode})
	return ino
}

// data makes content what n holds.
func (d *disk) data(n *Inode, content []byte) *Inode {
	n.Size = int64(len(content))
	blocks := uint32((len(content) + BlockSize - 1) / BlockSize)
	n.Blocks += uint64(blocks)
	var extents []Extent
	if blocks > 0 {
		extents = SplitExtents([]Extent{{0, d.place(content), blocks}})
	}
	n.Map, _ = ExtentTree(extents, 0)
	return n
}

// attributes plans xs as flatten does and gives them to n.
func (d *disk) attributes(n *Inode, xs []Xattr) (external int) {
	ext, err := PlanXattrs(xs)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, x := range ext {
		d.v.UseEAInodes()
		ea := d.data(&Inode{Mode: modeRegular | 0o600, Links: 1, IsEA: true, EAHash: x.Hash}, x.Value)
		x.Inode, x.Value = d.inode(ea), nil
		n.Blocks += ea.Blocks
	}
	body, block, err := EncodeXattrs(xs)
	if err != nil {
		d.t.Fatal(err)
	}
	n.XattrBody = body
	if block != nil {
		n.XattrBlock = d.place(block)
		n.Blocks++
	}
	return len(ext)
}

// directory makes n the directory of entries.
func (d *disk) directory(self, parent uint32, n *Inode, entries []Dirent) []byte {
	b, err := AppendDirectory(nil, self, parent, entries)
	if err != nil {
		d.t.Fatal(err)
	}
	d.data(n, b)
	n.Mode, n.Indexed, n.Links = modeDir|0o755, len(b) > BlockSize, 2
	return b
}

// finish writes root directory and front, has e2fsck look at it and gives the
// device's path.
func (d *disk) finish() string {
	root := &Inode{}
	d.directory(RootInode, RootInode, root, d.names)
	for _, e := range d.names {
		if e.Mode&modeType == modeDir {
			root.Links++
		}
	}
	d.inodes[RootInode] = root
	var err error
	if d.groups, err = d.v.Groups(d.free, 1000); err != nil {
		d.t.Fatal(err)
	}
	err = d.v.WriteFront(d.f, d.groups, func(n uint32, b []byte) { d.inodes[n].Encode(b) })
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.f.Truncate(int64(d.groups) * BlocksPerGroup * BlockSize); err != nil {
		d.t.Fatal(err)
	}
	fsck(d.t, d.f.Name())
	return d.f.Name()
}

// run gives the output of a program of e2fsprogs, which the tests cannot do without.
func run(t testing.TB, stdin string, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%v: install e2fsprogs", err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// fsck fails the test unless e2fsck finds nothing at all to change.
func fsck(t testing.TB, path string) {
	t.Helper()
	if out, err := run(t, "", "e2fsck", "-fn", path); err != nil {
		t.Fatalf("e2fsck: %v\n%.4000s", err, out)
	}
}

// debugfs runs commands on a device.
func debugfs(t testing.TB, path string, commands ...string) string {
	t.Helper()
	out, err := run(t, strings.Join(commands, "\n")+"\n", "debugfs", "-f", "-", path)
	if err != nil {
		t.Fatalf("debugfs: %v\n%.2000s", err, out)
	}
	return out
}

func lgetxattr(path, name string) ([]byte, error) {
	b := make([]byte, maxXattrValue+1)
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return nil, fmt.Errorf("getxattr %s of %.80s: %w", name, path, err)
	}
	return b[:n], nil
}

// pattern gives n bytes that no other seed has.
func pattern(seed, n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d/%d,", seed, i)
	}
	return b.Bytes()[:n]
}

// memory is a WriterAt of bytes; it fails writes that overlap earlier ones.
type memory struct {
	t testing.TB
	b []byte
	w []bool // by 1,024 bytes
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	for int64(len(m.b)) < off+int64(len(p)) {
		m.b, m.w = append(m.b, make([]byte, 1<<20)...), append(m.w, make([]bool, 1<<10)...)
	}
	for i := off >> 10; i < (off+int64(len(p))+1023)>>10; i++ {
		if m.w[i] {
			m.t.Errorf("byte %d written twice", i<<10)
		}
		m.w[i] = true
	}
	return copy(m.b[off:], p), nil
}

var _ io.WriterAt = (*memory)(nil)
