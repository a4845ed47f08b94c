package flash

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	lockName = "lock"
	filePerm = 0o600
	dirPerm  = 0o755

	// minSegments are one to fill, those kept free, and one to read.
	minSegments = reserve + 2
	// maxSegments bounds open files, with up to maxSpare besides for each.
	maxSegments = 4096
	maxSpare    = 2
	// wantSegments keeps a segment, what a rotten header costs, at a small share.
	wantSegments = 512
	// minSegment and maxSegment bound what is picked: shorter ones make more
	// files than they help, longer ones make writers wait longer for the cleaner.
	minSegment = 4 << 20
	maxSegment = 4 << 30
	// slotBytes bounds the index: a segment takes as many slots as if each had at
	// least so many bytes.
	slotBytes = 16 << 10
)

// state is where a segment is in its round.
type state uint8

const (
	free     state = iota // waits to be filled
	filling               // the current one
	sealed                // full; it is read and may be reclaimed
	draining              // nothing in it counts; waits for the last reader, then free
)

// segment is one file. Its fields are guarded by the store's mu, but for file
// and number, which do not change.
type segment struct {
	number  uint32
	file    *os.File
	spare   []*os.File // descriptions of the file of their own, for views
	state   state
	salt    uint64
	end     int64  // bytes that are taken, from the front
	taken   int    // slots that were begun
	slots   []slot // in the order in which they were finished
	wanted  int64  // bytes of slots that the policy wants
	opened  uint64 // a sequence number of when it began to be filled, or later
	writers int    // slots that are being written
	readers int    // of values and writers of headers of dead slots: while there are any it is not filled
}

// slot is a value in a segment. There are many: no pointers.
type slot struct {
	key                    Key
	live, wanted, verified bool
	uses                   uint8 // since it was written here, at most 255
	page                   uint32
	size, crc              uint32
	last, before           uint32
	sequence               uint64
}

func (sl *slot) header(k kind) *header {
	return &header{key: sl.key, kind: k, sequence: sl.sequence, size: sl.size, crc: sl.crc, last: sl.last, before: sl.before}
}

func (sl *slot) offset() int64 { return int64(sl.page) * page }

// writeFunc writes the parts one after the other; anything but all is an error.
type writeFunc func(f *os.File, offset int64, parts ...[]byte) error

func (o Options) withDefaults() Options {
	if o.now == nil {
		o.now = time.Now
	}
	if o.random == nil {
		o.random = func() uint64 {
			var b [8]byte
			rand.Read(b[:]) // never fails
			return binary.BigEndian.Uint64(b[:])
		}
	}
	if o.write == nil {
		o.write = pwritev
	}
	if o.Warn == nil {
		o.Warn = func(error) {}
	}
	return o
}

// pwritev is the writeFunc of real disks.
func pwritev(f *os.File, offset int64, parts ...[]byte) error {
	for len(parts) > 0 {
		n, err := unix.Pwritev(int(f.Fd()), parts, offset)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &os.PathError{Op: "write", Path: f.Name(), Err: err}
		case n == 0:
			return &os.PathError{Op: "write", Path: f.Name(), Err: io.ErrShortWrite}
		}
		offset += int64(n)
		for len(parts) > 0 && n >= len(parts[0]) {
			n -= len(parts[0])
			parts = parts[1:]
		}
		if len(parts) > 0 {
			parts = append([][]byte{parts[0][n:]}, parts[1:]...)
		}
	}
	return nil
}

// open does the work of Open; what it leaves open is closed by closeFiles.
func (s *Store) open() error {
	began := time.Now()
	if err := os.MkdirAll(s.dir, dirPerm); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	lengths, err := s.existing()
	if err != nil {
		return err
	}
	if err := s.layOut(lengths); err != nil {
		return err
	}
	if err := s.allocate(lengths); err != nil {
		return err
	}
	s.scan()
	s.stats.Scan.Duration = time.Since(began)
	return nil
}

// takeLock takes the folder for this process. The kernel releases it with the
// process, however that ends.
func (s *Store) takeLock() error {
	f, err := os.OpenFile(filepath.Join(s.dir, lockName), os.O_RDWR|os.O_CREATE, filePerm)
	if errors.Is(err, unix.EROFS) || errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("folder %s cannot be written to, which flash has to: %w", s.dir, err)
	}
	if err != nil {
		return err
	}
	s.lock = f
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%w: %s", ErrLocked, s.dir)
	}
	return err
}

// existing finds the lengths of the segments that are there.
func (s *Store) existing() (map[uint32]int64, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	name := regexp.MustCompile(`^segment-(\d{5})$`)
	lengths := map[uint32]int64{}
	for _, e := range entries {
		m := name.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no file: remove it", filepath.Join(s.dir, e.Name()))
		}
		n, _ := strconv.Atoi(m[1])
		lengths[uint32(n)] = info.Size()
	}
	return lengths, nil
}

// layOut decides on length and number of segments: as most of those that are
// there, if Size allows, else by Options.
func (s *Store) layOut(lengths map[uint32]int64) error {
	fits := func(length int64) bool {
		return length >= 4*page && length <= maxSegment && length%page == 0 &&
			s.options.Size/length >= minSegments && s.options.Size/length <= maxSegments
	}
	votes := map[int64]int{}
	for _, l := range lengths {
		if votes[l]++; fits(l) && votes[l] > votes[s.length] {
			s.length = l
		}
	}
	if s.length == 0 {
		s.length = s.options.Segment
	}
	if s.length == 0 {
		for s.length = minSegment; s.length < maxSegment && s.options.Size/s.length > wantSegments; s.length *= 2 {
		}
	}
	if !fits(s.length) {
		return fmt.Errorf("size of %d bytes with segments of %d: give %d to %d segments of a multiple of %d bytes",
			s.options.Size, s.length, minSegments, maxSegments, page)
	}
	return nil
}

// path is that of a segment's file.
func (s *Store) path(number uint32) string {
	return filepath.Join(s.dir, fmt.Sprintf("segment-%05d", number))
}

// allocate opens all segments with every block allocated, so that no write
// finds the disk full later on, and removes those that are too many. If the
// disk has no room it removes those that it made.
func (s *Store) allocate(lengths map[uint32]int64) (err error) {
	count := uint32(s.options.Size / s.length)
	for n := range lengths {
		if n >= count {
			if err := os.Remove(s.path(n)); err != nil {
				return err
			}
		}
	}
	if err := s.room(count); err != nil {
		return err
	}
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				os.Remove(path)
			}
		}
	}()
	for n := range count {
		_, had := lengths[n]
		if !had {
			made = append(made, s.path(n))
		}
		f, err := os.OpenFile(s.path(n), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, filePerm)
		if err != nil {
			return err
		}
		s.segments = append(s.segments, &segment{number: n, file: f})
		if had && lengths[n] > s.length {
			if err := f.Truncate(s.length); err != nil {
				return err
			}
		}
		if err := fallocate(f, s.length); err != nil {
			return fmt.Errorf("allocate %d segments of %d bytes: %w", count, s.length, err)
		}
	}
	return nil
}

// room fails early if the disk obviously has too little, rather than after
// having filled it.
func (s *Store) room(count uint32) error {
	need := int64(count) * s.length
	for n := range count {
		var st unix.Stat_t
		if unix.Lstat(s.path(n), &st) == nil {
			need -= min(st.Blocks*512, s.length)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: s.dir, Err: err}
	}
	if have := int64(fs.Bavail) * fs.Bsize; need > have {
		return fmt.Errorf("%w: %s needs %d bytes more, the disk has %d", ErrNoRoom, s.dir, need, have)
	}
	return nil
}

// fallocate gives a file its length and all of its blocks.
func fallocate(f *os.File, length int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, length)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOSPC):
			return fmt.Errorf("%w: %w", ErrNoRoom, &os.PathError{Op: "fallocate", Path: f.Name(), Err: err})
		case err != nil:
			return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// closeFiles closes what is open, and with the lock gives the folder free.
func (s *Store) closeFiles() error {
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.file.Close())
		for _, f := range seg.spare {
			errs = append(errs, f.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
