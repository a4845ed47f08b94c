package erasure

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.json")

func noise(seed byte, size int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

func code(t testing.TB, k, n int) *Code {
	t.Helper()
	c, err := New(k, n)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEverySubset takes every set of stripes of small codes, for lengths around
// every boundary: k or more give the data, fewer do not.
func TestEverySubset(t *testing.T) {
	for n := 1; n <= 7; n++ {
		for k := 1; k <= n; k++ {
			c := code(t, k, n)
			for _, size := range []int{0, 1, 2, k - 1, k, k + 1, 3*k - 1, 64 * k, 1000, 1027} {
				everySubset(t, c, size)
			}
		}
	}
}

func everySubset(t *testing.T, c *Code, size int) {
	t.Helper()
	data := noise(1, size)
	want := bytes.Clone(data)
	all := c.Split(data)
	if len(all) != c.n {
		t.Fatalf("%d stripes of %d-of-%d", len(all), c.k, c.n)
	}
	for set := range 1 << c.n {
		some := make([][]byte, c.n)
		for i := range all {
			if set>>i&1 == 1 {
				some[i] = all[i]
			}
		}
		given := slices.Clone(some)
		got, err := c.Join(size, some)
		switch enough := bits.OnesCount(uint(set)) >= c.k; {
		case !enough && !errors.Is(err, ErrTooFew):
			t.Fatalf("%d-of-%d, %d bytes, stripes %b: %v, want ErrTooFew", c.k, c.n, size, set, err)
		case enough && (err != nil || !bytes.Equal(got, want)):
			t.Fatalf("%d-of-%d, %d bytes, stripes %b: %d other bytes, %v", c.k, c.n, size, set, len(got), err)
		}
		for i := range given {
			if !bytes.Equal(given[i], some[i]) || (given[i] == nil) != (some[i] == nil) {
				t.Fatalf("Join changed stripe %d", i)
			}
		}
	}
	if !bytes.Equal(data, want) {
		t.Fatal("the data changed")
	}
}

// TestLargeCodes takes random sets of stripes of codes as large as allowed.
func TestLargeCodes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, kn := range [][2]int{{4, 5}, {8, 12}, {16, 32}, {1, 32}, {31, 32}, {32, 32}} {
		c := code(t, kn[0], kn[1])
		data := noise(2, 70_001)
		all := c.Split(data)
		for range 200 {
			some := slices.Clone(all)
			for _, i := range r.Perm(c.n)[:c.n-c.k] {
				some[i] = nil
			}
			if got, err := c.Join(len(data), some); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d-of-%d: %d other bytes, %v", c.k, c.n, len(got), err)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, kn := range [][2]int{{0, 1}, {-1, 1}, {2, 1}, {1, 33}, {0, 0}} {
		if _, err := New(kn[0], kn[1]); err == nil {
			t.Errorf("%d of %d is made", kn[0], kn[1])
		}
	}
	c := code(t, 2, 3)
	for name, stripes := range map[string][][]byte{
		"one place too few": {make([]byte, 5), make([]byte, 5)}, "longer": {make([]byte, 5), make([]byte, 6), nil},
		"shorter": {make([]byte, 5), nil, make([]byte, 4)}, "empty": {make([]byte, 5), {}, make([]byte, 5)},
	} {
		if _, err := c.Join(10, stripes); !errors.Is(err, ErrLength) {
			t.Errorf("%s: %v, want ErrLength", name, err)
		}
	}
}

// TestMemory holds who owns what: whole stripes are the data's, the rest is new.
func TestMemory(t *testing.T) {
	c := code(t, 4, 5)
	data := noise(3, 4*64+1)
	all := c.Split(data) // stripes of 65 bytes, 62 of them in the fourth
	for i := range 3 {
		if &all[i][0] != &data[i*65] {
			t.Errorf("stripe %d is a copy", i)
		}
		if cap(all[i]) != 65 {
			t.Errorf("stripe %d can grow into the next", i)
		}
	}
	if &all[3][0] == &data[195] {
		t.Error("the cut stripe shares memory that it would write to")
	}
	got, err := c.Join(len(data), all)
	if err != nil {
		t.Fatal(err)
	}
	clear(got)
	if bytes.Equal(data, got) || cap(got) != len(got) {
		t.Error("what Join gives is not the caller's alone")
	}
}

// TestOneParityIsXOR: what the paper's nodes store, and the fastest path.
func TestOneParityIsXOR(t *testing.T) {
	all := code(t, 4, 5).Split(noise(4, 4096))
	want := make([]byte, 1024)
	for _, stripe := range all[:4] {
		subtle.XORBytes(want, want, stripe)
	}
	if !bytes.Equal(all[4], want) {
		t.Error("the parity stripe is not the exclusive or of the others")
	}
}

// TestGolden pins the stripes' bytes: another version, or another library, must
// join what this one has split.
func TestGolden(t *testing.T) {
	got := map[string]string{}
	for _, kn := range [][2]int{{1, 1}, {1, 3}, {2, 4}, {4, 5}, {4, 6}, {8, 12}, {16, 32}} {
		h := sha256.New()
		for _, stripe := range code(t, kn[0], kn[1]).Split(noise(5, 10_007)) {
			h.Write(stripe)
		}
		got[fmt.Sprintf("%d-of-%d", kn[0], kn[1])] = fmt.Sprintf("%x", h.Sum(nil))
	}
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, '\n')
	if *update {
		if err := os.WriteFile("testdata/golden.json", b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("SHA-256 of all stripes of 10,007 bytes:\n got %s\nwant %s", b, want)
	}
}

// TestAllocations is the gate: a chunk is split and joined in a handful of
// allocations and on the calling goroutine, whatever its size. A code that
// copies each stripe once more, or starts goroutines, makes more. (Without the
// race detector, which empties pools, it is 3, 1 and 6.)
func TestAllocations(t *testing.T) {
	c := code(t, 4, 5)
	data := noise(6, 512<<10)
	all := c.Split(data)
	some := slices.Clone(all)
	some[1] = nil
	for _, gate := range []struct {
		name string
		most float64
		run  func()
	}{
		{"split", 5, func() { c.Split(data) }},
		{"join of the data's own", 1, func() { _, _ = c.Join(len(data), all) }},
		{"join with one missing", 10, func() { _, _ = c.Join(len(data), some) }},
	} {
		if got := testing.AllocsPerRun(20, gate.run); got > gate.most {
			t.Errorf("%s: %.0f allocations, want %.0f at most", gate.name, got, gate.most)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	c, data := code(b, 4, 5), noise(7, 512<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c.Split(data)
	}
}

func BenchmarkJoin(b *testing.B) {
	c, data := code(b, 4, 5), noise(7, 512<<10)
	for _, missing := range []int{4, 1} {
		some := c.Split(data)
		some[missing] = nil
		b.Run(fmt.Sprintf("without=%d", missing), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				_, _ = c.Join(len(data), some)
			}
		})
	}
}

// BenchmarkXOR is what the parity alone costs with the standard library.
func BenchmarkXOR(b *testing.B) {
	all, parity := code(b, 4, 5).Split(noise(7, 512<<10)), make([]byte, 128<<10)
	b.SetBytes(512 << 10)
	for b.Loop() {
		copy(parity, all[0])
		for _, stripe := range all[1:4] {
			subtle.XORBytes(parity, parity, stripe)
		}
	}
}
