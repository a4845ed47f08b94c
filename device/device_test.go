package device

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"thaw/chunk"
	"thaw/internal/testoci"
	"thaw/manifest"
)

// TestDeviceReads reads everything, then anything, of devices of all shapes.
func TestDeviceReads(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.SampledFrom([]int{chunk.MinSize, 2 * chunk.MinSize, chunk.DefaultSize}).Draw(rt, "chunk size")
		plain := patchy(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 20*chunk.Grain).Draw(rt, "size"))
		if rapid.Bool().Draw(rt, "zero tail") {
			clear(plain[len(plain)/2:])
		}
		m, f := sealed(plain, size)
		d, err := New(m, f)
		if err != nil {
			rt.Fatal(err)
		}
		wantBytes(rt, d, plain)
		if n := d.Decrypts().Count(); n < uint64(len(m.Chunks)) {
			rt.Fatalf("%d decryptions were timed of %d chunks", n, len(m.Chunks))
		}
		for range 20 {
			off := rapid.IntRange(0, len(plain)).Draw(rt, "off")
			n := rapid.IntRange(0, min(len(plain)-off, 3*size)).Draw(rt, "n")
			if !bytes.Equal(mustRead(rt, d, int64(off), n), plain[off:off+n]) {
				rt.Fatalf("%d bytes at %d differ", n, off)
			}
		}
		if n := f.open.Load(); n != 0 {
			rt.Fatalf("%d chunks were not closed", n)
		}
	})
}

// TestDeviceConcurrent lets readers fight over the slots of expanded keys:
// there are more chunks than slots.
func TestDeviceConcurrent(t *testing.T) {
	plain := testoci.Noise(1, (streamSlots+40)*chunk.MinSize)
	d, _ := newDevice(t, plain)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			p := make([]byte, 2*chunk.MinSize)
			for range 400 {
				off := rng.IntN(len(plain))
				b := p[:rng.IntN(min(len(p), len(plain)-off)+1)]
				if err := d.ReadAt(t.Context(), b, int64(off)); err != nil || !bytes.Equal(b, plain[off:off+len(b)]) {
					t.Errorf("%d bytes at %d: %v", len(b), off, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestDeviceReadsLittle finds a chunk only for bytes that are in it, and reads
// of it only what was asked for.
func TestDeviceReadsLittle(t *testing.T) {
	plain := make([]byte, 4*chunk.DefaultSize)
	copy(plain[chunk.DefaultSize:], "chunk 1")
	m, f := sealed(plain, chunk.DefaultSize)
	d, err := New(m, f)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, d, 0, chunk.DefaultSize)
	mustRead(t, d, chunk.DefaultSize+chunk.Grain, 2*chunk.DefaultSize) // the trimmed tail and zeros
	if n := f.finds.Load(); n != 0 {
		t.Errorf("%d chunks were found for zeros", n)
	}
	f.read = func(p []byte, off int64) (int, error) {
		if off != 3 || len(p) != 10 {
			t.Errorf("%d bytes at %d, want 10 at 3", len(p), off)
		}
		return len(p), nil
	}
	mustRead(t, d, chunk.DefaultSize+3, 10)
	if n := f.finds.Load(); n != 1 {
		t.Errorf("found %d times, want 1", n)
	}
}

// TestDeviceFaults fails in all the ways a finder can, and reads again.
func TestDeviceFaults(t *testing.T) {
	plain := bytes.Repeat([]byte("0123456789abcdef"), 3*chunk.MinSize/16)
	broken := errors.New("broken")
	shortBy := func(n int, err error) func([]byte, int64) (int, error) {
		return func(p []byte, _ int64) (int, error) { return len(p) - n, err }
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		find error
		read func([]byte, int64) (int, error)
		want error
	}{
		{"not found", fmt.Errorf("tier: %w", chunk.ErrNotFound), nil, chunk.ErrNotFound},
		{"corrupt", fmt.Errorf("tier: %w", chunk.ErrCorrupt), nil, chunk.ErrCorrupt},
		{"cancelled", gone.Err(), nil, context.Canceled},
		{"read fails", nil, shortBy(1, broken), broken},
		{"ends early", nil, shortBy(1, io.EOF), chunk.ErrCorrupt},
		{"nothing left", nil, shortBy(4096, io.EOF), chunk.ErrCorrupt},
		{"short without an error", nil, shortBy(1, nil), chunk.ErrCorrupt},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			d, f := newDevice(t, plain)
			f.find, f.read = func(context.Context, chunk.Name) error { return c.find }, c.read
			err := d.ReadAt(t.Context(), make([]byte, 4096), 2*chunk.MinSize)
			if !errors.Is(err, c.want) || !strings.HasPrefix(err.Error(), "chunk 2, ") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: want one line of chunk 2 that wraps %v", err, c.want)
			}
			f.find, f.read = nil, nil
			wantBytes(t, d, plain)
			if n := f.open.Load(); n != 0 {
				t.Errorf("%d chunks were not closed", n)
			}
		})
	}
}

func TestDeviceRange(t *testing.T) {
	d, _ := newDevice(t, make([]byte, 100))
	for _, c := range []struct{ off, n int }{{-1, 1}, {0, 101}, {100, 1}, {101, 0}, {1 << 62, 1}} {
		if err := d.ReadAt(t.Context(), make([]byte, c.n), int64(c.off)); !errors.Is(err, ErrRange) {
			t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
		}
	}
	if err := d.ReadAt(t.Context(), nil, 100); err != nil {
		t.Error(err)
	}
}

// TestNewRefuses gives tables that would read wrong bytes.
func TestNewRefuses(t *testing.T) {
	for name, change := range map[string]func(*manifest.Manifest){
		"chunk size": func(m *manifest.Manifest) { m.ChunkSize = 100_000 },
		"size":       func(m *manifest.Manifest) { m.Size = -1 },
		"order":      func(m *manifest.Manifest) { m.Chunks[0], m.Chunks[1] = m.Chunks[1], m.Chunks[0] },
		"twice":      func(m *manifest.Manifest) { m.Chunks[1] = m.Chunks[0] },
		"empty":      func(m *manifest.Manifest) { m.Chunks[1].Size = 0 },
		"long":       func(m *manifest.Manifest) { m.Chunks[1].Size = chunk.MinSize + 1 },
		"end":        func(m *manifest.Manifest) { m.Size-- },
		"behind":     func(m *manifest.Manifest) { m.Chunks[1].Index = 1<<32 - 1 },
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			m, f := sealed(bytes.Repeat([]byte{1}, 2*chunk.MinSize), chunk.MinSize)
			change(m)
			if d, err := New(m, f); d != nil || !errors.Is(err, manifest.ErrCorrupt) {
				t.Errorf("%v, %v", d, err)
			}
		})
	}
}

// TestMemory holds what a device adds to the table of its manifest, and an
// overlay to nothing, before they are used.
func TestMemory(t *testing.T) {
	m := &manifest.Manifest{Kind: manifest.Image, Size: 20_000 * chunk.DefaultSize, ChunkSize: chunk.DefaultSize}
	for i := range 20_000 {
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(i), Size: chunk.DefaultSize})
	}
	var d *Device
	if n := allocated(func(int64) { d, _ = New(m, nil) }); n > 16<<10 {
		t.Errorf("a device of 20,000 chunks takes %d bytes more", n)
	}
	runtime.KeepAlive(d)
	var o *Overlay
	if n := allocated(func(int64) { o, _ = NewOverlay(d, nil, 256<<30) }); n > 32<<10 {
		t.Errorf("an overlay of 256 GiB takes %d bytes", n)
	}
	if n := allocated(func(i int64) { o.pages.set(i*piecePages+1, i*piecePages+2, inFile) }); n > 16<<10 {
		t.Errorf("the first page takes %d bytes", n)
	}
	runtime.KeepAlive(o)
}

// allocated tells how many bytes f allocates: the least of several calls, since
// what the runtime takes meanwhile counts too.
func allocated(f func(call int64)) uint64 {
	least := uint64(math.MaxUint64)
	for call := range int64(10) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f(call)
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

// TestPrintsNoKey looks for keys wherever values and errors can be printed.
func TestPrintsNoKey(t *testing.T) {
	plain := bytes.Repeat([]byte{1}, 2*chunk.MinSize)
	d, f := newDevice(t, plain)
	key := bytes.Repeat([]byte("k"), keySize)
	o, err := newOverlay(d, newFile(d.Size()), d.Size(), key)
	if err != nil {
		t.Fatal(err)
	}
	mustRead(t, d, 0, 10) // expands a key
	f.find = func(context.Context, chunk.Name) error { return chunk.ErrNotFound }
	readErr := d.ReadAt(t.Context(), make([]byte, 1), 0)
	writeErr := o.WriteAt(t.Context(), []byte("x"), 1)
	if readErr == nil || writeErr == nil {
		t.Fatal("no errors to look at")
	}
	var b bytes.Buffer
	for _, v := range []any{d, o, readErr, writeErr, struct{ V any }{d}, struct{ V any }{o}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
			fmt.Fprintf(&b, verb+"\n", v)
		}
		_ = json.NewEncoder(&b).Encode(v) // into memory
		slog.New(slog.NewTextHandler(&b, nil)).Info("m", "v", v)
	}
	text := strings.ToLower(b.String())
	for _, secret := range [][]byte{key[:8], d.chunks[0].Key[:8], d.chunks[1].Key[:8]} {
		numbers := strings.Trim(fmt.Sprint(secret), "[]")
		for _, form := range []string{string(secret), hex.EncodeToString(secret), numbers, fmt.Sprintf("%#v", secret)[len("[]byte{"):30]} {
			if strings.Contains(text, strings.ToLower(form)) {
				t.Errorf("%q holds a key", text)
			}
		}
	}
}
