package lru_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"thaw/lru"
)

// model is LRU-k written down without thought for speed: every question looks
// at every name.
type model struct {
	lru.Options
	t     testing.TB
	names map[byte]*record
	now   int64
	first time.Time
	base  int64
	begun bool
	turn  int // counts what enters the history or is asked for there
}

type record struct {
	uses     []int64 // newest first
	last     int64
	weight   int64
	resident bool
	fresh    bool
	asked    bool
	turn     int
}

func (m *model) tick(t time.Time) {
	if !m.begun {
		m.begun, m.first, m.base = true, t, max(m.now, t.UnixNano())
	}
	m.now = max(m.now+1, m.base+int64(t.Sub(m.first)))
}

func (r *record) use(m *model) {
	if len(r.uses) == 0 {
		r.uses = []int64{m.now}
	} else if m.now-r.uses[0] >= int64(m.Correlated) {
		burst := r.last - r.uses[0]
		for i := range r.uses {
			r.uses[i] += burst
		}
		r.uses = slices.Insert(r.uses, 0, m.now)
		r.uses = r.uses[:min(len(r.uses), m.K)]
	}
	r.last = m.now
}

func (m *model) rank(r *record) [2]int64 {
	if len(r.uses) < m.K {
		return [2]int64{-1, r.last}
	}
	return [2]int64{r.uses[m.K-1], r.last}
}

func (m *model) weight() (sum int64) {
	for _, r := range m.names {
		if r.resident {
			sum += r.weight
		}
	}
	return sum
}

func (m *model) count(of func(*record) bool) (n int) {
	for _, r := range m.names {
		if of(r) {
			n++
		}
	}
	return n
}

func (m *model) residents() int { return m.count(func(r *record) bool { return r.resident }) }

// settle ends the protection of names that were used long ago or too many.
func (m *model) settle() {
	for {
		var oldest *record
		var held int64
		for _, r := range m.names {
			if r.resident && r.fresh {
				held += r.weight
				if oldest == nil || r.last < oldest.last {
					oldest = r
				}
			}
		}
		if oldest == nil || m.now-oldest.last < int64(m.Correlated) && held <= m.Limit/8 {
			return
		}
		oldest.fresh = false
	}
}

// least gives the order that whatever goes next must have.
func (m *model) least() (least [2]int64, fresh bool) {
	m.settle()
	for _, fresh := range []bool{false, true} {
		var all [][2]int64
		for _, r := range m.names {
			switch {
			case r.resident && r.fresh && fresh:
				all = append(all, [2]int64{0, r.last})
			case r.resident && !r.fresh && !fresh:
				all = append(all, m.rank(r))
			}
		}
		if len(all) > 0 {
			return slices.MinFunc(all, func(a, b [2]int64) int { return slices.Compare(a[:], b[:]) }), fresh
		}
	}
	m.t.Fatal("a victim of nothing")
	return
}

// evict takes the cache's word for which of equal names goes, and for nothing else.
func (m *model) evict(key byte) {
	r, least := m.names[key], [2]int64{}
	least, fresh := m.least()
	if r == nil || !r.resident || r.fresh != fresh || !fresh && m.rank(r) != least || fresh && r.last != least[1] {
		m.t.Fatalf("%d was evicted: %+v, want order %v, fresh %v", key, r, least, fresh)
	}
	m.retire(r)
}

func (m *model) retire(r *record) {
	r.resident, r.fresh = false, false
	m.turn++
	r.turn = m.turn
	limit := m.History
	if limit == 0 {
		limit = max(m.residents(), 128)
	}
	past := func(r *record) bool { return !r.resident }
	for m.count(past) > max(limit, 0) {
		oldest := byte(0)
		for key, r := range m.names {
			if o := m.names[oldest]; past(r) && (o == nil || !past(o) || r.turn < o.turn) {
				oldest = key
			}
		}
		delete(m.names, oldest)
	}
}

func (m *model) place(r *record) {
	r.resident, r.asked, r.fresh = true, false, m.Correlated > 0
	m.settle()
}

func (m *model) hit(key byte) bool {
	r := m.names[key]
	if r == nil {
		return false
	}
	r.use(m)
	if r.resident {
		m.place(r)
		return true
	}
	m.turn++
	r.asked, r.turn = true, m.turn
	return false
}

func (m *model) add(key byte, weight int64, evicted []byte) (admitted bool) {
	weight = max(weight, 1)
	r := m.names[key]
	if weight > m.Limit {
		if r != nil && r.resident {
			m.retire(r)
			if !slices.Equal(evicted, []byte{key}) {
				m.t.Fatalf("the old form of %d was not evicted: %v", key, evicted)
			}
		}
		return false
	}
	if r == nil {
		r = &record{}
	}
	delete(m.names, key)
	for _, victim := range evicted {
		if m.weight()+weight <= m.Limit {
			m.t.Fatalf("%v were evicted: too many", evicted)
		}
		m.evict(victim)
	}
	if m.weight()+weight > m.Limit {
		m.t.Fatalf("%v were evicted: too few", evicted)
	}
	m.names[key] = r
	r.weight = weight
	if r.asked {
		r.last = m.now
	} else {
		r.use(m)
	}
	m.place(r)
	return true
}

func (m *model) restore(key byte, weight int64, uses []time.Time) {
	r := &record{weight: max(weight, 1), resident: true}
	for _, t := range uses[:min(len(uses), m.K)] {
		r.uses = append(r.uses, t.UnixNano())
	}
	if len(r.uses) > 0 {
		r.last = r.uses[0]
	}
	if !m.begun {
		m.now = max(m.now, r.last)
	}
	m.names[key] = r
}

// step does to cache and model what three bytes say.
func (m *model) step(c *lru.Cache[byte], now time.Time, op [3]byte) {
	key, weight := op[1]%64, int64(op[2])%m.Limit*5/4
	if op[0]%3 == 0 {
		key %= 8 // some are hot
	}
	switch kind := op[0] % 32; {
	case kind < 12:
		m.tick(now)
		if got, want := c.Hit(key, now), m.hit(key); got != want {
			m.t.Fatalf("Hit(%d): %v, want %v", key, got, want)
		}
	case kind < 27:
		m.tick(now)
		evicted, admitted := c.Add(key, weight, now)
		if want := m.add(key, weight, evicted); admitted != want {
			m.t.Fatalf("Add(%d, %d): %v, want %v", key, weight, admitted, want)
		}
	case kind < 28:
		r := m.names[key]
		if got, want := c.Remove(key), r != nil && r.resident; got != want {
			m.t.Fatalf("Remove(%d): %v, want %v", key, got, want)
		}
		delete(m.names, key)
	case kind < 30:
		was, ok := c.Victim()
		victim, _ := c.Evict()
		if was != victim || ok != (m.residents() > 0) {
			m.t.Fatalf("Victim %d, %v; Evict %d of %d", was, ok, victim, m.residents())
		}
		if ok {
			m.evict(victim)
		}
	default:
		m.restoreSome(c, key, weight, op[2])
	}
}

// restoreSome restores a name with as many uses as the byte says.
func (m *model) restoreSome(c *lru.Cache[byte], key byte, weight int64, how byte) {
	var uses []time.Time
	for i := range int(how) % 4 {
		uses = append(uses, epoch().Add(-time.Duration(how)*time.Second-time.Duration(i*int(key))*time.Second))
	}
	c.Restore(key, weight, uses)
	m.restore(key, weight, uses)
	for c.Weight() > m.Limit {
		victim, _ := c.Evict()
		m.evict(victim)
	}
}

// compare asks both everything.
func (m *model) compare(c *lru.Cache[byte]) {
	if c.Weight() != m.weight() || c.Len() != m.residents() {
		m.t.Fatalf("%d names weigh %d, want %d and %d", c.Len(), c.Weight(), m.residents(), m.weight())
	}
	for key := range byte(64) {
		r := m.names[key]
		if got, want := c.Contains(key), r != nil && r.resident; got != want {
			m.t.Fatalf("Contains(%d): %v, want %v", key, got, want)
		}
		uses := c.Uses(key)
		if r == nil || !r.resident {
			if uses != nil {
				m.t.Fatalf("%d is not resident and has uses %v", key, uses)
			}
			continue
		}
		for i, u := range uses {
			if want := r.uses[i]; i > 0 && u.UnixNano() != want || i == 0 && u.UnixNano() != r.last {
				m.t.Fatalf("%d: uses %v, want %v, the last %d", key, uses, r.uses, r.last)
			}
		}
		if len(uses) != len(r.uses) {
			m.t.Fatalf("%d: uses %v, want %v", key, uses, r.uses)
		}
	}
}

func epoch() time.Time { return time.Unix(1_700_000_000, 0) }

// play does what the bytes say to a cache and to the model, and compares them
// after each step.
func play(t testing.TB, o lru.Options, script []byte) {
	m := &model{Options: o, t: t, names: map[byte]*record{}}
	c := lru.New[byte](o)
	if o.K == 0 {
		m.K = 2
	}
	if m.K == 1 {
		m.History = -1
	}
	now := epoch()
	for ; len(script) >= 4; script = script[4:] {
		now = now.Add(time.Duration(int8(script[3])+100) * time.Millisecond) // at times backwards
		m.step(c, now, [3]byte(script))
		m.compare(c)
	}
}

// forms are the options that model and cache are compared with.
func forms() []lru.Options {
	var all []lru.Options
	for _, k := range []int{0, 1, 2, 3} {
		for _, history := range []int{-1, 0, 1, 20} {
			for _, correlated := range []time.Duration{0, 300 * time.Millisecond, 5 * time.Second} {
				for _, limit := range []int64{1, 40, 1000} {
					all = append(all, lru.Options{Limit: limit, K: k, History: history, Correlated: correlated})
				}
			}
		}
	}
	return all
}

func TestModel(t *testing.T) {
	for i, o := range forms() {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			for seed := range uint64(3) {
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				script := make([]byte, 4*500)
				for i := range script {
					script[i] = byte(random.Uint32())
				}
				play(t, o, script)
			}
		})
	}
}

func FuzzModel(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	for i := range forms() {
		script := make([]byte, 4*50)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		f.Add(uint16(i), script)
	}
	f.Fuzz(func(t *testing.T, form uint16, script []byte) {
		all := forms()
		play(t, all[int(form)%len(all)], script[:min(len(script), 4*300)])
	})
}
