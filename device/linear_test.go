package device

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// Ids of what was there at first and of what a discard leaves.
const (
	idZero = 0
	idBase = 1
)

// op is one read or write of one unit, an atomic register: the id that it saw
// or left, and the ticks of a common clock before and after it.
type op struct {
	write      bool
	id         uint64
	start, end int64
}

// linearizable tells whether the ops on one register, all writes of which have
// ids of their own, can be put into an order in which each takes effect between
// its start and end: the zones of Gibbons and Korach, "Testing Shared
// Memories" (1997), theorem 4.2. A write with its reads is a cluster, whose
// zone lies between its first end and its last start. If the end comes first,
// the register held the value all the while.
func linearizable(ops []op) bool {
	type zone struct{ end, start int64 }
	zones, written := map[uint64]*zone{}, map[uint64]int64{}
	for _, o := range ops {
		z := zones[o.id]
		if z == nil {
			z = &zone{o.end, o.start}
			zones[o.id] = z
		}
		z.end, z.start = min(z.end, o.end), max(z.start, o.start)
		if o.write {
			written[o.id] = o.start
		}
	}
	for _, o := range ops {
		if start, ok := written[o.id]; !ok || o.end < start {
			return false // never written, or later
		}
	}
	for id, a := range zones {
		if a.start < a.end {
			continue
		}
		for other, b := range zones { // one of its kind must not overlap, the other kind not lie within
			if other != id && a.end < b.start && b.end < a.start {
				return false
			}
		}
	}
	return true
}

// TestLinearizable judges histories whose verdict is known.
func TestLinearizable(t *testing.T) {
	w := func(id uint64, start, end int64) op { return op{true, id, start, end} }
	r := func(id uint64, start, end int64) op { return op{false, id, start, end} }
	for name, c := range map[string]struct {
		ops  []op
		want bool
	}{
		"in turn":           {[]op{w(1, 0, 1), r(1, 2, 3), w(2, 4, 5), r(2, 6, 7)}, true},
		"either, meanwhile": {[]op{w(1, 0, 1), w(2, 2, 9), r(1, 3, 4), r(2, 5, 6)}, true},
		"stale":             {[]op{w(1, 0, 1), w(2, 2, 3), r(1, 4, 5)}, false},
		"back again":        {[]op{w(1, 0, 1), w(2, 2, 9), r(2, 3, 4), r(1, 5, 6)}, false},
		"from the future":   {[]op{w(1, 0, 1), r(2, 2, 3), w(2, 4, 5)}, false},
		"torn":              {[]op{w(1, 0, 1), r(7, 2, 3)}, false},
		"two orders":        {[]op{w(1, 0, 1), w(2, 2, 9), w(3, 2, 9), r(2, 3, 4), r(3, 5, 6), r(2, 7, 8)}, false},
		"lost amid reads":   {[]op{w(1, 0, 1), r(1, 8, 9), w(2, 3, 4)}, false},
		"unseen":            {[]op{w(1, 0, 1), r(1, 8, 9), w(2, 3, 12), r(2, 13, 14)}, true},
	} {
		if got := linearizable(c.ops); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// stress is an overlay under concurrent use, and what its users saw.
type stress struct {
	*Overlay
	unit  int
	clock atomic.Int64
	ids   atomic.Uint64

	mu  sync.Mutex // guards ops
	ops map[int][]op
}

// stamp fills p, whole units, with an id.
func stamp(p []byte, id uint64) {
	for ; len(p) > 0; p = p[8:] {
		binary.BigEndian.PutUint64(p, id)
	}
}

// note adds the ops of one call to the units from first on, with the ids in p.
func (s *stress) note(t *testing.T, write bool, p []byte, o op, first int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.write = write
	for i := 0; i < len(p); i += s.unit {
		unit := p[i : i+s.unit]
		o.id = binary.BigEndian.Uint64(unit)
		if !bytes.Equal(unit[8:], unit[:s.unit-8]) {
			t.Errorf("unit %d is torn", first+i/s.unit)
		}
		s.ops[first+i/s.unit] = append(s.ops[first+i/s.unit], o)
	}
}

// use reads and writes at random.
func (s *stress) use(t *testing.T, seed uint64, calls int) {
	rng := rand.New(rand.NewPCG(seed, 4))
	units := int(s.size) / s.unit
	buf := make([]byte, s.size)
	for range calls {
		first := rng.IntN(units)
		n := 1 + rng.IntN(min(6, units-first))
		if rng.IntN(20) == 0 {
			n = units - first // more than one buffer
		}
		p, off := buf[:n*s.unit], int64(first*s.unit)
		write := rng.IntN(2) == 0
		var err error
		var o op
		if write {
			stamp(p, s.ids.Add(1))
			o.start = s.clock.Add(1)
			err = s.WriteAt(t.Context(), p, off)
		} else {
			o.start = s.clock.Add(1)
			err = s.ReadAt(t.Context(), p, off)
		}
		o.end = s.clock.Add(1)
		if err != nil {
			t.Error(err)
			return
		}
		s.note(t, write, p, o, first)
	}
}

// discard discards every page once: zeros have one id.
func (s *stress) discard(t *testing.T) {
	zeros := make([]byte, pageSize)
	for _, page := range rand.New(rand.NewPCG(1, 1)).Perm(int(s.size / pageSize)) {
		o := op{start: s.clock.Add(1)}
		if err := s.Discard(t.Context(), int64(page)*pageSize, pageSize); err != nil {
			t.Error(err)
			return
		}
		o.end = s.clock.Add(1)
		s.note(t, true, zeros, o, page*pageSize/s.unit)
	}
}

// TestOverlayLinearizable looks at every page, or at every sector of 512 bytes,
// as a register that several read, write and discard at once.
func TestOverlayLinearizable(t *testing.T) {
	for name, unit := range map[string]int{"pages": pageSize, "sectors": 512} {
		t.Run(name, func(t *testing.T) {
			base := &disk{b: make([]byte, 40*pageSize)}
			stamp(base.b, idBase)
			o, err := NewOverlay(base, newFile(base.Size()), base.Size())
			if err != nil {
				t.Fatal(err)
			}
			s := &stress{Overlay: o, unit: unit, ops: map[int][]op{}}
			s.ids.Store(idBase)
			s.note(t, true, base.b, op{}, 0)
			var wg sync.WaitGroup
			for i := range 5 {
				wg.Go(func() { s.use(t, uint64(i), 300) })
			}
			wg.Go(func() { s.discard(t) })
			wg.Wait()
			if len(s.locks.queue) > 0 {
				t.Errorf("%d locks are left", len(s.locks.queue))
			}
			for unit, ops := range s.ops {
				if !linearizable(ops) {
					t.Errorf("no order explains the %d calls for unit %d", len(ops), unit)
				}
			}
		})
	}
}
