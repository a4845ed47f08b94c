package cache

import (
	"cmp"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// touchEvery is how often a chunk's use is written down: often enough to tell
// what is used from what is not over hours, seldom enough to cost nothing.
const touchEvery = time.Minute

// stored is one chunk of the folder.
type stored struct {
	name chunk.Name
	size int64 // bytes
	used time.Time
}

// policy says what goes first when the folder is full: what was used longest
// ago, by the files' mtimes. All that the folder knows of it is here.
type policy struct{}

// used notes that a chunk is used; was is when it was before, as stored.used.
func (policy) used(path string, was time.Time) {
	if time.Since(was) < touchEvery {
		return
	}
	now := unix.Timespec{Nsec: unix.UTIME_NOW}
	same := unix.Timespec{Nsec: unix.UTIME_OMIT}
	// Losing one costs a little of the hit rate: no error to anybody.
	_ = unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{same, now}, unix.AT_SYMLINK_NOFOLLOW)
}

// lastUse tells when a file was used last.
func (policy) lastUse(info os.FileInfo) time.Time { return info.ModTime() }

// order sorts what is to go first to the front.
func (policy) order(chunks []stored) {
	slices.SortFunc(chunks, func(a, b stored) int {
		return cmp.Or(a.used.Compare(b.used), slices.Compare(a.name[:], b.name[:]))
	})
}
