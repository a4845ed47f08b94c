package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const imageBytes = 32 << 20

// TestImage reads a whole tree through FUSE, loop device and ext4, and takes everything away again.
func TestImage(t *testing.T) {
	base := place(t)
	source := tree(t, mkdir(t, base, "source"))
	file := filepath.Join(base, "ext4")
	makeImage(t, source, file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	info, err := os.Stat(s.image())
	try(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Size != imageBytes || st.Blocks != imageBytes/512 || info.Mode() != 0o400 {
		t.Errorf("stat of image: %d bytes, %d blocks, %v", st.Size, st.Blocks, info.Mode())
	}
	if _, err := os.OpenFile(s.image(), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	run(t, "cmp", file, s.image())

	dir := mkdir(t, base, "root")
	device := mountLoop(t, s.image(), dir, true)
	sameTree(t, source, dir)
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	if loops, err := Loops(s.dir); err != nil || !slices.Equal(loops, []string{device}) {
		t.Errorf("loops: %q, %v; want %s", loops, err, device)
	}
	direct, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/dio")
	if strings.TrimSpace(string(direct)) != "1" {
		t.Errorf("direct I/O: %q, %v", direct, err)
	}
	mounts, err := Under(base)
	if err != nil || len(mounts) != 2 || mounts[0].Dir != dir || mounts[0].Type != "ext4" || mounts[1].Type != "fuse.thaw" {
		t.Errorf("mounts: %+v, %v", mounts, err)
	}
	try(t, Unmount(dir), Unmount(dir), Unmount(s.dir), Unmount(s.dir))
	s.ends()
	if !s.process.ProcessState.Success() {
		t.Errorf("server: %v", s.process.ProcessState)
	}
}

// TestWritable writes at random through ext4 on a loop device on a file of rw, and compares with a plain file. Somebody has a copy of
// the mount all the time.
func TestWritable(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "ext4")
	makeImage(t, tree(t, mkdir(t, base, "source")), file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	s.tell("addimage", "one, two: ü")
	dir := mkdir(t, base, "root")
	mountLoop(t, s.rw("one, two: ü"), dir, false)
	copied(t, dir)
	sameTree(t, filepath.Join(base, "source"), dir)

	want := make([]byte, 4<<20)
	f, err := os.OpenFile(filepath.Join(dir, "random"), os.O_RDWR|os.O_CREATE, 0o600)
	try(t, err, f.Truncate(int64(len(want))))
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		off := random.IntN(len(want))
		part := want[off:min(len(want), off+random.IntN(20000))]
		for j := range part {
			part[j] = byte(random.Uint32())
		}
		_, err := f.WriteAt(part, int64(off))
		try(t, err)
		if i%50 == 0 {
			try(t, f.Sync())
		}
	}
	try(t, f.Sync(), f.Close(), on(t, dir).Settle(), Unmount(dir))
	if s.tell("syncs", "one, two: ü") == "0" {
		t.Error("fsync did not reach the device")
	}
	run(t, "e2fsck", "-fn", s.rw("one, two: ü"))
	mountLoop(t, s.rw("one, two: ü"), dir, false)
	copied(t, dir)
	if got, err := os.ReadFile(filepath.Join(dir, "random")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written is not there: %v", err)
	}
	run(t, "cmp", file, s.image()) // untouched

	// Discarded blocks read as zeros.
	try(t, os.Remove(filepath.Join(dir, "random")))
	if out := run(t, "fstrim", "-v", dir); strings.Contains(out, "(0 bytes)") {
		t.Errorf("fstrim: %s", out)
	}
	try(t, on(t, dir).Settle(), Unmount(dir))
	data, err := os.ReadFile(s.rw("one, two: ü"))
	try(t, err)
	if bytes.Contains(data, want[1<<20:1<<20+4096]) {
		t.Error("trimmed data is still there")
	}
	run(t, "e2fsck", "-fn", s.rw("one, two: ü"))
}

// TestFilesComeAndGo adds and removes files while they are open.
func TestFilesComeAndGo(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "image")
	try(t, os.WriteFile(file, make([]byte, 8192), 0o600))
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	names := func() []string {
		entries, err := os.ReadDir(filepath.Join(s.dir, "rw"))
		try(t, err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if _, err := os.Stat(s.rw("a")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	s.tell("add", "a", "4096")
	s.tell("add", "b", "8192")
	if got := names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("rw: %q", got)
	}
	f, err := os.OpenFile(s.rw("a"), os.O_RDWR, 0)
	try(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("here"), 4092)
	try(t, err)
	if _, err := f.WriteAt([]byte("beyond"), 4092); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write beyond the end: %v", err)
	}
	if err := f.Truncate(1); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v", err)
	}
	s.tell("remove", "a")
	if _, err := f.WriteAt([]byte("here"), 0); !errors.Is(err, unix.ESTALE) {
		t.Errorf("write to a removed file: %v", err)
	}
	s.tell("add", "a", "12288")
	if info, err := os.Stat(s.rw("a")); err != nil || info.Size() != 12288 {
		t.Errorf("a file of the same name: %v, %v", info, err)
	}
	for i := range 200 {
		s.tell("add", fmt.Sprint(strings.Repeat("n", 240), i), "4096")
	}
	if got := names(); len(got) != 202 {
		t.Errorf("%d files in rw, want 202", len(got))
	}
}

// TestKilledServer finds that a program gets errors, not a hang, and that all goes away, when the server is killed.
func TestKilledServer(t *testing.T) {
	base := place(t)
	source := tree(t, mkdir(t, base, "source"))
	file := filepath.Join(base, "ext4")
	makeImage(t, source, file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	s.tell("addimage", "a")
	ro, rw := mkdir(t, base, "ro"), mkdir(t, base, "rw")
	mountLoop(t, s.image(), ro, true)
	mountLoop(t, s.rw("a"), rw, false)
	f, err := os.Create(filepath.Join(rw, "new"))
	try(t, err)
	_, err = f.Write(make([]byte, 1<<20))
	try(t, err)
	try(t, s.process.Process.Kill())
	s.ends()
	if _, err := os.ReadFile(filepath.Join(ro, "bin/file-39")); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	if err := f.Sync(); !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) {
		t.Errorf("sync: %v", err)
	}
	if _, err := os.Open(s.image()); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("open: %v", err)
	}
	_ = f.Close()
	try(t, Unmount(ro), Unmount(rw), Unmount(s.dir))
}

// TestHangingDevice frees a reader of a device that never answers.
func TestHangingDevice(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "ext4")
	makeImage(t, tree(t, mkdir(t, base, "source")), file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	dir := mkdir(t, base, "root")
	mountLoop(t, s.image(), dir, true)
	s.tell("hang")
	read := make(chan error)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, "bin/file-39"))
		read <- err
	}()
	cat := exec.Command("cat", s.image()) // killed while it waits
	try(t, cat.Start(), cat.Process.Kill())
	_ = cat.Wait()
	try(t, AbortFUSE(s.dir))
	if err := <-read; !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	try(t, AbortFUSE(s.dir), AbortFUSE(base), Unmount(dir), Unmount(s.dir))
	s.ends() // although its device hangs: the requests were cancelled
}

// TestDetachAll clears what others left behind, a server that hangs included.
func TestDetachAll(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "ext4")
	makeImage(t, tree(t, mkdir(t, base, "source")), file, imageBytes)
	run := mkdir(t, base, "run")
	try(t, private(run))
	s := serve(t, mkdir(t, run, "fuse"), file, "server")
	s.tell("addimage", "a")
	root, rw, merged := mkdir(t, run, "root"), mkdir(t, run, "rw"), mkdir(t, run, "merged")
	mountLoop(t, s.image(), root, true)
	mountLoop(t, s.rw("a"), rw, false)
	try(t, os.WriteFile(filepath.Join(rw, "dirty"), make([]byte, 1<<20), 0o600))
	try(t, MountOverlay(merged, Overlay{Lower: []string{root}, Upper: mkdir(t, run, "upper"), Work: mkdir(t, run, "work")}))
	inside, err := os.Open(filepath.Join(merged, "owned")) // busy
	try(t, err)
	bound := mkdir(t, run, "root/bin")
	_, err = Bind(mkdir(t, base, "source/bin"), bound, true)
	try(t, err)
	s.tell("hang")
	mounts, err := Under(run)
	try(t, err)
	if len(mounts) != 6 || mounts[0].Dir != bound || mounts[5].Dir != run {
		t.Errorf("mounts: %+v", mounts)
	}
	try(t, DetachAll(run), DetachAll(run))
	s.ends()
	if mounts, err := Under(run); err != nil || len(mounts) != 0 {
		t.Errorf("after DetachAll: %v, %v", mounts, err)
	}
	awaitLoops(t, run, 1) // the open file keeps file system and device, which is still known as ours
	try(t, clearLoops(run), inside.Close())
}

// TestDeviceError finds that an error of the device is an error of one read only.
func TestDeviceError(t *testing.T) {
	base := place(t)
	file := filepath.Join(base, "ext4")
	makeImage(t, tree(t, mkdir(t, base, "source")), file, imageBytes)
	s := serve(t, mkdir(t, base, "fuse"), file, "server")
	dir := mkdir(t, base, "root")
	mountLoop(t, s.image(), dir, true)
	name := filepath.Join(dir, "bin/file-39")
	_, err := os.Stat(name)
	try(t, err)
	var got []byte
	for late := time.Now().Add(patience); err == nil && time.Now().Before(late); {
		s.tell("fail", "1") // it may be met by who looks at each new loop device
		got, err = os.ReadFile(s.image())
	}
	if !errors.Is(err, unix.EIO) || len(got) != 0 {
		t.Errorf("read of the file served: %d bytes, %v", len(got), err)
	}
	s.tell("fail", "1000000") // the page cache asks again when reading ahead failed
	if _, err := os.ReadFile(name); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v", err)
	}
	s.tell("fail", "0")
	if got := s.tell("faults"); strings.Count(got, "read image: "+errDevice.Error()) < 3 {
		t.Errorf("faults: %q", got)
	}
	sameTree(t, filepath.Join(base, "source"), dir)
	try(t, Unmount(dir))
}

// TestManyLoops attaches 50 files at once.
func TestManyLoops(t *testing.T) {
	base := place(t)
	var attached sync.Map
	var all sync.WaitGroup
	for i := range 50 {
		name := filepath.Join(base, fmt.Sprint("file", i))
		try(t, os.WriteFile(name, bytes.Repeat([]byte{byte(i)}, 8192), 0o600))
		all.Go(func() {
			l, err := AttachLoop(name, i%2 == 0)
			if err != nil {
				t.Error(err)
				return
			}
			if _, twice := attached.LoadOrStore(l.Device, l); twice {
				t.Errorf("%s was given twice", l.Device)
			}
			got, err := os.ReadFile(l.Device)
			if err != nil || len(got) != 8192 || got[8191] != byte(i) {
				t.Errorf("%s: %d bytes, %v", l.Device, len(got), err)
			}
			if err := l.SetReadAhead(512); err != nil {
				t.Error(err)
			}
			ahead, err := os.ReadFile("/sys/block/" + filepath.Base(l.Device) + "/queue/read_ahead_kb")
			if string(ahead) != "512\n" {
				t.Errorf("read-ahead: %q, %v", ahead, err)
			}
		})
	}
	all.Wait()
	if loops, err := Loops(base); err != nil || len(loops) != 50 {
		t.Errorf("%d loops, %v", len(loops), err)
	}
	if loops, err := Loops(filepath.Join(base, "file1")); err != nil || len(loops) != 1 {
		t.Errorf("%d loops of one file, %v", len(loops), err)
	}
	attached.Range(func(_, l any) bool {
		try(t, l.(Loop).Close())
		return true
	})
	if _, err := AttachLoop(filepath.Join(base, "none"), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attach of no file: %v", err)
	}
}
