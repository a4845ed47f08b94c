package oci

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"sync"

	v1types "github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// ringBlocks × ringBlock bytes of tar lie between decompressor and reader:
	// enough that neither waits for the other's short pauses.
	ringBlocks = 16
	ringBlock  = 256 << 10
	// storedBlock is how many stored bytes are read and hashed at a time.
	storedBlock = 128 << 10
	// maxWindow bounds a zstd decoder's memory in bytes. It is what zstd -19
	// needs eight times over; --ultra -22 and --long=27 ask for more.
	maxWindow = 64 << 20
)

// layerReader is OpenLayer's reader. A goroutine of its own decompresses, so
// that the reader's work and the inflating, the slowest step of all, overlap:
//
//	stored bytes → hash, count → decompress → full → hash → Read
//	  (goroutine run)                  ↑       free ←───┘
//
// Everything that run writes is read by finish after run's last block came
// through full, or after done.
type layerReader struct {
	layer  Layer
	ctx    context.Context
	cancel context.CancelFunc
	file   io.ReadCloser
	stored *storedReader
	tar    hash.Hash

	full chan block
	free chan []byte
	done chan struct{}

	block []byte // the ring buffer that rest lies in, nil if none
	rest  []byte // not yet read
	err   error  // what comes after rest
	close sync.Once
}

// block is a piece of tar, and the error that follows it, if any.
type block struct {
	data []byte
	err  error
}

// newLayerReader starts the decompressor of a layer. It owns stored and cancel,
// which ends ctx.
func newLayerReader(ctx context.Context, cancel context.CancelFunc, layer Layer, stored io.ReadCloser, progress func(int64)) *layerReader {
	r := &layerReader{
		layer: layer, ctx: ctx, cancel: cancel, file: stored,
		stored: &storedReader{src: stored, size: layer.Size, progress: progress},
		tar:    sha256.New(),
		full:   make(chan block, ringBlocks), // room for all: run never waits here
		free:   make(chan []byte, ringBlocks),
		done:   make(chan struct{}),
	}
	// Stored tars have one digest, taken once.
	if layer.Digest != "" && layer.Digest != layer.DiffID {
		r.stored.sum = sha256.New()
	}
	ring := make([]byte, ringBlocks*ringBlock)
	for i := range ringBlocks {
		r.free <- ring[i*ringBlock : (i+1)*ringBlock : (i+1)*ringBlock]
	}
	go r.run()
	return r
}

// run decompresses into the ring until the end, an error or the end of ctx.
func (r *layerReader) run() {
	defer close(r.done)
	in, err := decompressor(r.stored, layerTypes[v1types.MediaType(r.layer.MediaType)])
	if err != nil {
		r.full <- block{err: err}
		return
	}
	defer in.Close()
	for {
		var buf []byte
		select {
		case buf = <-r.free:
		case <-r.ctx.Done():
			return
		}
		n, err := fill(in, buf, r.ctx)
		r.full <- block{data: buf[:n], err: err}
		if err != nil {
			return
		}
	}
}

// decompressor opens the stored form of a tar. The caller closes it.
func decompressor(stored io.Reader, c compression) (io.ReadCloser, error) {
	// A bufio.Reader by type: flate has a fast path for it.
	buffered := bufio.NewReaderSize(stored, storedBlock)
	switch c {
	case gzipped:
		z, err := gzip.NewReader(buffered)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF // nothing is no gzip stream
		}
		return z, err
	case zstandard:
		// Concurrency 1 starts no goroutines.
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(stored), nil
}

// fill reads until buf is full; an error follows the n bytes before it.
func fill(in io.Reader, buf []byte, ctx context.Context) (n int, err error) {
	for idle := 0; n < len(buf) && err == nil; {
		if err = ctx.Err(); err != nil {
			return n, err
		}
		var m int
		m, err = in.Read(buf[n:])
		if n += m; m > 0 {
			idle = 0
		} else if idle++; idle > 100 { // as bufio counts
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// Read gives the tar's next bytes; see Image.OpenLayer.
func (r *layerReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if len(p) == 0 {
			return 0, nil
		}
		r.next()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next gives the read block back and takes one from the decompressor.
func (r *layerReader) next() {
	if r.block != nil {
		r.free <- r.block[:ringBlock] // room for all
		r.block = nil
	}
	select {
	case b := <-r.full:
		r.block, r.rest = b.data, b.data
		r.tar.Write(b.data)
		if b.err != nil {
			r.err = r.finish(b.err)
		}
	case <-r.ctx.Done():
		r.err = r.fail(context.Cause(r.ctx))
	}
}

// finish turns the decompressor's last word into the reader's. A failure to
// read the stored bytes is told as such; any other makes the layer corrupt.
func (r *layerReader) finish(err error) error {
	switch {
	case r.ctx.Err() != nil:
		return r.fail(context.Cause(r.ctx))
	case r.stored.err != nil:
		return r.fail(r.stored.err)
	case errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrUnknownDictionary):
		return r.fail(fmt.Errorf("zstd stream wants a dictionary or a window over %d MiB: %w", maxWindow>>20, ErrUnsupported))
	case err != io.EOF && r.short():
		return r.fail(fmt.Errorf("it ends after %d of %d stored bytes: %w", r.stored.n, r.layer.Size, ErrCorrupt))
	case err != io.EOF:
		return r.fail(fmt.Errorf("no clean %s within its first %d stored bytes (%s): %w", r.layer.MediaType, r.stored.n, oneLine(err.Error()), ErrCorrupt))
	}
	return r.verify()
}

// short reports whether the stored bytes ended too early.
func (r *layerReader) short() bool {
	return r.stored.ended && r.layer.Size >= 0 && r.stored.n < r.layer.Size
}

// verify compares lengths and digests; io.EOF if all is well.
func (r *layerReader) verify() error {
	if r.layer.Size >= 0 && r.stored.n != r.layer.Size {
		return r.fail(fmt.Errorf("it has %d stored bytes, not %d: %w", r.stored.n, r.layer.Size, ErrCorrupt))
	}
	if r.stored.sum != nil {
		if got := hexSum(r.stored.sum); got != r.layer.Digest {
			return r.fail(fmt.Errorf("its stored bytes have digest %s: %w", got, ErrCorrupt))
		}
	}
	if got := hexSum(r.tar); got != r.layer.DiffID {
		return r.fail(fmt.Errorf("its tar has digest %s, not diff id %s: %w", got, r.layer.DiffID, ErrCorrupt))
	}
	return io.EOF
}

// fail names the layer.
func (r *layerReader) fail(err error) error {
	return fmt.Errorf("oci: layer %s: %w", r.layer.label(), err)
}

// Close ends the decompressor and releases the stored bytes. What follows is
// os.ErrClosed.
func (r *layerReader) Close() error {
	var err error
	r.close.Do(func() {
		r.cancel()
		<-r.done
		err = r.file.Close()
	})
	r.rest, r.err = nil, os.ErrClosed
	return err
}

// storedReader counts and hashes stored bytes on their way to a decompressor.
type storedReader struct {
	src      io.Reader
	size     int64     // as promised, -1 unknown
	sum      hash.Hash // nil if nothing is to be compared
	progress func(int64)

	n     int64
	ended bool
	err   error // of src, or of the promise; not io.EOF
}

// Read passes on what src gives, and refuses more than size bytes.
func (s *storedReader) Read(p []byte) (int, error) {
	n, err := s.src.Read(p)
	s.n += int64(n)
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	if s.progress != nil && n > 0 {
		s.progress(int64(n))
	}
	if s.size >= 0 && s.n > s.size {
		n, err = 0, fmt.Errorf("it has more than its %d stored bytes: %w", s.size, ErrCorrupt)
	}
	if err == io.EOF {
		s.ended = true
	} else if err != nil {
		s.err = err
	}
	return n, err
}

// hexSum gives "sha256:" and 64 hex digits.
func hexSum(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }
