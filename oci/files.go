package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// maxEntries bounds an archive's index: far more than maxLayers layers of
	// several images, with three files each, need.
	maxEntries = 100_000
	// maxLinks bounds links from one archive entry to the next; docker save
	// makes one.
	maxLinks = 8
	// maxName bounds a name in bytes: the kernel's longest path. archive/tar
	// would take a MiB.
	maxName = 4096
)

// tree is a folder or an archive, read in place. Names are slash-separated and
// relative. A missing file gives ErrNotFound. Readers stay valid until Close.
type tree interface {
	open(name string) (rc io.ReadCloser, size int64, err error)
	Close() error
}

// openFile opens a regular file. Others are refused before a byte is read: to
// open a pipe would wait for its writer.
func openFile(name string) (*os.File, int64, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("%s does not exist: %w", oneLine(name), ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file: %w", oneLine(name), ErrUnsupported)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// folder is a tree of files. Links in it are followed wherever they lead: what
// they lead to is checked by digest.
type folder string

// open is tree.open.
func (d folder) open(name string) (io.ReadCloser, int64, error) {
	f, size, err := openFile(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, 0, err // never a typed nil in the interface
	}
	return f, size, nil
}

// Close has nothing to release.
func (d folder) Close() error { return nil }

// archive is a tree in a tar file: its headers are read once, its files where
// they lie. It never changes once made, and reads by offset only, so it is safe
// for concurrent use. A file that is rewritten meanwhile shows in the digests.
type archive struct {
	file    *os.File
	entries map[string]entry
}

// entry is where an archive's file lies, or what it is a link to.
type entry struct {
	offset, size int64  // bytes
	link         string // a name in the archive; "" for a file
}

// openArchive reads the headers of a tar file.
func openArchive(ctx context.Context, name string) (*archive, error) {
	f, _, err := openFile(name)
	if err != nil {
		return nil, err
	}
	entries, err := scanArchive(ctx, f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("archive: %w", err)
	}
	return &archive{file: f, entries: entries}, nil
}

// scanArchive indexes a tar from its start. Contents are skipped by seeking.
// Where a name comes twice the later one counts, as for tar itself.
func scanArchive(ctx context.Context, f io.ReadSeeker) (map[string]entry, error) {
	if err := refuseCompressed(f); err != nil {
		return nil, err
	}
	entries := map[string]entry{}
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return entries, nil
		}
		if errors.As(err, new(*fs.PathError)) { // the disk's failure, not the archive's
			return nil, err
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d: %s: %w", n, oneLine(err.Error()), ErrCorrupt)
		}
		if n == maxEntries {
			return nil, fmt.Errorf("more than %d entries: %w", maxEntries, ErrUnsupported)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		// archive/tar reads no further than the header, so here begins the data.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if name, e, ok := indexed(hdr, offset); ok {
			entries[name] = e
		}
	}
}

// indexed turns a header into an index entry. What holds no layer (folders,
// devices) and what does not lie in one piece (sparse files) is left out, and
// so is any name that leads out of the archive.
func indexed(hdr *tar.Header, offset int64) (name string, e entry, ok bool) {
	if len(hdr.Name) > maxName || len(hdr.Linkname) > maxName {
		return "", e, false
	}
	name = path.Clean(strings.TrimLeft(hdr.Name, "/"))
	switch hdr.Typeflag {
	case tar.TypeReg:
		for k := range hdr.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return "", e, false
			}
		}
		e = entry{offset: offset, size: hdr.Size}
	case tar.TypeSymlink:
		if path.IsAbs(hdr.Linkname) {
			return "", e, false
		}
		e.link = path.Join(path.Dir(name), hdr.Linkname)
	case tar.TypeLink:
		e.link = path.Clean(strings.TrimLeft(hdr.Linkname, "/"))
	default:
		return "", e, false
	}
	return name, e, fs.ValidPath(name) && (e.link == "" || fs.ValidPath(e.link))
}

// refuseCompressed tells a compressed archive by its first bytes, and leaves f
// at its start.
func refuseCompressed(f io.ReadSeeker) error {
	head, err := bufio.NewReaderSize(f, 16).Peek(4)
	if err != nil && err != io.EOF {
		return err
	}
	if len(head) == 0 {
		return fmt.Errorf("is empty: %w", ErrCorrupt)
	}
	if c := sniff(head); c != plain {
		return fmt.Errorf("is compressed as a whole; unpack it first (gunzip, unzstd): %w", ErrUnsupported)
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// sniff tells a compression by a stream's first bytes.
func sniff(head []byte) compression {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzipped
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstandard
	}
	return plain
}

// open is tree.open. Readers are independent of each other.
func (a *archive) open(name string) (io.ReadCloser, int64, error) {
	e, ok := a.entries[path.Clean(name)]
	for hops := 0; ok && e.link != ""; hops++ {
		if hops == maxLinks {
			return nil, 0, fmt.Errorf("%s in the archive leads through more than %d links: %w", oneLine(name), maxLinks, ErrCorrupt)
		}
		e, ok = a.entries[e.link]
	}
	if !ok {
		return nil, 0, fmt.Errorf("no file %s in the archive: %w", oneLine(name), ErrNotFound)
	}
	return io.NopCloser(io.NewSectionReader(a.file, e.offset, e.size)), e.size, nil
}

// Close ends all readers.
func (a *archive) Close() error { return a.file.Close() }

// readFile reads a whole document of a tree.
func readFile(t tree, name string) ([]byte, error) {
	rc, _, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return readBounded(rc, oneLine(name))
}
