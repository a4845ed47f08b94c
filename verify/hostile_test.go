package verify

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// update makes the images of testdata anew:
//
//	go test ./verify -run TestMakeImages -update
var update = flag.Bool("update", false, "make the images of testdata anew")

// hostileItems is a tree with every structure of the format.
func hostileItems() []item {
	items := []item{
		dir("."), dir("a"), dir("a/b"), file("a/f", scattered(3)).xattr("user.block", strings.Repeat("v", 600)),
		file("a/g", "content").xattr("user.small", "x").xattr(accessACL, someACL()), symlink("a/long", strings.Repeat("t", 100)),
		symlink("a/short", "g"), made('6', "a/p", 0o644), dir("a/many"),
	}
	for n := range 200 {
		items = append(items, file(fmt.Sprintf("a/many/%03d-%s", n, strings.Repeat("n", 50)), ""))
	}
	for n := range items { // the same whoever makes the images
		items[n].Uid, items[n].Gid = 0, 0
	}
	return items
}

// TestMakeImages writes the images that the tests of hostile devices start
// from, a few hundred KiB each and few when packed. Root makes them.
func TestMakeImages(t *testing.T) {
	if !*update {
		t.Skip("SKIPPED: only with -update")
	}
	items := hostileItems()
	folder := t.TempDir()
	unpack(t, folder, items)
	for name, features := range map[string]string{
		"sums":  plainFeatures,
		"plain": strings.ReplaceAll(plainFeatures, "uninit_bg,", ""),
		"wide":  "none,ext_attr,dir_index,filetype,extent,64bit,metadata_csum,ea_inode,extra_isize",
	} {
		image := mkfs(t, folder, "384K", "-O", features, "-N", "256", "-U", "00010203-0405-0607-0809-0a0b0c0d0e0f")
		if _, err := os.Stat(folder); err != nil {
			t.Fatal(err)
		}
		_ = run2("e2fsck", "-fyD", image) // ends with 1 for "changed"
		debugfs(t, image, "rmdir lost+found", "sif / mtime @1600000000", "ea_set -f "+big(t)+" /a/g user.big")
		data, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
		_, _ = z.Write(data)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/"+name+".img.gz", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// big makes a file for a value that needs an inode.
func big(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, bytes.Repeat([]byte("big!"), 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// images reads testdata.
func images(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.img.gz")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no images in testdata: %v", err)
	}
	all := map[string][]byte{}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(p), ".img.gz")] = b
	}
	return all
}

// hostileLayers is what the images of testdata hold.
func hostileLayers(t testing.TB) tars {
	items := hostileItems()
	for n := range items {
		if items[n].Name == "a/g" {
			items[n] = items[n].xattr("user.big", strings.Repeat("big!", 1024))
		}
	}
	return layersOf(t, items)
}

// TestImages makes sure that the images are whole.
func TestImages(t *testing.T) {
	for name, b := range images(t) {
		r, err := Tree(t.Context(), bytes.NewReader(b), int64(len(b)), hostileLayers(t))
		if err != nil || r.Total != 0 || r.LookupReads < 2 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// disk is an image to be damaged.
type disk struct {
	t *testing.T
	b []byte
}

// open reads the file system as it is.
func (d *disk) open() *fsys {
	f, err := openFS(context.Background(), bytes.NewReader(d.b), int64(len(d.b)))
	if err != nil {
		d.t.Fatal(err)
	}
	return f
}

// number finds an inode.
func (d *disk) number(path string) uint32 {
	f := d.open()
	n, parent := uint32(rootInode), uint32(rootInode)
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		i, err := f.readInode(n)
		if err != nil {
			d.t.Fatal(err)
		}
		l, err := f.readDir(i, parent)
		if err != nil {
			d.t.Fatal(err)
		}
		parent = n
		for _, e := range l.entries {
			if e.name == name {
				n = e.inode
			}
		}
	}
	return n
}

// inode gives the bytes of an inode.
func (d *disk) inode(path string) []byte {
	n := uint32(rootInode)
	if path != "/" {
		n = d.number(path)
	}
	f := d.open()
	g, at := (n-1)/f.inodesPerGroup, (n-1)%f.inodesPerGroup
	return d.b[int(f.groups[g].inodeTable)*blockSize+int(at)*f.inodeSize:][:f.inodeSize]
}

// extents gives an inode's extent root.
func (d *disk) extents(path string) []byte { return d.inode(path)[0x28:][:blockArea] }

// block gives a block.
func (d *disk) block(n uint32) []byte { return d.b[int(n)*blockSize:][:blockSize] }

// data gives the first block of an inode's content.
func (d *disk) data(path string) []byte { return d.block(u32(d.extents(path), 20)) }

func put16(b []byte, at int, v int) { binary.LittleEndian.PutUint16(b[at:], uint16(v)) }
func put32(b []byte, at int, v int) { binary.LittleEndian.PutUint32(b[at:], uint32(v)) }

// damage is a way of damaging an image.
type damage struct {
	name string
	do   func(d *disk)
	says string // in the error, which wraps ErrCorrupt
}

// TestDamage wants an error that names the trouble for each structure that
// contradicts itself.
func TestDamage(t *testing.T) {
	plain, layers := images(t)["plain"], hostileLayers(t)
	for _, list := range [][]damage{superDamage(), treeDamage(), directoryDamage(), indexDamage(), xattrDamage()} {
		for _, c := range list {
			t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
				d := &disk{t, bytes.Clone(plain)}
				c.do(d)
				_, err := Tree(t.Context(), bytes.NewReader(d.b), int64(len(d.b)), layers)
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, want one that says %q", err, c.says)
				}
			})
		}
	}
}

// super damages a field of four bytes of the superblock.
func super(name string, at, value int, says string) damage {
	return damage{name, func(d *disk) { put32(d.b[superOffset:], at, value) }, says}
}

func superDamage() []damage {
	return []damage{
		{"no superblock", func(d *disk) { d.b = d.b[:2000] }, "no superblock"},
		{"cut device", func(d *disk) { d.b = d.b[:20*blockSize] }, "blocks on a device"},
		super("magic", 0x38, 0, "magic"),
		super("journal to recover", 0x60, 0x46, "0x4"),
		super("no extents", 0x60, 2, "needed"),
		super("read-only feature", 0x64, 0x200, "0x200"),
		super("block size", 0x18, 0, "block size"),
		super("no blocks", 4, 0, "0 blocks"),
		super("too many blocks", 4, math.MaxUint32, "blocks on a device"),
		super("group size", 0x20, 1024, "1024 blocks"),
		super("no inodes per group", 0x28, 0, "inodes per group"),
		super("inodes", 0, math.MaxUint32, "inodes"),
		super("first inode", 0x54, 1, "first 1"),
		super("inode size", 0x58, 200, "inodes of 200"),
		{"table outside", func(d *disk) { put32(d.block(1), 8, 1<<30) }, "outside"},
		{"bitmaps at one place", func(d *disk) { copy(d.block(1)[4:8], d.block(1)[:4]) }, "used twice"},
		{"block marked free", func(d *disk) {
			n := u32(d.extents("a/g"), 20)
			d.block(u32(d.block(1), 0))[n/8] &^= 1 << (n % 8)
		}, "marked as free"},
		{"inode marked free", func(d *disk) {
			n := d.number("a/g") - 1
			d.block(u32(d.block(1), 4))[n/8] &^= 1 << (n % 8)
		}, "marked as free"},
		{"root is a file", func(d *disk) { put16(d.inode("/"), 0, 0) }, "no file type"},
	}
}

func treeDamage() []damage {
	file := func(name string, do func(x []byte, d *disk), says string) damage {
		return damage{name, func(d *disk) { do(d.extents("a/f"), d) }, says}
	}
	// deep moves the root into a block and gives the inode a root over it
	deep := func(x []byte, d *disk, at uint32) []byte {
		b := d.block(at)
		copy(b, x)
		clear(b[blockArea:])
		put16(b, 4, 340)
		put16(x, 2, 1)
		put16(x, 6, 1)
		put32(x, 12, 0)
		put32(x, 16, int(at))
		put32(x, 20, 0)
		return b
	}
	return []damage{
		file("extent magic", func(x []byte, _ *disk) { put16(x, 0, 1) }, "magic"),
		file("extent count", func(x []byte, _ *disk) { put16(x, 2, 5) }, "5 of 4"),
		file("extent room", func(x []byte, _ *disk) { put16(x, 2, 5000); put16(x, 4, 6000) }, "5000 of 6000"),
		file("extent depth", func(x []byte, _ *disk) { put16(x, 6, 6) }, "depth 6"),
		file("extent depth lies", func(x []byte, d *disk) { deep(x, d, 95); put16(x, 6, 2) }, "depth 0 where"),
		file("extent loop", func(x []byte, d *disk) {
			b := deep(x, d, 95)
			put16(b, 2, 1)
			put16(b, 6, 1)
			put32(b, 16, 95)
			put32(b, 20, 0)
			put16(x, 6, 2)
		}, "used twice"),
		file("empty node", func(x []byte, d *disk) { put16(deep(x, d, 95), 2, 0) }, "without entries"),
		file("node outside", func(x []byte, d *disk) { deep(x, d, 95); put32(x, 16, 1<<30) }, "outside"),
		file("node in a file", func(x []byte, d *disk) { deep(x, d, 95); put32(x, 16, int(u32(d.extents("a/many"), 20))) }, "used twice"),
		file("empty extent", func(x []byte, _ *disk) { put16(x, 16, 0) }, "0 blocks"),
		file("extent outside", func(x []byte, _ *disk) { put32(x, 20, 1<<20) }, "outside"),
		file("extent to the end", func(x []byte, _ *disk) { put32(x, 20, 90); put16(x, 16, 32768); put16(x, 2, 1) }, "outside"),
		file("extents out of order", func(x []byte, _ *disk) { put32(x, 24, 0) }, "out of order"),
		file("shared block", func(x []byte, d *disk) { put32(x, 20, int(u32(d.extents("a/g"), 20))) }, "used twice"),
		file("bitmap as data", func(x []byte, d *disk) { put32(x, 20, int(u32(d.block(1), 0))) }, "used twice"),
		{"block map", func(d *disk) { put32(d.inode("a/f"), 0x20, 0) }, "block map"},
		{"size", func(d *disk) { put32(d.inode("a/f"), 0x6C, 1<<20) }, "size of"},
		{"extra size", func(d *disk) { put16(d.inode("a/f"), 0x80, 130) }, "extra size"},
		{"target with a NUL", func(d *disk) { d.inode("a/short")[0x28] = 0 }, "NUL"},
		{"target without an end", func(d *disk) { d.inode("a/short")[0x29] = 'x' }, "NUL"},
		{"target too long", func(d *disk) { put32(d.inode("a/long"), 4, 5000) }, "symlink of 5000"},
		{"target in a hole", func(d *disk) { put32(d.extents("a/long"), 12, 1) }, "hole"},
	}
}

// entry finds the directory entry of a name in a block.
func entryAt(b []byte, name string) []byte {
	at := bytes.Index(b, []byte(name))
	return b[at-8:]
}

func directoryDamage() []damage {
	entry := func(name string, do func(e []byte, d *disk), says string) damage {
		return damage{name, func(d *disk) { do(entryAt(d.data("a"), "short"), d) }, says}
	}
	return []damage{
		entry("entry of no length", func(e []byte, _ *disk) { put16(e, 4, 0) }, "0 bytes"),
		entry("entry beyond the block", func(e []byte, _ *disk) { put16(e, 4, 65532) }, "65532 bytes"),
		entry("odd entry", func(e []byte, _ *disk) { put16(e, 4, 17) }, "17 bytes"),
		entry("long name", func(e []byte, _ *disk) { put16(e, 4, 12); e[6] = 200 }, "name of 200"),
		entry("empty name", func(e []byte, _ *disk) { e[6] = 0 }, "name \"\""),
		entry("name with a slash", func(e []byte, _ *disk) { e[9] = '/' }, "s/ort"),
		entry("name with a NUL", func(e []byte, _ *disk) { e[9] = 0 }, "ort"),
		entry("name of dots", func(e []byte, _ *disk) { e[6] = 2; e[8] = '.'; e[9] = '.' }, "name \"..\""),
		entry("name twice", func(e []byte, _ *disk) { e[6] = 1; e[8] = 'f' }, "twice"),
		entry("no such inode", func(e []byte, _ *disk) { put32(e, 0, 1<<20) }, "inode 1048576"),
		entry("reserved inode", func(e []byte, _ *disk) { put32(e, 0, 7) }, "inode 7"),
		entry("cycle to the root", func(e []byte, _ *disk) { put32(e, 0, 2); e[7] = 2 }, "second name"),
		entry("cycle to itself", func(e []byte, d *disk) { put32(e, 0, int(u32(d.data("a"), 0))); e[7] = 2 }, "second name"),
		entry("directory twice", func(e []byte, d *disk) { put32(e, 0, int(d.number("a/b"))); e[7] = 2 }, "second name"),
		entry("value's inode", func(e []byte, d *disk) { put32(e, 0, int(valueInode(d))) }, "value"),
		{"no dot", func(d *disk) { d.data("a/b")[8] = 'x' }, "\".\""},
		{"dot of another", func(d *disk) { put32(d.data("a/b"), 0, 2) }, "\".\""},
		{"dots of another", func(d *disk) { put32(d.data("a/b"), 12, 2) }, "\"..\""},
		{"no size", func(d *disk) { put32(d.inode("a/b"), 4, 0) }, "0 bytes"},
		{"odd size", func(d *disk) { put32(d.inode("a/b"), 4, 100) }, "100 bytes"},
		{"huge size", func(d *disk) { put32(d.inode("a/b"), 0x6C, 1000) }, "directory"},
		{"block beyond the size", func(d *disk) { put32(d.inode("a/many"), 4, 4096) }, "extra block"},
		{"hole", func(d *disk) { put32(d.extents("a/b"), 12, 1) }, "hole"},
		{"never written", func(d *disk) { put16(d.extents("a/b"), 16, 32769) }, "hole"},
	}
}

func indexDamage() []damage {
	root := func(name string, do func(b []byte), says string) damage {
		return damage{name, func(d *disk) { do(d.data("a/many")) }, says}
	}
	return []damage{
		root("head", func(b []byte) { b[29] = 7 }, "head"),
		root("hash version", func(b []byte) { b[28] = 6 }, "version 6"),
		root("other hash", func(b []byte) { b[28] ^= 3 }, "does not lead to"),
		root("levels", func(b []byte) { b[30] = 2 }, "2 inner levels"),
		root("one level more", func(b []byte) { b[30] = 1 }, "no inner block"),
		root("limit", func(b []byte) { put16(b, 32, 500) }, "of 500 entries"),
		root("no entries", func(b []byte) { put16(b, 34, 0) }, "table of 0"),
		root("too many entries", func(b []byte) { put16(b, 34, 509) }, "table of 509"),
		root("block outside", func(b []byte) { put32(b, 36, 1000) }, "block 1000"),
		root("block twice", func(b []byte) { put32(b, 36, int(u32(b, 44))) }, "there twice"),
		root("root as a leaf", func(b []byte) { put32(b, 36, 0) }, "block 0"),
		root("block forgotten", func(b []byte) { put16(b, 34, int(u16(b, 34))-1) }, "nothing leads"),
		root("hash too high", func(b []byte) { put32(b, 40, int(u32(b, 40))+1<<24) }, "does not lead to"),
		root("hashes out of order", func(b []byte) { put32(b, 40, math.MaxUint32) }, "comes after"),
	}
}

// valueInode finds the inode of a/g's large value.
func valueInode(d *disk) uint32 {
	var n uint32
	b := d.xattrs("a/g")
	at := bytes.Index(b, []byte("big\x00"))
	n = u32(b, at-12)
	return n
}

// xattrs gives the area in an inode's tail, or its block, that has "big" or
// "block" as a name.
func (d *disk) xattrs(path string) []byte {
	i := d.inode(path)
	if n := u32(i, 0x68); n != 0 {
		return d.block(n)
	}
	return i[128:]
}

func xattrDamage() []damage {
	entry := func(name string, do func(e []byte), says string) damage {
		return damage{name, func(d *disk) {
			b := d.block(u32(d.inode("a/f"), 0x68))
			do(b[32:])
		}, says}
	}
	return []damage{
		{"magic", func(d *disk) { d.block(u32(d.inode("a/f"), 0x68))[0] = 1 }, "magic"},
		{"block outside", func(d *disk) { put32(d.inode("a/f"), 0x68, 1<<30) }, "outside"},
		{"block in use", func(d *disk) { put32(d.inode("a/f"), 0x68, int(u32(d.extents("a/many"), 20))) }, "used twice"},
		entry("value outside", func(e []byte) { put16(e, 2, 4000) }, "value of 600"),
		entry("value too large", func(e []byte) { put32(e, 8, 1<<20) }, "1048576 bytes"),
		entry("hash", func(e []byte) { e[12]++ }, "hash"),
		entry("value changed", func(e []byte) { e[int(u16(e, 2))-32]++ }, "hash"),
		entry("name space", func(e []byte) { e[1] = 99 }, "name space 99"),
		entry("acl with a name", func(e []byte) { e[1] = 2 }, "has the name"),
		entry("no end", fill, "entry"),
		entry("value inode", func(e []byte) { put32(e, 4, 12) }, "value inode 12"),
		{"value inode's sum", func(d *disk) {
			n := valueInode(d)
			f := d.open()
			d.b[int(f.groups[0].inodeTable)*blockSize+int(n-1)*f.inodeSize+8]++
		}, "checksum"},
		{"name there twice", func(d *disk) {
			b := d.inode("a/g")
			at := bytes.Index(b, []byte("small"))
			b[at-15] = 1
			copy(b[at:], "block")
			put32(b, at-4, 0)
			put32(b, 0x68, int(u32(d.inode("a/f"), 0x68)))
		}, "twice"},
	}
}

// fill makes entries that go on to the end of a block.
func fill(e []byte) {
	clear(e)
	for at := 0; at+20 <= len(e); at += 20 {
		e[at], e[at+1] = 4, 1
		name := e[at+16 : at+20]
		copy(name, fmt.Sprintf("%04d", at))
		var h uint32
		for _, c := range name {
			h = (h<<5 | h>>27) ^ uint32(c)
		}
		put32(e, at+12, int(h))
	}
	e[len(e)-24] = 8 // the last one's name goes up to the end
}

// TestChecksums finds a changed descriptor, and one that hides its inodes.
func TestChecksums(t *testing.T) {
	b := images(t)["sums"]
	for _, at := range []int{0, 0x12, 0x1C, 0x1E} {
		d := bytes.Clone(b)
		d[blockSize+at] ^= 1
		if _, err := openFS(t.Context(), bytes.NewReader(d), int64(len(d))); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("byte %d: got %v", at, err)
		}
	}
	f, err := openFS(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	f.groups[0].unusedInodes = f.inodesPerGroup - 11
	if _, err := f.readInode(13); !errors.Is(err, ErrCorrupt) {
		t.Errorf("unused inode: got %v", err)
	}
	f.groups[0].flags |= groupBlockUninit
	f.claimed.add(f.blocks-1, 1)
	if err := f.checkBitmaps(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("group without a bitmap: got %v", err)
	}
}

// failing is a device that fails from some byte on.
type failing struct {
	io.ReaderAt
	from int64
	err  error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

// TestDeviceFails passes on a device's own error, which is no damage.
func TestDeviceFails(t *testing.T) {
	b, wrong, layers := images(t)["sums"], errors.New("store is away"), hostileLayers(t)
	for from := int64(1024); from < int64(len(b)); from += 7 * blockSize {
		_, err := Tree(t.Context(), failing{bytes.NewReader(b), from, wrong}, int64(len(b)), layers)
		if err != nil && (!errors.Is(err, wrong) || errors.Is(err, ErrCorrupt)) {
			t.Errorf("from %d: got %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := openFS(ctx, bytes.NewReader(b), int64(len(b))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// FuzzReader damages the images of testdata: each eight bytes of the patch
// write four to a place in some block. A damaged device may give an error or
// differences, and no panic or hang.
func FuzzReader(f *testing.F) {
	all := images(f)
	want, err := applyLayers(f.Context(), hostileLayers(f))
	if err != nil {
		f.Fatal(err)
	}
	names := []string{"plain", "sums", "wide"}
	for n := range names {
		f.Add(uint8(n), []byte{})
		f.Add(uint8(n), []byte{0, 0, 0, 4, 0, 0, 0, 0})
		f.Add(uint8(n), []byte{5, 0, 0x28, 1, 1, 0, 0, 0, 6, 0, 0x20, 1, 0, 0, 8, 0})
		f.Add(uint8(n), []byte{20, 0, 4, 0, 0, 0, 0xFF, 0xFF, 21, 0, 36, 0, 1, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, patch []byte) {
		b := bytes.Clone(all[names[int(which)%len(names)]])
		for ; len(patch) >= 8; patch = patch[8:] {
			at := (int(u16(patch, 0))*blockSize + int(u16(patch, 2))) % (len(b) - 4)
			copy(b[at:], patch[4:8])
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		unmark(want.root)
		_, err := compareTree(ctx, bytes.NewReader(b), int64(len(b)), want)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v", err)
		}
	})
}

// unmark makes a tree ready for another comparison.
func unmark(n *node) {
	n.pair = 0
	for _, e := range n.names {
		unmark(e.node)
	}
}
