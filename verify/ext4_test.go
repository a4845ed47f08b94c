package verify

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"thaw/internal/testmount"
)

// TestFeatures reads what mke2fs makes with other features than ours.
func TestFeatures(t *testing.T) {
	for name, options := range map[string][]string{
		"plain":         nil,
		"default":       {"-t", "ext4"},
		"metadata_csum": {"-t", "ext4", "-O", "^has_journal,metadata_csum,metadata_csum_seed"},
		"32bit":         {"-t", "ext4", "-O", "^64bit,^metadata_csum,^has_journal"},
		"no-sums":       {"-t", "ext4", "-O", "^64bit,^metadata_csum,^uninit_bg,^flex_bg"},
		"large-inodes":  {"-t", "ext4", "-I", "1024"},
	} {
		t.Run(name, func(t *testing.T) { wantSame(t, reference(t, sample(), options...), layersOf(t, sample())) })
	}
	t.Run("small-inodes", func(t *testing.T) { // without room for nanoseconds and xattrs
		items := []item{dir("."), file("f", "x").xattr("user.a", "b"), symlink("l", "f")}
		folder := t.TempDir()
		unpack(t, folder, items)
		image := mkfs(t, folder, "4M", "-t", "ext4", "-I", "128")
		debugfs(t, image, fmt.Sprintf("sif / mtime @%d", stamp), fmt.Sprintf("sif / uid %d", os.Getuid()), fmt.Sprintf("sif / gid %d", os.Getgid()))
		wantSame(t, image, layersOf(t, items))
	})
}

// bigDirectory is a directory of n names of one file, with chars beyond ASCII.
func bigDirectory(n, length int) []item {
	items := []item{dir("."), dir("d"), file("d/first", "x")}
	for i := range n {
		name := fmt.Sprintf("%06d-\xc3\xa9-", i)
		items = append(items, hardlink("d/"+name+strings.Repeat("n", length-len(name)), "d/first"))
	}
	return items
}

// TestIndex has e2fsck build htrees, one and two levels deep, by every hash.
func TestIndex(t *testing.T) {
	items := bigDirectory(1000, 30)
	for _, hash := range []string{"half_md4", "tea", "legacy"} {
		for _, flags := range []string{"1", "2"} { // signed, unsigned
			t.Run(hash+flags, func(t *testing.T) {
				image := indexed(t, items, hash, flags)
				r := compare(t, image, layersOf(t, items))
				for _, d := range r.Differences {
					if d.What != "mtime" && d.What != "uid" && d.What != "gid" {
						t.Error(d)
					}
				}
				if r.LookupReads != 2 || r.Entries != len(items) {
					t.Errorf("%d reads for one name, want 2; %d entries", r.LookupReads, r.Entries)
				}
			})
		}
	}
}

// indexed makes an image of bigDirectory's items with htrees.
func indexed(t testing.TB, items []item, hash, flags string) string {
	folder := t.TempDir()
	unpack(t, folder, items[:2])
	unpackLinks(t, folder, items[2:]) // times of links are not worth setting one by one
	image := mkfs(t, folder, "4M")
	run(t, "tune2fs", "-E", "hash_alg="+hash, image)
	debugfs(t, image, "ssv flags "+flags)
	if out, err := exec.Command("e2fsck", "-fyD", image).CombinedOutput(); err != nil && exitCode(err) != 1 {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	debugfs(t, image, "rmdir lost+found") // it is back
	return image
}

// TestDeepIndex has the kernel build an htree of two levels.
func TestDeepIndex(t *testing.T) {
	needRoot(t)
	items := bigDirectory(9000, 250)
	image := mkfs(t, "", "16M")
	folder, unmount := testmount.Ext4(t, image, "rw")
	unpack(t, folder, items[:2])
	unpackLinks(t, folder, items[2:])
	unmount()
	r := compare(t, image, layersOf(t, items))
	for _, d := range r.Differences {
		if d.What != "mtime" {
			t.Error(d)
		}
	}
	if r.LookupReads != 3 || r.Entries != len(items) {
		t.Errorf("%d reads for one name, want 3; %d entries", r.LookupReads, r.Entries)
	}
}

// unpackLinks makes a file and links to it.
func unpackLinks(t testing.TB, folder string, items []item) {
	for n, i := range items {
		var err error
		if path := filepath.Join(folder, i.Name); n == 0 {
			err = os.WriteFile(path, []byte(i.content), 0o644)
		} else {
			err = os.Link(filepath.Join(folder, i.Linkname), path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func exitCode(err error) int {
	if e, ok := err.(*exec.ExitError); ok {
		return e.ExitCode()
	}
	return -1
}

// TestHash compares hashes with those that debugfs computes. It takes chars as
// signed unless it is told otherwise, which it cannot be for names of its
// command line, so unsigned ones are checked by TestIndex.
func TestHash(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var names []string
	for length := 1; length < 100; length++ {
		b := make([]byte, length)
		for i := range b {
			b[i] = byte('a' + rnd.IntN(26))
		}
		names = append(names, string(b))
	}
	seed := [4]uint32{0x04030201, 0x08070605, 0x0c0b0a09, 0x100f0e0d}
	for version, word := range []string{"legacy", "half_md4", "tea"} {
		for _, seeded := range []bool{false, true} {
			var script strings.Builder
			h, option := nameHash{version: byte(version)}, ""
			if seeded {
				h.seed, option = seed, "-s 01020304-0506-0708-090a-0b0c0d0e0f10 "
			}
			for _, n := range names {
				fmt.Fprintf(&script, "dx_hash -h %s %s%s\n", word, option, n)
			}
			cmd := exec.Command("debugfs", "-f", "/dev/stdin")
			cmd.Stdin = strings.NewReader(script.String())
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatal(err)
			}
			sums := regexp.MustCompile(`Hash of \S+ is 0x([0-9a-f]+)`).FindAllStringSubmatch(string(out), -1)
			if len(sums) != len(names) {
				t.Fatalf("%d sums for %d names:\n%s", len(sums), len(names), out)
			}
			for i, n := range names {
				want, _ := strconv.ParseUint(sums[i][1], 16, 32)
				if got := h.sum(n); got != uint32(want) {
					t.Errorf("%s of %q: got %#x, want %#x", word, n, got, want)
				}
			}
		}
	}
}

// acl makes an ACL of version 2 from tag, permissions and id in turn.
func acl(entries ...uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for e := range slices.Chunk(entries, 3) {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// someACL gives user 1000 and group 100 something; the mask is the mode's group.
func someACL() string {
	return acl(1, 6, noID, 2, 7, 1000, 4, 4, noID, 8, 5, 100, 0x10, 4, noID, 0x20, 4, noID)
}

// TestACL finds ACLs and their differences through their other form on disk.
func TestACL(t *testing.T) {
	with := func(name, value string) []item {
		return []item{dir("d").with(func(i *item) { i.Mode = 0o744 }).xattr(name, value), file("f", "").xattr(accessACL, someACL())}
	}
	items := with(defaultACL, someACL())
	image := reference(t, items)
	wantSame(t, image, layersOf(t, items))
	wantSame(t, image, layersOf(t, with(defaultACL, acl(1, 6, 0, 2, 7, 1000, 4, 4, 1, 8, 5, 100, 0x10, 4, 2, 0x20, 4, 3))))
	wantOne(t, image, layersOf(t, with(defaultACL, acl(1, 6, noID, 2, 7, 1001, 4, 4, noID, 8, 5, 100, 0x10, 4, noID, 0x20, 4, noID))), "/d", "xattr "+defaultACL)
	wantOne(t, image, layersOf(t, with(defaultACL, acl())), "/d", "xattr "+defaultACL)
	for _, bad := range []string{"", "\x02", acl()[:3], someACL()[:10], acl(3, 0, 0), acl(1, 2, 3)[:10], "\x01\x00\x00\x00"} {
		if _, ok := parseACL([]byte(bad), aclKernelHead); ok {
			t.Errorf("%q was parsed", bad)
		}
	}
}

// TestLargeXattrs has an xattr block, shared by none and by two, and values in
// inodes of their own.
func TestLargeXattrs(t *testing.T) {
	folder := t.TempDir()
	big, other := strings.Repeat("big!", 1024), strings.Repeat("x", 4095) // debugfs reads no more; TestKernel has larger ones
	for name, value := range map[string]string{"big": big, "other": other} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	block := strings.Repeat("block", 500)
	items := []item{dir("."), file("a", "x").xattr("user.block", block), file("b", "x").xattr("user.block", block), file("c", ""), dir("d"), symlink("e", "a")}
	image := reference(t, items)
	debugfs(t, image,
		"ea_set -f "+folder+"/big /c user.big", "ea_set -f "+folder+"/other /c user.other", "ea_set -f "+folder+"/big /d user.big",
		"ea_set /e trusted.on.symlink yes", "ea_set /e security.x yes")
	items[3] = items[3].xattr("user.big", big).xattr("user.other", other)
	items[4] = items[4].xattr("user.big", big)
	items[5] = items[5].xattr("trusted.on.symlink", "yes").xattr("security.x", "yes")
	wantSame(t, image, layersOf(t, items))
	items[3] = items[3].xattr("user.other", other[1:]+"y")
	wantOne(t, image, layersOf(t, items), "/c", "xattr user.other")
}

// scattered is a file of n blocks of data with holes of a block between.
func scattered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%04096d", i)
		b.Write(make([]byte, blockSize))
	}
	return b.String()
}

// TestExtents has a file whose extents need a tree of two levels.
func TestExtents(t *testing.T) {
	items := []item{dir("."), file("f", scattered(2000)), file("hole", strings.Repeat("\x00", 100_000)), file("end", "x"+strings.Repeat("\x00", 9000))}
	folder := t.TempDir()
	unpack(t, folder, items)
	image := mkfs(t, folder, "32M")
	debugfs(t, image, fmt.Sprintf("sif / mtime @%d", stamp), fmt.Sprintf("sif / uid %d", os.Getuid()), fmt.Sprintf("sif / gid %d", os.Getgid()))
	if r := wantSame(t, image, layersOf(t, items)); r.Bytes != items[1].Size+items[2].Size+items[3].Size {
		t.Errorf("%d bytes compared", r.Bytes)
	}
	items[1].content = items[1].content[:len(items[1].content)-1] + "x"
	wantOne(t, image, layersOf(t, items), "/f", "content")
}

// TestKernel has GNU tar unpack into what the kernel writes.
func TestKernel(t *testing.T) {
	needRoot(t)
	device := made(tar.TypeBlock, "d/block", 0o660)
	device.Devmajor, device.Devminor = 300, 70_000
	items := []item{
		dir(".").with(func(i *item) { i.Mode = 0o755 }), dir("d").with(func(i *item) { i.Mode = 0o744 }).xattr(defaultACL, someACL()),
		file("d/f", "x").xattr(accessACL, someACL()).xattr("user.a", "b").xattr("user.big", strings.Repeat("y", 30_000)),
		symlink("d/s", "nowhere").xattr("trusted.t", "u"), hardlink("d/s2", "d/s"), symlink("d/slow", strings.Repeat("s/", 1000)),
		file("d/cap", "").xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		device, made(tar.TypeFifo, "d/p", 0o600), file("scattered", scattered(3000)), dir("many"),
	}
	for n := range 3000 {
		items = append(items, file(fmt.Sprintf("many/%d-\xff", n), strconv.Itoa(n)).with(func(i *item) {
			i.Uid, i.ModTime = 70_000+n, i.ModTime.Add(1e9*3_000_000_000+123_456_789)
		}))
	}
	data := makeTar(t, items...)
	source := filepath.Join(t.TempDir(), "tar")
	if err := os.WriteFile(source, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]string{"plain": nil, "default": {"-t", "ext4", "-O", "ea_inode"}} {
		t.Run(name, func(t *testing.T) {
			image := mkfs(t, "", "64M", options...)
			folder, unmount := testmount.Ext4(t, image, "rw")
			run(t, "tar", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-xpf", source, "-C", folder)
			for n := range 1000 { // leaves unused entries behind
				if err := os.WriteFile(fmt.Sprintf("%s/many/gone-%d", folder, n), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 1000 {
				if err := os.Remove(fmt.Sprintf("%s/many/gone-%d", folder, n)); err != nil {
					t.Fatal(err)
				}
			}
			if err := setTimes(folder+"/many", items[10].ModTime); err != nil {
				t.Fatal(err)
			}
			unmount()
			if r := wantSame(t, image, tars{data}); r.LookupReads < 2 {
				t.Errorf("the large directory has no index: %d reads", r.LookupReads)
			}
		})
	}
}

// TestUnwritten reads blocks that were given out and never written as zeros.
func TestUnwritten(t *testing.T) {
	needRoot(t)
	image := mkfs(t, "", "16M")
	folder, unmount := testmount.Ext4(t, image, "rw")
	run(t, "fallocate", "-l", "1M", folder+"/f")
	run(t, "chmod", "644", folder+"/f")
	unmount()
	r := compare(t, image, layersOf(t, []item{dir("."), file("f", strings.Repeat("\x00", 1<<20))}))
	for _, d := range r.Differences {
		if d.What != "mtime" {
			t.Error(d)
		}
	}
}
