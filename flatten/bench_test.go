package flatten

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
)

// generated streams a tar of n entries, a directory for every nine files.
func generated(n int) io.Reader {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		for i := range n {
			h := tar.Header{Name: fmt.Sprintf("usr/lib/package-%06d/share/doc/file-%06d.txt", i/10, i), Mode: 0o644, Size: 5, ModTime: epoch, Format: tar.FormatUSTAR}
			if i%10 == 0 {
				h = tar.Header{Name: fmt.Sprintf("usr/lib/package-%06d/", i/10), Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatUSTAR}
			}
			if err := tw.WriteHeader(&h); err != nil {
				w.CloseWithError(err)
				return
			}
			if h.Size > 0 {
				_, _ = io.WriteString(tw, "12345") // WriteHeader and Close tell of the error
			}
		}
		w.CloseWithError(tw.Close())
	}()
	return r
}

// nowhere takes all writes.
type nowhere struct{}

func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// heapOf tells how many bytes the layer of n entries, its recipe and the
// finished tree hold.
func heapOf(t *testing.T, n int) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l, err := Pack(generated(n), nowhere{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	recipe := l.Encode()
	tree := NewTree(nowhere{})
	if _, err := tree.Apply(l); err != nil {
		t.Fatal(err)
	}
	s, err := tree.Finish(defaultFree)
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d entries: %d inodes, recipe of %d bytes", n, s.Entries, len(recipe))
	runtime.KeepAlive(recipe)
	runtime.KeepAlive(tree)
	runtime.KeepAlive(l)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// Property: memory grows by at most 500 bytes an entry, with layer, recipe and
// tree at once.
func TestMemoryPerEntry(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT TESTED in short mode: memory of 400,000 entries")
	}
	base, twice := heapOf(t, 200_000), heapOf(t, 400_000)
	per := (twice - base) / 200_000
	t.Logf("200,000 entries hold %d MiB, 400,000 %d MiB: %d bytes an entry", base>>20, twice>>20, per)
	if per > 500 {
		t.Errorf("%d bytes an entry beyond 200,000, 500 are promised", per)
	}
}

// Property: memory does not grow with the bytes of files.
func TestMemoryOfLargeFiles(t *testing.T) {
	content := patterned(1, 64<<20)
	source := tarball(t, item{Header: tar.Header{Name: "big"}, content: content}, item{Header: tar.Header{Name: "bigger"}, content: content})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Pack(bytes.NewReader(source), nowhere{}, nil); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if total := after.TotalAlloc - before.TotalAlloc; total > 8<<20 {
		t.Errorf("%d bytes allocated for files of 128 MiB", total)
	}
}

// BenchmarkPack packs a real layer that lies uncompressed in a file.
func BenchmarkPack(b *testing.B) {
	z := unzip(b, corpusLayers(b, "base")[0])
	f, err := os.CreateTemp(b.TempDir(), "layer")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	size, err := io.Copy(f, z)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		l, err := Pack(f, nowhere{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(l.Entries()), "entries/op")
	}
}

// BenchmarkApply applies the layer and finishes the device.
func BenchmarkApply(b *testing.B) {
	l, err := Pack(unzip(b, corpusLayers(b, "base")[0]), nowhere{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		tree := NewTree(nowhere{})
		if _, err := tree.Apply(l); err != nil {
			b.Fatal(err)
		}
		if _, err := tree.Finish(defaultFree); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(l.Entries()), "entries/op")
	}
}
