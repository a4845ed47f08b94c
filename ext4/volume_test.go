package ext4

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"

	"thaw/internal/testmount"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

const goldenFile = "testdata/golden.sha256"

// goldenDisk has one of everything that the package can write.
func goldenDisk(t *testing.T) *disk {
	d := newDisk(t)
	for i, at := range edges {
		d.add(fmt.Sprintf("time%02d", i), d.data(&Inode{Mode: modeRegular | 0o644, UID: 70_000, Mtime: at}, pattern(i, 5000*i)))
	}
	d.add("null", &Inode{Mode: modeChar | 0o666, Device: [2]uint32{1, 3}})
	d.add("disk", &Inode{Mode: modeBlock | 0o660, Device: [2]uint32{259, 70_000}})
	d.add("fifo", &Inode{Mode: modeFIFO | 0o600})
	d.add("fast", &Inode{Mode: modeSymlink | 0o777, Size: 4, Target: "null"})
	d.add("slow", d.data(&Inode{Mode: modeSymlink | 0o777}, []byte(strings.Repeat("x/", 50))))
	for i, value := range [][]byte{pattern(1, 10), pattern(2, 300), pattern(3, maxXattrValue)} {
		x, err := NewXattr("user.v", value)
		if err != nil {
			t.Fatal(err)
		}
		n := &Inode{Mode: modeRegular, Map: emptyMap()}
		d.attributes(n, []Xattr{x})
		d.add(fmt.Sprint("xattr", i), n)
	}
	sparse := &Inode{Mode: modeRegular, Size: 70 << 30, Blocks: 6 + uint64(extentBlocks(6))}
	var extents []Extent
	for i := range uint32(6) {
		extents = append(extents, Extent{i << 21, d.place(pattern(int(i), BlockSize)), 1})
	}
	var tree []byte
	sparse.Map, tree = ExtentTree(extents, d.next)
	d.place(tree)
	d.add("sparse", sparse)
	dir := &Inode{Mode: modeDir}
	ino := d.add("dir", dir)
	links := make([]Dirent, 3000)
	for i := range links {
		links[i] = Dirent{fmt.Sprintf("name-%d", i), FirstInode, modeRegular}
	}
	d.inodes[FirstInode].Links += uint32(len(links))
	d.directory(ino, RootInode, dir, links)
	return d
}

// The golden device pins the format: a change of one byte takes the chunks of
// every stored image away from those made later.
func TestGoldenDevice(t *testing.T) {
	got := digest(t, goldenDisk(t).finish()) + "\n"
	if *update {
		if err := os.WriteFile(goldenFile, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the device's bytes changed: %s, not %sA new layout needs a new flatten.LayoutVersion; then run with -update", got, want)
	}
}

// digest is the SHA-256 of the device's blocks that are not zero, each behind
// its number (8 bytes, little-endian).
func digest(t *testing.T, path string) string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, b := sha256.New(), make([]byte, BlockSize)
	for at := int64(0); ; at += BlockSize {
		if at, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err != nil {
			return hex.EncodeToString(h.Sum(nil)) // no data behind at
		}
		at -= at % BlockSize
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if strings.Trim(string(b), "\x00") != "" {
			h.Write(binary.LittleEndian.AppendUint64(nil, uint64(at/BlockSize)))
			h.Write(b)
		}
	}
}

// front writes the front of a volume to memory.
func front(t *testing.T, v *Volume, groups int) []byte {
	m := &memory{t: t}
	if err := v.WriteFront(m, groups, func(n uint32, b []byte) { (&Inode{Mode: modeRegular}).Encode(b) }); err != nil {
		t.Fatal(err)
	}
	return m.b
}

func TestFrontStaysWhereItIs(t *testing.T) {
	small, large := front(t, NewVolume(), DataGroup), front(t, NewVolume(), 70)
	if binary.LittleEndian.Uint16(small[1024+0x38:]) != 0xEF53 {
		t.Error("no superblock at byte 1,024")
	}
	differ := map[int]bool{}
	for i := range min(len(small), len(large)) {
		if small[i] != large[i] {
			differ[i/BlockSize] = true
		}
	}
	// Superblock; descriptors; the bitmaps of group 0, where more bitmaps and tables are in use, and of the groups behind.
	for block := range differ {
		if block > 1 && (block < nearBitmaps || block > nearBitmaps+2*DataGroup) {
			t.Errorf("block %d differs between file systems of %d and 70 groups", block, DataGroup)
		}
	}
}

func TestVolumesOfAllSizes(t *testing.T) {
	for _, last := range []uint32{DataGroup, nearGroups - 1, nearGroups, 129, MaxGroups - 1} {
		d := newDisk(t)
		d.next = last*BlocksPerGroup + 17
		d.add("file", d.data(&Inode{Mode: modeRegular | 0o644}, pattern(1, 10_000)))
		path := d.finish()
		if d.groups != int(last)+1 {
			t.Errorf("%d groups for a block in group %d", d.groups, last)
		}
		if out := debugfs(t, path, "cat file"); !strings.Contains(out, string(pattern(1, 10_000))) {
			t.Errorf("group %d: content differs", last)
		}
	}
}

func TestGroups(t *testing.T) {
	v := NewVolume()
	for _, c := range []struct {
		blocks, inodes int64
		want           int
	}{
		{0, 0, DataGroup},
		{0, DataGroup*InodesPerGroup - 10, DataGroup},
		{0, DataGroup*InodesPerGroup - 9, DataGroup + 1},
		{MaxGroups * BlocksPerGroup * 9 / 10, 0, 0},
	} {
		got, err := v.Groups(c.blocks, c.inodes)
		if err != nil || c.want != 0 && got != c.want {
			t.Errorf("%d blocks and %d inodes free: %d groups, %v; want %d", c.blocks, c.inodes, got, err, c.want)
		}
	}
	for _, c := range [][2]int64{{MaxGroups * BlocksPerGroup, 0}, {0, MaxGroups * InodesPerGroup}, {1 << 62, 0}, {0, 1 << 62}} {
		if n, err := v.Groups(c[0], c[1]); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%v free: %d groups, %v", c, n, err)
		}
	}
}

// What was asked for is free, by statfs(2), when not a block more would be.
func TestGroupsLeaveWhatWasAskedFor(t *testing.T) {
	d := newDisk(t)
	d.add("file", d.data(&Inode{Mode: modeRegular}, pattern(1, 10_000)))
	most := int64(sort.Search(2*DataGroup*BlocksPerGroup, func(n int) bool {
		groups, err := d.v.Groups(int64(n), 0)
		return err != nil || groups > DataGroup+1
	})) - 1
	d.free = most - 1 // the root directory takes a block
	dir, _ := testmount.Ext4(t, d.finish(), "ro")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if d.groups != DataGroup+1 || int64(st.Bavail) != d.free || st.Ffree < 1000 {
		t.Errorf("%d groups with %d blocks and %d inodes available; %d and 1,000 asked for", d.groups, st.Bavail, st.Ffree, d.free)
	}
}

func TestUsedTwicePanics(t *testing.T) {
	for about, f := range map[string]func(v *Volume){
		"block":      func(v *Volume) { v.UseBlocks(100, 10); v.UseBlocks(109, 1) },
		"inode":      func(v *Volume) { v.UseInode(11, false); v.UseInode(11, true) },
		"past limit": func(v *Volume) { v.UseBlocks(MaxGroups*BlocksPerGroup-1, 2) },
	} {
		t.Run(about, func(t *testing.T) {
			defer func() {
				if s, ok := recover().(string); !ok || !strings.HasPrefix(s, "ext4: ") {
					t.Errorf("panic %q", s)
				}
			}()
			f(NewVolume())
		})
	}
}

// failing refuses the n-th write.
type failing struct{ left int }

var errFull = errors.New("full")

func (f *failing) WriteAt(p []byte, _ int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestWriteFrontPassesErrorsOn(t *testing.T) {
	for n := range 6 {
		v := NewVolume()
		v.UseInode(3*InodesPerGroup, false)
		if err := v.WriteFront(&failing{n}, 20, func(uint32, []byte) {}); !errors.Is(err, errFull) {
			t.Errorf("write %d fails: %v", n, err)
		}
	}
}
