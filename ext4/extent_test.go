package ext4

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSplitExtents(t *testing.T) {
	whole := []Extent{{0, 9, maxExtent}, {maxExtent, 70000, 1}}
	if got := SplitExtents(whole); &got[0] != &whole[0] {
		t.Error("nothing to cut, and a copy")
	}
	got := SplitExtents([]Extent{{0, 9, 1}, {1, 1000, 2*maxExtent + 5}, {80000, 90000, 3}})
	want := []Extent{{0, 9, 1}, {1, 1000, maxExtent}, {1 + maxExtent, 1000 + maxExtent, maxExtent}, {1 + 2*maxExtent, 1000 + 2*maxExtent, 5}, {80000, 90000, 3}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExtentBlocks(t *testing.T) {
	for n, want := range map[int]int{0: 0, 4: 0, 5: 1, 340: 1, 341: 2, 1360: 4, 1361: 6, 4 * 340 * 340: 4*340 + 4, 4*340*340 + 1: 4*340 + 1 + 5 + 1} {
		if got := extentBlocks(n); got != want {
			t.Errorf("%d extents: %d blocks, want %d", n, got, want)
		}
	}
	for _, n := range []int{0, 1, 4, 5, 340, 341, 1360, 1361, 5000, 200_000} {
		_, blocks := ExtentTree(make([]Extent, n), 0)
		if len(blocks) != extentBlocks(n)*BlockSize {
			t.Errorf("%d extents: tree of %d bytes, extentBlocks says %d", n, len(blocks), extentBlocks(n))
		}
	}
}

// Trees of every shape, one block an extent with gaps both in the file and on
// the disk, read by e2fsck and by debugfs.
func TestExtentTreesOnDisk(t *testing.T) {
	d := newDisk(t)
	inodes := map[uint32][]Extent{}
	for _, n := range []int{1, 4, 5, 340, 341, 1360, 1361, 200_000} {
		extents := make([]Extent, n)
		for i := range extents {
			extents[i] = Extent{uint32(3 * i), d.next + 1, 1}
			d.v.UseBlocks(d.next+1, 1)
			d.next += 2
		}
		node := &Inode{Mode: modeRegular, Size: int64(3*n) * BlockSize, Blocks: uint64(n + extentBlocks(n))}
		var tree []byte
		node.Map, tree = ExtentTree(extents, d.next)
		d.place(tree)
		inodes[d.add(fmt.Sprint(n), node)] = extents
	}
	path := d.finish()
	for ino, extents := range inodes {
		var commands []string
		var want []string
		for i := 0; i < len(extents); i += max(1, len(extents)/7) {
			commands = append(commands, fmt.Sprintf("bmap <%d> %d", ino, extents[i].Logical), fmt.Sprintf("bmap <%d> %d", ino, extents[i].Logical+1))
			want = append(want, strconv.Itoa(int(extents[i].Physical)), "0")
		}
		out := debugfs(t, path, commands...)
		got := regexp.MustCompile(`(?m)^\d+$`).FindAllString(out, -1)
		if !slices.Equal(got, want) {
			t.Errorf("file of %d extents: blocks %s, want %s", len(extents), strings.Join(got, " "), strings.Join(want, " "))
		}
	}
}

// A file with one extent over the limit of an extent's length.
func TestLongExtentOnDisk(t *testing.T) {
	d := newDisk(t)
	n := &Inode{Mode: modeRegular, Size: 100_000 * BlockSize, Blocks: 100_000}
	extents := SplitExtents([]Extent{{0, d.next, 100_000}})
	d.v.UseBlocks(d.next, 100_000)
	d.next += 100_000
	n.Map, _ = ExtentTree(extents, 0)
	ino := d.add("long", n)
	out := debugfs(t, d.finish(), fmt.Sprintf("bmap <%d> 99999", ino))
	if want := fmt.Sprint(DataGroup*BlocksPerGroup + 99_999); !strings.Contains(out, "\n"+want+"\n") {
		t.Errorf("the last block is not %s: %s", want, out)
	}
}
