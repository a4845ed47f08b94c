package cache

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// onDisk gives a rig whose folder is on a disk of its own, of a few chunks.
func onDisk(t *testing.T, bytes string) (r *rig, remount func(flags uintptr) error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount a disk of its own: run the tests as root too")
	}
	disk := t.TempDir()
	mount := func(flags uintptr) error { return unix.Mount("tmpfs", disk, "tmpfs", flags, "size="+bytes) }
	if err := mount(0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	f := open(t, filepath.Join(disk, "cache"), 1<<20)
	r = &rig{origin: new(fakeOrigin), folder: f}
	r.chunks = r.origin.put(t, 100, small)
	r.fetcher = serve(t, FetcherOptions{Folder: f, Upstreams: upstream(r.origin)})
	r.client = r.bare(t)
	return r, func(flags uintptr) error { return mount(flags | unix.MS_REMOUNT) }
}

// TestDiskFull reads more than the disk holds: what fits is kept, all is read.
func TestDiskFull(t *testing.T) {
	r, _ := onDisk(t, "200k")
	for range 2 {
		for _, c := range r.chunks {
			r.read(t, c)
		}
	}
	if n := checkFolder(t, r.folder); n < 10 || n == len(r.chunks) {
		t.Errorf("%d chunks on a disk of 200 KiB", n)
	}
	if s := r.folder.Stats(); s.Failures == 0 {
		t.Errorf("stats %+v: the disk did not fill", s)
	}
}

// TestDiskNeverWritten: a folder that is empty and cannot be written to is none
// that has to be there.
func TestDiskNeverWritten(t *testing.T) {
	r, remount := onDisk(t, "1m")
	if err := os.RemoveAll(r.folder.dir); err != nil {
		t.Fatal(err)
	}
	r.remountWhenIdle(t, remount, unix.MS_RDONLY)
	f := open(t, r.folder.dir, 1<<20)
	warned := 0
	f.Warn = func(error) { warned++ }
	for _, c := range r.chunks {
		filled(t, f, c)
	}
	if s := f.Stats(); warned != 1 || s.Failures != int64(len(r.chunks)) {
		t.Errorf("%d warnings, %+v", warned, s)
	}
}

// TestDiskReadOnly: what is there is still found, the rest is fetched.
func TestDiskReadOnly(t *testing.T) {
	r, remount := onDisk(t, "1m")
	half := r.chunks[:len(r.chunks)/2]
	for _, c := range half {
		r.read(t, c)
	}
	r.remountWhenIdle(t, remount, unix.MS_RDONLY)
	for _, c := range r.chunks {
		r.read(t, c)
	}
	if s := r.client.Stats(); s.Cache.Hits != int64(len(half)) {
		t.Errorf("stats %+v, want %d hits of the cache", s, len(half))
	}
	if s := r.folder.Stats(); s.Failures != int64(len(r.chunks)-len(half)) {
		t.Errorf("folder %+v, want a failure for each chunk of the other half", s)
	}
	r.remountWhenIdle(t, remount, 0)
	fresh := r.chunks[len(half)]
	r.read(t, fresh)
	if !r.folder.has(fresh.Name) {
		t.Error("a disk that can be written again was not used")
	}
	checkFolder(t, r.folder)
}

// TestNoPermission is TestDiskReadOnly for one who is not root.
func TestNoPermission(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("permissions do not hold root: run the tests as a plain user too")
	}
	r := newRig(t, 8, 1<<20)
	for _, c := range r.chunks[:4] {
		r.read(t, c)
	}
	chunks := r.folder.path(chunksDir)
	if err := os.Chmod(chunks, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(chunks, dirPerm) })
	for _, c := range r.chunks {
		r.read(t, c)
	}
	if s := r.folder.Stats(); s.Failures == 0 {
		t.Errorf("folder %+v, want failures", s)
	}
}

// TestUmask: agents of other users read what the fetcher keeps, whatever its
// umask is.
func TestUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	for _, named := range []bool{false, true} {
		f := newFolder(t, 1<<20)
		f.named = named
		c := sample(1, small)
		filled(t, f, c)
		path := chunkPath(f.dir, c.Name)
		for _, dir := range []string{f.dir, f.path(chunksDir), filepath.Dir(path)} {
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != dirPerm {
				t.Errorf("%s: %v, %v", dir, info.Mode(), err)
			}
		}
		checkFolder(t, f)
	}
}
