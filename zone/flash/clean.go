package flash

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reserve is how many segments do not hold their share: the one being filled
	// and two ready, for what the cleaner writes once more and what is put
	// meanwhile.
	reserve = 3
	// maxDraining bounds the segments that wait for slow readers.
	maxDraining = 4
	// rewriteShare of a segment, as one part in so many, is written once more at
	// most, and so of all writing.
	rewriteShare = 2
	// warnEvery is how often an operator is told of what goes on.
	warnEvery = time.Minute
)

// clean keeps segments ready to be filled, and when there is nothing else to do
// has full ones written, until the store closes.
func (s *Store) clean() {
	defer close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	var buf []byte
	var last *segment // written out before
	for {
		for !s.closed && !s.needed() && len(s.full) == 0 {
			s.work.Wait()
		}
		if s.closed {
			return
		}
		if !s.needed() {
			last = s.writeOut(last)
			continue
		}
		s.cleaning = s.victim()
		buf = s.rewrite(s.cleaning, buf)
		if !s.closed { // else what is worth it may not all have been moved
			s.cleanErr = s.reclaim(s.cleaning)
		}
		s.cleaning = nil
		s.changed.Broadcast()
	}
}

// writeOut has the kernel begin to write a full segment, which bounds what a
// loss of power can take, and forget the pages of the one that was written
// before: what is written here is in the memory of the node as well. mu is held
// before and after, not meanwhile. Both are hints.
//
// Measured with values of 128 KiB on a virtual disk: plain pwrite 20–40 µs and
// pread 250 µs, p50. O_DIRECT: 160–230 µs and 255 µs. Dropping pages after each
// pread, by fadvise or RWF_DONTCACHE: 330 µs. sync_file_range or RWF_DONTCACHE
// with the writes: 35–50 µs, but now and then 80–350 ms. So requests use the
// page cache as it is, and only this is done besides.
func (s *Store) writeOut(last *segment) *segment {
	seg := s.full[0]
	s.full = s.full[1:]
	s.mu.Unlock()
	_ = unix.SyncFileRange(int(seg.file.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	if last != nil {
		_ = unix.Fadvise(int(last.file.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	s.mu.Lock()
	return seg
}

// needed tells whether there is something to reclaim, and a reason. What waits
// for readers will be ready soon, unless it takes them so long that nothing else
// is left.
func (s *Store) needed() bool {
	ready := len(s.free)
	if ready > 0 {
		ready += s.waiting()
	}
	return s.cleanErr == nil && ready < reserve-1 && s.victim() != nil
}

// waiting counts the segments that wait for readers.
func (s *Store) waiting() (n int) {
	for _, seg := range s.segments {
		if seg.state == draining {
			n++
		}
	}
	return n
}

// victim is the segment to be reclaimed next: one that nobody reads, the one
// with the least that is wanted, the oldest; nil if there is none.
func (s *Store) victim() *segment {
	var best *segment
	for _, seg := range s.segments {
		if seg.state == sealed && seg.writers == 0 && (best == nil || worse(seg, best)) {
			best = seg
		}
	}
	if best != nil && s.waiting() >= maxDraining {
		return nil
	}
	return best
}

func worse(a, b *segment) bool {
	if (a.readers > 0) != (b.readers > 0) {
		return a.readers == 0
	}
	return cmp.Or(cmp.Compare(a.wanted, b.wanted), cmp.Compare(a.opened, b.opened)) < 0
}

// rewrite moves what is worth it out of a segment, at most its part of
// rewriteShare, that of most uses. mu is held before and after, not all the time.
// It answers buf, grown.
func (s *Store) rewrite(seg *segment, buf []byte) []byte {
	var worth []slot
	for _, sl := range seg.slots {
		if sl.live && sl.wanted {
			worth = append(worth, sl)
		}
	}
	slices.SortFunc(worth, func(a, b slot) int {
		return cmp.Or(cmp.Compare(b.uses, a.uses), cmp.Compare(b.sequence, a.sequence))
	})
	room := (s.length - page) / rewriteShare
	for i, sl := range worth {
		if s.closed || slotSize(sl.size) > room {
			break
		}
		room -= slotSize(sl.size)
		var err error
		if buf, err = s.move(seg, sl, buf); err != nil {
			s.leave(len(worth)-i, err)
			break
		}
	}
	return buf
}

// leave counts values that were worth keeping and are not kept. It is told at
// most once in warnEvery: while much is put it may be so for each segment. mu is
// held.
func (s *Store) leave(values int, cause error) {
	s.stats.Left += uint64(values)
	if now := s.options.now(); now.Sub(s.warned) >= warnEvery {
		s.warned = now
		s.options.Warn(fmt.Errorf("flash: %d values so far that were worth it are not kept: %w", s.stats.Left, cause))
	}
}

// move writes a slot once more, in another segment. A value that somebody
// changes just now is left, one that is rotten is dropped.
func (s *Store) move(seg *segment, sl slot, buf []byte) ([]byte, error) {
	if _, taken := s.busy[sl.key]; taken {
		return buf, nil
	}
	r, ok, err := s.begin(sl.key)
	if err != nil {
		return buf, err
	}
	defer s.end(sl.key)
	if !ok || s.slot(r).sequence != sl.sequence || !s.slot(r).wanted {
		return buf, nil
	}
	s.mu.Unlock()
	data, err := seg.readValue(&sl, buf)
	s.mu.Lock()
	if err != nil {
		s.stats.Corrupt++
		s.policy.Remove(sl.key)
		return buf, s.kill(sl.key)
	}
	p, err := s.reserve(slotSize(sl.size), false)
	if err != nil {
		return data, err
	}
	fresh := slot{key: sl.key, size: sl.size, crc: sl.crc, last: sl.last}
	for i, t := range s.policy.Uses(sl.key) {
		switch i {
		case 0:
			fresh.last = seconds(t)
		case 1:
			fresh.before = seconds(t)
		}
	}
	err = s.write(p, fresh, data, func(r ref) { s.want(r, s.policy.Contains(sl.key)) })
	if err == nil {
		s.stats.Rewritten += slotSize(sl.size)
	}
	return data, err
}

// reclaim gives a segment a new salt on disk, which ends all its slots, drops
// what is still in it, and has it filled again once nobody reads it. If the
// disk refuses, the segment stays as it is.
func (s *Store) reclaim(seg *segment) error {
	s.mu.Unlock()
	salt, err := s.newSalt(seg)
	s.mu.Lock()
	if err != nil {
		s.stats.WriteErrors++
		s.options.Warn(fmt.Errorf("flash: use a segment again: %w", err))
		return err
	}
	seg.salt = salt
	for _, sl := range seg.slots {
		if !sl.live {
			continue
		}
		s.forget(sl.key)
		s.stats.Evicted++
		if sl.wanted { // else the policy knows it as evicted, and remembers it
			s.policy.Remove(sl.key)
		}
	}
	seg.state = draining
	s.stats.Reclaimed++
	seg.readers++
	s.release(seg) // frees it if nobody reads
	return nil
}

// newSalt gives a segment's file a new salt.
func (s *Store) newSalt(seg *segment) (uint64, error) {
	salt := s.options.random()
	for salt == 0 || salt == seg.salt {
		salt = s.options.random()
	}
	return salt, s.options.write(seg.file, 0, encodeSegment(salt, s.length))
}
