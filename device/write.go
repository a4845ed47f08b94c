package device

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
)

// WriteAt puts p at off. Pages of which only a part is written are read first.
//
// After an error each page has either its old or its new contents; the error
// tells from which page on they are old. It wraps that of base or file, such as
// ENOSPC, or of ctx. A range that does not lie within the device gives ErrRange,
// and nothing is written.
func (o *Overlay) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := within(o.size, off, int64(len(p))); err != nil {
		return err
	}
	b := o.buffers.Get().(*[bufferSize]byte)
	defer o.buffers.Put(b)
	for len(p) > 0 {
		n := min(len(p), bufferSize-int(off%pageSize))
		if done, err := o.write(ctx, b[:], p[:n], off); err != nil {
			return fmt.Errorf("overlay: contents are old from page %d on: %w", off/pageSize+done, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// write puts p, whose pages fit into b, at off. It tells how many pages have
// their new contents.
func (o *Overlay) write(ctx context.Context, b, p []byte, off int64) (done int64, err error) {
	first, end := off/pageSize, off+int64(len(p))
	b = b[:(up(end)-first)*pageSize]
	parts := parts(off, end)
	for _, page := range parts { // ahead of the lock, as it may take long; the base never changes
		if o.pages.state(page) == inBase {
			if err := o.readBase(ctx, pageOf(b, page-first), page*pageSize); err != nil {
				return 0, err
			}
		}
	}
	lock, err := o.locks.lock(ctx, first, up(end), true)
	if err != nil {
		return 0, err
	}
	defer o.locks.unlock(lock)
	for _, page := range parts {
		switch o.pages.state(page) {
		case inFile:
			if err := o.loadPages(pageOf(b, page-first), page); err != nil {
				return 0, err
			}
		case zeroed:
			clear(pageOf(b, page-first))
		}
	}
	copy(b[off%pageSize:], p)
	return o.store(b, first)
}

// parts gives the pages of which only a part lies between off and end: up to
// two.
func parts(off, end int64) (pages []int64) {
	if off%pageSize > 0 {
		pages = append(pages, off/pageSize)
	}
	if end%pageSize > 0 && (pages == nil || pages[0] != end/pageSize) {
		pages = append(pages, end/pageSize)
	}
	return pages
}

func pageOf(b []byte, i int64) []byte { return b[i*pageSize:][:pageSize] }

// store encrypts b and writes it to the file as the locked pages from first on.
// It tells how many have their new contents, whether it fails or not.
func (o *Overlay) store(b []byte, first int64) (done int64, err error) {
	if err := o.torn.err(); err != nil {
		return 0, err
	}
	for i := range int64(len(b) / pageSize) {
		o.cipher.Encrypt(pageOf(b, i), pageOf(b, i), uint64(first+i))
	}
	n, err := o.file.WriteAt(b, first*pageSize)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	done = int64(n / pageSize)
	o.pages.set(first, first+done, inFile)
	if n%pageSize > 0 && o.pages.state(first+done) == inFile {
		o.torn.keep(first+done, pageOf(b, done), err)
		done++
	}
	return done, err
}

// Discard makes n bytes from off on zeros, and gives back the space of the whole
// pages among them if the file can. An error with "punch" in it concerns the
// space alone: the bytes are zeros all the same. Others are as for WriteAt.
func (o *Overlay) Discard(ctx context.Context, off, n int64) error {
	if err := within(o.size, off, n); err != nil {
		return err
	}
	end := off + n
	from, to := up(off), end/pageSize
	if end == o.size {
		to = up(end) // nothing lies behind
	}
	if from >= to { // no whole page
		return o.WriteAt(ctx, make([]byte, n), off)
	}
	tail := max(0, end-to*pageSize)
	if err := o.WriteAt(ctx, make([]byte, from*pageSize-off), off); err != nil {
		return err
	}
	if err := o.WriteAt(ctx, make([]byte, tail), end-tail); err != nil {
		return err
	}
	lock, err := o.locks.lock(ctx, from, to, true)
	if err != nil {
		return err
	}
	defer o.locks.unlock(lock)
	o.pages.set(from, to, zeroed)
	if f, ok := o.file.(HolePuncher); ok {
		if err := f.PunchHole(from*pageSize, (to-from)*pageSize); err != nil {
			return fmt.Errorf("overlay file: punch pages %d to %d: %w", from, to-1, err)
		}
	}
	return nil
}

// torn keeps encrypted pages whose bytes in the file are a mix: a write ended
// within them. A file that does this to a page it had is not trusted with
// another byte, so there are never more than there have been writes at once.
type torn struct {
	mu    sync.Mutex       // guards what follows
	pages map[int64][]byte // by number
	cause error            // of the first one
}

// err tells why nothing may be written any more, or gives nil.
func (t *torn) err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause == nil {
		return nil
	}
	return fmt.Errorf("no more writes after one that failed amid a page: %w", t.cause)
}

// keep notes a locked page.
func (t *torn) keep(page int64, sealed []byte, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pages == nil {
		t.pages, t.cause = map[int64][]byte{}, cause
	}
	t.pages[page] = bytes.Clone(sealed)
}

// patch corrects b, read from the file as the locked pages from first on.
func (t *torn) patch(b []byte, first int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for page, sealed := range t.pages {
		if i := page - first; i >= 0 && i < int64(len(b)/pageSize) {
			copy(pageOf(b, i), sealed)
		}
	}
}
