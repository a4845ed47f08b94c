package flatten

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testmount"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// packFile packs and builds a layer of one file and gives what came of it.
func packFile(t *testing.T, b []byte) (m image, n *node, size int64) {
	t.Helper()
	m, tree, s := mustBuild(t, mustPack(t, tarball(t, item{Header: tar.Header{Name: "f"}, content: string(b)})))
	return m, tree.root.dir.children["f"].node, s.Size
}

// blocks gives content of n blocks, zero but for the ranges [from, to).
func blocks(n int, ranges ...int) []byte {
	b := make([]byte, n*blockSize)
	for i := 0; i < len(ranges); i += 2 {
		copy(b[ranges[i]*blockSize:ranges[i+1]*blockSize], patterned(i, (ranges[i+1]-ranges[i])*blockSize))
	}
	return b
}

func TestHoles(t *testing.T) {
	const h = holeBlocks
	for _, c := range []struct {
		about   string
		content []byte
		extents int
		used    uint32
	}{
		{"no zeros", blocks(200, 0, 200), 1, 200},
		{"all zeros", blocks(300), 0, 0},
		{"a hole in the middle", blocks(1000, 0, 100, 600, 1000), 2, 500},
		{"a hole of the least length", blocks(200+h, 0, 100, 100+h, 200+h), 2, 200},
		{"too few zeros for a hole", blocks(200+h-1, 0, 100, 100+h-1, 200+h-1), 1, 200 + h - 1},
		{"zeros in front", blocks(300, 1, 300), 1, 299},
		{"few zeros behind", blocks(300, 0, 299), 1, 300},
		{"many zeros behind", blocks(300+h, 0, 300), 1, 300},
		{"a small file of zeros", make([]byte, largeFile-1), 1, h},
		{"a last block that is not whole", append(blocks(300, 0, 300), 7), 1, 301},
		{"a last block of zeros that is not whole", append(blocks(h+5, 0, 3), 0), 1, 3},
		{"holes enough for a tree", blocks(6*h*2, 0, 1, 2*h, 2*h+1, 4*h, 4*h+1, 6*h, 6*h+1, 8*h, 8*h+1, 10*h, 10*h+1), 6, 6},
	} {
		m, n, size := packFile(t, c.content)
		var used uint32
		for _, e := range n.extents() {
			used += e.Count
		}
		if len(n.extents()) != c.extents || used != c.used {
			t.Errorf("%s: %d extents of %d blocks, want %d of %d", c.about, len(n.extents()), used, c.extents, c.used)
		}
		if !bytes.Equal(content(m, n), c.content) {
			t.Errorf("%s: content differs", c.about)
		}
		fsck(t, m.file(t, size))
	}
}

// Any pattern of zero and other blocks comes back.
func TestContentComesBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var b []byte
		for i, n := range rapid.SliceOfN(rapid.IntRange(1, 300), 1, 8).Draw(rt, "runs") {
			if rapid.Bool().Draw(rt, "zero") {
				b = append(b, make([]byte, n*blockSize)...)
			} else {
				b = append(b, patterned(i, n*blockSize)...)
			}
		}
		b = b[:len(b)-rapid.IntRange(0, blockSize-1).Draw(rt, "cut")]
		m, n, _ := packFile(t, b)
		if !bytes.Equal(content(m, n), b) {
			rt.Fatal("content differs")
		}
	})
}

// sparseTar has GNU tar pack a sparse file of size bytes with data at offsets.
func sparseTar(t *testing.T, format string, size int64, offsets ...int64) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for i, off := range offsets {
		if _, err := f.WriteAt([]byte(patterned(i, 5000)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	args := strings.Fields("-S --owner=0 --group=0 -cf - " + format + " -C")
	out, err := exec.Command("tar", append(args, dir, "sparse")...).Output()
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	return out
}

// Sparse files in all forms that GNU tar writes, with more pieces than the
// header of the old form holds.
func TestSparseTars(t *testing.T) {
	var offsets []int64
	for i := range int64(30) {
		offsets = append(offsets, i*2<<20+i*3)
	}
	for _, format := range []string{"--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix --sparse-version=0.1", "--format=posix --sparse-version=1.0"} {
		source := sparseTar(t, format, 70<<20, offsets...)
		l := mustPack(t, source)
		m, tree, s := mustBuild(t, l)
		n, ok := tree.root.dir.children["sparse"]
		if !ok || n.size != 70<<20 || len(n.extents()) != len(offsets) {
			t.Fatalf("%s: a file of %d bytes in %d extents", format, n.size, len(n.extents()))
		}
		got := content(m, n.node)
		for i, off := range offsets {
			if string(got[off:off+5000]) != patterned(i, 5000) {
				t.Errorf("%s: content at %d differs", format, off)
			}
		}
		if len(source) < 1<<20 {
			if err := verified(m, s.Size, tars{source}); err != nil {
				t.Errorf("%s: package verify: %v", format, err)
			}
		}
		fsck(t, m.file(t, s.Size))
	}
}

// A file of 70 GiB takes the space of its data, and the kernel finds it there.
func TestFilePast64GiB(t *testing.T) {
	offsets := []int64{0, 4<<30 - 100, 66 << 30, 70<<30 - 5000}
	l := mustPack(t, sparseTar(t, "--format=posix", 70<<30, offsets...))
	m, _, s := mustBuild(t, l)
	if s.Size > 2<<30 || s.Bytes != 70<<30 {
		t.Errorf("a device of %d bytes for %d", s.Size, s.Bytes)
	}
	path := m.file(t, s.Size)
	fsck(t, path)
	dir, _ := testmount.Ext4(t, path, "ro")
	f, err := os.Open(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 5000)
	for i, off := range offsets {
		if _, err := f.ReadAt(b, off); err != nil || string(b) != patterned(i, 5000) {
			t.Errorf("content at %d differs: %v", off, err)
		}
	}
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end != 70<<30 {
		t.Errorf("size %d, %v", end, err)
	}
	if at, err := unix.Seek(int(f.Fd()), 5<<30, unix.SEEK_DATA); err != nil || at != 66<<30 {
		t.Errorf("data behind 5 GiB begins at %d: %v", at, err)
	}
}

// The kernel adds 10,000 names to a directory of 50,000, deletes files of one
// and of 400 extents, and writes into the free space; e2fsck finds nothing wrong
// with what it left.
func TestWritable(t *testing.T) {
	var items []item
	for i := range 50_000 {
		items = append(items, item{Header: tar.Header{Name: fmt.Sprintf("many/lib%d.so", i), Typeflag: tar.TypeLink, Linkname: "target", Format: tar.FormatUSTAR}})
	}
	items = append(items, parse("target=t dir/ dir/a=1 dir/b=2")...)
	items = append(items, item{Header: tar.Header{Name: "whole"}, content: patterned(1, 5<<20)})
	var offsets []int64
	for i := range int64(400) {
		offsets = append(offsets, i<<20)
	}
	m, _, s := mustBuild(t, mustPack(t, tarball(t, items...)), mustPack(t, sparseTar(t, "--format=posix", 400<<20, offsets...)))
	path := m.file(t, s.Size)
	fsck(t, path)
	dir, unmount := testmount.Ext4(t, path, "rw")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if free := int64(st.Bavail) * blockSize; free < defaultFree.Bytes || int64(st.Ffree) < defaultFree.Inodes {
		t.Errorf("%d bytes and %d inodes available", free, st.Ffree)
	}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10_000 {
		check(os.WriteFile(fmt.Sprintf("%s/many/new%d", dir, i), nil, 0o644))
	}
	for i := range 3000 {
		check(os.Remove(fmt.Sprintf("%s/many/lib%d.so", dir, i*7)))
	}
	for i := range 300 {
		check(os.Mkdir(fmt.Sprintf("%s/dir/%d", dir, i), 0o755))
	}
	check(os.Remove(dir + "/whole"))
	check(os.Remove(dir + "/sparse"))
	check(os.Rename(dir+"/dir/a", dir+"/many/renamed"))
	check(os.Link(dir+"/target", dir+"/dir/link"))
	check(os.WriteFile(dir+"/big", make([]byte, 40<<20), 0o644))
	unmount()
	fsck(t, path)
}
