package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"path/filepath"
	"testing"

	"thaw/internal/testoci"
)

// BenchmarkMemory measures the peak memory of converting one layer of many
// small files.
func BenchmarkMemory(b *testing.B) {
	thaw := program(b)
	var peaks []int64
	for _, entries := range []int{200_000, 400_000} {
		layout := filepath.Join(b.TempDir(), "many")
		testoci.Layout(b, layout, nil, manyFiles(b, entries))
		_, o := convert(b, thaw, b.TempDir(), layout)
		peaks = append(peaks, o.peakRSS)
		say("convert %d entries: peak memory %d MiB in %.1f s", entries, o.peakRSS/mib, o.wall.Seconds())
	}
	say("memory beyond 200,000 entries: %d bytes an entry", (peaks[1]-peaks[0])/200_000)
	b.ReportMetric(float64(peaks[0])/mib, "MiB")
}

// manyFiles is a tar of n entries, twenty files to a directory, with paths as
// long as those of package trees.
func manyFiles(b testing.TB, n int) []byte {
	b.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for i := range n {
		h := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: 16}
		h.Name = fmt.Sprintf("usr/lib/python3/dist-packages/package%05d/module_%07d.py", i/20, i)
		if i%20 == 0 {
			h = tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, Name: fmt.Sprintf("usr/lib/python3/dist-packages/package%05d", i/20)}
		}
		if err := w.WriteHeader(&h); err != nil {
			b.Fatal(err)
		}
		if h.Size > 0 {
			fmt.Fprintf(w, "%016d", i)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}
