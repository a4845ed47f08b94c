package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A packing is how a layer is stored. Level and concurrency are fixed, so equal layers give equal blobs.
type packing struct {
	mediaType string
	writer    func(io.Writer) (io.WriteCloser, error)
}

var packings = map[string]packing{
	"gzip": {"application/vnd.oci.image.layer.v1.tar+gzip", func(w io.Writer) (io.WriteCloser, error) {
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	}},
	"zstd": {"application/vnd.oci.image.layer.v1.tar+zstd", func(w io.Writer) (io.WriteCloser, error) {
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}},
	"none": {"application/vnd.oci.image.layer.v1.tar", func(w io.Writer) (io.WriteCloser, error) {
		return nopCloser{w}, nil
	}},
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// unpack reads a layer whatever its packing, which its first bytes tell.
func unpack(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	head, err := b.Peek(4)
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b)
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// clamp copies a tar; entries later than latest get latest as their time. A clamped tar comes out as it went in.
func clamp(w io.Writer, r io.Reader, latest time.Time) error {
	from, to := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			return to.Close()
		}
		if err != nil {
			return err
		}
		h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		if h.ModTime.After(latest) {
			h.ModTime = latest
		}
		if err := to.WriteHeader(h); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
		if _, err := io.Copy(to, from); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

// counter hashes and counts what passes.
type counter struct {
	hash.Hash
	n int64
}

func newCounter() *counter { return &counter{Hash: sha256.New()} }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash.Write(p)
}

func (c *counter) hex() string { return hex.EncodeToString(c.Sum(nil)) }

// layer settles the layer in the file from and adds its blob to the folder blobs; it returns the blob's descriptor and the diff id.
func (s settler) layer(from, blobs string) (descriptor, string, error) {
	diff := newCounter()
	if err := s.stream(diff, from); err != nil {
		return descriptor{}, "", err
	}
	packed := filepath.Join(blobs, ".layer")
	kept := packed
	if s.cache != "" {
		kept = filepath.Join(s.cache, diff.hex()+filepath.Ext(s.pack.mediaType))
	}
	if _, err := os.Stat(kept); err != nil {
		if err := s.compress(kept, from); err != nil {
			return descriptor{}, "", err
		}
	}
	blob := newCounter()
	if err := copyFile(blob, kept); err != nil {
		return descriptor{}, "", err
	}
	name := filepath.Join(blobs, blob.hex())
	if err := os.Link(kept, name); err != nil && !errors.Is(err, os.ErrExist) {
		return descriptor{}, "", err
	}
	if kept == packed {
		if err := os.Remove(packed); err != nil {
			return descriptor{}, "", err
		}
	}
	return descriptor{MediaType: s.pack.mediaType, Digest: "sha256:" + blob.hex(), Size: blob.n}, "sha256:" + diff.hex(), nil
}

// compress settles the layer in from into a packed file that appears whole or not at all.
func (s settler) compress(to, from string) (err error) {
	f, err := os.Create(to + ".tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), to)
		}
	}()
	w, err := s.pack.writer(f)
	if err != nil {
		return err
	}
	return errors.Join(s.stream(w, from), w.Close())
}

// stream writes the settled tar of the layer in the file from.
func (s settler) stream(w io.Writer, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := unpack(f)
	if err != nil {
		return fmt.Errorf("layer %s: %w", filepath.Base(from), err)
	}
	defer r.Close()
	b := bufio.NewWriterSize(w, 1<<20)
	if err := clamp(b, r, s.latest); err != nil {
		return fmt.Errorf("layer %s: %w", filepath.Base(from), err)
	}
	return b.Flush()
}

func copyFile(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
