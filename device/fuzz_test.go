package device

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"thaw/internal/testoci"
)

// FuzzOverlay does what a script says and compares with plain bytes. Six bytes
// are a call: what, offset in 16 bits, length in 16 bits, one more argument.
func FuzzOverlay(f *testing.F) {
	scripts, err := filepath.Glob("testdata/scripts/*")
	if err != nil || len(scripts) == 0 {
		f.Fatalf("no scripts to start from: %v", err)
	}
	for _, name := range scripts {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(9*pageSize), uint16(9*pageSize))
		f.Add(b, uint16(3*pageSize+5), uint16(8*pageSize+700))
	}
	f.Fuzz(func(t *testing.T, script []byte, base, size uint16) {
		if size == 0 || len(script) > 600 {
			return
		}
		w := newTwin(t, int(base), int(size))
		for ; len(script) >= 6; script = script[6:] {
			off := int(binary.BigEndian.Uint16(script[1:])) % (int(size) + 1)
			n := int(binary.BigEndian.Uint16(script[3:])) % (int(size) - off + 1)
			w.step(t, script[0], script[5], off, n)
		}
		wantBytes(t, w, w.want)
	})
}

// step does one call of a script.
func (w *twin) step(t *testing.T, what, arg byte, off, n int) {
	switch what % 4 {
	case 0:
		if !bytes.Equal(mustRead(t, w, int64(off), n), w.want[off:off+n]) {
			t.Fatalf("%d bytes at %d differ", n, off)
		}
	case 1:
		if err := w.write(t, testoci.Noise(uint64(arg), n), off); err != nil && w.torn.err() == nil {
			t.Fatal(err)
		}
	case 2:
		w.file.short = func(n int) (int, error) { return n * int(arg) / 256, syscall.ENOSPC }
		err := w.write(t, testoci.Noise(uint64(arg), n), off)
		w.file.short = nil
		if err == nil && n > 0 {
			t.Fatal("the failure was not told")
		}
	case 3:
		if w.torn.err() != nil { // parts of pages cannot be written
			off, n = off/pageSize*pageSize, n/pageSize*pageSize
		}
		w.discard(t, off, n)
	}
}
