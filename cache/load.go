package cache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// held is a chunk in memory. It is a chunk.Verified.
type held struct {
	data []byte // nobody changes it
}

// ReadAt implements io.ReaderAt.
func (h *held) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, os.ErrInvalid
	}
	if off >= int64(len(h.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close does nothing: the garbage collector knows when the last reader is gone.
func (h *held) Close() error { return nil }

// openFile is a chunk's file that has been hashed. It is a chunk.Verified for
// each who has a reference.
type openFile struct {
	c    *Client
	file *os.File
	name chunk.Name
	size int
	refs atomic.Int32 // one of the client's list, while it is there, and the readers'
}

// ReadAt implements io.ReaderAt. A file that has been cut since it was hashed
// is read from where the client finds the chunk now.
func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, os.ErrInvalid
	}
	part, end := p, error(nil)
	if left := int64(f.size) - off; int64(len(p)) > left {
		part, end = p[:max(left, 0)], io.EOF
	}
	if n, err := f.file.ReadAt(part, off); n < len(part) {
		if errors.Is(err, fs.ErrClosed) {
			return n, err
		}
		if err := f.c.readElsewhere(f, part, off); err != nil {
			return 0, err
		}
	}
	return len(part), end
}

// Close gives a reference back. Each Find is closed once.
func (f *openFile) Close() error {
	if f.refs.Add(-1) != 0 {
		return nil
	}
	return f.file.Close()
}

// readElsewhere drops a file that cannot be read, and finds the chunk anew.
func (c *Client) readElsewhere(f *openFile, p []byte, off int64) error {
	c.mu.Lock()
	if r := c.records[f.name]; r.file == f {
		r.known = identity{}
		c.files.remove(r.fileAt)
	}
	c.mu.Unlock()
	v, err := c.Find(context.Background(), f.name, f.size) // the client's deadline bounds it
	if err != nil {
		return err
	}
	defer v.Close()
	_, err = v.ReadAt(p, off)
	return err
}

// identity changes when a file's content does, unless somebody turns back the
// clock: no system call sets ctime.
type identity struct {
	dev, ino uint64
	ctime    unix.Timespec
	size     int64
}

// open opens a chunk's file in the folder. Its length and content are not
// checked.
func (c *Client) open(name chunk.Name) (*os.File, identity, error) {
	file, err := openUnused(chunkPath(c.o.Folder, name))
	if err != nil {
		return nil, identity{}, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(file.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = chunk.ErrCorrupt
	}
	if err != nil {
		_ = file.Close()
		return nil, identity{}, err
	}
	return file, identity{st.Dev, st.Ino, st.Ctim, st.Size}, nil
}

// reopen gives the file of a chunk that was hashed before, here or by the
// fetcher for a prefetch, and is the same still; nil: it is not so.
func (c *Client) reopen(name chunk.Name, size int) chunk.Verified {
	c.mu.Lock()
	var known identity
	if r := c.records[name]; r != nil {
		known = r.known
	}
	c.mu.Unlock()
	if known.size != int64(size) {
		return nil
	}
	file, id, err := c.open(name)
	if err != nil {
		return nil
	}
	if id != known {
		_ = file.Close()
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keepOpen(name, size, file)
	c.first(c.record(name), Cache, size) // of one that was prefetched
	v, _ := c.atHand(name, size)
	return v
}

// keepOpen takes a hashed file into the list, or closes it if there is one
// already. It needs mu held.
func (c *Client) keepOpen(name chunk.Name, size int, file *os.File) {
	r := c.record(name)
	if r.file != nil || c.closed {
		_ = file.Close()
		return
	}
	r.file = &openFile{c: c, file: file, name: name, size: size}
	r.file.refs.Store(1)
	r.fileAt = c.files.add(r, 1)
}

// keepHeld takes a chunk into memory. It needs mu held.
func (c *Client) keepHeld(r *record, h *held) {
	if r.held != nil {
		c.memory.remove(r.heldAt)
	}
	if size := int64(len(h.data)); size <= c.memory.limit && !c.closed {
		r.held, r.heldAt = h, c.memory.add(r, size)
	}
}

// load is the work for a chunk that is not at hand. It gives nil if the chunk's
// file is open now. It tries until its ctx ends, that is, until nobody waits any
// more.
func (c *Client) load(w wanted) work[*held] {
	return func(ctx context.Context, u under[*held]) (*held, error) {
		bad := false
		for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
			if !bad { // a bad file is counted once, and is the fetcher's to replace
				var good bool
				if good, bad = c.fromFolder(ctx, w); good {
					return nil, nil
				}
			}
			h, err := c.fromFetcher(ctx, w)
			if err == nil || ctx.Err() != nil {
				return h, err
			}
			var failed *failure
			if !errors.As(err, &failed) {
				failed = &failure{status: statusUnavailable, text: oneLine(err.Error())}
			}
			if failed.status != statusUnavailable {
				return nil, failed
			}
			u.tell(failed)
			if err := sleep(ctx, pause); err != nil {
				return nil, err
			}
		}
	}
}

// fromFolder hashes a chunk's file, and leaves it open. bad: it is there, and
// wrong.
func (c *Client) fromFolder(ctx context.Context, w wanted) (good, bad bool) {
	if !take(ctx, c.reading) {
		return false, false
	}
	defer func() { <-c.reading }()
	began := time.Now()
	file, id, err := c.open(w.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false
	}
	if err == nil {
		if err = c.check(file, id, w); err != nil {
			_ = file.Close()
		}
	}
	if err != nil {
		bad = errors.Is(err, chunk.ErrCorrupt)
		c.count(Cache, func(n *Count) {
			if bad {
				n.Corrupt++
			} else {
				n.Errors++
			}
		})
		return false, bad
	}
	c.times.tiers[Cache].Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.record(w.name)
	r.known = id
	c.first(r, Cache, w.size) // those who wait count their hits
	c.keepOpen(w.name, w.size, file)
	return true, false
}

// check reads the whole file, and holds it to the name. The memory is used
// again: fresh pages would cost as much as the hash.
func (c *Client) check(file *os.File, id identity, w wanted) error {
	if id.size != int64(w.size) {
		return chunk.ErrCorrupt
	}
	defer c.times.hash.Since(time.Now())
	buffer, _ := c.buffers.Get().(*[]byte)
	if buffer == nil || cap(*buffer) < w.size {
		fresh := make([]byte, w.size)
		buffer = &fresh
	}
	defer c.buffers.Put(buffer)
	data := (*buffer)[:w.size]
	if _, err := io.ReadFull(file, data); errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return chunk.ErrCorrupt
	} else if err != nil {
		return err
	}
	return chunk.Check(data, w.name)
}

// fromFetcher asks once.
func (c *Client) fromFetcher(ctx context.Context, w wanted) (*held, error) {
	if !take(ctx, c.asking) {
		return nil, ctx.Err()
	}
	defer func() { <-c.asking }()
	// The fetcher is to say why it failed before those who wait have gone.
	wait := max(c.o.Deadline-min(c.o.Deadline/10, time.Second), time.Millisecond)
	began := time.Now()
	a, err := c.links.call(ctx, request{op: opGet, wait: wait, size: uint32(w.size), name: w.name})
	if err != nil {
		return nil, err
	}
	if a.failed != nil {
		c.count(a.failed.tier, func(n *Count) {
			if a.failed.status == statusCorrupt {
				n.Corrupt++
			} else {
				n.Errors++
			}
		})
		return nil, a.failed
	}
	c.times.tiers[a.tier].Since(began)
	h := &held{data: a.data}
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.record(w.name)
	r.touched = time.Since(c.start) // its file is new
	c.first(r, a.tier, w.size)
	c.stats.of(a.tier).Hits++
	c.keepHeld(r, h)
	return h, nil
}
