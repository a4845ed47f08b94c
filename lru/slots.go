package lru

import (
	"hash/maphash"
	"time"
)

// Where a name is. What is resident comes last.
const (
	nowhere = iota
	inPast
	inOnce
	inFresh
	inHeap
)

// entry is what is known of a name, but for its uses. With a name of 32 bytes it
// fills one line of a processor's cache.
type entry[K comparable] struct {
	key        K
	weight     int64
	last       int64  // time of the last use, correlated or not
	prev, next uint32 // in a list; in the heap, prev is the place
	where      uint8
	count      uint8 // of uses known, at most k
	asked      bool  // the use of an Add to come is noted already
}

// pageSize is the number of entries that are allocated at once: growing never
// copies, and a small cache stays small.
const pageSize = 256

// slots hold entries by number, from 1; 0 stands for none.
type slots[K comparable] struct {
	k     int
	pages []page[K]
	free  uint32 // a chain of unused entries by next
}

type page[K comparable] struct {
	entries *[pageSize]entry[K]
	uses    []int64 // k of each entry
}

func (s *slots[K]) at(i uint32) *entry[K] { return &s.pages[i/pageSize].entries[i%pageSize] }

// uses are the times of the last k uses, newest first; of a run of correlated
// ones, that of the first.
func (s *slots[K]) uses(i uint32) []int64 {
	at := int(i%pageSize) * s.k
	return s.pages[i/pageSize].uses[at : at+s.k]
}

// rank is the time of the k-th last use, -1 if there is none.
func (s *slots[K]) rank(i uint32) int64 {
	if int(s.at(i).count) < s.k {
		return -1
	}
	return s.uses(i)[s.k-1]
}

// before tells whether a goes before b, both being in the heap or in once.
func (s *slots[K]) before(a, b uint32) bool {
	if x, y := s.rank(a), s.rank(b); x != y {
		return x < y
	}
	return s.at(a).last < s.at(b).last
}

// take finds room for a name.
func (s *slots[K]) take(key K) uint32 {
	if s.free == 0 {
		s.grow()
	}
	i := s.free
	e := s.at(i)
	s.free = e.next
	*e = entry[K]{key: key}
	clear(s.uses(i))
	return i
}

func (s *slots[K]) grow() {
	first := uint32(len(s.pages)) * pageSize
	s.pages = append(s.pages, page[K]{new([pageSize]entry[K]), make([]int64, pageSize*s.k)})
	for i := first + pageSize - 1; i > first; i-- {
		s.drop(i)
	}
	if first > 0 { // 0 is no entry
		s.drop(first)
	}
}

// drop makes room for another name.
func (s *slots[K]) drop(i uint32) {
	*s.at(i) = entry[K]{next: s.free}
	s.free = i
}

// index finds slots by the hashes of names: open addressing, linear probing.
type index struct {
	cells []uint64 // hash << 32 | slot; 0 is empty
	used  int
}

func (c *Cache[K]) hash(key K) uint32 { return uint32(maphash.Comparable(c.seed, key)) }

func (c *Cache[K]) find(key K) (uint32, bool) {
	if c.index.used == 0 {
		return 0, false
	}
	h := c.hash(key)
	for at := range c.index.probe(h) {
		cell := c.index.cells[at]
		if cell == 0 {
			return 0, false
		}
		if i := uint32(cell); uint32(cell>>32) == h && c.slots.at(i).key == key {
			return i, true
		}
	}
	return 0, false
}

// insert makes an entry for a name that has none.
func (c *Cache[K]) insert(key K) uint32 {
	i := c.slots.take(key)
	c.index.put(c.hash(key), i)
	return i
}

// forget ends an entry that is nowhere.
func (c *Cache[K]) forget(i uint32) {
	c.index.cut(c.hash(c.slots.at(i).key), i)
	c.slots.drop(i)
}

// probe gives the cells where a hash may be, in order, without end.
func (x *index) probe(h uint32) func(func(uint32) bool) {
	return func(yield func(uint32) bool) {
		mask := uint32(len(x.cells) - 1)
		for at := h & mask; yield(at); at = (at + 1) & mask {
		}
	}
}

func (x *index) put(h, slot uint32) {
	if x.used >= len(x.cells)/4*3 {
		old := x.cells
		x.cells = make([]uint64, max(2*len(old), 16))
		for _, cell := range old {
			if cell != 0 {
				x.fill(cell)
			}
		}
	}
	x.fill(uint64(h)<<32 | uint64(slot))
	x.used++
}

func (x *index) fill(cell uint64) {
	for at := range x.probe(uint32(cell >> 32)) {
		if x.cells[at] == 0 {
			x.cells[at] = cell
			return
		}
	}
}

// cut takes out a cell and moves those behind it up, so that no probe meets a
// gap before its goal.
func (x *index) cut(h, slot uint32) {
	mask := uint32(len(x.cells) - 1)
	gap := h & mask
	for uint32(x.cells[gap]) != slot {
		gap = (gap + 1) & mask
	}
	for at := (gap + 1) & mask; x.cells[at] != 0; at = (at + 1) & mask {
		home := uint32(x.cells[at]>>32) & mask
		if (at-home)&mask >= (at-gap)&mask {
			x.cells[gap] = x.cells[at]
			gap = at
		}
	}
	x.cells[gap] = 0
	x.used--
}

// clock gives each use a time of its own, in ns of Unix time, so that what is told
// later is later. It follows the monotonic clock where times have one: setting
// the wall clock does not make uses correlated.
type clock struct {
	now   int64
	begun bool
	first time.Time
	base  int64 // now at first
}

func (c *clock) tick(t time.Time) int64 {
	if !c.begun {
		c.begun, c.first, c.base = true, t, max(t.UnixNano(), c.now)
	}
	c.now = max(c.now+1, c.base+int64(t.Sub(c.first)))
	return c.now
}
