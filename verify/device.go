package verify

import (
	"context"
	"fmt"
	"io"
	"slices"

	"thaw/chunk"
	"thaw/manifest"
)

// readerCache is how many bytes of opened chunks a Reader keeps: 32 chunks of
// the default size, as a tree's walk goes to and fro between inodes,
// directories and data.
const readerCache = 16 << 20

// Reader is a device read through its chunks. It is for one user at a time.
type Reader struct {
	m      *manifest.Manifest
	src    chunk.Source
	recent []opened // the one used last comes first
	bytes  int      // of recent
}

// opened is the trimmed plaintext of one chunk.
type opened struct {
	index int64
	data  []byte
}

// Device gives the device that m describes, with its chunks from src. Each is
// fetched whole, checked for length and hash, and kept for a while; up to 16
// MiB are kept. Chunks that the manifest does not list read as zeros.
func Device(m *manifest.Manifest, src chunk.Source) *Reader {
	return &Reader{m: m, src: src}
}

// ReadAt reads from byte off of the device, with the errors of io.ReaderAt. A
// chunk that cannot be had gives chunk.ErrNotFound, chunk.ErrCorrupt or the
// store's own error.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadAtContext(context.Background(), p, off)
}

// ReadAtContext is ReadAt with a context for the store.
func (r *Reader) ReadAtContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("verify: read at %d", off)
	}
	size, done := int64(r.m.ChunkSize), 0
	for done < len(p) && off < r.m.Size {
		data, err := r.chunk(ctx, off/size)
		if err != nil {
			return done, err
		}
		at := off % size
		piece := p[done:]
		piece = piece[:min(int64(len(piece)), size-at, r.m.Size-off)]
		n := 0
		if at < int64(len(data)) {
			n = copy(piece, data[at:])
		}
		clear(piece[n:])
		done, off = done+len(piece), off+int64(len(piece))
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// chunk gives one chunk's trimmed plaintext, nil for one of zeros.
func (r *Reader) chunk(ctx context.Context, index int64) ([]byte, error) {
	for n, o := range r.recent {
		if o.index == index {
			copy(r.recent[1:n+1], r.recent[:n])
			r.recent[0] = o
			return o.data, nil
		}
	}
	n, ok := slices.BinarySearchFunc(r.m.Chunks, index, func(e manifest.Entry, i int64) int {
		return int(int64(e.Index) - i)
	})
	if !ok {
		return nil, nil
	}
	data, err := fetch(ctx, r.src, r.m.Chunks[n])
	if err != nil {
		return nil, err
	}
	r.recent = slices.Insert(r.recent, 0, opened{index, data})
	for r.bytes += len(data); r.bytes > readerCache && len(r.recent) > 1; {
		last := len(r.recent) - 1
		r.bytes -= len(r.recent[last].data)
		r.recent[last] = opened{}
		r.recent = r.recent[:last]
	}
	return data, nil
}
