package cache

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"thaw/chunk"
)

// clocked is a folder of room for so many chunks, whose time is the test's.
type clocked struct {
	*Folder
	at time.Time
}

func newClocked(t testing.TB, chunks int) *clocked {
	c := &clocked{newFolder(t, int64(chunks)*small), time.Now()}
	c.now = func() time.Time { return c.at }
	return c
}

// reopen is a restart.
func (c *clocked) reopen(t testing.TB) {
	t.Helper()
	f := open(t, c.dir, c.limit)
	f.now = c.now
	c.Folder = f
}

// read uses chunks, one after the other.
func (c *clocked) read(t testing.TB, chunks ...chunk.Sealed) {
	t.Helper()
	for _, s := range chunks {
		filled(t, c.Folder, s)
		c.at = c.at.Add(time.Millisecond)
	}
}

func (c *clocked) count(chunks []chunk.Sealed) (n int) {
	for _, s := range chunks {
		if c.has(s.Name) {
			n++
		}
	}
	return n
}

// TestScan: what was used twice stays, whatever is used once, also over a
// restart; and what is used no more goes in the end.
func TestScan(t *testing.T) {
	c := newClocked(t, 20)
	all := new(fakeOrigin).put(t, 200, small)
	hot, next, scan := all[:10], all[10:20], all[20:]
	for range 2 {
		c.read(t, hot...)
		c.at = c.at.Add(2 * touchEvery)
	}
	c.read(t, scan[:90]...)
	c.reopen(t)
	c.read(t, scan[90:]...)
	if n := c.count(hot); n != len(hot) {
		t.Errorf("%d of %d chunks that were used twice are left", n, len(hot))
	}
	for range 2 {
		c.at = c.at.Add(time.Hour)
		for _, s := range next {
			c.read(t, s, s, s) // within a minute, a use like one
		}
	}
	c.read(t, scan[:60]...)
	if n := c.count(next); n != len(next) {
		t.Errorf("%d of %d chunks that are used now are left", n, len(next))
	}
	checkFolder(t, c.Folder)
}

// TestComesBack: a chunk that was evicted between its uses counts as used
// before, also to another process, and one that was not does not.
func TestComesBack(t *testing.T) {
	c := newClocked(t, 10)
	all := new(fakeOrigin).put(t, 100, small)
	back, scan := all[0], all[1:]
	c.read(t, back)
	c.at = c.at.Add(2 * touchEvery)
	c.read(t, scan[:20]...)
	if c.has(back.Name) {
		t.Fatal("a chunk that was used once outlived a scan")
	}
	c.reopen(t)
	c.read(t, back)
	c.read(t, scan[20:60]...)
	if !c.has(back.Name) {
		t.Error("a chunk that came back was taken for a new one")
	}
	info, err := os.Stat(chunkPath(c.dir, back.Name))
	if err != nil {
		t.Fatal(err)
	}
	if u := usesOf(info); c.at.Sub(u.last) > time.Second || u.last.Sub(u.before) < 2*touchEvery {
		t.Errorf("its uses are %v", u)
	}
	cut := func() error { return os.Truncate(c.path(pastName), 7) }
	folder := func() error { _ = os.Remove(c.path(pastName)); return os.Mkdir(c.path(pastName), 0o755) }
	for what, spoil := range []func() error{cut, folder} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		c.at = c.at.Add(2 * touchEvery)
		c.read(t, scan[60:]...)
		if s := c.Stats(); s.Failures != 0 {
			t.Errorf("spoiled in way %d: %+v", what, s)
		}
	}
	if err := os.Remove(c.path(pastName)); err != nil {
		t.Fatal(err)
	}
	checkFolder(t, c.Folder)
}

// TestHits shows what two uses are worth: with a hot set and scans, more reads
// are served than by the least recently used rule, simulated here.
func TestHits(t *testing.T) {
	const room = 40
	c := newClocked(t, room)
	all := new(fakeOrigin).put(t, 1000, small)
	draw := rand.New(rand.NewPCG(1, 2))
	scan, hits, lruHits, reads := 100, 0, 0, 0
	var recent []int
	for range 30 {
		c.at = c.at.Add(2 * touchEvery)
		var names []int
		for range 20 {
			names = append(names, draw.IntN(30))
		}
		for range 14 {
			names, scan = append(names, scan), scan+1
		}
		for _, i := range names {
			reads++
			if c.has(all[i].Name) {
				hits++
			}
			c.read(t, all[i])
			if at := slices.Index(recent, i); at >= 0 {
				lruHits++
				recent = slices.Delete(recent, at, at+1)
			} else if len(recent) >= room {
				recent = recent[1:]
			}
			recent = append(recent, i)
		}
	}
	if hits <= lruHits {
		t.Errorf("%d of %d reads were hits, %d by LRU", hits, reads, lruHits)
	}
	t.Logf("%d of %d reads were hits, %d by LRU", hits, reads, lruHits)
}
