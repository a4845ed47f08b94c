package flash

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// fixed is a store whose bytes depend on nothing but what is put.
func fixed() Options {
	o := Options{Size: 5 * 32 * kib, Segment: 32 * kib}
	clock, salt := time.Unix(1_700_000_000, 0), uint64(0x5a17_0000_0000_0000)
	o.now = func() time.Time { clock = clock.Add(time.Second); return clock }
	o.random = func() uint64 { salt++; return salt }
	return o
}

// golden writes what testdata/golden holds: one segment with a value, one that
// was replaced, what it was replaced by, one that was removed, and room.
func golden(t testing.TB, dir string) {
	t.Helper()
	s, err := Open(dir, fixed())
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, 1, 0, 100)
	put(t, s, 2, 0, 5000)
	if err := s.Replace(key(2), Checksum(value(2, 0, 5000)), value(2, 1, 9)); err != nil {
		t.Fatal(err)
	}
	put(t, s, 3, 0, 3)
	if _, err := s.Remove(key(3)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// The bytes on disk are those that were written down, and are understood.
func TestGolden(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join("testdata", "golden", "segment-00000")
	golden(t, dir)
	got, err := os.ReadFile(filepath.Join(dir, "segment-00000"))
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, bytes.TrimRight(got, "\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, append(file, make([]byte, len(got)-len(file))...)) {
		t.Errorf("not the bytes of %s", path)
	}
	fresh := t.TempDir()
	if err := os.WriteFile(filepath.Join(fresh, "segment-00000"), got, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, fresh, fixed())
	want(t, s, 1, 0, 100)
	want(t, s, 2, 1, 9)
	missing(t, s, 3)
	if scan := s.Stats().Scan; scan.Slots != 2 || scan.Older != 0 || scan.Reset != 4 {
		t.Errorf("%+v", scan)
	}
	if uses := s.policy.Uses(key(1)); len(uses) != 2 || uses[1] != time.Unix(1_700_000_001, 0) {
		t.Errorf("uses after the restart and the read: %v", uses)
	}
}

func TestHeader(t *testing.T) {
	h := header{key: key(7), kind: live, sequence: 9, size: 5000, crc: 1, last: 2, before: 3}
	b := h.encode(77)
	var got header
	if !got.decode(b, 77, 2*page) || got != h {
		t.Errorf("%+v", got)
	}
	if got.decode(b, 78, 2*page) || got.decode(b, 77, page) {
		t.Error("took a header of another segment, or one that is too long for it")
	}
	for _, bad := range []header{
		{kind: live, size: 0}, {kind: live, size: MaxValue + 1}, {kind: 0, size: 1}, {kind: 3, size: 1}, {kind: live, size: 1, sequence: maxSequence},
	} {
		if got.decode(bad.encode(77), 77, 1<<30) {
			t.Errorf("took %+v", bad)
		}
	}
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 0x40
		if got.decode(c, 77, 2*page) {
			t.Errorf("took a header with byte %d changed", i)
		}
	}
}

// FuzzDamage writes anything over anything in a store's files, or cuts them: it
// opens, gives right values or none, and works.
func FuzzDamage(f *testing.F) {
	f.Add(uint8(0), uint32(0), []byte("thaw-F1\n"), false)
	f.Add(uint8(0), uint32(page), make([]byte, 3*page), false)
	f.Add(uint8(1), uint32(page+60), []byte{0xff, 0xff, 0xff, 0xff}, false)
	f.Add(uint8(0), uint32(5000), []byte{}, true)
	f.Add(uint8(4), uint32(1<<16), make([]byte, 9), false)
	file, err := os.ReadFile(filepath.Join("testdata", "golden", "segment-00000"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint8(1), uint32(0), file, false)            // two segments with the same slots
	f.Add(uint8(0), uint32(page), file[page:], false)  // slots of another salt
	f.Add(uint8(0), uint32(2*page), file[page:], true) // slots within slots
	f.Fuzz(func(t *testing.T, segment uint8, at uint32, b []byte, cut bool) {
		dir := t.TempDir()
		golden(t, dir)
		path := filepath.Join(dir, fmt.Sprintf("segment-%05d", segment%5))
		offset := int64(at) % (40 * kib) // also behind the end
		overwrite(t, path, offset, b[:min(len(b), 40*kib)])
		if cut {
			if err := os.Truncate(path, offset); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, dir, fixed())
		m := newModel()
		for n, versions := range map[int][][]byte{
			1: {value(1, 0, 100)}, 2: {value(2, 0, 5000), value(2, 1, 9)}, 3: {value(3, 0, 3)},
		} {
			if got, ok := get(t, s, n); ok && !slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(v, got) }) {
				t.Fatalf("Get(%d): %x", n, got)
			}
			if v, err := s.View(key(n)); err == nil {
				got, err := io.ReadAll(io.LimitReader(v.File, v.Size))
				if err != nil || Checksum(got) != v.CRC {
					t.Fatal("view: ", err)
				}
				v.Close()
			}
		}
		for n := 10; n < 40; n++ {
			if _, err := s.Put(key(n), value(n, 1, length(n, 1))); err != nil {
				t.Fatal(err)
			}
			m.put(n, 1)
		}
		s = again(t, s)
		m.lax(t, s)
	})
}

// Random damage in many places at once.
func TestDamage(t *testing.T) {
	for seed := range 8 {
		s := open(t, t.TempDir(), small())
		m := newModel()
		for n := range 60 {
			put(t, s, n, 1, length(n, 1))
			m.put(n, 1)
		}
		s.Close()
		noise := value(seed, 5, 1000)
		for i := range 1 << seed {
			at := int64(noise[i])<<8 | int64(noise[i+300])
			overwrite(t, s.path(uint32(noise[i+600]%16)), at, noise[i:][:1+noise[i+1]%20])
		}
		s = open(t, s.dir, s.options)
		found := m.lax(t, s)
		if st := s.Stats(); found == 0 && seed < 6 || st.Items != found {
			t.Errorf("seed %d: %d of 60 found: %+v", seed, found, st)
		}
	}
}

// Segments of another number or length than before.
func TestResize(t *testing.T) {
	s := open(t, t.TempDir(), small())
	for n := range 6 { // two segments: of five, three stay free, and nothing is reclaimed
		put(t, s, n, 1, 15*kib)
	}
	for _, size := range []int64{32, 8, 5, 16} {
		s.Close()
		o := small()
		o.Size, o.Segment = size*64*kib, 32*kib // what is there counts
		s = open(t, s.dir, o)
		if got := usage(t, s.dir); got != o.Size {
			t.Errorf("%d bytes, want %d", got, o.Size)
		}
		want(t, s, 0, 1, 15*kib)
	}
	s.Close()
	for n, size := range []int64{0, 5000, 100 * kib} {
		if err := os.Truncate(s.path(uint32(n+1)), size); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, s.dir, s.options)
	want(t, s, 0, 1, 15*kib)
	if got := usage(t, s.dir); got != s.options.Size {
		t.Errorf("%d bytes", got)
	}
}
