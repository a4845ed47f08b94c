package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

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

// Run exports. The file is written beside its place and moved there.
func (c *exportCmd) Run(ctx context.Context, g *Globals) (err error) {
	if _, err := os.Lstat(c.File); err == nil && !c.Force {
		return fmt.Errorf("%s exists: give another name, or --force", c.File)
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
	f, err := os.CreateTemp(filepath.Dir(c.File), "."+filepath.Base(c.File)+".*.part")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := writeDevice(ctx, f, img.Manifest, s.Chunks(img.Root)); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if c.Force {
		return os.Rename(f.Name(), c.File)
	}
	if err := os.Link(f.Name(), c.File); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s exists: give another name, or --force", c.File)
		}
		return err
	}
	return os.Remove(f.Name())
}

// writeDevice writes every chunk to its place.
func writeDevice(ctx context.Context, f *os.File, m *manifest.Manifest, src chunk.Source) error {
	if err := f.Truncate(m.Size); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(exportWorkers)
	for _, e := range m.Chunks {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			sealed, err := src.Get(ctx, e.Name)
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
	return g.Wait()
}
