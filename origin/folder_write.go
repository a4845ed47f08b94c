package origin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A new object is written to a file without a name (O_TMPFILE), synced, and
// given its name by linkat(2), which fails if the name is taken: put-if-absent,
// atomic across processes. A process killed before leaves nothing, since the
// kernel frees a file without names. The folder is synced after, and so is the
// parent of one just made; only then does the put return.
//
// Where the file system has no O_TMPFILE (NFS, some FUSE), or /proc is missing,
// and for replacing (linkat cannot), the file is written as .tmp/.tmp-<random>
// under a flock held until it has its final name by link(2) or rename(2). The
// kernel drops the lock with the process, also at SIGKILL and reboot, so a file
// there that can be locked is a leftover, and the next Open removes it.
//
// Each put syncs its own folder. A journalling file system joins concurrent
// fsyncs into one commit by itself, so a writer that syncs the folders of many
// is slower (BenchmarkPut, ext4, 64 writers, MB/s, medians of 7 in turn: own
// sync 375, group commit 243, no folder sync and so no promise 561; files with
// names 280). One syncfs(2) for many gave 492, but it waits for all that others
// have written to the disk, which on a busy machine has no bound.

const (
	tempDir    = ".tmp"
	tempPrefix = ".tmp-"
	// filePerm is read-only: objects do not change, and the umask still applies.
	filePerm = 0o444
	dirPerm  = 0o755
)

// Create implements Writer. After it returns nil the object survives a power
// cut, whoever wrote it.
func (f *folder) Create(_ context.Context, key string, data []byte) (bool, error) {
	path, err := f.path(key)
	if err != nil {
		return false, err
	}
	if err := f.ensure(filepath.Dir(path)); err != nil {
		return false, f.explain(err)
	}
	err = errNoTmpfile
	if !f.named {
		err = createUnnamed(path, data)
	}
	if errors.Is(err, errNoTmpfile) {
		err = f.writeNamed(data, func(temp string) error { return os.Link(temp, path) })
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, f.explain(err)
	}
	return err == nil, f.explain(syncDir(filepath.Dir(path)))
}

// errNoTmpfile says that files without a name do not work here.
var errNoTmpfile = errors.New("no files without a name here")

func createUnnamed(path string, data []byte) error {
	file, err := openUnnamed(filepath.Dir(path), data)
	// A file system without it says EOPNOTSUPP; a kernel without it sees the
	// opening of a folder for writing.
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.EINVAL) {
		return errNoTmpfile
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if err := writeSynced(file, data); err != nil {
		return err
	}
	// Through /proc, as open(2) shows: AT_EMPTY_PATH needs a capability.
	proc := "/proc/self/fd/" + strconv.Itoa(int(file.Fd()))
	err = unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoTmpfile // no /proc, or the folder has gone: the other way finds out
	}
	if err != nil {
		return &os.PathError{Op: "link", Path: path, Err: err}
	}
	return nil
}

// directAlign is what direct I/O needs of addresses and lengths, in bytes: the
// largest sector that disks have.
const directAlign = 4096

// openUnnamed opens a file without a name, for direct I/O if the data allows
// it. An image's chunks are written once and not read soon: past the page cache
// they cost a fifth of the CPU, and 32 writers are 4 to 8 times as fast (ext4,
// 512 KiB each: 616–670 MB/s against 79–146 in one alternating run).
func openUnnamed(dir string, data []byte) (*os.File, error) {
	const flags = unix.O_TMPFILE | os.O_WRONLY
	aligned := len(data) > 0 && len(data)%directAlign == 0 && uintptr(unsafe.Pointer(&data[0]))%directAlign == 0
	if aligned {
		file, err := os.OpenFile(dir, flags|unix.O_DIRECT, filePerm)
		if !errors.Is(err, syscall.EINVAL) { // which says: no direct I/O here
			return file, err
		}
	}
	return os.OpenFile(dir, flags, filePerm)
}

// writeSynced makes the bytes durable. fdatasync leaves out the times, and not
// the length.
func writeSynced(file *os.File, data []byte) error {
	if _, err := file.Write(data); errors.Is(err, syscall.EINVAL) {
		// Direct I/O with wishes of its own: through the page cache then.
		if _, err := unix.FcntlInt(file.Fd(), unix.F_SETFL, 0); err != nil {
			return &os.PathError{Op: "fcntl", Path: file.Name(), Err: err}
		}
		if _, err := file.WriteAt(data, 0); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := unix.Fdatasync(int(file.Fd())); err != nil {
		return &os.PathError{Op: "sync", Path: file.Name(), Err: err}
	}
	return nil
}

// writeNamed writes data to a temporary file that no other process takes for a
// leftover, and lets finish give it its final name.
func (f *folder) writeNamed(data []byte, finish func(temp string) error) error {
	if err := f.ensure(filepath.Join(f.dir, tempDir)); err != nil {
		return err
	}
	file, err := f.createTemp()
	if err != nil {
		return err
	}
	defer file.Close() // and with it the lock, last
	err = writeSynced(file, data)
	if err == nil {
		err = finish(file.Name())
	}
	if rerr := os.Remove(file.Name()); err == nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = rerr // after a rename it is gone already
	}
	return err
}

// createTemp gives a new file in .tmp with its lock held. Between creation and
// lock an Open of another process may take it for a leftover: it has no name
// left then, and another is made.
func (f *folder) createTemp() (*os.File, error) {
	for range 100 { // one would have to lose every time
		name := filepath.Join(f.dir, tempDir, tempPrefix+rand.Text())
		file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, filePerm)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err = flock(file, unix.LOCK_EX); err == nil {
			err = unix.Fstat(int(file.Fd()), &st)
		}
		if err == nil && st.Nlink > 0 {
			return file, nil
		}
		_ = file.Close()
		if err != nil {
			_ = os.Remove(name)
			return nil, &os.PathError{Op: "lock", Path: name, Err: err}
		}
	}
	return nil, fmt.Errorf("%s: other processes keep removing temporary files", f.dir)
}

func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// clean removes what killed processes left in .tmp. It does what it can: a
// user who may only read the folder has nothing to clean.
func (f *folder) clean() {
	dir := filepath.Join(f.dir, tempDir)
	items, _ := os.ReadDir(dir)
	for _, item := range items {
		if !item.Type().IsRegular() {
			continue
		}
		name := filepath.Join(dir, item.Name())
		file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if flock(file, unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.Remove(name) // the writer's check after its own lock sees this
		}
		_ = file.Close()
	}
}

// Replace implements Writer.
func (f *folder) Replace(_ context.Context, key string, data []byte) error {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err = f.ensure(filepath.Dir(path)); err == nil {
		err = f.writeNamed(data, func(temp string) error { return os.Rename(temp, path) })
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return f.explain(err)
}

// Remove implements Writer.
func (f *folder) Remove(_ context.Context, key string) error {
	path, err := f.path(key)
	if err != nil {
		return err
	}
	if err = unix.Unlink(path); err != nil { // os.Remove would take a folder
		return f.explainRead(&os.PathError{Op: "remove", Path: path, Err: err})
	}
	return f.explain(syncDir(filepath.Dir(path)))
}

// settle is settler.settle: another process may have linked the file and not
// yet synced the folder. The file's bytes were synced before the link.
func (f *folder) settle(key string) error {
	path, err := f.path(key)
	if err == nil {
		err = f.ensure(filepath.Dir(path))
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return f.explain(err)
}

// ensure makes a folder and its parents and has their names survive a power
// cut, once for each in the life of a process.
func (f *folder) ensure(dir string) error {
	f.mu.Lock()
	_, ok := f.ready[dir]
	f.mu.Unlock()
	if ok {
		return nil
	}
	parent := filepath.Dir(dir)
	_, err := os.Stat(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	ours := missing || strings.HasPrefix(dir, f.dir+"/")
	if ours {
		if err := f.ensure(parent); err != nil {
			return err
		}
	}
	if missing {
		if err := os.Mkdir(dir, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// Who may not read the folder above an origin did not make the origin.
	if err := syncDir(parent); err != nil && (ours || !errors.Is(err, fs.ErrPermission)) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready[dir] = struct{}{}
	return nil
}

// syncDir makes the names in a folder durable. File systems that cannot sync
// folders (EINVAL) do it by themselves or not at all: nothing to do about it.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
