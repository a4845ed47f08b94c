package cache

import (
	"encoding/binary"
	"math"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
	"thaw/lru"
)

// What goes first when the folder is full is decided by LRU-2 (package lru):
// the chunk whose use before last is the longest ago, so that what many starts
// need stays while one that reads much once goes by. All processes on a folder
// and those after a restart have to know of the uses, so they are in the files'
// times:
//
//	atime  the last use
//	mtime  the one before; 1970 if there was none
//
// The kernel may set an atime too, where somebody reads a file by a way that
// lets it; that is a use. What is known of a chunk outlives its eviction in the
// file past, where it costs 16 bytes.

const (
	// touchEvery is how far uses have to be apart to count as two (the
	// correlated reference period): one start uses a chunk many times, and so do
	// ten starts of one program, which says nothing of whether it is used again.
	touchEvery = time.Minute
	// pastName is a table of pastSlots times of pastSize bytes: the first 8 bytes
	// of a chunk's name and when it was used last, in ns since 1970, big-endian.
	// A chunk's place is bytes 8 to 15 of its name, modulo; the later one has it.
	pastName = "past"
	pastSize = 16
	// pastSlots remember 128 GiB of chunks of 512 KiB in at most 4 MiB.
	pastSlots = 1 << 18
)

// stored is one chunk of the folder.
type stored struct {
	name chunk.Name
	size int64 // bytes
	uses uses
}

// uses are a chunk's last two; before is zero if there was one only.
type uses struct{ last, before time.Time }

// usesOf reads them off a file.
func usesOf(info os.FileInfo) uses {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return uses{last: info.ModTime()}
	}
	u := uses{last: time.Unix(st.Atim.Unix())}
	if st.Mtim.Nano() > 0 {
		u.before = time.Unix(st.Mtim.Unix())
	}
	return u
}

// next gives the uses after one now. same: it is no other than the last.
func (u uses) next(now time.Time) (n uses, same bool) {
	if now.Sub(u.last) < touchEvery {
		return u, true
	}
	return uses{now, u.last}, false
}

// times gives them as a file has them.
func (u uses) times() []unix.Timespec {
	before := unix.Timespec{}
	if !u.before.IsZero() {
		before = unix.NsecToTimespec(u.before.UnixNano())
	}
	return []unix.Timespec{unix.NsecToTimespec(u.last.UnixNano()), before}
}

// clock is the time by which uses count; tests have another.
func (f *Folder) clock() time.Time {
	if f.now != nil {
		return f.now()
	}
	return time.Now()
}

// used notes that a chunk's file is used. Losing one costs a little of the hit
// rate: no error to anybody.
func (f *Folder) used(path string, u uses) {
	if n, same := u.next(f.clock()); !same {
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, n.times(), unix.AT_SYMLINK_NOFOLLOW)
	}
}

// order gives an order of going for chunks: each call of next the index of one,
// and -1 after the last.
func order(chunks []stored) (next func() int) {
	c := lru.New[int](lru.Options{Limit: math.MaxInt64, History: -1})
	for i, s := range chunks {
		known := []time.Time{s.uses.last, s.uses.before}
		if s.uses.before.IsZero() {
			known = known[:1]
		}
		c.Restore(i, s.size, known)
	}
	return func() int {
		if i, ok := c.Evict(); ok {
			return i
		}
		return -1
	}
}

// past is the table of what was evicted. One that cannot be read or written
// remembers nothing.
type past struct{ file *os.File }

// openPast opens it. To write takes the guard, alone.
func (f *Folder) openPast() past {
	file, err := f.openOwn(pastName)
	if err != nil {
		return past{}
	}
	return past{file}
}

func (p past) close() {
	if p.file != nil {
		_ = p.file.Close()
	}
}

func pastAt(name chunk.Name) int64 {
	return int64(binary.BigEndian.Uint64(name[8:])%pastSlots) * pastSize
}

// lastUse gives when a chunk that was evicted had been used last, or zero.
func (p past) lastUse(name chunk.Name) time.Time {
	var b [pastSize]byte
	if p.file == nil {
		return time.Time{}
	}
	if n, _ := p.file.ReadAt(b[:], pastAt(name)); n < pastSize || [8]byte(b[:]) != [8]byte(name[:]) {
		return time.Time{}
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(b[8:])))
}

// remember writes down when a chunk that goes was used last.
func (p past) remember(name chunk.Name, last time.Time) {
	if p.file == nil {
		return
	}
	b := binary.BigEndian.AppendUint64(append(make([]byte, 0, pastSize), name[:8]...), uint64(last.UnixNano()))
	_, _ = p.file.WriteAt(b, pastAt(name))
}

// arriving gives the uses of a chunk that comes now.
func (f *Folder) arriving(name chunk.Name) uses {
	p := f.openPast()
	defer p.close()
	now := f.clock()
	u := uses{last: p.lastUse(name)}
	if u.last.IsZero() || u.last.After(now) {
		return uses{last: now}
	}
	u, _ = u.next(now)
	return u
}
