package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"thaw/lru"
	"thaw/zone"
)

// correlated is the time within which uses of a stripe count as one: the
// starts of one burst.
const correlated = 5 * time.Second

// memory is the upper tier. Nothing in its tables is a pointer, so the
// collector passes them by.
type memory struct {
	limit int64
	arena *arena

	mu     sync.Mutex // guards what follows
	index  map[zone.StripeID]uint32
	slots  []slot
	unused []uint32
	lru    *lru.Cache[zone.StripeID]
	gone   chan<- zone.StripeID // hears of what is evicted, unless it is full
	held   int64                // weight of slots that are in use but not in the index
	evicts uint64
	failed error // a slot could not be emptied: nothing can be added any more
}

// slot is a stripe in the arena. It is in the index, or being written, or has
// been evicted while it was being sent.
type slot struct {
	id      zone.StripeID
	head    [zone.HeaderSize]byte
	size    uint32 // bytes of the payload
	pins    uint32
	indexed bool
	lent    bool // its pages may be a socket's still: they must not be written to again
}

func (s *slot) weight() int64 { return weigh(int(s.size)) }

func weigh(size int) int64 { return rounded(size) + overhead }

func newMemory(limit int64) (*memory, error) {
	a, err := newArena()
	if err != nil {
		return nil, err
	}
	return &memory{
		limit: limit, arena: a, index: map[zone.StripeID]uint32{},
		lru: lru.New[zone.StripeID](lru.Options{Limit: limit, Correlated: correlated}),
	}, nil
}

func (m *memory) close() error { return m.arena.close() }

// pin finds a stripe, as a use of it, and keeps it in its place until unpin. If
// f.lend is set, and the arena can do that, its pages may be lent to a socket.
func (m *memory) pin(id zone.StripeID, now time.Time, f *found) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	no, ok := m.index[id]
	m.lru.Hit(id, now)
	if !ok {
		return false
	}
	if f.lend && m.arena.shares {
		m.slots[no].lent = true
	}
	m.pinned(no, f)
	return true
}

// peek is pin without a use.
func (m *memory) peek(id zone.StripeID, f *found) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	no, ok := m.index[id]
	if ok {
		m.pinned(no, f)
	}
	return ok
}

func (m *memory) pinned(no uint32, f *found) {
	s := &m.slots[no]
	s.pins++
	f.head, f.size, f.pinned, f.slot = s.head, int(s.size), true, no
	f.lent = s.lent
}

func (m *memory) unpin(no uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.slots[no]
	s.pins--
	m.reclaim(no)
}

// reclaim empties a slot that is of no more use. The caller holds mu: what
// comes next may be told of the room only once it is there.
func (m *memory) reclaim(no uint32) {
	s := &m.slots[no]
	if s.indexed || s.pins > 0 {
		return
	}
	if err := m.arena.free(no, int(s.size)); err != nil {
		m.failed = errors.Join(m.failed, err) // the weight stays held
		return
	}
	m.held -= s.weight()
	*s = slot{}
	m.unused = append(m.unused, no)
}

// drop takes a slot out of the index. The caller holds mu.
func (m *memory) drop(id zone.StripeID) {
	no := m.index[id]
	delete(m.index, id)
	s := &m.slots[no]
	s.indexed = false
	m.held += s.weight()
	m.reclaim(no)
}

func (m *memory) contains(id zone.StripeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.index[id]
	return ok
}

// tag gives the ETag of the copy that is here, or "".
func (m *memory) tag(id zone.StripeID) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	no, ok := m.index[id]
	if !ok {
		return ""
	}
	return zone.ETag(m.slots[no].head[:])
}

// remove forgets a stripe.
func (m *memory) remove(id zone.StripeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lru.Remove(id) {
		m.drop(id)
	}
}

// add keeps a stripe, all of b. It is not added, and ok is false, if another
// copy is here that does not have the tag old.
func (m *memory) add(id zone.StripeID, b []byte, old string, now time.Time) (ok bool, err error) {
	payload := b[zone.HeaderSize:]
	no, err := m.reserve(len(payload))
	if err != nil {
		return false, err
	}
	err = m.arena.write(no, payload)
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.slots[no]
	s.pins--
	if was, there := m.index[id]; err == nil && there {
		if tag := zone.ETag(m.slots[was].head[:]); tag != old {
			m.reclaim(no)
			return tag == zone.ETag(b), nil
		}
		m.lru.Remove(id)
		m.drop(id)
	}
	if err != nil {
		m.reclaim(no)
		return false, err
	}
	s = &m.slots[no]
	s.id, s.indexed = id, true
	copy(s.head[:], b)
	m.index[id] = no
	m.held -= s.weight()
	// There is room: nothing is evicted here.
	m.lru.Add(id, s.weight(), now)
	return true, nil
}

// reserve gives a slot, pinned, whose weight is held, and evicts as much as
// that takes.
func (m *memory) reserve(size int) (uint32, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := weigh(size)
	if m.failed != nil {
		return 0, m.failed
	}
	for m.lru.Weight()+m.held+w > m.limit {
		id, ok := m.lru.Evict()
		if !ok {
			return 0, fmt.Errorf("%w: all memory is being sent", errBusy)
		}
		m.evicts++
		select {
		case m.gone <- id:
		default:
		}
		// Most have one length, and what goes first has been asked for seldom:
		// its pages can be written to again as they are.
		no := m.index[id]
		if s := &m.slots[no]; s.pins == 0 && !s.lent && s.weight() == w && m.lru.Weight()+m.held+w <= m.limit {
			delete(m.index, id)
			m.held += w
			m.slots[no] = slot{size: uint32(size), pins: 1}
			return no, nil
		}
		m.drop(id)
	}
	m.held += w
	if len(m.unused) == 0 {
		m.slots = append(m.slots, slot{})
		m.unused = append(m.unused, uint32(len(m.slots)-1))
	}
	no := m.unused[len(m.unused)-1]
	m.unused = m.unused[:len(m.unused)-1]
	m.slots[no] = slot{size: uint32(size), pins: 1}
	return no, nil
}

// usage is what memory holds.
func (m *memory) usage() (used int64, stripes int, evicted uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Weight() + m.held, m.lru.Len(), m.evicts
}
