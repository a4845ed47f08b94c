package ext4

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testmount"

	"golang.org/x/sys/unix"
)

// edges are the first and the last second of each of the four epochs.
var edges = []Time{
	{minTime, 0}, {-1, 999_999_999}, {0, 0}, {1, 1}, {1<<31 - 1, 5},
	{1 << 31, 0}, {1<<32 - 1, 6}, {1 << 32, 7}, {1<<32 + 1<<31 - 1, 8},
	{1<<32 + 1<<31, 0}, {2<<32 + 1<<31 - 1, 9},
	{2<<32 + 1<<31, 0}, {3 << 32, 0}, {maxTime, 999_999_999},
}

func TestEncodeTimeKeepsEverySecond(t *testing.T) {
	for _, want := range edges {
		sec, extra := encodeTime(want)
		// The kernel's ext4_decode_extra_time.
		got := Time{int64(int32(sec)) + int64(extra&3)<<32, extra >> 2}
		if got != want {
			t.Errorf("%v comes back as %v", want, got)
		}
	}
}

var devices = [][2]uint32{{0, 0}, {1, 3}, {255, 255}, {255, 256}, {256, 0}, {8, 1<<20 - 1}, {4095, 0}, {4095, 1<<20 - 1}}

// inodeDisk has a file for each time and id, and a node for each device.
func inodeDisk(t *testing.T) *disk {
	d := newDisk(t)
	for i, at := range edges {
		d.add(fmt.Sprintf("time%d", i), &Inode{Mode: modeRegular | 0o640, Mtime: at, Map: emptyMap()})
	}
	for i, id := range []uint32{0, 1000, 65_535, 65_536, 1<<32 - 2} {
		d.add(fmt.Sprintf("id%d", i), &Inode{Mode: modeRegular | 0o7777, UID: id, GID: id &^ 1, Map: emptyMap()})
	}
	for i, dev := range devices {
		d.add(fmt.Sprintf("char%d", i), &Inode{Mode: modeChar | 0o600, Device: dev})
		d.add(fmt.Sprintf("block%d", i), &Inode{Mode: modeBlock | 0o600, Device: dev})
	}
	d.add("fifo", &Inode{Mode: modeFIFO | 0o644})
	for _, n := range []int{1, FastSymlink} {
		d.add(fmt.Sprintf("link%d", n), &Inode{Mode: modeSymlink | 0o777, Size: int64(n), Target: strings.Repeat("t", n)})
	}
	for _, n := range []int{FastSymlink + 1, 4095} {
		d.add(fmt.Sprintf("link%d", n), d.data(&Inode{Mode: modeSymlink | 0o777}, []byte(strings.Repeat("t", n))))
	}
	return d
}

func emptyMap() [60]byte {
	m, _ := ExtentTree(nil, 0)
	return m
}

func TestInodesThroughDebugfs(t *testing.T) {
	path := inodeDisk(t).finish()
	for name, wants := range map[string][]string{
		"time0":  {"mtime: 0x80000000:00000000", "crtime: 0x80000000:00000000", "Mode: 0640"},
		"time13": {fmt.Sprintf("mtime: 0x7fffffff:%08x", uint32(999_999_999<<2|3)), "atime: 0x7fffffff:"},
		"id3":    {"User: 65536", "Group: 65536", "Mode: 07777"},
		"id4":    {"User: -2", "Group: -2"},
		"char7":  {"Device major/minor number: 4095:1048575"}, "block2": {"Device major/minor number: 255:255"},
		"link59": {"Fast link dest: \"ttt"}, "link60": {"Size: 60"}, "fifo": {"Type: FIFO"},
	} {
		out := debugfs(t, path, "stat "+name)
		for _, want := range wants {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
				t.Errorf("%s: no %q in\n%s", name, want, out)
			}
		}
	}
}

func TestInodesThroughTheKernel(t *testing.T) {
	dir, _ := testmount.Ext4(t, inodeDisk(t).finish(), "ro")
	stat := func(name string) (st unix.Stat_t) {
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(name, err)
		}
		return st
	}
	for i, want := range edges {
		st := stat(fmt.Sprintf("time%d", i))
		for _, ts := range []unix.Timespec{st.Mtim, st.Atim, st.Ctim} {
			if got := (Time{ts.Sec, uint32(ts.Nsec)}); got != want {
				t.Errorf("time %v reads as %v", want, got)
			}
		}
	}
	for i, dev := range devices {
		for _, kind := range []string{"char", "block"} {
			st := stat(fmt.Sprint(kind, i))
			if unix.Major(st.Rdev) != dev[0] || unix.Minor(st.Rdev) != dev[1] {
				t.Errorf("%s device %v reads as %d:%d", kind, dev, unix.Major(st.Rdev), unix.Minor(st.Rdev))
			}
		}
	}
	if st := stat("id4"); st.Uid != 1<<32-2 || st.Gid != 1<<32-2 {
		t.Errorf("owner %d:%d", st.Uid, st.Gid)
	}
	for _, n := range []int{1, 59, 60, 4095} {
		if got, err := os.Readlink(fmt.Sprintf("%s/link%d", dir, n)); err != nil || got != strings.Repeat("t", n) {
			t.Errorf("link of %d bytes: %q, %v", n, got, err)
		}
	}
}
