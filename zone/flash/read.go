package flash

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Info is what is known of a value without reading it.
type Info struct {
	Size int64  // bytes
	CRC  uint32 // see Checksum
}

// Stat tells of a value, if there is one. It is no use of it, and nothing is read.
func (s *Store) Stat(key Key) (Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.index[key]
	if !ok || s.closed {
		return Info{}, false
	}
	sl := s.slot(r)
	return Info{Size: int64(sl.size), CRC: sl.crc}, true
}

// Has tells whether there is a value. It is no use of it.
func (s *Store) Has(key Key) bool {
	_, ok := s.Stat(key)
	return ok
}

// Touch tells of a use of a value that was read elsewhere, from memory: without
// it what is used most would seem unused here.
func (s *Store) Touch(key Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r, ok := s.index[key]; ok && !s.closed {
		s.use(r)
	}
}

// use tells the policy of a use.
func (s *Store) use(r ref) {
	sl := s.slot(r)
	if sl.uses < 255 {
		sl.uses++
	}
	if !s.policy.Hit(sl.key, s.options.now()) {
		s.admit(r)
	}
}

// pin finds a value for reading and keeps its segment from being filled again.
// Every pin without an error needs its unpin.
func (s *Store) pin(key Key) (*segment, slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, slot{}, ErrClosed
	}
	r, ok := s.index[key]
	if !ok {
		s.stats.Misses++
		return nil, slot{}, ErrNotFound
	}
	s.use(r)
	seg := s.segments[r.segment]
	seg.readers++
	s.active++
	return seg, *s.slot(r), nil
}

func (s *Store) unpin(seg *segment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(seg)
	if s.active--; s.closed {
		s.changed.Broadcast()
	}
}

// Get reads a value into buf, if that has the room, else into a new one, and
// verifies it. It fails with ErrNotFound; with ErrCorrupt besides if there was a
// value that is dropped now.
func (s *Store) Get(key Key, buf []byte) ([]byte, error) {
	seg, sl, err := s.pin(key)
	if err != nil {
		return nil, err
	}
	defer s.unpin(seg)
	began := time.Now()
	data, err := seg.readValue(&sl, buf)
	s.reads.Since(began)
	if err != nil {
		return nil, s.rotten(sl, err)
	}
	s.verified(sl)
	return data, nil
}

// readValue reads a value into buf or a new one, and verifies it.
func (seg *segment) readValue(sl *slot, buf []byte) ([]byte, error) {
	if cap(buf) < int(sl.size) {
		buf = make([]byte, sl.size)
	}
	buf = buf[:sl.size]
	if _, err := seg.file.ReadAt(buf, sl.offset()+slotHeader); err != nil {
		return nil, err
	}
	if Checksum(buf) != sl.crc {
		return nil, errors.New("wrong checksum")
	}
	return buf, nil
}

// verified notes that a value was read and was good.
func (s *Store) verified(sl slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Hits++
	if r, ok := s.index[sl.key]; ok && s.slot(r).sequence == sl.sequence {
		s.slot(r).verified = true
	}
}

// rotten drops a value that was found bad, unless it has been dropped, moved or
// replaced since.
func (s *Store) rotten(sl slot, cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.Misses++
	r, ok, err := s.begin(sl.key)
	if err != nil {
		return err
	}
	defer s.end(sl.key)
	if ok && s.slot(r).sequence == sl.sequence {
		s.stats.Corrupt++
		s.policy.Remove(sl.key)
		_ = s.kill(sl.key) // if it is found again, it will be as bad
	}
	return fmt.Errorf("%w, %w: %x: %w", ErrCorrupt, ErrNotFound, sl.key, cause)
}

// View is a value as a part of a file, for sendfile(2). Until Close the bytes
// are not overwritten; the store cannot use their segment again as long, so a
// view is for one answer.
type View struct {
	Info
	// File stands at the value's first byte: what is copied from it is the
	// value, if not more than Size bytes are. It is the view's alone.
	File   *os.File
	Offset int64 // of the first byte in File

	store   *Store
	segment *segment
}

// View gives a value as part of a file. What has not been verified since Open
// is read and verified first; bits that have rotted since then go unseen. It
// fails as Get does.
func (s *Store) View(key Key) (*View, error) {
	seg, sl, err := s.pin(key)
	if err != nil {
		return nil, err
	}
	if !sl.verified {
		if _, err := seg.readValue(&sl, nil); err != nil {
			s.unpin(seg)
			return nil, s.rotten(sl, err)
		}
	}
	s.verified(sl)
	f, err := s.description(seg)
	if err == nil {
		_, err = f.Seek(sl.offset()+slotHeader, io.SeekStart)
	}
	if err != nil {
		s.unpin(seg)
		return nil, fmt.Errorf("flash: view: %w", err)
	}
	s.mu.Lock()
	s.active-- // Close does not wait for views
	s.mu.Unlock()
	return &View{
		Info: Info{Size: int64(sl.size), CRC: sl.crc}, File: f, Offset: sl.offset() + slotHeader, store: s, segment: seg,
	}, nil
}

// Close ends the view, which must not be used after that.
func (v *View) Close() error {
	s := v.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release(v.segment)
	if s.closed || len(v.segment.spare) >= maxSpare {
		return v.File.Close()
	}
	v.segment.spare = append(v.segment.spare, v.File)
	return nil
}

// description gives an open file description of a segment that nobody else
// uses: sendfile(2) goes by the description's own position.
func (s *Store) description(seg *segment) (*os.File, error) {
	s.mu.Lock()
	if n := len(seg.spare); n > 0 {
		f := seg.spare[n-1]
		seg.spare = seg.spare[:n-1]
		s.mu.Unlock()
		return f, nil
	}
	s.mu.Unlock()
	f, err := os.Open(s.path(seg.number))
	if err != nil {
		return nil, err
	}
	ours, err1 := seg.file.Stat()
	theirs, err2 := f.Stat()
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(ours, theirs) {
		f.Close()
		return nil, errors.Join(fmt.Errorf("%s is another file than when it was opened", f.Name()), err)
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM) // the next slot is of no use
	return f, nil
}
