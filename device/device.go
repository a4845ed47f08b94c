// Package device gives the bytes of an image's device, and those that an
// instance writes over them.
//
// A Device turns a manifest and a finder of chunks into reads at any offset. An
// Overlay holds one instance's writes page by page in a file, encrypted under a
// key that nobody else has, over a device that it never changes.
//
// The package starts no goroutines; both types are safe for concurrent use.
package device

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"thaw/chunk"
	"thaw/latency"
	"thaw/manifest"
)

// ErrRange says that a range does not lie within the device. Nothing was read
// or written.
var ErrRange = errors.New("outside of the device")

// streamSlots is how many expanded keys a Device keeps: those of 128 MiB in
// default chunks. A slot takes some 600 bytes, and saves more than a third of
// the time that decrypting a page takes.
const streamSlots = 256

// Device is a device read through its chunks. It prints without keys.
type Device struct {
	size    int64
	shift   int              // binary logarithm of the chunk size
	chunks  []manifest.Entry // ascending by Index
	finder  chunk.Finder
	streams [streamSlots]atomic.Pointer[stream] // a chunk's slot is its place in chunks, modulo
	touched touched

	decrypts latency.Histogram
}

// stream is the expanded key of the chunk at a place in Device.chunks.
type stream struct {
	chunk.Stream
	place int
}

// New gives the device that m describes, with its chunks from f, which hashes
// them. It keeps m.Chunks, which nobody may change from now on, and nothing
// else of m; beyond these 72 bytes a chunk, it takes some 150 KiB at most. A
// table that does not fit its device gives manifest.ErrCorrupt.
func New(m *manifest.Manifest, f chunk.Finder) (*Device, error) {
	if !chunk.ValidSize(m.ChunkSize) || m.Size < 0 {
		return nil, fmt.Errorf("%w: %d bytes in chunks of %d", manifest.ErrCorrupt, m.Size, m.ChunkSize)
	}
	d := &Device{size: m.Size, shift: bits.TrailingZeros(uint(m.ChunkSize)), chunks: m.Chunks, finder: f}
	before := int64(-1)
	for _, e := range d.chunks {
		start, end := int64(e.Index)<<d.shift, int64(e.Index)<<d.shift+int64(e.Size)
		if int64(e.Index) <= before || e.Size == 0 || int64(e.Size) > int64(m.ChunkSize) || end > m.Size {
			return nil, fmt.Errorf("%w: chunk %d, from %d to %d, follows chunk %d on a device of %d bytes",
				manifest.ErrCorrupt, e.Index, start, end, before, m.Size)
		}
		before = int64(e.Index)
	}
	return d, nil
}

// Size gives the device's size in bytes.
func (d *Device) Size() int64 { return d.size }

// Decrypts tells how long it took to decrypt what reads asked for, chunk by
// chunk.
func (d *Device) Decrypts() latency.Snapshot { return d.decrypts.Snapshot() }

// Format gives a line without keys for every verb.
func (d *Device) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "device{%d bytes, %d chunks}", d.size, len(d.chunks))
}

// ReadAt fills p with the bytes from off on, or fails; then p holds nothing of
// use. Of each chunk it touches, one after the other, only the bytes that are
// asked for are decrypted. It waits as long as the finder does; its errors name
// the chunk, and wrap the finder's own: chunk.ErrNotFound, chunk.ErrCorrupt,
// that of ctx. A range that does not lie within the device gives ErrRange.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := within(d.size, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		index := off >> d.shift
		at := off - index<<d.shift
		n := min(int64(len(p)), 1<<d.shift-at)
		if err := d.read(ctx, p[:n], index, at); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// read fills p from offset at of the chunk of that index.
func (d *Device) read(ctx context.Context, p []byte, index, at int64) error {
	place, ok := slices.BinarySearchFunc(d.chunks, index, func(e manifest.Entry, i int64) int {
		return int(int64(e.Index) - i)
	})
	sealed := 0 // how many bytes of p are not zeros by the manifest
	if ok {
		sealed = int(max(0, min(int64(len(p)), int64(d.chunks[place].Size)-at)))
	}
	clear(p[sealed:])
	if sealed == 0 {
		return nil
	}
	if err := d.open(ctx, p[:sealed], place, at); err != nil {
		e := &d.chunks[place]
		return fmt.Errorf("chunk %d, %s: %w", e.Index, e.Name, err)
	}
	return nil
}

// open fills p from offset at of the chunk at a place of the table, which has
// that many bytes.
func (d *Device) open(ctx context.Context, p []byte, place int, at int64) error {
	e := &d.chunks[place]
	if d.touched.first(place) {
		d.touched.tell(e.Index)
	}
	found, err := d.finder.Find(ctx, e.Name, int(e.Size))
	if err != nil {
		return err
	}
	n, err := found.ReadAt(p, at)
	_ = found.Close() // it was only read
	switch {
	case n == len(p): // io.EOF may come with the last byte
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%w: it ends at %d of %d bytes", chunk.ErrCorrupt, at+int64(n), e.Size)
	default:
		return err
	}
	began := time.Now()
	d.stream(place).XORKeyStreamAt(p, at)
	d.decrypts.Since(began)
	return nil
}

// stream gives the expanded key of the chunk at a place of the table. Two that
// miss at once both expand it, which harms nobody.
func (d *Device) stream(place int) chunk.Stream {
	slot := &d.streams[place%streamSlots]
	s := slot.Load()
	if s == nil || s.place != place {
		s = &stream{chunk.NewStream(d.chunks[place].Key), place}
		slot.Store(s)
	}
	return s.Stream
}

// within gives ErrRange unless n bytes from off lie within size.
func within(size, off, n int64) error {
	if off < 0 || n < 0 || off > size-n {
		return fmt.Errorf("%w: %d bytes from %d, it has %d", ErrRange, n, off, size)
	}
	return nil
}
