//go:build cloud

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"thaw/functions"
	"thaw/keys"
	"thaw/origin"
)

func newPackages(state string) packages {
	return packages{&Globals{State: state, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), stderr: io.Discard}}
}

// section gives bytes as packages are given.
func section(data []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data)))
}

// read reads a whole package.
func (p packages) read(t *testing.T, account, key string) ([]byte, error) {
	t.Helper()
	r, err := p.open(t.Context(), account, key)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// piecePath is where the first piece of a package is.
func piecePath(state, key string) string {
	return filepath.Join(state, "origin", "roots", "r1", "packages", "default", strings.TrimPrefix(key, "r1/"))
}

// A package comes back as it was, for its own tenant alone, and is not there in
// clear.
func TestPackages(t *testing.T) {
	state := t.TempDir()
	p := newPackages(state)
	data := bytes.Repeat([]byte("what is in the package "), 1000)
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	id := functions.ID{Account: usualAccount, Name: "-f"}
	key, err := p.Put(t.Context(), id, digest, section(data))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.Put(t.Context(), id, digest, section(data)); err != nil || again == key {
		t.Errorf("put again: %q, %v", again, err)
	}
	read := func(account, key string) ([]byte, error) { return p.read(t, account, key) }
	if got, err := read(usualAccount, key); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := read("111111111111", key); err == nil {
		t.Error("another account has read it")
	}
	if _, err := read(usualAccount, "r1/p:f:0000000000000000:"+hex.EncodeToString(make([]byte, 32))); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	path := piecePath(state, key)
	stored, err := os.ReadFile(path)
	if err != nil || bytes.Contains(stored, []byte("in the package")) {
		t.Fatalf("%d bytes in clear, %v", len(stored), err)
	}
	for _, at := range []int{0, 1, 2, len(stored) / 2, len(stored) - 1} {
		bad := bytes.Clone(stored)
		bad[at] ^= 0x40
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(usualAccount, key); !errors.Is(err, origin.ErrCorrupt) && !errors.Is(err, keys.ErrRefused) {
			t.Errorf("byte %d of %d changed: %v", at, len(stored), err)
		}
	}
	if err := os.WriteFile(path, stored[:1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(usualAccount, key); !errors.Is(err, origin.ErrCorrupt) {
		t.Errorf("cut: %v", err)
	}
}

// watched calls look each time it is read.
type watched struct {
	io.ReaderAt
	look func() error
}

func (w watched) ReadAt(p []byte, off int64) (int, error) {
	if err := w.look(); err != nil {
		return 0, err
	}
	return w.ReaderAt.ReadAt(p, off)
}

func (w watched) Write(p []byte) (int, error) { return len(p), w.look() }

// heapNow is how much memory is in use.
func heapNow() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A large package is never whole in memory: it is in pieces, none of which can be
// missing, or another's.
func TestLargePackages(t *testing.T) {
	const size, most = 5*pieceSize + 5, 3 * pieceSize
	file, err := os.Create(filepath.Join(t.TempDir(), "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(file, sum), mathrand.NewChaCha8([32]byte{}), size); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	p := newPackages(state)
	id, digest := functions.ID{Account: usualAccount, Name: "f"}, hex.EncodeToString(sum.Sum(nil))
	before, looks := heapNow(), 0
	look := func() error {
		if grown := heapNow() - before; grown > most {
			t.Errorf("%d bytes are in memory of %d", grown, size)
		}
		looks++
		return nil
	}
	key, err := p.Put(t.Context(), id, digest, io.NewSectionReader(watched{ReaderAt: file, look: look}, 0, size))
	if err != nil || looks < 6 {
		t.Fatalf("looked %d times, %v", looks, err)
	}
	r, err := p.open(t.Context(), usualAccount, key)
	if err != nil {
		t.Fatal(err)
	}
	sum.Reset()
	n, err := io.CopyBuffer(io.MultiWriter(sum, watched{look: look}), struct{ io.Reader }{r}, make([]byte, pieceSize))
	if err := errors.Join(err, r.Close()); err != nil || n != size || hex.EncodeToString(sum.Sum(nil)) != digest {
		t.Errorf("%d bytes, %v", n, err)
	}
	first := piecePath(state, key)
	swap := func(a, b string) {
		t.Helper()
		if err := errors.Join(os.Rename(a, a+".x"), os.Rename(b, a), os.Rename(a+".x", b)); err != nil {
			t.Fatal(err)
		}
	}
	swap(first+":01", first+":02")
	if _, err := p.read(t, usualAccount, key); !errors.Is(err, origin.ErrCorrupt) {
		t.Errorf("pieces in another order: %v", err)
	}
	swap(first+":01", first+":02")
	for _, missing := range []string{":05", ":03"} {
		if err := os.Remove(first + missing); err != nil {
			t.Fatal(err)
		}
		if _, err := p.read(t, usualAccount, key); !errors.Is(err, origin.ErrCorrupt) || errors.Is(err, origin.ErrNotFound) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
}

// What was put before packages had pieces can still be read; what fails midway is
// known by its name, and can be removed.
func TestPackagesOfOldAndHalf(t *testing.T) {
	state := t.TempDir()
	p := newPackages(state)
	data := make([]byte, 2*pieceSize)
	sum := sha256.Sum256(data)
	id, digest := functions.ID{Account: usualAccount, Name: "f"}, hex.EncodeToString(sum[:])
	times := 0
	broken := watched{ReaderAt: bytes.NewReader(data), look: func() error {
		if times++; times > 1 {
			return io.ErrUnexpectedEOF
		}
		return nil
	}}
	if key, err := p.Put(t.Context(), id, digest, io.NewSectionReader(broken, 0, int64(len(data)))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("%q, %v", key, err)
	}
	things := kept{p.g}.things(t)
	if len(things) != 1 || things[0].ID != id {
		t.Fatalf("kept are %v", things)
	}
	key := things[0].Key
	if _, err := p.read(t, usualAccount, key); !errors.Is(err, origin.ErrCorrupt) {
		t.Errorf("half of one: %v", err)
	}
	if err := p.remove(t.Context(), "default", key); err != nil || len(kept{p.g}.things(t)) > 0 {
		t.Errorf("not removed, %v", err)
	}
	if err := p.remove(t.Context(), "default", "r1/"); err == nil {
		t.Error("removed what is no package")
	}
	s, err := p.g.open(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	name := strings.TrimPrefix(key, "r1/")
	sealed, err := keys.Seal(t.Context(), s.key, data, []byte(name))
	if err == nil {
		_, err = s.Packages("r1", "default").Put(t.Context(), name, sealed)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.read(t, usualAccount, key); err != nil || !bytes.Equal(got, data) {
		t.Errorf("in one piece: %d bytes, %v", len(got), err)
	}
}
