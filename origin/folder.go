package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// folder keeps each object in a file of its key's path. How it writes is told
// in folder_write.go.
type folder struct {
	dir   string
	named bool // never write to files without a name; for tests

	mu    sync.Mutex          // guards ready
	ready map[string]struct{} // folders known to exist and to survive a power cut
}

func openFolder(u *url.URL) (*folder, error) {
	dir, err := folderPath(u)
	if err != nil {
		return nil, err
	}
	f := &folder{dir: filepath.Clean(dir), ready: map[string]struct{}{}}
	f.clean()
	return f, nil
}

// path gives the file of a key. Callers check keys; this is the last line
// against one that leaves the folder or meets an unfinished file.
func (f *folder) path(key string) (string, error) {
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("%q cannot be a key", key)
		}
	}
	return filepath.Join(f.dir, filepath.FromSlash(key)), nil
}

// Get implements Reader.
func (f *folder) Get(_ context.Context, key string, limit int64) ([]byte, error) {
	path, err := f.path(key)
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO would block
	if err != nil {
		return nil, f.explainRead(err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, f.explainRead(err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a file", ErrCorrupt, path)
	}
	if st.Size() > limit {
		return nil, tooLong(limit)
	}
	data := make([]byte, st.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, f.explainRead(err)
	}
	return data, nil
}

// Stat implements Reader.
func (f *folder) Stat(_ context.Context, key string) (Entry, error) {
	path, err := f.path(key)
	if err != nil {
		return Entry{}, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return Entry{}, f.explainRead(err)
	}
	if !st.Mode().IsRegular() {
		return Entry{}, fmt.Errorf("%w: %s is not a file", ErrCorrupt, path)
	}
	return Entry{Key: key, Size: st.Size(), ModTime: st.ModTime()}, nil
}

// List implements Reader.
func (f *folder) List(ctx context.Context, prefix string, shallow bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		parent, start := "", prefix
		if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
			parent, start = prefix[:i+1], prefix[i+1:]
		}
		f.walk(ctx, walk{parent, start, shallow}, yield)
	}
}

// walk lists one folder: the key that leads to it ends in a slash.
type walk struct {
	parent, start string // of names in it, only those with this start
	shallow       bool
}

// walk reports whether to go on.
func (f *folder) walk(ctx context.Context, w walk, yield func(Entry, error) bool) bool {
	items, err := os.ReadDir(filepath.Join(f.dir, filepath.FromSlash(w.parent)))
	if errors.Is(err, fs.ErrNotExist) {
		return true // no object, no folder
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		yield(Entry{}, f.explain(err))
		return false
	}
	for _, item := range items {
		name := item.Name()
		if name[0] == '.' || !strings.HasPrefix(name, w.start) {
			continue
		}
		if !f.walkItem(ctx, item, w, yield) {
			return false
		}
	}
	return true
}

func (f *folder) walkItem(ctx context.Context, item fs.DirEntry, w walk, yield func(Entry, error) bool) bool {
	key := w.parent + item.Name()
	if item.IsDir() && !w.shallow {
		return f.walk(ctx, walk{parent: key + "/"}, yield)
	}
	if item.IsDir() {
		return !f.holdsAny(ctx, key+"/") || yield(Entry{Key: key + "/", Dir: true}, nil)
	}
	if w.shallow {
		// Without a look at the file: one getdents(2) reads a small folder while
		// the kernel keeps it from changing, but files go between two calls.
		return !item.Type().IsRegular() || yield(Entry{Key: key}, nil)
	}
	st, err := item.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return true // removed since
	}
	if err != nil {
		yield(Entry{}, f.explain(err))
		return false
	}
	return !st.Mode().IsRegular() || yield(Entry{Key: key, Size: st.Size(), ModTime: st.ModTime()}, nil)
}

// holdsAny tells a folder with objects from what removals left behind. One that
// cannot be read counts: whoever looks inside will meet the error.
func (f *folder) holdsAny(ctx context.Context, prefix string) (found bool) {
	f.walk(ctx, walk{parent: prefix}, func(Entry, error) bool {
		found = true
		return false
	})
	return found
}

// absent is absenter.absent. Each origin has its first root from its first put
// on, and a mount point without its file system has not.
func (f *folder) absent() error {
	if _, err := os.Stat(filepath.Join(f.dir, rootsKey)); errors.Is(err, fs.ErrNotExist) {
		return ErrAbsent
	}
	return nil // or the next read will tell
}

func (f *folder) free() (int64, error) {
	dir := f.dir
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return int64(st.Bavail) * st.Bsize, nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, fs.ErrNotExist) || parent == dir {
			return 0, fmt.Errorf("origin: free space of %s: %w", f.dir, f.explain(err))
		}
		dir = parent // the folder is made by the first put
	}
}

// explainRead is explain where a missing file is a missing object.
func (f *folder) explainRead(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return f.explain(err)
}

// explain gives the system's errors the package's words and says what to do.
func (f *folder) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: make room on the disk of %s: %w", ErrFull, f.dir, err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %s is mounted read-only: %w", ErrRefused, f.dir, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: this user needs permission on the folder: %w", ErrRefused, err)
	}
	return err
}
