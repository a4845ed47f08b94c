package device

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/xts"
)

const (
	// maxOverlay is the largest device in bytes: what ext4 holds with 32-bit
	// numbers of 4 KiB blocks. It bounds the table of bitmap pieces to 1 MiB.
	maxOverlay = 16 << 40
	// keySize is two keys of AES-256: one for the bytes, one for the tweaks.
	keySize = 64
	// bufferSize is how many bytes are encrypted and written at once, and what a
	// call may hold while it runs: enough to make a system call's cost vanish
	// against that of the cipher.
	bufferSize = 128 << 10
)

// Reader is what an overlay lies over: full reads or an error. Its bytes never
// change.
type Reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
	Size() int64
}

// OverlayFile holds an overlay's pages: page n, encrypted, at byte 4096 × n. Its
// contents at the start do not matter; nobody else may write to it. An error of
// WriteAt comes with the number of bytes that were written, the rest being as
// they were. It is safe for concurrent use, as an *os.File is.
type OverlayFile interface {
	io.ReaderAt
	io.WriterAt
}

// HolePuncher is an OverlayFile that can give back the space of n bytes from
// off on, multiples of 4096. What they read as afterwards does not matter.
type HolePuncher interface {
	PunchHole(off, n int64) error
}

// Overlay is an instance's private writes over a device that it shares with
// others. Where nothing was written it reads as the device does, and as zeros
// behind the device's end.
//
// Pages of 4 KiB are encrypted with AES-256-XTS (IEEE 1619) under a random key
// that exists in this value only; the number of the sector is that of the page.
// As with any disk encryption that keeps sizes, who can watch the file sees
// which 16-byte blocks of a page change, and who can write to it can garble
// pages unnoticed: the file is to have no name and no other user.
//
// Concurrent calls are linearizable page by page: a read sees all of a write to
// a page or nothing of it, though of a write to two pages it may see one. Writes
// to parts of one page never lose each other. A page is locked while the file
// is used, and never while the base is waited for.
type Overlay struct {
	base   Reader
	file   OverlayFile
	size   int64
	cipher *xts.Cipher
	pages  pages
	locks  ranges // read the state of a page again once it is locked

	buffers sync.Pool // of *[bufferSize]byte
	torn    torn
}

// NewOverlay gives an overlay of size bytes without any writes, under a new key.
// It closes neither base nor file; its contents are lost with the value.
func NewOverlay(base Reader, file OverlayFile, size int64) (*Overlay, error) {
	var key [keySize]byte
	_, _ = rand.Read(key[:]) // never fails: it ends the process
	defer clear(key[:])
	return newOverlay(base, file, size, key[:])
}

func newOverlay(base Reader, file OverlayFile, size int64, key []byte) (*Overlay, error) {
	if size < 0 || size > maxOverlay {
		return nil, fmt.Errorf("overlay of %d bytes: it may have up to %d", size, int64(maxOverlay))
	}
	cipher, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		panic("device: " + err.Error()) // two 32-byte keys are always accepted
	}
	return &Overlay{
		base: base, file: file, size: size, cipher: cipher, pages: newPages(up(size)),
		buffers: sync.Pool{New: func() any { return new([bufferSize]byte) }},
	}, nil
}

// Size gives the device's size in bytes.
func (o *Overlay) Size() int64 { return o.size }

// Format gives a line without the key for every verb.
func (o *Overlay) Format(f fmt.State, _ rune) { fmt.Fprintf(f, "overlay{%d bytes}", o.size) }

// Flush does nothing: what was written is seen by every later read already, and
// nothing has to outlive the process, whose end takes the key with it.
func (o *Overlay) Flush(context.Context) error { return nil }

// ReadAt fills p with the bytes from off on, or fails; then p holds nothing of
// use. It reads neighbouring pages that are in one place with one call. Errors
// of base and file are wrapped; a range that does not lie within the device
// gives ErrRange.
func (o *Overlay) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := within(o.size, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		state, n := o.pages.run(off, len(p))
		var err error
		switch state {
		case inBase:
			err = o.readBase(ctx, p[:n], off)
		case inFile:
			err = o.readFile(ctx, p[:n], off)
		case zeroed:
			clear(p[:n])
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readBase fills p with what the device had from off on.
func (o *Overlay) readBase(ctx context.Context, p []byte, off int64) error {
	n := max(0, min(int64(len(p)), o.base.Size()-off))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return o.base.ReadAt(ctx, p[:n], off)
}

// readFile fills p from pages that have been written. Since they were not
// locked when that was found, they may have been discarded.
func (o *Overlay) readFile(ctx context.Context, p []byte, off int64) error {
	lock, err := o.locks.lock(ctx, off/pageSize, up(off+int64(len(p))), false)
	if err != nil {
		return err
	}
	defer o.locks.unlock(lock)
	for len(p) > 0 {
		state, n := o.pages.run(off, len(p))
		if state == zeroed {
			clear(p[:n])
		} else if err := o.load(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// load fills p from locked pages of the file: whole ones in place, parts of one
// through a buffer.
func (o *Overlay) load(p []byte, off int64) error {
	for len(p) > 0 {
		page, skip, n := off/pageSize, int(off%pageSize), len(p)/pageSize*pageSize
		var err error
		if skip == 0 && n > 0 {
			err = o.loadPages(p[:n], page)
		} else {
			b := o.buffers.Get().(*[bufferSize]byte)
			err = o.loadPages(b[:pageSize], page)
			n = copy(p, b[skip:pageSize])
			o.buffers.Put(b)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// loadPages fills b with locked pages of the file, from page on.
func (o *Overlay) loadPages(b []byte, page int64) error {
	if n, err := o.file.ReadAt(b, page*pageSize); n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // these pages have been written
		}
		return fmt.Errorf("overlay file, page %d: %w", page+int64(n)/pageSize, err)
	}
	o.torn.patch(b, page)
	for ; len(b) > 0; b, page = b[pageSize:], page+1 {
		o.cipher.Decrypt(b[:pageSize], b[:pageSize], uint64(page))
	}
	return nil
}

// up gives how many pages hold n bytes.
func up(n int64) int64 { return (n + pageSize - 1) / pageSize }
