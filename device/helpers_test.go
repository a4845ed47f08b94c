package device

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"thaw/chunk"
	"thaw/internal/testleak"
	"thaw/internal/testoci"
	"thaw/manifest"
)

func TestMain(m *testing.M) { testleak.Main(m) }

// memory is a Finder of chunks in memory. The functions, if set, stand in for
// what finding and reading would do.
type memory struct {
	chunks map[chunk.Name][]byte
	open   atomic.Int64 // found and not closed
	finds  atomic.Int64

	find func(ctx context.Context, name chunk.Name) error
	read func(p []byte, off int64) (int, error)
}

func (m *memory) Find(ctx context.Context, name chunk.Name, size int) (chunk.Verified, error) {
	m.finds.Add(1)
	if m.find != nil {
		if err := m.find(ctx, name); err != nil {
			return nil, err
		}
	}
	sealed, ok := m.chunks[name]
	if !ok {
		return nil, fmt.Errorf("memory: %w", chunk.ErrNotFound)
	}
	if len(sealed) != size {
		return nil, fmt.Errorf("memory: %w: %d bytes, not %d", chunk.ErrCorrupt, len(sealed), size)
	}
	m.open.Add(1)
	return &verified{sealed, m}, nil
}

type verified struct {
	sealed []byte
	m      *memory
}

func (v *verified) ReadAt(p []byte, off int64) (int, error) {
	if v.m.read != nil {
		return v.m.read(p, off)
	}
	if off > int64(len(v.sealed)) {
		return 0, io.EOF
	}
	n := copy(p, v.sealed[off:])
	if off+int64(n) == int64(len(v.sealed)) {
		return n, io.EOF // as an io.ReaderAt may at the very end
	}
	return n, nil
}

func (v *verified) Close() error {
	v.m.open.Add(-1)
	return nil
}

// sealed cuts plain into chunks and gives the manifest and finder of them.
func sealed(plain []byte, size int) (*manifest.Manifest, *memory) {
	m := &manifest.Manifest{Kind: manifest.Image, Tenant: "acme", Size: int64(len(plain)), ChunkSize: size}
	f := &memory{chunks: map[chunk.Name][]byte{}}
	for at := 0; at < len(plain); at += size {
		s := chunk.Seal(chunk.Salt{1}, bytes.Clone(plain[at:min(at+size, len(plain))]))
		if len(s.Data) > 0 {
			m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(at / size), Size: uint32(len(s.Data)), Name: s.Name, Key: s.Key})
			f.chunks[s.Name] = s.Data
		}
	}
	return m, f
}

// newDevice gives the device of plain in chunks of 64 KiB.
func newDevice(t testing.TB, plain []byte) (*Device, *memory) {
	t.Helper()
	m, f := sealed(plain, chunk.MinSize)
	d, err := New(m, f)
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

// patchy gives n bytes, noise with long stretches of zeros.
func patchy(seed uint64, n int) []byte {
	b := testoci.Noise(seed, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range n >> 17 {
		from := rng.IntN(n)
		clear(b[from:min(n, from+rng.IntN(3*chunk.Grain))])
	}
	return b
}

// file is an OverlayFile in memory, of garbage at first. It has no locks: the
// race detector finds an overlay that forgets its own. Holes become garbage.
type file struct {
	b []byte

	mu     sync.Mutex // guards what follows
	reads  int
	writes int
	punch  func(off, n int64) error
	short  func(n int) (int, error) // how much of a write of n bytes is done
	fail   func(n int) (int, error) // how much of a read of n bytes is done
}

func newFile(size int64) *file { return &file{b: testoci.Noise(99, int(up(size)*pageSize))} }

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.reads++
	n, err := cut(f.fail, len(p))
	f.mu.Unlock()
	return slowly(p[:n], f.b[off:]), err
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.writes++
	n, err := cut(f.short, len(p))
	f.mu.Unlock()
	return slowly(f.b[off:], p[:n]), err
}

func (f *file) PunchHole(off, n int64) error {
	if off%pageSize != 0 || n%pageSize != 0 || n <= 0 || off+n > int64(len(f.b)) {
		return fmt.Errorf("hole of %d bytes at %d", n, off)
	}
	for i := range f.b[off : off+n] {
		f.b[off+int64(i)] = 0xAA
	}
	if f.punch != nil {
		return f.punch(off, n)
	}
	return nil
}

// slowly copies in two steps, and lets others run between them.
func slowly(to, from []byte) int {
	half := copy(to[:len(to)/2], from)
	runtime.Gosched()
	return half + copy(to[half:], from[half:])
}

func cut(f func(int) (int, error), n int) (int, error) {
	if f == nil {
		return n, nil
	}
	return f(n)
}

// disk is a Reader over bytes.
type disk struct {
	b     []byte
	reads atomic.Int64
	read  func(ctx context.Context) error // called first, if set
}

func (d *disk) Size() int64 { return int64(len(d.b)) }

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	if d.read != nil {
		if err := d.read(ctx); err != nil {
			return err
		}
	}
	if off < 0 || off+int64(len(p)) > int64(len(d.b)) {
		return errors.New("disk: read behind the end")
	}
	slowly(p, d.b[off:off+int64(len(p))])
	return nil
}

// tb is a test, or a property that is being shrunk.
type tb interface {
	rapid.TB
	Context() context.Context
}

func mustRead(t tb, r Reader, off int64, n int) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xEE}, n) // so that zeros have to be written
	if err := r.ReadAt(t.Context(), p, off); err != nil {
		t.Fatal(err)
	}
	return p
}

// wantBytes compares all of r with want.
func wantBytes(t tb, r Reader, want []byte) {
	t.Helper()
	if r.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", r.Size(), len(want))
	}
	if got := mustRead(t, r, 0, len(want)); !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d, page %d, differs", i, i/pageSize)
			}
		}
	}
}
