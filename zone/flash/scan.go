package flash

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/lru"
)

const (
	// scanners read segments side by side: a disk answers several requests for
	// 4 KiB in the time of one.
	scanners = 8
	// searchBytes are read at once where headers are looked for.
	searchBytes = 256 << 10
	// maxFaults ends the scan of a segment: a dying disk takes seconds for each.
	maxFaults = 8
	// share of the segments, in percent, that LRU-k decides about: with the rest
	// holding what it no longer wants, segments to be reclaimed are half empty.
	share = 80
)

// scan finds what the segments hold. It reads headers, and values only of those
// keys that it finds twice.
func (s *Store) scan() {
	var group errgroup.Group
	group.SetLimit(scanners)
	bytes := make([]int64, len(s.segments))
	for i, seg := range s.segments {
		group.Go(func() error {
			bytes[i] = seg.scan(s.length)
			return nil
		})
	}
	_ = group.Wait() // none fails
	s.policy = lru.New[Key](lru.Options{Limit: s.limit(), Correlated: s.options.Correlated})
	for i, seg := range s.segments {
		s.stats.Scan.Bytes += bytes[i]
		if seg.state != free {
			s.adopt(seg)
		}
	}
	s.restore()
	for _, seg := range s.segments {
		if seg.state == free {
			s.ready(seg)
		}
	}
}

// ready gives a segment without slots a new salt: there may be some after all
// that could not be read now. If the disk refuses, the cleaner tries again.
func (s *Store) ready(seg *segment) {
	if seg.salt == 0 {
		s.stats.Scan.Reset++
	}
	salt, err := s.newSalt(seg)
	if err != nil {
		s.stats.WriteErrors++
		s.options.Warn(fmt.Errorf("flash: prepare a segment: %w", err))
		seg.state = sealed
		return
	}
	seg.salt = salt
	s.free = append(s.free, seg)
}

// scan fills the segment's slots with all that have a good header. A segment
// without any is free, one without a good header of its own has salt 0. It
// answers how many bytes it read.
func (seg *segment) scan(length int64) (read int64) {
	_ = unix.Fadvise(int(seg.file.Fd()), 0, 0, unix.FADV_RANDOM) // no more than the headers is wanted
	b := make([]byte, page)
	_, err := io.ReadFull(io.NewSectionReader(seg.file, 0, page), b)
	salt, ok := decodeSegment(b, length)
	if err != nil || !ok || salt == 0 {
		return page
	}
	seg.salt = salt
	window := window{file: seg.file, length: length}
	var h header
	for at := int64(page); at < length; {
		if b := window.header(at); b == nil || !h.decode(b, salt, length-at) {
			at = window.next(at)
			continue
		}
		window.lost = false
		seg.opened = max(seg.opened, h.sequence)
		if h.kind == live && int64(len(seg.slots)) < length/slotBytes+1 {
			seg.slots = append(seg.slots, slot{
				key: h.key, page: uint32(at / page), size: h.size, crc: h.crc, last: h.last, before: h.before, sequence: h.sequence,
			})
		}
		at += slotSize(h.size)
		seg.end, seg.state = at, sealed
	}
	return page + window.read
}

// window reads headers: one by one as long as each is where the last one says,
// in larger pieces where they are looked for.
type window struct {
	file   *os.File
	length int64 // of the file
	read   int64
	faults int  // reads that failed
	lost   bool // looking for a header
	at     int64
	buf    []byte // what was read last, from at
}

// header gives the bytes of a header, nil if they cannot be read.
func (w *window) header(at int64) []byte {
	if at < w.at || at+slotHeader > w.at+int64(len(w.buf)) {
		size := int64(slotHeader)
		if w.lost {
			size = min(searchBytes, w.length-at)
		}
		if int64(cap(w.buf)) < size {
			w.buf = make([]byte, size)
		}
		n, err := w.file.ReadAt(w.buf[:size], at)
		w.at, w.buf = at, w.buf[:n]
		w.read += int64(n)
		if n < slotHeader && err != nil {
			w.faults++
			return nil
		}
	}
	return w.buf[at-w.at:][:slotHeader]
}

// next is where to look after no header was found: past holes, which a fresh
// segment consists of.
func (w *window) next(at int64) int64 {
	at += page
	if w.faults >= maxFaults {
		return w.length
	}
	if !w.lost {
		w.lost = true
		data, err := unix.Seek(int(w.file.Fd()), at, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO:
			return w.length
		case err == nil:
			return max(at, data&^(page-1))
		}
	}
	return at
}

// adopt takes the slots of a segment into the index. Of two with one key the
// later counts if its value is good; the other is marked dead, lest it come back
// when the later one is gone.
func (s *Store) adopt(seg *segment) {
	s.sequence = max(s.sequence, seg.opened)
	for i := range seg.slots {
		sl := &seg.slots[i]
		here := ref{seg.number, uint32(i)}
		if there, ok := s.index[sl.key]; ok {
			s.stats.Scan.Older++
			if s.older(here, there) {
				s.bury(here)
				continue
			}
			s.bury(there)
			s.forget(sl.key)
		}
		s.enter(here)
	}
}

// older tells whether the value at a gives way to the one at b.
func (s *Store) older(a, b ref) bool {
	if s.slot(a).sequence < s.slot(b).sequence {
		return s.intact(b)
	}
	return !s.intact(a)
}

// bury marks a slot dead on disk. If the disk refuses, that is found again by
// the next scan.
func (s *Store) bury(r ref) {
	sl, seg := s.slot(r), s.segments[r.segment]
	if s.options.write(seg.file, sl.offset(), sl.header(dead).encode(seg.salt)) != nil {
		s.stats.WriteErrors++
	}
}

func (s *Store) slot(r ref) *slot { return &s.segments[r.segment].slots[r.slot] }

// intact reads and verifies a value.
func (s *Store) intact(r ref) bool {
	sl := s.slot(r)
	if !sl.verified {
		_, err := s.segments[r.segment].readValue(sl, nil)
		s.stats.Scan.Bytes += int64(sl.size)
		sl.verified = err == nil
	}
	return sl.verified
}

// restore tells the policy of what was found. Uses that the clock has not come
// to yet count as now.
func (s *Store) restore() {
	now := seconds(s.options.now())
	for key, r := range s.index {
		sl := s.slot(r)
		var uses []time.Time
		for _, t := range []uint32{sl.last, sl.before} {
			if t != 0 {
				uses = append(uses, time.Unix(int64(min(t, now)), 0))
			}
		}
		s.policy.Restore(key, slotSize(sl.size), uses)
	}
	for s.policy.Weight() > s.limit() {
		s.policy.Evict()
	}
	for key, r := range s.index {
		s.want(r, s.policy.Contains(key))
	}
	s.stats.Scan.Slots = len(s.index)
}

// limit is how many bytes of slots the policy is to want.
func (s *Store) limit() int64 {
	return int64(len(s.segments)-reserve) * (s.length - page) * share / 100
}
