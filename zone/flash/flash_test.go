package flash

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const kib = 1 << 10

// key makes a key of a number.
func key(n int) (k Key) {
	k[0], k[1], k[34] = byte(n), byte(n>>8), 1
	return k
}

// value makes a value that is another for each key, version and size.
func value(n, version, size int) []byte {
	r := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(version), byte(size)})
	b := make([]byte, size)
	r.Read(b)
	return b
}

// small is a store of 16 segments of 64 KiB.
func small() Options { return Options{Size: 16 * 64 * kib, Segment: 64 * kib} }

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t testing.TB, s *Store, n, version, size int) {
	t.Helper()
	if added, err := s.Put(key(n), value(n, version, size)); err != nil || !added {
		t.Fatalf("Put(%d): %v, %v", n, added, err)
	}
}

func want(t testing.TB, s *Store, n, version, size int) {
	t.Helper()
	got, err := s.Get(key(n), nil)
	if err != nil || !bytes.Equal(got, value(n, version, size)) {
		t.Fatalf("Get(%d): %d bytes, %v; want version %d of %d bytes", n, len(got), err, version, size)
	}
}

func missing(t testing.TB, s *Store, n int) {
	t.Helper()
	if _, err := s.Get(key(n), nil); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get(%d): %v, want ErrNotFound", n, err)
	}
}

// again closes and opens.
func again(t testing.TB, s *Store) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.dir, s.options)
}

func TestPutGet(t *testing.T) {
	s := open(t, t.TempDir(), small())
	missing(t, s, 1)
	put(t, s, 1, 0, 10*kib)
	put(t, s, 2, 0, 1)
	if added, err := s.Put(key(1), value(1, 1, 5)); added || err != nil {
		t.Errorf("put where there is a value: %v, %v", added, err)
	}
	buf := make([]byte, 0, 20*kib)
	got, err := s.Get(key(1), buf)
	if err != nil || &got[0] != &buf[:1][0] {
		t.Errorf("the caller's buffer is not used: %v", err)
	}
	for range 2 {
		want(t, s, 1, 0, 10*kib)
		want(t, s, 2, 0, 1)
		if info, ok := s.Stat(key(1)); !ok || info != (Info{10 * kib, Checksum(value(1, 0, 10*kib))}) {
			t.Errorf("Stat: %v, %v", info, ok)
		}
		if s.Has(key(3)) {
			t.Error("has what was not put")
		}
		s = again(t, s)
	}
}

func TestSizes(t *testing.T) {
	s := open(t, t.TempDir(), Options{Size: 5 * 4 << 20})
	for n, size := range []int{1, page - slotHeader, page - slotHeader + 1, 128*kib + 64, MaxValue} {
		put(t, s, n, 0, size)
	}
	for _, size := range []int{0, MaxValue + 1} {
		if _, err := s.Put(key(9), make([]byte, size)); !errors.Is(err, ErrSize) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	s = again(t, s)
	for n, size := range []int{1, page - slotHeader, page - slotHeader + 1, 128*kib + 64, MaxValue} {
		want(t, s, n, 0, size)
	}
}

// What was removed or replaced does not come back with a restart.
func TestRemoveReplace(t *testing.T) {
	s := open(t, t.TempDir(), small())
	put(t, s, 1, 0, 9*kib)
	put(t, s, 2, 0, 9*kib)
	if err := s.Replace(key(1), 1, value(1, 1, 5*kib)); !errors.Is(err, ErrChanged) {
		t.Errorf("replace another: %v", err)
	}
	if err := s.Replace(key(3), 1, value(3, 1, 5*kib)); !errors.Is(err, ErrNotFound) {
		t.Errorf("replace nothing: %v", err)
	}
	if err := s.Replace(key(1), Checksum(value(1, 0, 9*kib)), value(1, 1, 5*kib)); err != nil {
		t.Error(err)
	}
	if had, err := s.Remove(key(2)); !had || err != nil {
		t.Errorf("Remove: %v, %v", had, err)
	}
	if had, err := s.Remove(key(2)); had || err != nil {
		t.Errorf("Remove again: %v, %v", had, err)
	}
	for range 3 {
		want(t, s, 1, 1, 5*kib)
		missing(t, s, 2)
		s = again(t, s)
	}
	if s.Stats().Scan.Slots != 1 || s.Stats().Scan.Older != 0 {
		t.Errorf("%+v", s.Stats().Scan)
	}
	if had, err := s.Remove(key(1)); !had || err != nil {
		t.Errorf("Remove: %v, %v", had, err)
	}
	s = again(t, s)
	missing(t, s, 1) // nor does the one that was replaced
}

// More than fits goes round: the files stay as they are, what was used stays in,
// and not much is written twice.
func TestReclaim(t *testing.T) {
	s := open(t, t.TempDir(), Options{Size: 16 * 256 * kib, Segment: 256 * kib})
	before := usage(t, s.dir)
	hot := []int{0, 16, 32, 48, 64, 80, 96, 112, 128, 144} // in several segments
	for n := range 700 {
		s.settle() // a writer that is faster has what is worth it left
		put(t, s, n, 0, 15*kib)
		for _, h := range hot {
			if n%4 == 0 && h <= n {
				want(t, s, h, 0, 15*kib)
			}
		}
	}
	st := s.Stats()
	if st.Evicted == 0 || st.Rewritten == 0 || st.Rewritten > st.Written || st.Corrupt != 0 || st.WriteErrors != 0 {
		t.Errorf("%+v", st)
	}
	if after := usage(t, s.dir); after != before || after > s.options.Size {
		t.Errorf("%d bytes on disk, before %d", after, before)
	}
	s.settle()
	closed := s
	s = again(t, s)
	for _, h := range hot {
		want(t, s, h, 0, 15*kib)
	}
	if items, before := s.Stats().Items, closed.Stats().Items; items < 100 || items != before {
		t.Errorf("%d values after a restart, %d before", items, before)
	}
}

// settle waits until the cleaner has nothing to reclaim.
func (s *Store) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.cleaning != nil || s.needed() {
		s.changed.Wait()
	}
}

// usage adds up the lengths of a folder's files.
func usage(t testing.TB, dir string) (sum int64) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	return sum
}

func TestView(t *testing.T) {
	s := open(t, t.TempDir(), small())
	put(t, s, 1, 0, 20*kib)
	for range 2 {
		for range 5 {
			a, err := s.View(key(1))
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.View(key(1))
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range []*View{a, b} {
				got := make([]byte, v.Size)
				if _, err := io.ReadFull(v.File, got); err != nil || !bytes.Equal(got, value(1, 0, 20*kib)) || Checksum(got) != v.CRC {
					t.Errorf("view: %v", err)
				}
				v.Close()
			}
		}
		if _, err := s.View(key(2)); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		s = again(t, s)
	}
}
