// Package flash keeps values of up to 2 MiB by key in files on a local disk, of
// at most a number of bytes: the lower tier of a zone node. It is a cache: what
// it gives back is right or missing.
//
// # Files
//
// The folder holds lock, under a flock of the one process that has the store
// open, and segment-00000, segment-00001 and so on, all of one length, with
// their blocks allocated when the store is opened (a file system that copies on
// write may run out of room all the same, and Put says so). All numbers are big-endian,
// all checksums CRC-32C. A segment begins with a header, alone in its first
// 4 KiB:
//
//	 0  8  "thaw-F1\n"
//	 8  4  checksum of bytes 12 to 63
//	12  4  reserved, 0
//	16  8  salt: random, new each time that the segment is used again
//	24  8  length of the segment in bytes
//	32 32  reserved, 0
//
// and slots follow, each from a multiple of 4 KiB, a header and then the value:
//
//	 0  4  "tfS1"
//	 4  4  checksum of bytes 8 to 95
//	 8  8  salt of the segment: any other is what an earlier use left behind
//	16  8  sequence number, below 2^62: of two slots with one key the higher counts
//	24 35  key
//	59  1  kind: 1 a value, 2 dead (removed, replaced or moved)
//	60  4  length of the value in bytes, 1 to 2 MiB + 64
//	64  4  checksum of the value
//	68  4  reserved, 0
//	72  4  last use, in seconds since 1970
//	76  4  the use before, 0 if there was none
//	80 16  reserved, 0
//	96  …  the value
//
// A segment is written from front to back and never in place, but for headers
// of slots that die. A segment to be used again gets a new salt, and with that
// all its slots are gone: what is worth keeping has moved to another by then.
//
// # After a crash
//
// Nothing is ever synced. Open reads the headers, a slot's length telling where
// the next is; where there is no header it looks for one at every 4 KiB. What a
// killed process had put, replaced or removed stays so: the kernel has its
// writes. After a loss of power any of the pages that the kernel had not
// written yet (30 seconds' worth, as a rule) may be as they were before: a value
// may be gone, or one that was replaced or removed in those seconds may be
// back. A value is only ever given out whole: its checksum is compared whenever
// Get reads it, and by View when it is read for the first time since Open. Bits
// that rot later on are not seen by View: its reader has to compare checksums,
// as a zone's client does.
//
// # What is kept
//
// New values fill the current segment. When few segments are left for that,
// the one with the fewest bytes that LRU-k wants to keep is used again, and up
// to half of its bytes, those with most uses, are written once more: so all
// writing is at most twice that of what is put. What LRU-k no longer wants is
// given out as long as its segment lives.
package flash

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"thaw/latency"
	"thaw/lru"
)

// Key names a value. It is up to the caller what the bytes mean.
type Key [35]byte

// MaxValue is the longest value in bytes: a stripe of 1 of 1 of the largest
// chunk, with its header.
const MaxValue = 2<<20 + 64

var (
	// ErrNotFound: there is no such value.
	ErrNotFound = errors.New("not in flash")
	// ErrCorrupt comes with ErrNotFound: there was one, and its bytes had changed
	// or could not be read. It is gone and counted.
	ErrCorrupt = errors.New("corrupt in flash")
	// ErrChanged: Replace found another value than it was to replace.
	ErrChanged = errors.New("another value is in flash")
	// ErrSize: the value is empty or too long.
	ErrSize = errors.New("value of a length that flash does not take")
	// ErrBusy: there is no room to write to at the moment, since all segments are
	// being read or the disk refuses writes. Reads go on.
	ErrBusy = errors.New("no room in flash for now")
	// ErrNoRoom: the disk cannot hold what Options.Size asks for.
	ErrNoRoom = errors.New("not enough room on the disk for flash")
	// ErrLocked: another process has the store open.
	ErrLocked = errors.New("flash folder is in use by another process")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("flash is closed")
)

// Options say how much is kept.
type Options struct {
	// Size is the most that the segments may take, in bytes; at least four
	// segments. It may change from one Open to the next.
	Size int64
	// Segment is the length of a segment in bytes; 0 picks one by Size. A folder
	// that has segments keeps their length if Size allows.
	Segment int64
	// Correlated is how close uses of a value count as one; see lru.Options.
	Correlated time.Duration
	// Warn, if set, is told of disk faults met in the background. It must not
	// call the store.
	Warn func(error)

	now    func() time.Time // tests; nil: time.Now
	random func() uint64    // tests; nil: crypto/rand
	write  writeFunc        // tests; nil: pwritev
}

// Store is the open folder. It is safe for concurrent use.
type Store struct {
	options Options
	dir     string
	lock    *os.File
	length  int64 // of a segment, bytes
	reads   latency.Histogram
	writes  latency.Histogram
	done    chan struct{} // closed when the cleaner has ended

	mu       sync.Mutex // guards all below, the segments' fields too
	changed  *sync.Cond // for writers: a key or a segment has become free, an operation has ended
	work     *sync.Cond // for the cleaner: a segment is needed, or the store closes
	segments []*segment
	index    map[Key]ref
	busy     map[Key]struct{} // being put, replaced, removed or moved
	policy   *lru.Cache[Key]
	current  *segment   // being filled; nil: none
	free     []*segment // to be filled next, first first
	full     []*segment // to be written out by the kernel
	cleaning *segment   // being reclaimed; nil: none
	cleanErr error      // why the last reclaiming failed; nil when it is to be tried (again)
	sequence uint64     // of the last slot
	active   int        // operations that use the files
	closed   bool
	warned   time.Time // when values that are left were told of last
	stats    Stats
}

// ref is where a value is: a segment and the place in its slots.
type ref struct{ segment, slot uint32 }

// Stats are counts since Open, but for what is there now. Bytes are those of
// values unless said otherwise.
type Stats struct {
	Items    int   `json:"items"`    // values that can be read
	Bytes    int64 `json:"bytes"`    // of those
	Limit    int64 `json:"limit"`    // bytes of all segments on disk, in use or not
	Segments int   `json:"segments"` // all
	Free     int   `json:"free"`     // segments ready to be filled

	Hits     uint64 `json:"hits"`     // by Get and View
	Misses   uint64 `json:"misses"`   // by Get and View, corrupt ones too
	Added    uint64 `json:"added"`    // values put
	Replaced uint64 `json:"replaced"` // values
	Removed  uint64 `json:"removed"`  // values, by Remove
	Evicted  uint64 `json:"evicted"`  // values dropped to make room
	Corrupt  uint64 `json:"corrupt"`  // values dropped as torn, rotten or unreadable

	Written     int64  `json:"written"`      // bytes of slots for values that were put or replaced others
	Rewritten   int64  `json:"rewritten"`    // bytes of slots written once more; Written + Rewritten over Written is the write amplification
	Left        uint64 `json:"left"`         // values that were worth writing once more, and evicted instead: there was no room just then
	Reclaimed   uint64 `json:"reclaimed"`    // segments made ready to be filled again
	WriteErrors uint64 `json:"write_errors"` // writes that the disk refused

	Scan  Scan             `json:"scan"`
	Read  latency.Snapshot `json:"read"`  // of Get, from the disk or the page cache, checksum included
	Write latency.Snapshot `json:"write"` // of one slot to the page cache
}

// Scan is what Open found.
type Scan struct {
	Duration time.Duration `json:"duration_ns"`
	Slots    int           `json:"slots"` // values found and kept
	Older    int           `json:"older"` // values found that another superseded
	Reset    int           `json:"reset"` // segments without a good header, now empty; all of them in a fresh folder
	Bytes    int64         `json:"bytes"` // read to find out
}

// Open makes the folder and its segments if they are missing, and finds what
// they hold. It fails with ErrNoRoom if the disk has not enough, and then
// leaves no new segments behind; with ErrLocked; or with what the folder
// refuses. Damaged segments are no reason to fail.
func Open(dir string, o Options) (*Store, error) {
	s := &Store{options: o.withDefaults(), dir: dir, index: map[Key]ref{}, busy: map[Key]struct{}{}, done: make(chan struct{})}
	s.changed, s.work = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("flash: %w", err)
	}
	go s.clean()
	return s, nil
}

// Close ends the store: it waits for calls that are under way, not for views.
// Calls after it answer ErrClosed.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.work.Broadcast()
	s.changed.Broadcast()
	for s.active > 0 {
		s.changed.Wait()
	}
	s.mu.Unlock()
	<-s.done
	return s.closeFiles()
}

// Stats tells how the store is doing.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := s.stats
	st.Items = len(s.index)
	st.Segments, st.Free = len(s.segments), len(s.free)
	st.Limit = int64(len(s.segments)) * s.length
	s.mu.Unlock()
	st.Read, st.Write = s.reads.Snapshot(), s.writes.Snapshot()
	return st
}
