package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

const (
	// pinsDir holds a file for each list of chunks that eviction leaves: their
	// names, 32 bytes each. It is read whenever the folder is full.
	pinsDir = "pins"
	// maxPins bounds a list: 512 GiB of chunks of 512 KiB, in 32 MiB.
	maxPins = 1 << 20
	// emptyWithin bounds the wait for those who add chunks.
	emptyWithin = 10 * keepWithin
	listLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
)

// Pin has all processes that evict from the folder leave chunks where they are,
// those that are there and those that come, until Unpin. list names them, in
// letters, digits and hyphens; a list of that name is replaced. How many bytes
// may be pinned is for the caller to say: what is pinned is no room for others.
func (f *Folder) Pin(list string, names []chunk.Name) error {
	path, err := f.pinPath(list)
	if err != nil {
		return err
	}
	if len(names) > maxPins {
		return fmt.Errorf("cache: %d chunks to pin, more than %d", len(names), maxPins)
	}
	data := make([]byte, 0, len(names)*len(chunk.Name{}))
	for _, n := range names {
		data = append(data, n[:]...)
	}
	if err := f.make(); err != nil {
		return err
	}
	if err := makeDir(f.path(pinsDir)); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Unpin forgets a list. The chunks stay until eviction comes to them.
func (f *Folder) Unpin(list string) error {
	path, err := f.pinPath(list)
	if err == nil {
		err = os.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Pins names the lists that there are.
func (f *Folder) Pins() (lists []string, err error) {
	items, err := os.ReadDir(f.path(pinsDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, item := range items {
		if _, perr := f.pinPath(item.Name()); perr == nil {
			lists = append(lists, item.Name())
		}
	}
	return lists, err
}

// Has tells whether a chunk's file is there, with the length that it has to
// have. It is not hashed.
func (f *Folder) Has(name chunk.Name, size int) bool {
	got, there := f.stat(name)
	return there && got == int64(size)
}

func (f *Folder) pinPath(list string) (string, error) {
	if list == "" || len(list) > 128 || strings.Trim(list, listLetters) != "" {
		return "", fmt.Errorf("cache: %.40q is no name for a list of chunks", list)
	}
	return filepath.Join(f.dir, pinsDir, list), nil
}

// pinned gives the chunks of all lists. A list that cannot be read pins nothing.
func (f *Folder) pinned() map[chunk.Name]bool {
	lists, _ := f.Pins()
	var all map[chunk.Name]bool
	for _, list := range lists {
		path := filepath.Join(f.dir, pinsDir, list)
		info, err := os.Stat(path)
		if err != nil || info.Size() > maxPins*int64(len(chunk.Name{})) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data)%len(chunk.Name{}) != 0 {
			continue
		}
		if all == nil {
			all = make(map[chunk.Name]bool, len(data)/len(chunk.Name{}))
		}
		for ; len(data) > 0; data = data[len(chunk.Name{}):] {
			all[chunk.Name(data[:len(chunk.Name{})])] = true
		}
	}
	return all
}

// Empty removes all chunks but those that are pinned, or these too, and what is
// known of uses, for who measures starts without them. It tells the bytes that
// are left. Chunks that somebody has open can be read to their end.
func (f *Folder) Empty(ctx context.Context, pinned bool) (left int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, emptyWithin)
	defer cancel()
	f.evicting.Lock()
	defer f.evicting.Unlock()
	guard, err := f.guard(ctx, unix.F_WRLCK)
	if err != nil {
		return 0, err
	}
	defer guard.Close()
	var failed error
	err = f.account(ctx, func(int64, bool) (int64, bool) {
		left, failed = f.removeAll(pinned)
		return left, failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return left, fmt.Errorf("cache: emptying %s: %w", f.dir, err)
	}
	return left, nil
}

func (f *Folder) removeAll(pinned bool) (left int64, err error) {
	chunks, left, err := f.scan()
	if err != nil {
		return left, err
	}
	var stay map[chunk.Name]bool
	if !pinned {
		stay = f.pinned()
	}
	for _, c := range chunks {
		if stay[c.name] {
			continue
		}
		if err := os.Remove(chunkPath(f.dir, c.name)); err != nil {
			return left, err
		}
		left -= c.size
	}
	if err := os.Remove(f.path(pastName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return left, err
	}
	return left, nil
}
