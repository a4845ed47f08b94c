package flatten

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"thaw/internal/testmount"

	"github.com/masahiro331/go-ext4-filesystem/ext4"
	"golang.org/x/sys/unix"
)

// aclAccess is u::rwx,u:1000:rw-,g::r-x,m::rwx,o::r-- as getxattr(2) has it.
const aclAccess = "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"

// capability is cap_net_raw=ep as setcap writes it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// patterned gives n bytes that no other seed has.
func patterned(seed, n int) string {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return string(b)
}

func attrs(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return m
}

// richLayers are three layers with one of everything that GNU tar can unpack.
// Each names the directories that it changes, as their times are compared.
func richLayers() [][]item {
	at := func(sec, nsec int64) time.Time { return time.Unix(sec, nsec) }
	dir := func(name string, mode int64) item {
		return item{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: at(1_600_000_000, 5), Uid: 3, Gid: 70_000}}
	}
	file := func(name, content string) item {
		return item{Header: tar.Header{Name: name, ModTime: at(1_500_000_000, 123_456_789)}, content: content}
	}
	base := []item{
		dir("./", 0o755), dir("bin/", 0o1777), dir("d/", 0o2750), dir("d/e/", 0o700), dir("gone/", 0o755), dir("opaque/", 0o711),
		file("bin/tool", patterned(1, 700_000)), file("d/one", "1"), file("d/e/block", patterned(2, 4096)), file("d/e/more", patterned(3, 4097)),
		file("d/empty", ""), file("gone/x", "x"), file("gone/y", "y"), file("opaque/old", "old"), file("replaced", "file"),
		file("d/\xff\xfenot utf-8\x80", "bytes"), file("d/"+strings.Repeat("n", 255), "long"), file("d/new\nline \\ \"quoted\"", "odd"),
		{Header: tar.Header{Name: "d/suid", Mode: 0o6755, Uid: 100_000, Gid: 1<<32 - 2, ModTime: at(-86_400, 0)}, content: "suid"},
		{Header: tar.Header{Name: "d/future", Mode: 0o1444, ModTime: at(1<<32+5, 1)}, content: "2106"},
		{Header: tar.Header{Name: "d/caps", PAXRecords: attrs("security.capability", capability)}, content: "ping"},
		{Header: tar.Header{Name: "d/attrs", PAXRecords: attrs("user.a", "1", "user.bytes", "\x00\x01\xff", "user.empty", "", "trusted.t", patterned(4, 900), "user.\xc3\xa4", "ä")}, content: "x"},
		{Header: tar.Header{Name: "d/acl", Mode: 0o774, PAXRecords: attrs("system.posix_acl_access", aclAccess)}, content: "acl"},
		{Header: tar.Header{Name: "d/adir/", Typeflag: tar.TypeDir, ModTime: at(1, 0), PAXRecords: attrs("system.posix_acl_default", aclAccess, "user.dir", "yes")}},
		{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}},
		{Header: tar.Header{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 300, Devminor: 70_000, Mode: 0o660}},
		{Header: tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}},
	}
	for _, n := range []int{1, 59, 60, 61, 4000, 4095} {
		base = append(base, item{Header: tar.Header{Name: fmt.Sprintf("d/link%d", n), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("t", n), Uid: 5, Mode: 0o777, ModTime: at(7, 7)}})
	}
	base = append(base, parse("d/hard=>d/one bin/hard=>d/one d/hardlink=>d/link60 nulls=>null")...)
	second := []item{
		dir("./", 0o750), dir("d/", 0o755), dir("opaque/", 0o755), dir("replaced/", 0o700), dir("bin/", 0o755),
		file("d/one", "two"), file("replaced/in", "in"), file("opaque/new", "new"),
	}
	second = append(second, parse(".wh.gone opaque/.wh..wh..opq d/.wh.empty bin/again=>bin/hard")...)
	third := append([]item{dir("./", 0o755), dir("d/", 0o755), dir("gone/", 0o700)}, file("gone/z", "z"), file("d/e", "a file now"), file("big", patterned(9, 5<<20)))
	return [][]item{base, second, third}
}

func richDevice(t *testing.T) (path string, m image, size int64) {
	var all []packed
	var sources tars
	for _, items := range richLayers() {
		sources = append(sources, tarball(t, items...))
		all = append(all, mustPack(t, sources[len(sources)-1]))
	}
	m, _, s := mustBuild(t, all...)
	if err := verified(m, s.Size, sources); err != nil {
		t.Errorf("package verify: %v", err)
	}
	path = m.file(t, s.Size)
	fsck(t, path)
	return path, m, s.Size
}

// GNU tar, layer by layer, and the kernel's view of the device agree on all
// that lstat, readlink, listxattr and read tell.
func TestKernelAgainstGNUTar(t *testing.T) {
	path, _, _ := richDevice(t)
	got, _ := testmount.Ext4(t, path, "ro")
	want := filepath.Join(t.TempDir(), "unpacked")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, items := range richLayers() {
		applyWhiteouts(t, want, items)
		cmd := exec.Command("tar", "-xpf", "-", "-C", want, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "--overwrite-dir", "--delay-directory-restore")
		cmd.Stdin = bytes.NewReader(tarball(t, items...))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
	}
	sameTree(t, snapshot(t, got), snapshot(t, want))
}

// sameTree compares what snapshot tells of the device with what it has to tell.
func sameTree(t *testing.T, got, want map[string]string) {
	for path, w := range want {
		if g := got[path]; g != w {
			t.Errorf("%q:\n got %.600s\nwant %.600s", path, g, w)
		}
	}
	for path := range got {
		if want[path] == "" {
			t.Errorf("%q is on the device alone", path)
		}
	}
}

// applyWhiteouts removes what a layer hides or replaces, before it is unpacked.
func applyWhiteouts(t *testing.T, root string, items []item) {
	for _, it := range items {
		dir, base := filepath.Split(filepath.Join(root, it.Name))
		name, ok := strings.CutPrefix(base, ".wh.")
		switch {
		case !ok:
			if st, err := os.Lstat(dir + base); err == nil && st.IsDir() && it.Typeflag != tar.TypeDir {
				os.RemoveAll(dir + base) // tar itself replaces empty ones only
			}
		case base == opaqueName:
			list, _ := os.ReadDir(dir)
			for _, e := range list {
				os.RemoveAll(dir + e.Name())
			}
		default:
			os.RemoveAll(dir + name)
		}
	}
}

// snapshot tells of every file below root all that can be seen, in one line.
func snapshot(t *testing.T, root string) map[string]string {
	tree, first := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("mode %o owner %d:%d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR: // sizes and links of directories are the file system's own
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" links %d size %d content %.40q… hash %x", st.Nlink, st.Size, b, hashPath(0, string(b)))
		case unix.S_IFLNK:
			target, _ := os.Readlink(path)
			line += fmt.Sprintf(" links %d size %d target %s", st.Nlink, st.Size, target)
		default:
			line += fmt.Sprintf(" links %d device %d:%d", st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Nlink > 1 && !e.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = rel // WalkDir goes in lexical order
			}
			line += " same as " + first[st.Ino]
		}
		tree[rel] = line + xattrsOf(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func xattrsOf(t *testing.T, path string) (line string) {
	b := make([]byte, 1<<20)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		t.Fatalf("listxattr %q: %v", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || name == "security.selinux" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, b)
		if err != nil {
			t.Fatalf("getxattr %q %s: %v", path, name, err)
		}
		line += fmt.Sprintf(" %s=%q", name, b[:n])
	}
	return line
}

// A reader that others wrote finds every file with the content that it has.
func TestSecondReader(t *testing.T) {
	_, m, size := richDevice(t)
	fsys, err := ext4.NewFS(*io.NewSectionReader(m, 0, size), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"bin/tool": patterned(1, 700_000), "big": patterned(9, 5<<20), "d/one": "two", "bin/hard": "1", "bin/again": "1", "d/hard": "1",
		"opaque/new": "new", "replaced/in": "in", "gone/z": "z", "d/e": "a file now", "d/attrs": "x", "d/" + strings.Repeat("n", 255): "long",
	} {
		if got, err := fs.ReadFile(fsys, name); err != nil || string(got) != want {
			t.Errorf("%.30s: %d bytes, want %d; %v", name, len(got), len(want), err)
		}
	}
	for _, name := range []string{"gone/x", "opaque/old", "d/empty", "d/e/block"} {
		if b, err := fs.ReadFile(fsys, name); err == nil {
			t.Errorf("%s is still there: %.20q", name, b)
		}
	}
	for _, n := range []int{1, 59, 60, 4095} {
		if got, err := fsys.ReadLink(fmt.Sprintf("d/link%d", n)); err != nil || got != strings.Repeat("t", n) {
			t.Errorf("link of %d bytes: %d bytes, %v", n, len(got), err)
		}
	}
}

// Attributes that GNU tar's file system may refuse: 64 KiB, many, and those of
// no namespace, which are left out and counted.
func TestLargeXattrs(t *testing.T) {
	many := []string{"user.k64", patterned(1, 64<<10), "user.k64b", patterned(2, 64<<10), "user.empty", "", "com.apple.x", "1", "system.nfs4_acl", "2"}
	for i := range 60 {
		many = append(many, fmt.Sprintf("user.many%02d", i), patterned(i, 100+i))
	}
	items := []item{
		{Header: tar.Header{Name: "f", PAXRecords: attrs(many...)}, content: "content"},
		{Header: tar.Header{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: attrs(many...)}},
		{Header: tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", PAXRecords: attrs("trusted.x", patterned(3, 5000))}},
		{Header: tar.Header{Name: "replaced", PAXRecords: attrs("user.k64", patterned(4, 64<<10))}},
	}
	base := mustPack(t, tarball(t, items...))
	if base.Dropped() != 4 {
		t.Errorf("%d attributes left out", base.Dropped())
	}
	m, _, s := mustBuild(t, base, mustPack(t, tarball(t, parse("replaced=1 d/")...)))
	path := m.file(t, s.Size)
	fsck(t, path)
	dir, unmount := testmount.Ext4(t, path, "rw")
	want := ""
	for _, name := range []string{"user.empty", "user.k64", "user.k64b"} {
		want += fmt.Sprintf(" %s=%q", name, attrs(many...)["SCHILY.xattr."+name])
	}
	for i := range 60 {
		want += fmt.Sprintf(" user.many%02d=%q", i, patterned(i, 100+i))
	}
	if got := xattrsOf(t, dir+"/f"); got != want {
		t.Errorf("attributes of f: %.200s…", got)
	}
	if got := xattrsOf(t, dir+"/l"); got != fmt.Sprintf(" trusted.x=%q", patterned(3, 5000)) {
		t.Errorf("attributes of l: %.200s…", got)
	}
	if got := xattrsOf(t, dir+"/replaced") + xattrsOf(t, dir+"/d"); got != "" {
		t.Errorf("attributes that the upper layer does not have: %.200s…", got)
	}
	for _, name := range []string{"user.k64", "user.many07"} { // the kernel gives blocks and inodes back
		if err := unix.Lremovexattr(dir+"/f", name); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Lsetxattr(dir+"/d", "user.after", []byte("x"), 0); err != nil {
		t.Error(err)
	}
	unmount()
	fsck(t, path)
}
