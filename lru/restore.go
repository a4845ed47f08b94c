package lru

import (
	"slices"
	"time"
)

// Restore makes a name resident with the uses that Uses gave before a restart,
// newest first; with none it goes before all others. What was known of the name
// is replaced. Nothing is evicted here: while Weight is above the limit, call
// Evict, or let the next Add do it.
func (c *Cache[K]) Restore(key K, weight int64, uses []time.Time) {
	i, known := c.find(key)
	if known {
		c.lift(i)
		c.forget(i)
	}
	i = c.insert(key)
	e, into := c.slots.at(i), c.slots.uses(i)
	e.weight = max(weight, 1)
	for j, t := range uses[:min(len(uses), len(into))] {
		into[j] = max(t.UnixNano(), 0)
		if j > 0 {
			into[j] = min(into[j], into[j-1])
		}
		e.count++
	}
	e.last = into[0]
	if !c.clock.begun {
		c.clock.now = max(c.clock.now, e.last)
	}
	c.weight += e.weight
	c.count++
	c.heap.push(&c.slots, i)
}

// Uses tells when a resident name was last used, at most K times, newest first;
// nil if it is not resident.
func (c *Cache[K]) Uses(key K) []time.Time {
	i, known := c.find(key)
	if !known || c.slots.at(i).where == inPast {
		return nil
	}
	e := c.slots.at(i)
	times := slices.Clone(c.slots.uses(i)[:e.count])
	if len(times) > 0 {
		times[0] = e.last
	}
	uses := make([]time.Time, len(times))
	for j, t := range times {
		uses[j] = time.Unix(0, t)
	}
	return uses
}
