package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/chunk"
	"thaw/manifest"
)

// exportWorkers is how many chunks are read at once.
const exportWorkers = 16

type exportCmd struct {
	Image string `arg:"" help:"Name, id or the start of an id."`
	File  string `arg:"" help:"File to write; it must not exist." type:"path"`
	Force bool   `help:"Replace the file if it exists."`
}

// Help teaches by example.
func (exportCmd) Help() string {
	return `The file has the device's size and takes what its chunks take. It appears whole or not at all.

  thaw export app app.ext4
  e2fsck -fn app.ext4
  debugfs -R 'ls -l /' app.ext4
  mount -o loop app.ext4 /mnt`
}

// Run exports.
func (c *exportCmd) Run(ctx context.Context, g *Globals) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	s, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	img, err := g.load(ctx, s, c.Image)
	if err != nil {
		return err
	}
	f, err := newExportFile(c.File)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	err = writeDevice(ctx, f.File, img.Manifest, s.Chunks(img.Root))
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.File, err)
	}
	err = f.link(c.File)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !c.Force {
		return c.exists()
	}
	if err := c.check(); err != nil {
		return err
	}
	return f.replace(c.File)
}

// check refuses to replace what is there, and ever what is no file: a device or
// a link was not meant to be replaced by a file.
func (c *exportCmd) check() error {
	st, err := os.Lstat(c.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s exists and is no regular file: give another name", c.File)
	case !c.Force:
		return c.exists()
	}
	return nil
}

func (c *exportCmd) exists() error {
	return fmt.Errorf("%s exists: give another name, or --force", c.File)
}

// exportFile is a file without a name (O_TMPFILE), of which nothing stays if
// the process is killed. Where the file system has none, it is a hidden one
// beside its place.
type exportFile struct {
	*os.File
	temp string // its name until it gets the final one, or ""
}

func newExportFile(path string) (*exportFile, error) {
	dir := filepath.Dir(path)
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o644)
	if err == nil {
		if _, err = os.Stat(procPath(f)); err == nil {
			return &exportFile{File: f}, nil
		}
		_ = f.Close() // without /proc it could not be given a name
	} else if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, err // EISDIR is what a kernel without O_TMPFILE says
	}
	return newNamedFile(path)
}

func newNamedFile(path string) (*exportFile, error) {
	f, err := os.OpenFile(hidden(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	return &exportFile{f, f.Name()}, nil
}

// hidden gives a name beside path that nobody has.
func hidden(path string) string {
	return filepath.Join(filepath.Dir(path), ".thaw-export-"+rand.Text()+".part")
}

func procPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// link gives the file a name that is free, or fs.ErrExist.
func (f *exportFile) link(path string) error {
	from := f.temp
	if from == "" {
		from = procPath(f.File) // as open(2) shows: AT_EMPTY_PATH needs a capability
	}
	if err := unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW); err != nil {
		return &os.PathError{Op: "link", Path: path, Err: err}
	}
	return nil
}

// replace gives the file the name of another. Linking cannot replace, so for a
// moment it has a name of its own.
func (f *exportFile) replace(path string) error {
	if f.temp == "" {
		temp := hidden(path)
		if err := f.link(temp); err != nil {
			return err
		}
		f.temp = temp
	}
	return os.Rename(f.temp, path)
}

// close closes the file and leaves it no name but the final one.
func (f *exportFile) close() error {
	err := f.Close()
	if f.temp == "" {
		return err
	}
	if rerr := os.Remove(f.temp); !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr) // after a rename it is gone already
	}
	return err
}

// writeDevice writes every chunk to its place, or fails.
func writeDevice(ctx context.Context, f *os.File, m *manifest.Manifest, src chunk.Source) error {
	if err := f.Truncate(m.Size); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(exportWorkers)
	for _, e := range m.Chunks {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			sealed, err := src.Get(gctx, e.Name)
			if err != nil {
				return fmt.Errorf("chunk %d, %s: %w", e.Index, e.Name, err)
			}
			if len(sealed) != int(e.Size) {
				return fmt.Errorf("chunk %d, %s: %w: %d bytes, the manifest says %d", e.Index, e.Name, chunk.ErrCorrupt, len(sealed), e.Size)
			}
			plain, err := chunk.Open(sealed, e.Name, e.Key)
			if err != nil {
				return fmt.Errorf("chunk %d: %w", e.Index, err)
			}
			_, err = f.WriteAt(plain, int64(e.Index)*int64(m.ChunkSize))
			return err
		})
	}
	return cmp.Or(g.Wait(), ctx.Err()) // cancelled, the loop has left chunks out
}
