package convert

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"thaw/chunk"
	"thaw/manifest"
)

const (
	// bufferBytes bounds the chunks that wait to be sealed or stored. It must
	// cover the time of a put at the speed of decompression: 128 puts of 512 KiB
	// in 0.2 s are 320 MB/s, and a busy disk's commits take that long.
	bufferBytes = 64 << 20
	// uploadWorkers is how many chunks are sealed and stored at once. Most of
	// them wait for the store, so it does not follow the number of cores.
	uploadWorkers = 32
)

// uploader seals chunks and stores them, a bounded number at a time. The first
// failure ends its context, whose cause it is, and all that comes after is
// dropped.
type uploader struct {
	ctx     context.Context
	fail    context.CancelCauseFunc
	workers sync.WaitGroup
	store   chunk.Store
	salt    chunk.Salt
	size    int // of a chunk, in bytes
	jobs    chan job
	buffers chan []byte // free ones, all zeros
	prime   *primer     // nil for none; set before the first chunk comes
}

// job is one chunk on its way into a table.
type job struct {
	index uint32
	buf   []byte
	into  *table
}

// newUploader starts the workers. The caller calls close once nothing more
// comes.
func newUploader(ctx context.Context, store chunk.Store, salt chunk.Salt, size int) *uploader {
	n := max(bufferBytes/size, 4)
	u := &uploader{store: store, salt: salt, size: size, jobs: make(chan job, n), buffers: make(chan []byte, n)}
	for range n {
		u.buffers <- nil // made when first used
	}
	u.ctx, u.fail = context.WithCancelCause(ctx)
	for range min(uploadWorkers, n) {
		u.workers.Go(u.work)
	}
	return u
}

// close ends the workers, after the last chunk or the first failure, and gives
// that.
func (u *uploader) close() error {
	close(u.jobs)
	u.workers.Wait()
	err := context.Cause(u.ctx)
	u.fail(nil)
	return err
}

func (u *uploader) work() {
	for j := range u.jobs {
		if u.ctx.Err() == nil {
			if err := u.one(j); err != nil {
				u.fail(err)
			}
		}
		clear(j.buf)
		u.buffers <- j.buf
		j.into.pending.Done()
	}
}

func (u *uploader) one(j job) error {
	s := chunk.Seal(u.salt, j.buf)
	if len(s.Data) == 0 {
		return nil
	}
	if _, err := u.store.Put(u.ctx, s.Name, s.Data); err != nil {
		return fmt.Errorf("storing chunk %s: %w", s.Name, err)
	}
	u.prime.one(u.ctx, s)
	j.into.add(manifest.Entry{Index: j.index, Size: uint32(len(s.Data)), Name: s.Name, Key: s.Key})
	return nil
}

// table collects the entries of one layer's data, or of a device's metadata.
type table struct {
	pending sync.WaitGroup // chunks on their way

	mu      sync.Mutex // guards entries
	entries []manifest.Entry
}

func (t *table) add(e manifest.Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
}

// finish waits for the chunks on their way and gives the entries in order. The
// uploader's context tells whether they are all there.
func (t *table) finish(u *uploader) ([]manifest.Entry, error) {
	t.pending.Wait()
	if err := context.Cause(u.ctx); err != nil {
		return nil, err
	}
	slices.SortFunc(t.entries, byIndex)
	return t.entries, nil
}

// chunker cuts what is written into chunks for a table. It is an io.WriterAt
// for one goroutine that writes each chunk's bytes one after the other: a
// chunk is sent when the next one begins. flush sends the last.
type chunker struct {
	u     *uploader
	into  *table
	index int64
	buf   []byte
}

// WriteAt copies p into the chunks that it touches.
func (c *chunker) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		index, in := at/int64(c.u.size), int(at%int64(c.u.size))
		if c.buf == nil || index != c.index {
			if err := c.begin(index); err != nil {
				return done, err
			}
		}
		done += copy(c.buf[in:], p[done:])
	}
	return done, nil
}

// begin sends the open chunk and takes a buffer for the next.
func (c *chunker) begin(index int64) error {
	if err := c.flush(); err != nil {
		return err
	}
	select {
	case c.buf = <-c.u.buffers:
	case <-c.u.ctx.Done():
		return context.Cause(c.u.ctx)
	}
	if c.buf == nil {
		c.buf = make([]byte, c.u.size)
	}
	c.index = index
	return nil
}

// flush sends the open chunk.
func (c *chunker) flush() error {
	if c.buf == nil {
		return nil
	}
	c.into.pending.Add(1)
	j := job{index: uint32(c.index), buf: c.buf, into: c.into}
	c.buf = nil
	select {
	case c.u.jobs <- j:
		return nil
	case <-c.u.ctx.Done():
		c.into.pending.Done()
		return context.Cause(c.u.ctx)
	}
}
