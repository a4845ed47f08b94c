package device

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"thaw/chunk"
	"thaw/internal/testoci"
)

// big gives the device of 64 MiB of noise in default chunks.
func big(b testing.TB) *Device {
	m, f := sealed(testoci.Noise(1, 64<<20), chunk.DefaultSize)
	d, err := New(m, f)
	if err != nil {
		b.Fatal(err)
	}
	return d
}

// TestAllocations holds a read of a page to what the cipher itself allocates,
// and one through an overlay to its lock more.
func TestAllocations(t *testing.T) {
	d := big(t)
	o, err := NewOverlay(d, newFile(1<<20), d.Size())
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, pageSize)
	if err := o.WriteAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for name, c := range map[string]struct {
		r    Reader
		off  int64
		most float64
	}{
		"device":            {d, 5 * pageSize, 3}, // one is the finder's
		"overlay, its base": {o, 5 * pageSize, 3},
	} {
		if n := testing.AllocsPerRun(200, func() { _ = c.r.ReadAt(ctx, p, c.off) }); n > c.most {
			t.Errorf("%s: %.0f allocations a page, want at most %.0f", name, n, c.most)
		}
	}
	if n := testing.AllocsPerRun(200, func() { _ = o.WriteAt(ctx, p, 0) }); n > 1 {
		t.Errorf("write: %.0f allocations a page", n)
	}
}

// benchReads reads n bytes at a time, in order or anywhere.
func benchReads(b *testing.B, r Reader, n int, random bool) {
	p, pieces := make([]byte, n), r.Size()/int64(n)
	rng := rand.New(rand.NewPCG(1, 1))
	b.SetBytes(int64(n))
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		if i++; random {
			i = rng.Int64N(pieces)
		}
		if err := r.ReadAt(context.Background(), p, i%pieces*int64(n)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDevice reads from chunks in memory.
func BenchmarkDevice(b *testing.B) {
	d := big(b)
	b.Run("4KiB_random", func(b *testing.B) { benchReads(b, d, 4<<10, true) })
	b.Run("1MiB_sequential", func(b *testing.B) { benchReads(b, d, 1<<20, false) })
}

// BenchmarkOverlay reads and writes pages in a file in memory.
func BenchmarkOverlay(b *testing.B) {
	o, err := NewOverlay(big(b), newFile(64<<20), 64<<20)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("base_4KiB_random", func(b *testing.B) { benchReads(b, o, 4<<10, true) })
	for _, n := range []int{512, 4 << 10, 1 << 20} {
		p := make([]byte, n)
		b.Run(fmt.Sprintf("write_%d", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for i := int64(0); b.Loop(); i++ {
				if err := o.WriteAt(context.Background(), p, i*int64(n)%o.Size()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	if err := o.WriteAt(context.Background(), make([]byte, o.Size()), 0); err != nil {
		b.Fatal(err)
	}
	b.Run("file_4KiB_random", func(b *testing.B) { benchReads(b, o, 4<<10, true) })
	b.Run("file_1MiB_sequential", func(b *testing.B) { benchReads(b, o, 1<<20, false) })
}
