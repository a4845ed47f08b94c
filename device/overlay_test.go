package device

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"thaw/internal/testoci"
)

// twin is an overlay and the plain bytes that it must read as.
type twin struct {
	*Overlay
	base *disk
	file *file
	want []byte
}

// newTwin gives an overlay over noise of baseSize bytes.
func newTwin(t tb, baseSize, size int) *twin {
	t.Helper()
	w := &twin{base: &disk{b: testoci.Noise(5, baseSize)}, file: newFile(int64(size)), want: make([]byte, size)}
	copy(w.want, w.base.b)
	var err error
	if w.Overlay, err = NewOverlay(w.base, w.file, int64(size)); err != nil {
		t.Fatal(err)
	}
	return w
}

// write writes p to both; after an error, each page must be old or new, and
// those from the named one on old.
func (w *twin) write(t tb, p []byte, off int) error {
	t.Helper()
	before := bytes.Clone(p)
	err := w.WriteAt(t.Context(), p, int64(off))
	if !bytes.Equal(before, p) {
		t.Fatal("WriteAt changed what it was given")
	}
	if err == nil {
		copy(w.want[off:], p)
		return nil
	}
	w.settle(t, p, off)
	return err
}

// settle takes over what a failed write of p left, page by page.
func (w *twin) settle(t tb, p []byte, off int) {
	t.Helper()
	short, fail := w.file.short, w.file.fail
	read := w.base.read
	w.file.short, w.file.fail, w.base.read = nil, nil, nil
	after := bytes.Clone(w.want)
	copy(after[off:], p)
	old := false
	for at := off / pageSize * pageSize; at < off+len(p); at += pageSize {
		end := min(at+pageSize, len(after))
		got := mustRead(t, w, int64(at), end-at)
		isOld, isNew := bytes.Equal(got, w.want[at:end]), bytes.Equal(got, after[at:end])
		if !isOld && !isNew || old && !isOld {
			t.Fatalf("page %d after a failed write: old %v, new %v, old before it: %v", at/pageSize, isOld, isNew, old)
		}
		old = old || !isNew
		copy(w.want[at:end], got)
	}
	w.file.short, w.file.fail, w.base.read = short, fail, read
}

func (w *twin) discard(t tb, off, n int) {
	t.Helper()
	if err := w.Discard(t.Context(), int64(off), int64(n)); err != nil {
		t.Fatal(err)
	}
	clear(w.want[off : off+n])
}

// drawRange gives ranges that are whole pages half of the time.
func drawRange(t *rapid.T, size int) (off, n int) {
	off = rapid.IntRange(0, size).Draw(t, "off")
	n = rapid.IntRange(0, min(size-off, 5*pageSize)).Draw(t, "n")
	if rapid.Bool().Draw(t, "whole") {
		off, n = off/pageSize*pageSize, n/pageSize*pageSize
	}
	return off, n
}

// TestOverlayModel does anything with an overlay, files failing now and then.
func TestOverlayModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 40*pageSize).Draw(rt, "size")
		w := newTwin(rt, rapid.IntRange(0, 50*pageSize).Draw(rt, "base"), size)
		seed, broken := uint64(0), false
		rt.Repeat(map[string]func(*rapid.T){
			"read": func(rt *rapid.T) {
				off, n := drawRange(rt, size)
				if !bytes.Equal(mustRead(rt, w, int64(off), n), w.want[off:off+n]) {
					rt.Fatalf("%d bytes at %d differ", n, off)
				}
			},
			"write": func(rt *rapid.T) {
				off, n := drawRange(rt, size)
				seed++
				if err := w.write(rt, testoci.Noise(seed, n), off); err != nil && !broken {
					rt.Fatal(err)
				}
			},
			"fail to write": func(rt *rapid.T) {
				off, n := drawRange(rt, size)
				seed++
				done := rapid.IntRange(0, 6*pageSize).Draw(rt, "done")
				w.file.short = func(n int) (int, error) {
					if done >= n {
						return n, nil
					}
					return done, syscall.ENOSPC
				}
				err := w.write(rt, testoci.Noise(seed, n), off)
				w.file.short = nil
				if err != nil && !errors.Is(err, syscall.ENOSPC) {
					rt.Fatal(err)
				}
				broken = w.torn.err() != nil
			},
			"discard": func(rt *rapid.T) {
				off, n := drawRange(rt, size)
				if broken { // parts of pages cannot be written
					off, n = off/pageSize*pageSize, n/pageSize*pageSize
				}
				w.discard(rt, off, n)
			},
			"flush": func(rt *rapid.T) {
				if err := w.Flush(rt.Context()); err != nil {
					rt.Fatal(err)
				}
			},
		})
		wantBytes(rt, w, w.want)
	})
}

// TestOverlayBroken ends a write amid a page that was written before: it reads
// as new, and nothing is written from then on.
func TestOverlayBroken(t *testing.T) {
	w := newTwin(t, 8*pageSize, 8*pageSize)
	if err := w.write(t, testoci.Noise(1, 3*pageSize), pageSize); err != nil {
		t.Fatal(err)
	}
	w.file.short = func(n int) (int, error) { return pageSize + 100, syscall.EIO }
	p := testoci.Noise(2, 4*pageSize)
	if err := w.write(t, p, 0); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if copy(p, p[:2*pageSize]); !bytes.Equal(w.want[:2*pageSize], p[:2*pageSize]) {
		t.Error("the pages up to the one in which it ended are not new")
	}
	w.file.short = nil
	if err := w.write(t, make([]byte, pageSize), 6*pageSize); !errors.Is(err, syscall.EIO) {
		t.Errorf("write after a torn page: %v", err)
	}
	wantBytes(t, w, w.want)
	w.discard(t, pageSize, pageSize) // needs no write
	wantBytes(t, w, w.want)
}

// TestOverlayFaults fails reads and writes in all ways, and goes on.
func TestOverlayFaults(t *testing.T) {
	w := newTwin(t, 8*pageSize, 8*pageSize)
	if err := w.write(t, testoci.Noise(1, 2*pageSize), 2*pageSize); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	read := func() error { return w.ReadAt(t.Context(), make([]byte, 8*pageSize), 0) }
	part := func(page int) func() error {
		return func() error { return w.write(t, []byte("some"), page*pageSize+9) }
	}
	for _, c := range []struct {
		name string
		set  func()
		call func() error
		want error
	}{
		{"read base", func() { w.base.read = func(context.Context) error { return broken } }, read, broken},
		{"read file", func() { w.file.fail = func(int) (int, error) { return 0, syscall.EIO } }, read, syscall.EIO},
		{"file too short", func() { w.file.fail = func(n int) (int, error) { return n - 1, nil } }, read, io.ErrUnexpectedEOF},
		{"part over base", func() { w.base.read = func(context.Context) error { return broken } }, part(0), broken},
		{"part over file", func() { w.file.fail = func(int) (int, error) { return 0, syscall.EIO } }, part(2), syscall.EIO},
		{"no space", func() { w.file.short = func(int) (int, error) { return 0, syscall.ENOSPC } }, part(0), syscall.ENOSPC},
		{"amid a new page", func() { w.file.short = func(int) (int, error) { return 9, syscall.ENOSPC } }, part(7), syscall.ENOSPC},
		{"short without an error", func() { w.file.short = func(n int) (int, error) { return 0, nil } }, part(3), io.ErrShortWrite},
		{"no holes", func() { w.file.punch = func(_, _ int64) error { return syscall.EOPNOTSUPP } }, func() error {
			clear(w.want[:2*pageSize+100]) // zeros all the same
			return w.Discard(t.Context(), 0, 2*pageSize+100)
		}, syscall.EOPNOTSUPP},
	} {
		c.set()
		if err := c.call(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		w.base.read, w.file.fail, w.file.short, w.file.punch = nil, nil, nil, nil
		wantBytes(t, w, w.want)
	}
	if err := part(5)(); err != nil {
		t.Error(err)
	}
	wantBytes(t, w, w.want)
}

// TestOverlayMerges counts the calls for a read over runs of pages.
func TestOverlayMerges(t *testing.T) {
	w := newTwin(t, 300*pageSize, 300*pageSize)
	if err := w.write(t, testoci.Noise(1, 100*pageSize), 100*pageSize); err != nil {
		t.Fatal(err)
	}
	w.discard(t, 150*pageSize, 10*pageSize)
	w.file.reads = 0
	wantBytes(t, w, w.want)
	if n := w.base.reads.Load(); n != 2 || w.file.reads != 2 {
		t.Errorf("%d reads of the base and %d of the file, want 2 and 2", n, w.file.reads)
	}
}

// TestOverlayDiscardsAll needs no write for a device that ends amid a page.
func TestOverlayDiscardsAll(t *testing.T) {
	w := newTwin(t, 3*pageSize, 2*pageSize+100)
	w.discard(t, 0, 2*pageSize+100)
	wantBytes(t, w, w.want)
	if w.file.writes > 0 {
		t.Errorf("%d writes", w.file.writes)
	}
}

// TestStates watches pages that are discarded, then written: once they have
// left the base, nobody finds them there.
func TestStates(t *testing.T) {
	const count = 4 * piecePages
	table := newPages(count)
	table.set(0, count, zeroed)
	go func() {
		for page := range int64(count) {
			table.set(page, page+1, inFile)
		}
	}()
	for page := range int64(count) {
		for s := zeroed; s != inFile; {
			if s = table.state(page); s == inBase {
				t.Fatalf("page %d is in the base again", page)
			}
		}
	}
}

// TestOverlayPrivate writes to two overlays of one base.
func TestOverlayPrivate(t *testing.T) {
	a := newTwin(t, 4*pageSize, 4*pageSize)
	b := newTwin(t, 4*pageSize, 4*pageSize)
	base := bytes.Clone(a.base.b)
	var err error
	if b.Overlay, err = NewOverlay(a.base, b.file, b.Size()); err != nil {
		t.Fatal(err)
	}
	p := testoci.Noise(1, 2*pageSize)
	if err := errors.Join(a.write(t, p, pageSize), b.write(t, p, 2*pageSize)); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, a, a.want)
	wantBytes(t, b, b.want)
	if !bytes.Equal(a.base.b, base) {
		t.Error("the base has changed")
	}
	if bytes.Equal(a.file.b[pageSize:2*pageSize], b.file.b[pageSize:2*pageSize]) {
		t.Error("two overlays have one key")
	}
}

func TestOverlayRange(t *testing.T) {
	w := newTwin(t, pageSize, pageSize+1)
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {0, pageSize + 2}, {pageSize + 1, 1}, {1 << 62, 1}} {
		for _, err := range []error{
			w.ReadAt(t.Context(), make([]byte, c.n), c.off), w.WriteAt(t.Context(), make([]byte, c.n), c.off), w.Discard(t.Context(), c.off, c.n),
		} {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%d bytes at %d: %v", c.n, c.off, err)
			}
		}
	}
	if err := w.Discard(t.Context(), 1, -1); !errors.Is(err, ErrRange) {
		t.Error(err)
	}
	for _, size := range []int64{-1, maxOverlay + 1} {
		if _, err := NewOverlay(w.base, w.file, size); err == nil {
			t.Errorf("overlay of %d bytes", size)
		}
	}
}

// onDisk is a file of the system.
type onDisk struct{ *os.File }

func (f onDisk) PunchHole(off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// TestOverlayOnDisk gives back space, and meets a limit of the system.
func TestOverlayOnDisk(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := newTwin(t, 1<<20, 1<<20)
	w.Overlay.file = onDisk{f}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	if err := w.write(t, testoci.Noise(1, 512<<10), 1<<19); err != nil {
		t.Fatal(err)
	}
	full := blocks()
	w.discard(t, 1<<19+100, 1<<19-200)
	wantBytes(t, w, w.want)
	if left := blocks(); full < 1024 || left > full/8 {
		t.Errorf("%d blocks before the discard, %d after", full, left)
	}
	ro, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	w.Overlay.file = ro
	if err := w.write(t, make([]byte, pageSize), 0); !errors.Is(err, syscall.EBADF) {
		t.Errorf("%v, want EBADF", err)
	}
	wantBytes(t, w, w.want)
}

// TestOverlayGolden compares what is in the file with AES-256-XTS of other
// software: see the file's first field.
func TestOverlayGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/xts.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		About string
		Key   string
		Pages []struct {
			Page        int64
			Fill        byte
			Front, Back string // the first and last 32 of 4096 bytes
		}
	}
	if err := json.Unmarshal(data, &golden); err != nil || len(golden.Pages) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	key, err := hex.DecodeString(golden.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range golden.Pages {
		size := (v.Page + 1) * pageSize
		f := &window{at: v.Page * pageSize}
		o, err := newOverlay(&disk{}, f, size, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.WriteAt(t.Context(), bytes.Repeat([]byte{v.Fill}, pageSize), f.at); err != nil {
			t.Fatal(err)
		}
		front, back := hex.EncodeToString(f.b[:32]), hex.EncodeToString(f.b[pageSize-32:])
		if front != v.Front || back != v.Back {
			t.Errorf("page %d:\n got %s … %s\nwant %s … %s", v.Page, front, back, v.Front, v.Back)
		}
		if got := mustRead(t, o, f.at, pageSize); !bytes.Equal(got, bytes.Repeat([]byte{v.Fill}, pageSize)) {
			t.Errorf("page %d does not read as written", v.Page)
		}
	}
}

// window is a file of which one page exists.
type window struct {
	at int64
	b  [pageSize]byte
}

func (w *window) ReadAt(p []byte, off int64) (int, error)  { return copy(p, w.b[off-w.at:]), nil }
func (w *window) WriteAt(p []byte, off int64) (int, error) { return copy(w.b[off-w.at:], p), nil }
