package verify

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
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
)

// item is an entry of a tar, or a thing to be made in a folder.
type item struct {
	tar.Header
	content string
}

// stamp is the time of everything that has no other.
const stamp = 1_600_000_000

func made(kind byte, name string, mode int64) item {
	return item{Header: tar.Header{
		Typeflag: kind, Name: name, Mode: mode, Uid: os.Getuid(), Gid: os.Getgid(), ModTime: time.Unix(stamp, 0),
	}}
}

func dir(name string) item { return made(tar.TypeDir, name, 0o755) }

func file(name, content string) item {
	i := made(tar.TypeReg, name, 0o644)
	i.content, i.Size = content, int64(len(content))
	return i
}

func symlink(name, target string) item {
	i := made(tar.TypeSymlink, name, 0o777)
	i.Linkname = target
	return i
}

func hardlink(name, target string) item {
	i := made(tar.TypeLink, name, 0o600)
	i.Linkname = target
	return i
}

// implied is the directory made for a name whose parent no layer has.
func implied(name string) item {
	i := made(tar.TypeDir, name, 0o755)
	i.Uid, i.Gid, i.ModTime = 0, 0, time.Unix(0, 0)
	return i
}

// with changes a copy of an item.
func (i item) with(change func(*item)) item {
	i.PAXRecords = maps.Clone(i.PAXRecords)
	change(&i)
	return i
}

// xattr adds an extended attribute.
func (i item) xattr(name, value string) item {
	return i.with(func(i *item) {
		if i.PAXRecords == nil {
			i.PAXRecords = map[string]string{}
		}
		i.PAXRecords[paxXattr+name] = value
	})
}

// makeTar writes a PAX tar.
func makeTar(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tars are layers in memory.
type tars [][]byte

func (l tars) Len() int { return len(l) }

func (l tars) Open(_ context.Context, i int) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l[i])), nil
}

// layersOf writes one tar for each list of items.
func layersOf(t testing.TB, layers ...[]item) tars {
	t.Helper()
	var l tars
	for _, items := range layers {
		l = append(l, makeTar(t, items...))
	}
	return l
}

// needRoot skips a test that cannot be made without root, aloud.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root (mounts, device nodes, trusted xattrs); CI runs it as root")
	}
}

// run runs a program and gives its output.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// plainFeatures are those of the project's devices.
const plainFeatures = "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,uninit_bg,dir_nlink,extra_isize,ea_inode"

// mkfs makes an image of a folder and takes away lost+found, which mke2fs
// makes and layers do not have.
func mkfs(t testing.TB, folder, size string, options ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if len(options) == 0 {
		options = []string{"-O", plainFeatures}
	}
	args := append([]string{"-q", "-F", "-b", "4096", "-I", "256"}, options...)
	if folder != "" {
		args = append(args, "-d", folder)
	}
	run(t, "mkfs.ext4", append(args, image, size)...)
	debugfs(t, image, "rmdir lost+found")
	return image
}

// debugfs runs commands that write to an image and print nothing.
func debugfs(t testing.TB, image string, commands ...string) {
	t.Helper()
	cmd := exec.Command("debugfs", "-w", "-f", "/dev/stdin", image)
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %q: %v\n%s", commands, err, out)
	}
	for line := range strings.SplitSeq(string(out), "\n") {
		if line != "" && !strings.HasPrefix(line, "debugfs") && !strings.HasPrefix(line, "Allocated") {
			t.Fatalf("debugfs %q:\n%s", commands, out)
		}
	}
}

// unpack makes the items in a folder with the system's own calls. Owners other
// than the user's are left to setOwners.
func unpack(t testing.TB, folder string, items []item) {
	t.Helper()
	for _, i := range items {
		if err := unpackItem(filepath.Join(folder, i.Name), folder, i); err != nil {
			t.Fatalf("%s: %v", i.Name, err)
		}
	}
	for _, i := range slices.Backward(items) { // directories get their time last
		if i.Typeflag != tar.TypeLink {
			if err := setTimes(filepath.Join(folder, i.Name), i.ModTime); err != nil {
				t.Fatalf("%s: %v", i.Name, err)
			}
		}
	}
}

func unpackItem(path, folder string, i item) (err error) {
	dev := int(i.Devmajor<<8&0xFFF00 | i.Devminor&0xFF | i.Devminor<<12&0xFFF00000)
	switch i.Typeflag {
	case tar.TypeDir:
		if err = os.Mkdir(path, 0o700); errors.Is(err, os.ErrExist) && filepath.Clean(path) == filepath.Clean(folder) {
			err = nil
		}
	case tar.TypeSymlink:
		return os.Symlink(i.Linkname, path)
	case tar.TypeLink:
		return os.Link(filepath.Join(folder, i.Linkname), path)
	case tar.TypeFifo:
		err = syscall.Mknod(path, syscall.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		err = syscall.Mknod(path, syscall.S_IFCHR|0o600, dev)
	case tar.TypeBlock:
		err = syscall.Mknod(path, syscall.S_IFBLK|0o600, dev)
	default:
		err = os.WriteFile(path, []byte(i.content), 0o600)
	}
	if err != nil {
		return err
	}
	for key, value := range i.PAXRecords {
		if err := syscall.Setxattr(path, strings.TrimPrefix(key, paxXattr), []byte(value), 0); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return syscall.Chmod(path, uint32(i.Mode))
}

// setTimes sets the modification time without following a symlink.
func setTimes(path string, at time.Time) error {
	return run2("touch", "-h", "-d", at.UTC().Format("2006-01-02T15:04:05.999999999Z"), path)
}

func run2(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}

// reference makes an image of what the items say, as others' code unpacks and
// writes it. mke2fs leaves the root's times and owner and all nanoseconds to
// its own taste, so debugfs sets those.
func reference(t testing.TB, items []item, options ...string) string {
	t.Helper()
	if len(items) == 0 || items[0].Name != "." {
		items = append([]item{implied(".")}, items...)
	}
	folder := t.TempDir()
	unpack(t, folder, items)
	image := mkfs(t, folder, "4M", options...)
	var fix []string
	for _, i := range items {
		if i.Typeflag == tar.TypeLink {
			continue
		}
		name := "/" + strings.TrimPrefix(i.Name, ".")
		set := func(field string, value any) {
			fix = append(fix, fmt.Sprintf("set_inode_field %s %s %v", name, field, value))
		}
		if i.Uid != os.Getuid() || i.Name == "." {
			set("uid", i.Uid)
		}
		if i.Gid != os.Getgid() || i.Name == "." {
			set("gid", i.Gid)
		}
		if i.Name == "." {
			set("mode", fmt.Sprintf("0%o", typeDir|i.Mode))
		}
		if s, n := i.ModTime.Unix(), i.ModTime.Nanosecond(); i.Name == "." || n != 0 || int64(int32(s)) != s {
			set("mtime", fmt.Sprintf("@%d", int32(s)))
			set("mtime_extra", int64(n)<<2|(s-int64(int32(s)))>>32&3)
		}
	}
	debugfs(t, image, fix...)
	return image
}

// compare runs Tree on an image file.
func compare(t testing.TB, image string, layers Layers) TreeReport {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	report, err := Tree(t.Context(), f, info.Size(), layers)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// wantSame fails unless image and layers are equal.
func wantSame(t testing.TB, image string, layers Layers) TreeReport {
	t.Helper()
	r := compare(t, image, layers)
	if r.Total != 0 {
		t.Errorf("%d differences: %v", r.Total, r.Differences)
	}
	return r
}

// wantOne fails unless there is exactly the one difference.
func wantOne(t testing.TB, image string, layers Layers, path, what string) {
	t.Helper()
	r := compare(t, image, layers)
	if r.Total != 1 || len(r.Differences) != 1 || r.Differences[0].Path != path || r.Differences[0].What != what {
		t.Errorf("want one difference, %q: %s; got %d: %v", path, what, r.Total, r.Differences)
	}
}
