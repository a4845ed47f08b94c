package flash

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// model is what values a key may have: those that were put under it and, for
// the strict, not removed or replaced since.
type model struct {
	now  map[int]int          // the version that is there, unless it was evicted
	ever map[int]map[int]bool // all versions that were put
}

func newModel() *model { return &model{now: map[int]int{}, ever: map[int]map[int]bool{}} }

func (m *model) put(n, version int) {
	m.now[n] = version
	if m.ever[n] == nil {
		m.ever[n] = map[int]bool{}
	}
	m.ever[n][version] = true
}

// length is that of a value in these tests: a mix of slots of 1 to 4 pages.
func length(n, version int) int { return 1 + (n*7919+version*104729)%(15*kib) }

// step does one random operation on both, and compares.
func (m *model) step(t *testing.T, s *Store, r *rand.Rand, version int) {
	n := r.IntN(120)
	was, had := m.now[n]
	switch op := r.IntN(100); {
	case op < 45:
		added, err := s.Put(key(n), value(n, version, length(n, version)))
		if err != nil || added && had && s.Stats().Evicted == 0 {
			t.Fatalf("Put(%d): %v, %v", n, added, err)
		}
		if added {
			m.put(n, version)
		}
	case op < 55:
		err := s.Replace(key(n), Checksum(value(n, was, length(n, was))), value(n, version, length(n, version)))
		switch {
		case errors.Is(err, ErrNotFound):
			delete(m.now, n)
		case err != nil && (had || !errors.Is(err, ErrChanged)):
			t.Fatalf("Replace(%d): %v", n, err)
		case err == nil && !had:
			t.Fatalf("replaced %d, which is not there", n)
		case err == nil:
			m.put(n, version)
		}
	case op < 65:
		had2, err := s.Remove(key(n))
		if err != nil || had2 && !had {
			t.Fatalf("Remove(%d): %v, %v", n, had2, err)
		}
		delete(m.now, n)
	default:
		m.strict(t, s, n)
	}
}

// strict wants the version that is there, or none.
func (m *model) strict(t *testing.T, s *Store, n int) {
	t.Helper()
	if got, ok := get(t, s, n); ok {
		if was, had := m.now[n]; !had || string(got) != string(value(n, was, length(n, was))) {
			t.Fatalf("Get(%d): %d bytes that are not version %d (there: %v)", n, len(got), was, had)
		}
	} else if s.Stats().Evicted == 0 && m.now[n] != 0 {
		t.Fatalf("%d is missing, and nothing was evicted", n)
	}
}

// lax wants any version that was put, or none, and takes what it finds for what
// is there.
func (m *model) lax(t *testing.T, s *Store) (found int) {
	t.Helper()
	for n, versions := range m.ever {
		delete(m.now, n)
		got, ok := get(t, s, n)
		if !ok {
			continue
		}
		for v := range versions {
			if string(got) == string(value(n, v, length(n, v))) {
				m.now[n] = v
				found++
			}
		}
		if m.now[n] == 0 {
			t.Fatalf("Get(%d): %d bytes that nobody put there", n, len(got))
		}
	}
	return found
}

// get reads a value or finds it missing.
func get(t *testing.T, s *Store, n int) ([]byte, bool) {
	t.Helper()
	got, err := s.Get(key(n), nil)
	if err != nil && !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	return got, err == nil
}

// Random operations and restarts give what a map gives, or nothing.
func TestModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			o := small()
			if seed%2 == 1 {
				o.Size = 128 * 64 * kib // nothing is evicted, and so nothing missing
			}
			s, m := open(t, t.TempDir(), o), newModel()
			for version := 1; version <= 600; version++ {
				m.step(t, s, r, version)
				if r.IntN(150) == 0 {
					before := s
					s = again(t, s)
					s.mu.Lock()
					s.stats.Evicted += before.stats.Evicted
					s.mu.Unlock()
				}
			}
			for n := range 120 {
				m.strict(t, s, n)
			}
		})
	}
}

// recorder is a disk that knows what it held before the writes since the last
// sync.
type recorder struct {
	mu     sync.Mutex
	before map[string][]byte // file and page → bytes
}

func (d *recorder) write(f *os.File, offset int64, parts ...[]byte) error {
	var size int64
	for _, p := range parts {
		size += int64(len(p))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for at := offset &^ (page - 1); at < offset+size; at += page {
		id := fmt.Sprintf("%s %d", filepath.Base(f.Name()), at)
		if _, known := d.before[id]; !known {
			b := make([]byte, page)
			if _, err := f.ReadAt(b, at); err != nil && err != io.EOF {
				return err
			}
			d.before[id] = b
		}
	}
	return pwritev(f, offset, parts...)
}

// lose puts the share of pages that were written since the last call, chosen at
// random, back to what they held, as a loss of power may.
func (d *recorder) lose(t *testing.T, dir string, r *rand.Rand, share float64) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, b := range d.before {
		var name string
		var at int64
		fmt.Sscan(id, &name, &at)
		if r.Float64() < share {
			overwrite(t, filepath.Join(dir, name), at, b)
		}
	}
	d.before = map[string][]byte{}
}

func overwrite(t testing.TB, path string, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// Whatever pages a loss of power takes, values are whole or missing, and the
// store works.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			d := &recorder{before: map[string][]byte{}}
			o := small()
			o.write = d.write
			s, m, found := open(t, t.TempDir(), o), newModel(), 0
			d.lose(t, s.dir, r, 0) // an empty store has reached the disk
			version := 0
			for range 12 {
				for range 60 {
					version++
					m.step(t, s, r, version)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				d.lose(t, s.dir, r, []float64{0, 0.02, 0.3, 0.9, 1}[r.IntN(5)])
				s = open(t, s.dir, o)
				found += m.lax(t, s)
				s.mu.Lock()
				s.stats.Evicted++ // missing is fine from here on
				s.mu.Unlock()
			}
			if found < 50 {
				t.Errorf("found %d values in all", found)
			}
		})
	}
}

// A copy of the files, taken while they are written to, has values whole or not
// at all.
func TestCopyWhileWriting(t *testing.T) {
	s, m := open(t, t.TempDir(), small()), newModel()
	stop, ended := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	go func() {
		defer close(ended)
		for version := 1; ; version++ {
			select {
			case <-stop:
				return
			default:
			}
			n := version % 100
			mu.Lock()
			m.put(n, version) // it may be found from now on
			mu.Unlock()
			if _, err := s.Remove(key(n)); err != nil {
				t.Error(err)
			}
			if _, err := s.Put(key(n), value(n, version, length(n, version))); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 10 {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(s.dir)); err != nil {
			t.Fatal(err)
		}
		c := open(t, dir, small())
		mu.Lock()
		m.lax(t, c)
		mu.Unlock()
		c.Close()
	}
	close(stop)
	<-ended
}

// Many readers and writers of few keys: a reader never sees a value that is
// being overwritten, though segments are filled again all the time.
func TestConcurrent(t *testing.T) {
	s := open(t, t.TempDir(), small())
	var group sync.WaitGroup
	for worker := range 6 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 2))
			buf := make([]byte, 0, 16*kib)
			for range 700 {
				n := r.IntN(90)
				size := length(n, 0)
				var err error
				switch r.IntN(8) {
				case 0:
					_, err = s.Remove(key(n))
				case 1:
					err = s.Replace(key(n), Checksum(value(n, 0, size)), value(n, 0, size))
				case 2, 3, 4:
					_, err = s.Put(key(n), value(n, 0, size))
				case 5:
					err = viewed(s, n, size)
				default:
					var got []byte
					if got, err = s.Get(key(n), buf); err == nil && string(got) != string(value(n, 0, size)) {
						t.Errorf("%d is not what was put", n)
					}
				}
				if errors.Is(err, ErrCorrupt) || err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBusy) {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if st := s.Stats(); st.Reclaimed == 0 || st.Corrupt != 0 {
		t.Errorf("%+v", st)
	}
	s.settle() // or the next one begins with reclaiming
	closed := s
	s = again(t, s)
	st := closed.Stats() // the cleaner has ended
	if s.Stats().Items != st.Items || s.Stats().Bytes != st.Bytes {
		t.Errorf("%+v, before the restart %+v", s.Stats(), st)
	}
}

// viewed reads a value by a view.
func viewed(s *Store, n, size int) error {
	v, err := s.View(key(n))
	if err != nil {
		return err
	}
	defer v.Close()
	got := make([]byte, v.Size)
	if _, err := io.ReadFull(v.File, got); err != nil {
		return err
	}
	if string(got) != string(value(n, 0, size)) {
		return fmt.Errorf("view of %d: not what was put", n)
	}
	return nil
}

// While all segments are being read nothing is overwritten: writers are told to
// come back.
func TestPinned(t *testing.T) {
	s := open(t, t.TempDir(), Options{Size: 6 * 64 * kib, Segment: 64 * kib})
	var views []*View
	var busy error
	for n := 0; busy == nil; n++ {
		if _, busy = s.Put(key(n), value(n, 0, 15*kib)); busy == nil {
			v, err := s.View(key(n))
			if err != nil {
				continue // the cleaner was faster
			}
			views = append(views, v)
		}
	}
	if !errors.Is(busy, ErrBusy) {
		t.Fatal(busy)
	}
	for n, v := range views {
		got := make([]byte, v.Size)
		if _, err := io.ReadFull(v.File, got); err != nil || Checksum(got) != v.CRC {
			t.Errorf("view %d: overwritten, or %v", n, err)
		}
		v.Close()
	}
	for n := range 50 {
		put(t, s, 1000+n, 0, 15*kib)
	}
	v, err := s.View(key(1049))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // does not wait for the view
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Put(key(1), []byte("x")); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := s.Get(key(1), nil); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
