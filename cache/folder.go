package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
	"thaw/latency"
)

const (
	chunksDir = "chunks"
	tempDir   = "tmp"
	lockName  = "lock"
	usedName  = "used"

	// filePerm and dirPerm let an agent of another user read. Chunks do not
	// change once they have a name.
	filePerm = 0o444
	dirPerm  = 0o755

	// firstPause and lastPause bound the poll for a chunk that another process
	// is fetching: a folder gives a chunk in a few milliseconds, a bucket in
	// tens.
	firstPause = 2 * time.Millisecond
	lastPause  = 50 * time.Millisecond
	// shortPause begins the poll for locks that are held for microseconds.
	shortPause = 50 * time.Microsecond
	// patience is how long another process is waited for, that fetches a chunk:
	// its origin may hang, and be another than ours.
	patience = 3 * time.Second
	// keepWithin bounds the wait for room in the folder: a stopped process may
	// hold a lock, and the chunk at hand can be given away without keeping it.
	keepWithin = 2 * time.Second
)

// Folder is the worker's folder of sealed chunks, of at most a number of bytes.
// It is safe for concurrent use, also by several processes on one folder. Of
// its files only chunks count to the limit, by length.
//
// A folder that fails is none that has to be there: chunks are given and not
// kept. It is tried again with the next chunk, and made again if it is gone.
type Folder struct {
	// Warn, if set before the first use, is told when the folder begins to
	// fail, once until it works again. Any goroutine may call it.
	Warn func(error)

	dir   string
	limit int64 // bytes
	named bool  // tests: as where files without a name do not work
	// patience and keepWithin are the constants above: tests have others.
	patience, keepWithin time.Duration
	now                  func() time.Time // tests: in place of time.Now for uses

	evicting sync.Mutex // held by who evicts, so that one goroutine polls for the lock
	corrupt  atomic.Int64
	failures atomic.Int64
	evicted  atomic.Int64
	failing  atomic.Bool
	keeps    latency.Histogram
}

// FolderStats are what happened in this process, but for Used.
type FolderStats struct {
	Used     int64 `json:"used"`     // bytes of all processes' chunks, or a little more; -1 if not known
	Limit    int64 `json:"limit"`    // bytes
	Corrupt  int64 `json:"corrupt"`  // files that did not hold their chunk, and were removed
	Evicted  int64 `json:"evicted"`  // files removed to make room
	Failures int64 `json:"failures"` // chunks that could not be kept
}

// OpenFolder makes the folder if it is missing, and removes what killed
// processes left. limit is in bytes. A folder that cannot be made or written to
// fails later, as above. Nothing has to be closed.
func OpenFolder(dir string, limit int64) (*Folder, error) {
	if limit <= 0 || !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("cache: folder %q with a limit of %d bytes: give an absolute path and a limit above 0", dir, limit)
	}
	f := &Folder{dir: filepath.Clean(dir), limit: limit, patience: patience, keepWithin: keepWithin}
	if err := f.make(); errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("cache: make folder: %w", err)
	}
	f.clean()
	f.distrust()
	return f, nil
}

// Stats tells how the folder is doing.
func (f *Folder) Stats() FolderStats {
	s := FolderStats{
		Used: -1, Limit: f.limit,
		Corrupt: f.corrupt.Load(), Evicted: f.evicted.Load(), Failures: f.failures.Load(),
	}
	if b, err := os.ReadFile(f.path(usedName)); err == nil {
		if used, known := decodeUsed(b); known {
			s.Used = used
		}
	}
	return s
}

func (f *Folder) path(name string) string { return filepath.Join(f.dir, name) }

// chunkPath is where a chunk lies below a cache folder.
func chunkPath(dir string, name chunk.Name) string {
	s := name.String()
	return dir + "/" + chunksDir + "/" + s[:2] + "/" + s
}

// Fill gives the sealed bytes of a chunk of size bytes: from the folder, where
// hit is true, else from get, whose bytes it keeps. What the folder has is
// hashed here; get answers for what it gives. Of all callers in all processes
// one gets; the others wait for the file to appear, as long as their ctx
// allows, or until the one seems stuck. The bytes may be shared: nobody changes
// them.
func (f *Folder) Fill(ctx context.Context, name chunk.Name, size int, get func(context.Context) ([]byte, error)) (data []byte, hit bool, err error) {
	if data, _ := f.look(name, size); data != nil {
		return data, true, nil
	}
	lock, data, err := f.claim(ctx, name, size)
	if err != nil {
		return nil, false, err
	}
	if lock != nil {
		defer lock.Close()
	}
	if data != nil {
		return data, true, nil
	}
	data, bad := f.look(name, size)
	if data != nil { // it came before we had the lock
		return data, true, nil
	}
	if bad {
		f.corrupt.Add(1)
		f.report(f.discard(name, int64(size)))
	}
	if data, err = get(ctx); err != nil {
		return nil, false, err
	}
	defer f.keeps.Since(time.Now())
	f.report(f.keep(name, data))
	return data, false, nil
}

// Touch notes that a chunk is in use, at most once a minute.
func (f *Folder) Touch(name chunk.Name) {
	path := chunkPath(f.dir, name)
	if info, err := os.Lstat(path); err == nil {
		f.used(path, usesOf(info))
	}
}

// stat gives the length of a chunk's file, if there is one.
func (f *Folder) stat(name chunk.Name) (size int64, there bool) {
	info, err := os.Lstat(chunkPath(f.dir, name))
	if err != nil || !info.Mode().IsRegular() {
		return 0, false
	}
	return info.Size(), true
}

// report counts what went wrong with keeping chunks, and warns of the first.
func (f *Folder) report(err error) {
	if err == nil {
		f.failing.Store(false)
		return
	}
	f.failures.Add(1)
	if !f.failing.Swap(true) && f.Warn != nil {
		f.Warn(fmt.Errorf("cache: chunks are not kept in %s, reads go on: %w", f.dir, err))
	}
}

// look gives the chunk if its file is there and right. bad: it is there, and
// not right. A file that cannot be read is as good as none.
func (f *Folder) look(name chunk.Name, size int) (data []byte, bad bool) {
	path := chunkPath(f.dir, name)
	file, err := openUnused(path)
	if err != nil {
		return nil, errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) // a link, a socket
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, false
	}
	if info.Size() != int64(size) || !info.Mode().IsRegular() {
		return nil, true
	}
	data = make([]byte, size)
	if _, err := io.ReadFull(file, data); err != nil || chunk.Check(data, name) != nil {
		return nil, true
	}
	f.used(path, usesOf(info))
	return data, false
}

// openChunk opens for reading what should be a regular file; O_NONBLOCK, so
// that nothing else can stop it.
func openChunk(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
}

// openUnused is openChunk for its owner, whose reading sets no atime: what is a
// use says used.
func openUnused(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		return openChunk(path)
	}
	return file, err
}

// claim waits for the chunk's lock or for the chunk, whichever comes first. It
// gives neither if another process holds the lock for too long, or if the
// folder cannot be locked: then the chunk is fetched all the same.
func (f *Folder) claim(ctx context.Context, name chunk.Name, size int) (lock *os.File, data []byte, err error) {
	lock, err = f.openLock()
	if err != nil {
		return nil, nil, nil // keeping the chunk will fail, and be reported
	}
	until := time.Now().Add(f.patience)
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		ok, err := tryLock(lock, unix.F_WRLCK, chunkByte(name))
		if ok {
			return lock, nil, nil
		}
		if err != nil || time.Now().After(until) {
			break
		}
		if err := sleep(ctx, pause); err != nil {
			_ = lock.Close()
			return nil, nil, err
		}
		if data, _ := f.look(name, size); data != nil {
			_ = lock.Close()
			return nil, data, nil
		}
	}
	_ = lock.Close()
	return nil, nil, nil
}

// openLock opens the lock file anew: locks belong to one opening, and the
// folder may be another than before.
func (f *Folder) openLock() (*os.File, error) { return f.openOwn(lockName) }

// openOwn opens one of the folder's own files, and makes it and the folder if
// they are missing.
func (f *Folder) openOwn(name string) (*os.File, error) {
	const flags = os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	file, err := os.OpenFile(f.path(name), flags, 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		if err = f.make(); err == nil {
			file, err = os.OpenFile(f.path(name), flags, 0o644)
		}
	}
	return file, err
}

// make makes the folder, and those above it as the umask has it.
func (f *Folder) make() error {
	if err := os.MkdirAll(filepath.Dir(f.dir), dirPerm); err != nil {
		return err
	}
	return errors.Join(makeDir(f.dir), makeDir(f.path(chunksDir)))
}

// makeDir makes a folder that agents can look into, whatever the umask is.
func makeDir(path string) error {
	err := os.Mkdir(path, dirPerm)
	if err == nil {
		err = os.Chmod(path, dirPerm)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// notHere tells whether an error means that the kernel or the file system has
// no such feature.
func notHere(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EISDIR) || errors.Is(err, syscall.EINVAL)
}
