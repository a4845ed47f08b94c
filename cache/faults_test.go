package cache

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// villain does to a folder what a broken disk or a careless person does. Files
// that readers have hashed are not changed in place: what a disk does silently
// to a page that was checked is seen when the page is read again, by the next
// hash.
type villain struct {
	t    *testing.T
	dir  string
	draw *rand.Rand
	what map[string]int // done, by kind
}

// chunkFile draws one of the folder's.
func (v *villain) chunkFile() string {
	files, _ := filepath.Glob(v.dir + "/" + chunksDir + "/*/*")
	if len(files) == 0 {
		return v.dir + "/none"
	}
	return files[v.draw.IntN(len(files))]
}

// act does one of them. What fails finds nothing to harm.
func (v *villain) act() {
	path := v.chunkFile()
	acts := map[string]func(){
		"emptied":     func() { _ = os.RemoveAll(filepath.Join(v.dir, chunksDir)) },
		"gone":        func() { _ = os.RemoveAll(v.dir) },
		"truncated":   func() { _ = os.Truncate(path, int64(v.draw.IntN(small))) },
		"cut to none": func() { _ = os.Truncate(path, 0) },
		"removed":     func() { _ = os.Remove(path) },
		"flipped": func() {
			file, err := openChunk(path) // which it may not be any more
			if err != nil {
				return
			}
			defer file.Close()
			data, err := io.ReadAll(file)
			if err != nil || len(data) == 0 {
				return
			}
			data[v.draw.IntN(len(data))] ^= 1
			_ = os.WriteFile(v.dir+".bad", data, filePerm)
			_ = os.Rename(v.dir+".bad", path)
		},
		"replaced": func() {
			_ = os.Remove(path)
			switch v.draw.IntN(3) {
			case 0:
				_ = os.Mkdir(path, 0o755)
			case 1:
				_ = os.Symlink("/dev/zero", path)
			default:
				_ = unix.Mkfifo(path, 0o644)
			}
		},
		"miscounted": func() { _ = os.WriteFile(filepath.Join(v.dir, usedName), []byte("????????"), 0o644) },
		"amnesia":    func() { _ = os.Remove(filepath.Join(v.dir, pastName)) },
		"unlocked":   func() { _ = os.Remove(filepath.Join(v.dir, lockName)) },
	}
	names := []string{"emptied", "gone", "truncated", "cut to none", "removed", "flipped", "replaced", "miscounted", "amnesia", "unlocked"}
	kind := names[v.draw.IntN(len(names))]
	acts[kind]()
	v.what[kind]++
}

// TestFolderAttacked reads through three agents of two fetchers on one folder
// that is being ruined: each read gives the right bytes, and in the end the
// folder works.
func TestFolderAttacked(t *testing.T) {
	o := new(fakeOrigin)
	chunks := o.put(t, 60, small)
	f := newFolder(t, 40*small) // evicts all the time
	g := open(t, f.dir, f.limit)
	one := serve(t, FetcherOptions{Folder: f, Upstreams: upstream(o)})
	other := serve(t, FetcherOptions{Folder: g, Upstreams: upstream(o)})
	var readers sync.WaitGroup
	done, reads := make(chan struct{}), atomic.Int64{}
	for i, socket := range []string{one.socket, one.socket, other.socket} {
		c := newClient(t, ClientOptions{Folder: f.dir, Dial: dialer(socket), Memory: 2 * small, Files: 10})
		draw := rand.New(rand.NewPCG(uint64(i), 1))
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					read(t, c, chunks[draw.IntN(len(chunks))])
					reads.Add(1)
				}
			}
		})
	}
	v := &villain{t, f.dir, rand.New(rand.NewPCG(4, 2)), map[string]int{}}
	for range 300 {
		before := reads.Load()
		v.act()
		eventually(t, func() bool { return reads.Load() > before+5 })
	}
	close(done)
	readers.Wait()
	one.settle(t)
	other.settle(t)
	if len(v.what) != 10 {
		t.Errorf("the villain did %v, want all kinds", v.what)
	}
	_ = os.RemoveAll(f.dir)
	filled(t, f, chunks[0])
	checkFolder(t, f)
	t.Logf("%d reads, %v", reads.Load(), v.what)
}

// TestDiskTurnsBad fills a disk and makes it read-only while agents read.
func TestDiskTurnsBad(t *testing.T) {
	r, remount := onDisk(t, "400k")
	var readers sync.WaitGroup
	done, reads := make(chan struct{}), atomic.Int64{}
	for i := range 2 {
		c := newClient(t, ClientOptions{Folder: r.folder.dir, Dial: dialer(r.fetcher.socket), Memory: 1, Files: 1})
		draw := rand.New(rand.NewPCG(uint64(i), 1))
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					read(t, c, r.chunks[draw.IntN(len(r.chunks))])
					reads.Add(1)
				}
			}
		})
	}
	more := func() {
		before := reads.Load()
		eventually(t, func() bool { return reads.Load() > before+100 })
	}
	ballast := filepath.Join(filepath.Dir(r.folder.dir), "ballast")
	for range 3 {
		_ = os.WriteFile(ballast, make([]byte, 400<<10), 0o600) // as much of it as there is room for
		more()
		r.remountWhenIdle(t, remount, unix.MS_RDONLY)
		more()
		r.remountWhenIdle(t, remount, 0)
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		more()
	}
	close(done)
	readers.Wait()
	r.fetcher.settle(t)
	checkFolder(t, r.folder)
}

// remountWhenIdle tries until no file of the disk is open for writing.
func (r *rig) remountWhenIdle(t *testing.T, remount func(uintptr) error, flags uintptr) {
	t.Helper()
	eventually(t, func() bool { return remount(flags) == nil })
}

// TestSlowDisk: a reader has its chunk before it is kept, and others meanwhile
// get it from there.
func TestSlowDisk(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	filled(t, r.folder, sample(99, small)) // so that there is a lock file
	lock, err := r.folder.guard(t.Context(), unix.F_WRLCK)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		read(t, r.bare(t), r.chunks[0])
	}
	if r.folder.has(r.chunks[0].Name) || r.fetcher.flights.count() != 1 {
		t.Error("the chunk was kept while the folder was locked")
	}
	_ = lock.Close()
	r.fetcher.settle(t)
	if n := r.origin.gets.Load(); n != 1 || !r.folder.has(r.chunks[0].Name) || r.fetcher.Stats().LastTier.Bytes != 0 {
		t.Errorf("%d gets; kept: %v; %+v", n, r.folder.has(r.chunks[0].Name), r.fetcher.Stats().LastTier)
	}
}

// TestSilentAgent: one that asks and does not read keeps no others waiting.
func TestSilentAgent(t *testing.T) {
	o := new(fakeOrigin)
	chunks := o.put(t, 2*perConnection, chunk.DefaultSize)
	f := serve(t, FetcherOptions{Folder: newFolder(t, 1<<30), Upstreams: upstream(o)})
	silent, err := dialer(f.socket)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	frames := hello{"r1", 1}.append(nil)
	for i := range 32 {
		frames = request{uint32(i + 1), opGet, time.Minute, chunk.DefaultSize, chunks[i].Name}.append(frames)
	}
	if _, err := silent.Write(frames); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return f.Stats().Origin.Hits == 32 })
	c := newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(f.socket)})
	for _, want := range chunks[32:] {
		read(t, c, want)
	}
	_ = silent.Close()
	eventually(t, func() bool { s := f.Stats(); return s.LastTier.Bytes == 0 && s.Requests == 0 })
	f.settle(t)
	if !f.bytes.TryAcquire(f.o.Bytes) {
		t.Error("bytes are held for nobody")
	}
	f.bytes.Release(f.o.Bytes)
}

// TestNearerIsSpared: while the last tier fails, the zone is asked once a
// second, and serves what it gets meanwhile; a tier that hashes is trusted.
func TestNearerIsSpared(t *testing.T) {
	zone := new(fakeOrigin)
	down := newOrigin(func(context.Context, chunk.Name) error { return errors.New("down") })
	chunks := down.put(t, 2, small)
	tiers := append([]Upstream{{Tier: Zone, Hashes: true, Source: func(string) (chunk.Source, error) { return zone, nil }}}, upstream(down)...)
	inBubble(t, tiers, func(t *testing.T, f *Fetcher, c *Client) {
		if _, err := c.Find(t.Context(), chunks[0].Name, small); !errors.Is(err, ErrUnavailable) {
			t.Errorf("Find: %v", err)
		}
		if z, o := zone.gets.Load(), down.gets.Load(); z < 10 || z > 31 || o < 15 {
			t.Errorf("in 30 s the zone was asked %d times, the origin %d times", z, o)
		}
		done := make(chan struct{})
		go func() { defer close(done); read(t, c, chunks[0]) }()
		_ = sleep(t.Context(), 10*time.Second)
		if err := zone.Plant(t.Context(), chunks[0].Name, chunks[0].Data); err != nil {
			t.Fatal(err)
		}
		<-done
		if s := f.Stats(); s.Zone.Hits != 1 || s.Hash.Count() != 0 || s.Zone.Latency.Count() != 1 {
			t.Errorf("the fetcher counted %+v", s.Stats)
		}
	})
}

// TestZoneAfterTheQueue: what the zone got while a fetch waited for its place
// is not asked for again.
func TestZoneAfterTheQueue(t *testing.T) {
	zone := new(fakeOrigin)
	o := newOrigin(func(ctx context.Context, _ chunk.Name) error { return sleep(ctx, 5*time.Second) })
	chunks := o.put(t, 2, small)
	tiers := append([]Upstream{{Tier: Zone, Source: func(string) (chunk.Source, error) { return zone, nil }}}, upstream(o)...)
	inBubbleOf(t, FetcherOptions{Upstreams: tiers, OriginRequests: 1}, func(t *testing.T, f *Fetcher, c *Client) {
		var both sync.WaitGroup
		for _, want := range chunks {
			both.Go(func() { read(t, c, want) })
			_ = sleep(t.Context(), time.Second)
		}
		if err := zone.Plant(t.Context(), chunks[1].Name, chunks[1].Data); err != nil {
			t.Fatal(err)
		}
		both.Wait()
		if n := o.gets.Load(); n != 1 {
			t.Errorf("the origin was asked %d times", n)
		}
	})
}

// TestSlowDownObeyed: a bucket that says slow down is asked for less, and all
// reads come through.
func TestSlowDownObeyed(t *testing.T) {
	var asked atomic.Int64
	o := newOrigin(func(ctx context.Context, _ chunk.Name) error {
		if asked.Add(1) <= 8 {
			return tooFast{100 * time.Millisecond}
		}
		return nil
	})
	chunks := o.put(t, 8, small)
	inBubble(t, upstream(o), func(t *testing.T, f *Fetcher, c *Client) {
		start := time.Now()
		var all sync.WaitGroup
		for _, want := range chunks {
			all.Go(func() { read(t, c, want) })
		}
		all.Wait()
		s := f.Stats()
		if waited := time.Since(start); waited < 100*time.Millisecond || s.LastTier.SlowDowns != 8 || s.LastTier.Limit > defaultOriginRequests/2+8 {
			t.Errorf("after %v: %+v", waited, s.LastTier)
		}
	})
}
