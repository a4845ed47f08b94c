package flash

import (
	"fmt"
	"time"
)

// place is room for one slot.
type place struct {
	segment *segment
	at      int64 // bytes
}

// begin takes a key for one who changes it, and answers whether it has a value;
// mu is held before and after. Every begin without an error needs its end.
func (s *Store) begin(key Key) (ref, bool, error) {
	for {
		if s.closed {
			return ref{}, false, ErrClosed
		}
		if _, taken := s.busy[key]; !taken {
			break
		}
		s.changed.Wait()
	}
	s.busy[key] = struct{}{}
	s.active++
	r, ok := s.index[key]
	return r, ok, nil
}

func (s *Store) end(key Key) {
	delete(s.busy, key)
	s.active--
	s.changed.Broadcast()
}

// Put keeps a value unless its key has one, which it tells. It returns when the
// kernel has the bytes; data is not used after that. An error means that the
// value is not there.
func (s *Store) Put(key Key, data []byte) (added bool, err error) {
	if err := s.fits(data); err != nil {
		return false, err
	}
	crc := Checksum(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, has, err := s.begin(key)
	if err != nil {
		return false, err
	}
	defer s.end(key)
	if has {
		return false, nil
	}
	if err := s.add(key, data, crc); err != nil {
		return false, err
	}
	s.stats.Added++
	return true, nil
}

// Replace keeps a value in the place of the one that has this checksum; see
// Checksum. It fails with ErrNotFound or ErrChanged, and then changes nothing.
func (s *Store) Replace(key Key, old uint32, data []byte) error {
	if err := s.fits(data); err != nil {
		return err
	}
	crc := Checksum(data)
	s.mu.Lock()
	defer s.mu.Unlock()
	r, has, err := s.begin(key)
	if err != nil {
		return err
	}
	defer s.end(key)
	switch {
	case !has:
		return ErrNotFound
	case s.slot(r).crc != old:
		return ErrChanged
	}
	if err := s.add(key, data, crc); err != nil {
		return err
	}
	s.stats.Replaced++
	return nil
}

// Remove drops a value, and answers whether there was one. With an error it is
// gone, but may be back after a restart.
func (s *Store) Remove(key Key) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, has, err := s.begin(key)
	if err != nil {
		return false, err
	}
	defer s.end(key)
	if !has {
		return false, nil
	}
	s.stats.Removed++
	s.policy.Remove(key)
	return true, s.kill(key)
}

// fits refuses values of a wrong length.
func (s *Store) fits(data []byte) error {
	if len(data) == 0 || len(data) > MaxValue || slotSize(uint32(len(data))) > s.length-page {
		return fmt.Errorf("%w: %d bytes", ErrSize, len(data))
	}
	return nil
}

// add writes a value for a key that is begun, in the place of the one it may
// have. mu is held before and after, not meanwhile.
func (s *Store) add(key Key, data []byte, crc uint32) error {
	p, err := s.reserve(slotSize(uint32(len(data))), true)
	if err != nil {
		return err
	}
	now := seconds(s.options.now())
	sl := slot{key: key, size: uint32(len(data)), crc: crc, last: now}
	if err = s.write(p, sl, data, s.admit); err == nil {
		s.stats.Written += slotSize(sl.size)
	}
	return err
}

// reserve finds room in the current segment or the next free one. Without any
// it waits for the cleaner if wait is set, as long as that can do something.
func (s *Store) reserve(size int64, wait bool) (place, error) {
	for {
		if s.closed {
			return place{}, ErrClosed
		}
		if seg := s.current; seg != nil {
			if seg.end+size <= s.length && int64(seg.taken) <= s.length/slotBytes {
				p := place{seg, seg.end}
				seg.end += size
				seg.taken++
				seg.writers++
				return p, nil
			}
			seg.state = sealed
			s.current = nil
			s.full = append(s.full, seg)
			s.work.Signal()
		}
		switch {
		case len(s.free) > 0:
			s.fill()
		case !wait:
			return place{}, ErrBusy
		case s.cleanErr != nil:
			err := s.cleanErr
			s.cleanErr = nil // the next one has the cleaner try again
			return place{}, fmt.Errorf("%w: %w", ErrBusy, err)
		case s.cleaning == nil && s.victim() == nil:
			return place{}, ErrBusy
		default:
			s.work.Signal()
			s.changed.Wait()
		}
	}
}

// fill makes the next free segment the current one.
func (s *Store) fill() {
	seg := s.free[0]
	s.free = s.free[1:]
	seg.state, seg.opened, seg.end, seg.taken, seg.slots = filling, s.sequence, page, 0, seg.slots[:0]
	s.current = seg
	s.work.Signal()
}

// write writes a slot to its place and enters it, in the place of what its key
// had, which dies on disk too. entered is called as soon as the slot is in the
// index. mu is held before and after, not meanwhile.
func (s *Store) write(p place, sl slot, data []byte, entered func(ref)) error {
	s.sequence++
	sl.sequence, sl.page, sl.verified = s.sequence, uint32(p.at/page), true
	head := sl.header(live).encode(p.segment.salt)
	s.mu.Unlock()
	began := time.Now()
	err := s.options.write(p.segment.file, p.at, head, data)
	s.writes.Since(began)
	s.mu.Lock()
	if p.segment.writers--; p.segment.writers == 0 && p.segment.state == sealed {
		s.work.Signal() // it may be reclaimed now
	}
	if err != nil {
		s.stats.WriteErrors++
		_ = s.mark(p.segment, sl) // what is left of it is torn anyway
		return err
	}
	old, had := s.index[sl.key]
	if had {
		s.forget(sl.key)
	}
	p.segment.slots = append(p.segment.slots, sl)
	r := ref{p.segment.number, uint32(len(p.segment.slots) - 1)}
	s.enter(r)
	entered(r)
	if had {
		// An error of this is none of the new one's: the old one is superseded.
		_ = s.mark(s.segments[old.segment], *s.slot(old))
	}
	return nil
}

// enter puts a slot into the index.
func (s *Store) enter(r ref) {
	sl := s.slot(r)
	sl.live = true
	s.index[sl.key] = r
	s.stats.Bytes += int64(sl.size)
}

// forget takes a key's slot out of the index.
func (s *Store) forget(key Key) {
	r := s.index[key]
	s.want(r, false)
	sl := s.slot(r)
	sl.live = false
	delete(s.index, key)
	s.stats.Bytes -= int64(sl.size)
}

// want notes whether the policy wants a slot.
func (s *Store) want(r ref, wanted bool) {
	if sl := s.slot(r); sl.wanted != wanted {
		sl.wanted = wanted
		weight := slotSize(sl.size)
		if !wanted {
			weight = -weight
		}
		s.segments[r.segment].wanted += weight
	}
}

// admit tells the policy of a use of a slot, and makes it wanted.
func (s *Store) admit(r ref) {
	sl := s.slot(r)
	out, ok := s.policy.Add(sl.key, slotSize(sl.size), s.options.now())
	for _, key := range out {
		if r, ok := s.index[key]; ok {
			s.want(r, false)
		}
	}
	s.want(r, ok)
}

// kill takes a key's slot, if it has one, out of the index and marks it dead on
// disk. mu is held before and after, not meanwhile.
func (s *Store) kill(key Key) error {
	r, ok := s.index[key]
	if !ok {
		return nil
	}
	seg, sl := s.segments[r.segment], *s.slot(r)
	s.forget(key)
	return s.mark(seg, sl)
}

// mark writes the header of a dead slot. The segment cannot be filled again
// meanwhile; if it is reclaimed, its salt tells that this header is old.
func (s *Store) mark(seg *segment, sl slot) error {
	salt := seg.salt
	seg.readers++
	s.mu.Unlock()
	err := s.options.write(seg.file, sl.offset(), sl.header(dead).encode(salt))
	s.mu.Lock()
	s.release(seg)
	if err != nil {
		s.stats.WriteErrors++
	}
	return err
}

// release ends a use of a segment that kept it from being filled.
func (s *Store) release(seg *segment) {
	if seg.readers--; seg.readers == 0 && seg.state == draining {
		s.freed(seg)
	}
}

// freed makes a segment one to be filled.
func (s *Store) freed(seg *segment) {
	seg.state = free
	s.free = append(s.free, seg)
	s.changed.Broadcast()
	s.work.Signal()
}
