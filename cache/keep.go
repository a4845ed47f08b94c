package cache

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// The limit holds across processes, and at any moment of a SIGKILL, because the
// counter is raised before a chunk gets its name and lowered after one has
// gone: it is never below what is stored. Killed in between, it stays too high,
// until the next eviction counts the files. Counting would miss chunks that are
// counted and have no name yet; so who adds holds the guard shared, and who
// evicts holds it alone.

// keep stores a verified chunk. One that is larger than the limit, or that is
// there by now, is not stored.
func (f *Folder) keep(name chunk.Name, data []byte) error {
	size := int64(len(data))
	if size > f.limit {
		return nil
	}
	guard, err := f.reserve(size)
	if err != nil {
		return err
	}
	defer guard.Close()
	err = f.write(name, data)
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil // another process did not wait for us, or we for it
	}
	return errors.Join(err, f.release(size))
}

// reserve makes room for a chunk and counts it. The caller holds the guard,
// shared, until the chunk has its name.
func (f *Folder) reserve(size int64) (guard *os.File, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), f.keepWithin)
	defer cancel()
	guard, err = f.guard(ctx, unix.F_RDLCK)
	if err != nil {
		return nil, err
	}
	fits := false
	err = f.account(ctx, func(used int64, known bool) (int64, bool) {
		fits = known && used <= f.limit-size
		return used + size, fits
	})
	if err == nil && fits {
		return guard, nil
	}
	_ = guard.Close()
	if err != nil {
		return nil, err
	}
	return f.reserveByForce(ctx, size)
}

// errNoRoom says that eviction could not make enough room.
var errNoRoom = errors.New("no room, and chunks cannot be removed")

// reserveByForce evicts, unless another has by now.
func (f *Folder) reserveByForce(ctx context.Context, size int64) (guard *os.File, err error) {
	f.evicting.Lock()
	defer f.evicting.Unlock()
	guard, err = f.guard(ctx, unix.F_WRLCK)
	if err != nil {
		return nil, err
	}
	var failed error
	err = f.account(ctx, func(used int64, known bool) (int64, bool) {
		if !known || used > f.limit-size {
			if used, failed = f.evict(size); failed != nil {
				return 0, false
			}
		}
		if used > f.limit-size {
			failed = fmt.Errorf("%s: %w", f.path(chunksDir), errNoRoom)
			return used, true
		}
		return used + size, true
	})
	err = errors.Join(err, failed)
	if err == nil {
		_, err = tryLock(guard, unix.F_RDLCK, guardByte) // not refused: nobody else holds it
	}
	if err != nil {
		_ = guard.Close()
		return nil, err
	}
	return guard, nil
}

// release gives back what reserve counted. The caller holds the guard.
func (f *Folder) release(size int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), f.keepWithin)
	defer cancel()
	return f.account(ctx, func(used int64, known bool) (int64, bool) {
		return used - size, known && used >= size
	})
}

func (f *Folder) guard(ctx context.Context, kind int16) (*os.File, error) {
	file, err := f.openLock()
	if err != nil {
		return nil, err
	}
	if err := lockWithin(ctx, file, kind, guardByte, shortPause); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

// account reads the counter, and writes what change gives if it says so, in one
// step for all processes.
func (f *Folder) account(ctx context.Context, change func(used int64, known bool) (int64, bool)) error {
	file, err := f.openOwn(usedName)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := lockWithin(ctx, file, unix.F_WRLCK, 0, shortPause); err != nil {
		return err
	}
	var b [9]byte
	n, _ := file.ReadAt(b[:], 0) // an error leaves the count unknown
	used, store := change(decodeUsed(b[:n]))
	if !store {
		return nil
	}
	_, err = file.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(used)), 0)
	return err
}

func decodeUsed(b []byte) (used int64, known bool) {
	if len(b) != 8 {
		return 0, false
	}
	used = int64(binary.BigEndian.Uint64(b))
	return used, used >= 0
}

// distrust forgets a counter from before the machine started: a power cut may
// have lost its last writes and not the chunks'.
func (f *Folder) distrust() {
	var up unix.Timespec
	info, err := os.Stat(f.path(usedName))
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return
	}
	if boot := time.Now().Add(-time.Duration(up.Nano())); info.ModTime().Before(boot) {
		_ = os.Truncate(f.path(usedName), 0)
	}
}

// evict removes chunks until one of size bytes fits, and then some, so that it
// need not run again soon. What is pinned stays. It gives the bytes that are left. The caller holds
// the guard alone.
func (f *Folder) evict(size int64) (left int64, err error) {
	chunks, left, err := f.scan()
	if err != nil || left <= f.limit-size { // or the counter was too high
		return left, err
	}
	target := min(f.limit-size, f.limit/10*9)
	past := f.openPast()
	defer past.close()
	pinned := f.pinned()
	next := order(chunks)
	for i := next(); i >= 0 && left > target; i = next() {
		c := &chunks[i]
		if pinned[c.name] {
			continue
		}
		if os.Remove(chunkPath(f.dir, c.name)) == nil {
			left -= c.size
			f.evicted.Add(1)
			past.remember(c.name, c.uses.last)
		}
	}
	return left, nil
}

// scan lists the chunks and adds up their bytes. What has no chunk's name is
// not ours, and neither counted nor removed.
func (f *Folder) scan() (chunks []stored, total int64, err error) {
	dirs, err := os.ReadDir(f.path(chunksDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err // to count what can be seen would be too little
	}
	for _, dir := range dirs {
		if !dir.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(f.dir, chunksDir, dir.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, err
		}
		for _, file := range files {
			name, err := chunk.ParseName(file.Name())
			if err != nil || file.Name()[:2] != dir.Name() {
				continue
			}
			if info, err := file.Info(); err == nil && info.Mode().IsRegular() {
				chunks = append(chunks, stored{name, info.Size(), usesOf(info)})
				total += info.Size()
			}
		}
	}
	return chunks, total, nil
}

// discard removes a bad file. The caller has the chunk's lock.
func (f *Folder) discard(name chunk.Name, size int64) error {
	ctx, cancel := context.WithTimeout(context.Background(), f.keepWithin)
	defer cancel()
	guard, err := f.guard(ctx, unix.F_RDLCK)
	if err != nil {
		return err
	}
	defer guard.Close()
	path := chunkPath(f.dir, name)
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() != size || !info.Mode().IsRegular() {
		return err // of another length, it was counted by one that we do not know
	}
	return f.release(size)
}

// write gives data its name, which must not be taken. The file is invisible
// until it is whole: it has no name (O_TMPFILE), or one in tmp under a flock,
// by which clean knows it from a leftover.
func (f *Folder) write(name chunk.Name, data []byte) error {
	path := chunkPath(f.dir, name)
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(makeDir(filepath.Dir(dir)), makeDir(dir)); err != nil {
			return err
		}
	}
	u := f.arriving(name)
	if f.named {
		return f.writeNamed(path, data, u)
	}
	err := writeUnnamed(dir, path, data, u)
	if notHere(err) || errors.Is(err, fs.ErrNotExist) { // which /proc may be
		return f.writeNamed(path, data, u)
	}
	return err
}

func writeUnnamed(dir, path string, data []byte, u uses) error {
	file, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_WRONLY, filePerm)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := fill(file, data, u); err != nil {
		return err
	}
	proc := "/proc/self/fd/" + strconv.Itoa(int(file.Fd())) // AT_EMPTY_PATH needs a capability
	if err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.PathError{Op: "link", Path: path, Err: err}
	}
	return nil
}

func fill(file *os.File, data []byte, u uses) error {
	if _, err := file.Write(data); err != nil {
		return err
	}
	_ = unix.UtimesNanoAt(int(file.Fd()), "", u.times(), unix.AT_EMPTY_PATH) // as of used
	return file.Chmod(filePerm)                                              // past the umask
}

func (f *Folder) writeNamed(path string, data []byte, u uses) error {
	if err := makeDir(f.path(tempDir)); err != nil {
		return err
	}
	file, err := f.createTemp()
	if err != nil {
		return err
	}
	defer file.Close() // and with it the lock, last
	if err = fill(file, data, u); err == nil {
		err = os.Link(file.Name(), path)
	}
	_ = os.Remove(file.Name())
	return err
}

// createTemp gives a new file in tmp with its lock held. Between creation and
// lock another's clean may take it for a leftover: it has no name left then,
// and the next is made.
func (f *Folder) createTemp() (*os.File, error) {
	for range 100 { // one would have to lose every time
		file, err := os.OpenFile(filepath.Join(f.dir, tempDir, rand.Text()), os.O_CREATE|os.O_EXCL|os.O_WRONLY, filePerm)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			err = unix.Fstat(int(file.Fd()), &st)
		}
		if err == nil && st.Nlink > 0 {
			return file, nil
		}
		_ = os.Remove(file.Name())
		_ = file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) { // which is a clean at work
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: other processes keep removing temporary files", f.dir)
}

// clean removes what killed processes left in tmp.
func (f *Folder) clean() {
	items, _ := os.ReadDir(f.path(tempDir))
	for _, item := range items {
		file, err := openChunk(filepath.Join(f.dir, tempDir, item.Name()))
		if err != nil {
			continue
		}
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.Remove(file.Name())
		}
		_ = file.Close()
	}
}
