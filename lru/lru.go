// Package lru decides what a cache keeps: LRU-k of O'Neil, O'Neil and Weikum
// (SIGMOD 1993), with weights in bytes.
//
// The name to go first is the one whose k-th last use is the longest ago. Names
// used fewer than k times come before all others and go in the order of their
// last use, so a scan that uses everything once only displaces what was itself
// used once. With k = 1 this is LRU.
//
//	names used fewer than k times     names used k times or more
//	once: ┌──┬──┬──┬──┐               heap:    ┌─┐    least: k-th last use
//	goes  │  │  │  │  │ then the heap        ┌─┴─┴─┐
//	first └──┴──┴──┴──┘                      └─────┘
//	fresh: ┌──┬──┬──┐ used within Options.Correlated: goes when nothing else is left
//	past:  ┌──┬──┬──┬──┬──┐ evicted, name and uses remembered: the history
//
// The history gives a name that comes back its earlier uses: without it, names
// whose uses are further apart than a stay in a full cache would count as new
// each time, and a full cache would never learn of new favourites.
//
// Uses within Options.Correlated of the first of them count as one, since several
// starts of one program at once say nothing of when it is used again. (O'Neil
// et al. count from the last of them: what is used without a pause then has one
// use, long ago, and goes first.) Until that time has passed since the last use
// nobody can tell what a name is worth, so it is not evicted if that can be
// helped.
//
// What is kept is names and weights, without pointers (if names have none): a
// 32-byte name takes about 110 bytes, resident or remembered.
package lru

import (
	"hash/maphash"
	"time"
)

const (
	// freshShare bounds what Options.Correlated keeps from eviction, to a
	// part of the limit: a scan that fills the cache faster than that time
	// passes must not push out everything else.
	freshShare = 8
	// minHistory and maxHistory bound the history where Options.History is 0: a
	// cache of few large things remembers 12 KiB of names all the same, and
	// no cache more than 100 MiB.
	minHistory = 1 << 7
	maxHistory = 1 << 20
	// maxK bounds the uses that are remembered of a name. More than 3 bought
	// O'Neil et al. nothing.
	maxK = 16
)

// Options say how much is kept and how uses count.
type Options struct {
	Limit      int64         // bytes that what is resident may weigh
	K          int           // of the K last uses the oldest decides; 0: 2, at most 16
	History    int           // evicted names remembered; 0: as many as are resident, at least 128, at most 1,048,576; below 0: none
	Correlated time.Duration // uses within this of the first of them are one; 0: each counts
}

// Cache knows which names are resident and which go next. It is not safe for
// concurrent use, has no clock and starts nothing. Times that it is given may
// repeat or run backwards: what is told later counts as later. An operation
// takes at most O(log n), one of Add for each name that goes; besides, what was
// used within Options.Correlated is filed once that is over, at a similar price.
type Cache[K comparable] struct {
	options Options
	seed    maphash.Seed
	slots   slots[K]
	index   index
	once    list[K] // resident, fewer than K uses, oldest use first
	fresh   list[K] // resident, used within Correlated, oldest use first
	past    list[K] // the history, what was evicted or asked for longest ago first
	heap    heap[K]
	clock   clock
	weight  int64 // of what is resident
	held    int64 // of what is in fresh
	count   int   // of what is resident
}

// New makes an empty cache. It panics if K is out of range.
func New[K comparable](o Options) *Cache[K] {
	if o.K == 0 {
		o.K = 2
	}
	if o.K < 1 || o.K > maxK {
		panic("lru: K is out of range")
	}
	if o.K == 1 {
		o.History = -1 // what comes back is the last used whatever was before
	}
	return &Cache[K]{options: o, seed: maphash.MakeSeed(), slots: slots[K]{k: o.K}}
}

// Hit tells of a use of a name, and answers whether it is resident. If it is not,
// the use is noted if the history has the name, and an Add that follows is
// part of the same use.
func (c *Cache[K]) Hit(key K, now time.Time) bool {
	t := c.clock.tick(now)
	i, known := c.find(key)
	if !known {
		return false
	}
	e := c.slots.at(i)
	if e.where == inPast {
		c.use(i, t)
		e.asked = true
		c.past.remove(&c.slots, i)
		c.past.push(&c.slots, i)
		return false
	}
	c.touch(i, t)
	return true
}

// Add tells of a use that makes a name resident, in the place of those that are
// returned; a name that already is gets the new weight. What is heavier than the
// limit is not admitted, and if an earlier form of it was resident, that goes.
// Whatever is not heavier is admitted: it may displace many lighter names.
// A weight below 1 counts as 1, so that the limit bounds names too.
func (c *Cache[K]) Add(key K, weight int64, now time.Time) (evicted []K, admitted bool) {
	weight = max(weight, 1)
	t := c.clock.tick(now)
	i, known := c.find(key)
	if weight > c.options.Limit {
		if known && c.slots.at(i).where != inPast {
			c.retire(i)
			return []K{key}, false
		}
		return nil, false
	}
	if !known {
		i = c.insert(key)
	}
	// First out of its place, so that it neither displaces nor ends itself.
	asked := c.slots.at(i).asked
	c.lift(i)
	for c.weight > c.options.Limit-weight {
		v, _ := c.victim()
		evicted = append(evicted, c.slots.at(v).key)
		c.retire(v)
	}
	e := c.slots.at(i)
	e.weight = weight
	if asked {
		e.last = t
	} else {
		c.use(i, t)
	}
	c.place(i)
	return evicted, true
}

// Remove forgets a name, in the history too, and answers whether it was resident.
func (c *Cache[K]) Remove(key K) bool {
	i, known := c.find(key)
	if !known {
		return false
	}
	resident := c.slots.at(i).where != inPast
	c.lift(i)
	c.forget(i)
	return resident
}

// Contains tells whether a name is resident. It is no use of it.
func (c *Cache[K]) Contains(key K) bool {
	i, known := c.find(key)
	return known && c.slots.at(i).where != inPast
}

// Len is the number of resident names.
func (c *Cache[K]) Len() int { return c.count }

// Weight is what the resident names weigh together: at most the limit, unless
// Restore went beyond it.
func (c *Cache[K]) Weight() int64 { return c.weight }

// Victim names what goes next; false if nothing is resident.
func (c *Cache[K]) Victim() (key K, ok bool) {
	i, ok := c.victim()
	if !ok {
		return key, false
	}
	return c.slots.at(i).key, true
}

// Evict makes the victim go into the history, and names it.
func (c *Cache[K]) Evict() (key K, ok bool) {
	i, ok := c.victim()
	if !ok {
		return key, false
	}
	key = c.slots.at(i).key
	c.retire(i)
	return key, true
}

// touch notes a use of a resident name.
func (c *Cache[K]) touch(i uint32, t int64) {
	e := c.slots.at(i)
	if e.where == inHeap && c.options.Correlated <= 0 {
		c.use(i, t)
		c.heap.down(&c.slots, e.prev, i, c.slots.rank(i))
		return
	}
	c.lift(i)
	c.use(i, t)
	c.place(i)
}

// use shifts the uses of a name that has one at t. Of correlated ones the time
// between first and last is taken out, as O'Neil et al. have it: their distance
// to the use before counts from the last of them.
func (c *Cache[K]) use(i uint32, t int64) {
	e, uses := c.slots.at(i), c.slots.uses(i)
	if e.count == 0 || t-uses[0] >= int64(c.options.Correlated) {
		length := e.last - uses[0]
		for j := min(int(e.count), len(uses)-1); j > 0; j-- {
			uses[j] = uses[j-1] + length
		}
		uses[0] = t
		e.count = min(e.count+1, uint8(len(uses)))
	}
	e.last = t
}

// place makes a name resident at the end of the queue that it belongs to.
func (c *Cache[K]) place(i uint32) {
	e := c.slots.at(i)
	c.weight += e.weight
	c.count++
	e.asked = false
	if c.options.Correlated > 0 {
		e.where = inFresh
		c.held += e.weight
		c.fresh.push(&c.slots, i)
		c.settle()
		return
	}
	c.file(i)
}

// file puts a resident name where its uses say. Its last use must be the latest
// of those that are there.
func (c *Cache[K]) file(i uint32) {
	e := c.slots.at(i)
	if int(e.count) < c.options.K {
		e.where = inOnce
		c.once.push(&c.slots, i)
		return
	}
	c.heap.push(&c.slots, i)
}

// settle files what is fresh no longer.
func (c *Cache[K]) settle() {
	for i := c.fresh.head; i != 0; i = c.fresh.head {
		e := c.slots.at(i)
		if c.clock.now-e.last < int64(c.options.Correlated) && c.held <= c.options.Limit/freshShare {
			return
		}
		c.fresh.remove(&c.slots, i)
		c.held -= e.weight
		c.file(i)
	}
}

// victim finds what goes next.
func (c *Cache[K]) victim() (uint32, bool) {
	c.settle()
	i, top := c.once.head, c.heap.top()
	switch {
	case i == 0:
		i = top
	case top != 0 && c.slots.before(top, i): // only of those that were restored
		i = top
	}
	if i == 0 {
		i = c.fresh.head
	}
	return i, i != 0
}

// retire moves a resident name into the history.
func (c *Cache[K]) retire(i uint32) {
	c.lift(i)
	c.slots.at(i).where = inPast
	c.past.push(&c.slots, i)
	for c.past.len > c.remembered() {
		i := c.past.head
		c.lift(i)
		c.forget(i)
	}
}

// remembered is how long the history may be.
func (c *Cache[K]) remembered() int {
	switch h := c.options.History; {
	case h < 0:
		return 0
	case h > 0:
		return h
	}
	return min(max(c.count, minHistory), maxHistory)
}

// lift takes a name from where it is.
func (c *Cache[K]) lift(i uint32) {
	e := c.slots.at(i)
	switch e.where {
	case inPast:
		c.past.remove(&c.slots, i)
	case inOnce:
		c.once.remove(&c.slots, i)
	case inFresh:
		c.fresh.remove(&c.slots, i)
		c.held -= e.weight
	case inHeap:
		c.heap.remove(&c.slots, e.prev)
	}
	if e.where >= inOnce {
		c.weight -= e.weight
		c.count--
	}
	e.where = nowhere
}
