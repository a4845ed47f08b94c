package lru

// list is a chain of entries.
type list[K comparable] struct {
	head, tail uint32
	len        int
}

func (l *list[K]) push(s *slots[K], i uint32) {
	e := s.at(i)
	e.prev, e.next = l.tail, 0
	if l.tail == 0 {
		l.head = i
	} else {
		s.at(l.tail).next = i
	}
	l.tail = i
	l.len++
}

func (l *list[K]) remove(s *slots[K], i uint32) {
	e := s.at(i)
	if e.prev == 0 {
		l.head = e.next
	} else {
		s.at(e.prev).next = e.next
	}
	if e.next == 0 {
		l.tail = e.prev
	} else {
		s.at(e.next).prev = e.prev
	}
	e.prev, e.next = 0, 0
	l.len--
}

// heap has the entry that goes first at the top. Four children to a node halve
// the levels of two, and their ranks lie side by side.
type heap[K comparable] struct {
	ranks []int64
	slots []uint32
}

const arity = 4

func (h *heap[K]) top() uint32 {
	if len(h.slots) == 0 {
		return 0
	}
	return h.slots[0]
}

func (h *heap[K]) push(s *slots[K], i uint32) {
	s.at(i).where = inHeap
	h.ranks = append(h.ranks, 0)
	h.slots = append(h.slots, 0)
	h.up(s, uint32(len(h.slots)-1), i, s.rank(i))
}

// remove takes out the entry at a place; the last one fills the gap.
func (h *heap[K]) remove(s *slots[K], at uint32) {
	end := len(h.slots) - 1
	i, rank := h.slots[end], h.ranks[end]
	h.ranks, h.slots = h.ranks[:end], h.slots[:end]
	if int(at) == end {
		return
	}
	if at > 0 && h.before(s, i, rank, (at-1)/arity) {
		h.up(s, at, i, rank)
		return
	}
	h.down(s, at, i, rank)
}

// up finds the place of an entry from a gap towards the top.
func (h *heap[K]) up(s *slots[K], at, i uint32, rank int64) {
	for at > 0 {
		parent := (at - 1) / arity
		if !h.before(s, i, rank, parent) {
			break
		}
		h.set(s, at, h.slots[parent], h.ranks[parent])
		at = parent
	}
	h.set(s, at, i, rank)
}

// down finds the place of an entry from a gap away from the top.
func (h *heap[K]) down(s *slots[K], at, i uint32, rank int64) {
	for {
		least := arity*at + 1
		if int(least) >= len(h.slots) {
			break
		}
		for child := least + 1; int(child) < min(len(h.slots), int(arity*(at+1)+1)); child++ {
			if h.before(s, h.slots[child], h.ranks[child], least) {
				least = child
			}
		}
		if h.before(s, i, rank, least) {
			break
		}
		h.set(s, at, h.slots[least], h.ranks[least])
		at = least
	}
	h.set(s, at, i, rank)
}

// before tells whether an entry goes before the one at a place.
func (h *heap[K]) before(s *slots[K], i uint32, rank int64, place uint32) bool {
	if rank != h.ranks[place] {
		return rank < h.ranks[place]
	}
	return s.at(i).last < s.at(h.slots[place]).last
}

func (h *heap[K]) set(s *slots[K], at, i uint32, rank int64) {
	h.slots[at], h.ranks[at] = i, rank
	s.at(i).prev = at
}
