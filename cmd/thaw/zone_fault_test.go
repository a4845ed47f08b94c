package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/internal/faults"
	"thaw/internal/testoci"
	"thaw/zone"
)

// zonePatience is a zone deadline that no machine is too busy for, so that only
// what is broken fails: the default's second is for production.
const (
	zonePatience = "20s"
	patient      = "--zone-deadline=" + zonePatience
)

// wrecks are ways in which a node is of no use. Each gives what mends it.
func wrecks(f *zoneFleet) map[string]func(n *member) (mend func()) {
	link := func(l faults.Link) func(n *member) func() {
		return func(n *member) func() {
			n.proxy.Set(l)
			if l.Refuse {
				n.proxy.Cut()
			}
			return func() { n.proxy.Set(faults.Link{}); n.proxy.Cut() }
		}
	}
	instead := func(h http.HandlerFunc) func(n *member) func() {
		server := httptest.NewServer(h)
		f.t.Cleanup(server.Close)
		return func(n *member) func() {
			n.proxy.Retarget(strings.TrimPrefix(server.URL, "http://"))
			n.proxy.Cut()
			return func() { n.proxy.Retarget(n.addr); n.proxy.Cut() }
		}
	}
	noise := testoci.Noise(7, 100_000)
	return map[string]func(n *member) func(){
		"killed": func(n *member) func() {
			n.end(unix.SIGKILL)
			return func() { n.must(n.start()) }
		},
		"stopped": func(n *member) func() {
			n.signal(unix.SIGSTOP)
			return func() { n.signal(unix.SIGCONT) }
		},
		"slow":         link(faults.Link{Delay: 200 * time.Millisecond}),
		"refusing":     link(faults.Link{Refuse: true}),
		"silent":       link(faults.Link{Stall: true}),
		"cutting":      link(faults.Link{CutAfter: 100_000, Anywhere: true}),
		"resetting":    link(faults.Link{ResetAfter: 100_000, Anywhere: true}),
		"flipping":     link(faults.Link{Flip: 1e-4, Body: true}),
		"flipping all": link(faults.Link{Flip: 1e-2}),
		"garbage":      instead(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(noise) }),
		"errors":       instead(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }),
	}
}

// relapses are ways in which a node comes back from a restart without what it
// had, or with what is of no use.
func relapses(f *zoneFleet, old string) map[string]func(n *member) {
	replace := func(n *member, with string) {
		n.must(os.RemoveAll(n.flash))
		n.must(os.MkdirAll(n.flash, 0o700))
		if with != "" {
			n.must(os.CopyFS(n.flash, os.DirFS(with)))
		}
	}
	return map[string]func(n *member){
		"emptied":   func(n *member) { replace(n, "") },
		"stale":     func(n *member) { replace(n, old) },
		"corrupted": func(n *member) { n.must(rot(n.flash, rand.New(rand.NewPCG(1, 2)), 3000)) },
	}
}

// rot flips bits at random in the files of a flash store.
func rot(dir string, draw *rand.Rand, flips int) error {
	files, err := filepath.Glob(filepath.Join(dir, "segment-*"))
	if err != nil || len(files) == 0 {
		return errors.Join(err, fs.ErrNotExist)
	}
	for range flips {
		file, err := os.OpenFile(files[draw.IntN(len(files))], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err == nil {
			at, b := draw.Int64N(info.Size()), make([]byte, 1)
			_, err = file.ReadAt(b, at)
			b[0] ^= 1 << draw.IntN(8)
			if err == nil {
				_, err = file.WriteAt(b, at)
			}
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestZoneFaults breaks nodes in every way: up to n-k of them nobody notices,
// not even the origin; beyond, the origin serves.
func TestZoneFaults(t *testing.T) {
	f := newFleet(t, "")
	old := f.oldFlash()
	f.warm()
	f.startFetcher(patient)
	f.healed()
	spared := func(t *testing.T, what string) {
		t.Helper()
		if gets := f.all(); gets > 0 {
			t.Errorf("%s: %d chunks of %d came from the origin", what, gets, len(f.names))
		}
	}
	at := 0 // the next node to break
	next := func() *member { at++; return f.nodes[at%fleetNodes] }
	for name, wreck := range wrecks(f) {
		ok := t.Run(name, func(t *testing.T) {
			f.in(t)
			mend := wreck(next())
			spared(t, name)
			f.contained()
			spared(t, name+" still")
			mend()
			f.healed()
		})
		if !ok {
			return // it is broken still
		}
	}
	for name, relapse := range relapses(f, old) {
		t.Run(name, func(t *testing.T) {
			f.in(t)
			n := next()
			n.again(func() { relapse(n) })
			spared(t, name)
			f.healed()
		})
	}
	t.Run("disk full", func(t *testing.T) {
		f.in(t)
		f.fullDisk(next(), spared)
	})
	f.in(t)
	f.endFetcher()
	f.startFetcher() // with the deadline that it has by default
	all := wrecks(f)
	for _, name := range []string{"killed", "stopped", "refusing", "garbage", "flipping all"} {
		for _, broken := range []int{fleetSpare + 1, fleetNodes} {
			ok := t.Run(fmt.Sprintf("%s, %d of them", name, broken), func(t *testing.T) {
				f.in(t)
				f.beyond(all[name], broken)
			})
			if !ok {
				return
			}
		}
	}
	f.in(t)
	f.warm()
}

// oldFlash gives a copy of what a node's flash held when it was in use: some of
// the image's stripes under other codes and with other bytes, and none as they
// are read later.
func (f *zoneFleet) oldFlash() string {
	f.t.Helper()
	n := f.nodes[0]
	for _, code := range [][2]int{{1, 1}, {1, 2}} {
		other, err := zone.NewClient(zone.Options{Zone: f.flagOf("--zone"), K: code[0], N: code[1], Deadline: patience})
		if err != nil {
			f.t.Fatal(err)
		}
		for name, data := range f.chunks {
			if err := other.Put(f.t.Context(), name, data); err != nil {
				f.t.Fatal(err)
			}
		}
		if err := other.Close(); err != nil {
			f.t.Fatal(err)
		}
	}
	dir := filepath.Join(f.t.TempDir(), "old")
	n.again(func() { n.must(os.CopyFS(dir, os.DirFS(n.flash))) })
	return dir
}

// flagOf gives the value of a global flag.
func (f *zoneFleet) flagOf(name string) string {
	for i, arg := range f.machine.flags[:len(f.machine.flags)-1] {
		if arg == name {
			return f.machine.flags[i+1]
		}
	}
	return ""
}

// contained has a container read all data files through FUSE, from an empty
// cache.
func (f *zoneFleet) contained() {
	f.t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := emptied(f.cache); err != nil {
		f.t.Fatal(err)
	}
	r := f.start(append(append([]string{}, f.flags...), "run", "-i", "app", "/bin/inside", "serve")...)
	r.expect("ready")
	for i := range dataFiles {
		r.reads(1, i)
	}
	if e := r.end(); e.code != 0 {
		f.t.Errorf("the container: %+v", e)
	}
}

// fullDisk has a node on a small file system whose blocks go away under it.
func (f *zoneFleet) fullDisk(n *member, spared func(*testing.T, string)) {
	if os.Geteuid() != 0 {
		f.t.Skip("NOT TESTED: mounting needs root")
	}
	n.end(unix.SIGTERM)
	n.must(os.RemoveAll(n.flash))
	n.must(os.Mkdir(n.flash, 0o700))
	small(f.t, n.flash, "40m")
	defer func() { // its disk goes with the test
		n.end(unix.SIGTERM)
		n.flash = filepath.Join(f.t.TempDir(), "flash")
		n.must(n.start())
		f.healed()
	}()
	n.must(n.start())
	f.healed()
	n.again(func() {}) // all is on flash, and nothing in memory
	n.must(hollow(n.flash))
	n.must(fill(n.flash))
	spared(f.t, "full")
	n.must(os.Remove(filepath.Join(n.flash, "filler")))
	f.healed()
	// Full when it starts: it does not.
	n.end(unix.SIGTERM)
	n.must(hollow(n.flash))
	n.must(fill(n.flash))
	if err := n.start(); err == nil {
		f.t.Error("it started on a full disk")
	}
	spared(f.t, "full at the start")
	n.must(os.Remove(filepath.Join(n.flash, "filler")))
	n.must(n.start())
	f.healed()
}

// small mounts a file system of a size over a folder, until the test ends.
func small(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// hollow takes the blocks from all segments of a flash store.
func hollow(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "segment-*"))
	for _, path := range files {
		file, oerr := os.OpenFile(path, os.O_RDWR, 0)
		if oerr != nil {
			return oerr
		}
		info, serr := file.Stat()
		if serr == nil {
			serr = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, info.Size())
		}
		err = errors.Join(err, serr, file.Close())
	}
	return err
}

// fill takes all room that a file system has.
func fill(dir string) error {
	file, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		return err
	}
	defer file.Close()
	for err == nil {
		_, err = file.Write(make([]byte, 64<<10))
	}
	if errors.Is(err, unix.ENOSPC) {
		err = nil
	}
	return err
}

// beyond breaks more nodes than the code can miss: first while the origin is
// there, then while it is not.
func (f *zoneFleet) beyond(wreck func(*member) func(), broken int) {
	f.warm()
	f.all() // connections are warm
	var mends []func()
	for _, n := range f.nodes[:broken] {
		mends = append(mends, wreck(n))
	}
	f.all() // none fails: the origin serves
	if asked := len(f.front.Seen().Asked); asked != len(f.names) {
		f.t.Errorf("%d of %d chunks came from the origin: did the fault do nothing?", asked, len(f.names))
	}
	f.way.Set(faults.Link{Refuse: true})
	f.way.Cut()
	f.failing(500*time.Millisecond, cache.ErrUnavailable)
	f.way.Set(faults.Link{})
	f.all() // the origin is back, the zone is not
	for _, mend := range mends {
		mend()
	}
	f.healed()
}

// failing reads every chunk and wants each read to fail, for one of some reasons.
func (f *zoneFleet) failing(deadline time.Duration, reasons ...error) {
	f.t.Helper()
	failed := f.pass(deadline)
	if len(failed) != len(f.names) {
		f.t.Errorf("%d of %d reads failed", len(failed), len(f.names))
	}
	for _, err := range failed {
		if !slices.ContainsFunc(reasons, func(reason error) bool { return errors.Is(err, reason) }) {
			f.t.Errorf("the reason: %v", err)
		}
	}
}

// TestOriginFaults breaks the origin: what the zone has does not need it, and
// the rest comes, or fails cleanly.
func TestOriginFaults(t *testing.T) {
	f := newFleet(t, "")
	f.warm()
	f.startFetcher(patient)
	down := func(down bool) {
		f.way.Set(faults.Link{Refuse: down})
		f.way.Cut()
	}
	f.all()
	down(true)
	if gets := f.all(); gets > 0 {
		t.Errorf("%d chunks came from an origin that is down", gets)
	}
	for _, n := range f.nodes { // from here on all is the origin's
		n.proxy.Set(faults.Link{Refuse: true})
		n.proxy.Cut()
	}
	f.failing(500*time.Millisecond, cache.ErrUnavailable)
	down(false)
	f.all()
	f.way.Set(faults.Link{Delay: 200 * time.Millisecond, Bandwidth: 8 << 20})
	f.all()
	f.way.Set(faults.Link{})
	busy := faults.Random(3, 0.01, 1<<20, faults.Fault{Kind: faults.Status, Status: http.StatusServiceUnavailable})
	first := faults.OnCalls(faults.Fault{Kind: faults.Status, Status: http.StatusServiceUnavailable}, f.calls()+1, f.calls()+3)
	f.front.Set(func(call int64, r *http.Request) (faults.Fault, bool) { // a hundredth, and some for sure
		if fault, hit := first(call, r); hit {
			return fault, true
		}
		return busy(call, r)
	})
	for range 3 {
		f.all()
	}
	f.front.Set(nil)
	f.flipped()
	f.all()
	for _, n := range f.nodes {
		n.proxy.Set(faults.Link{})
	}
	f.healed()
}

// calls tells the number of the front's last call.
func (f *zoneFleet) calls() int64 {
	var last atomic.Int64
	f.front.Set(func(call int64, _ *http.Request) (faults.Fault, bool) { last.Store(call); return faults.Fault{}, false })
	f.all()
	return last.Load()
}

// flipped has the origin give other bytes: at times, and then always.
func (f *zoneFleet) flipped() {
	f.t.Helper()
	f.way.Set(faults.Link{Flip: 1e-7, Body: true})
	if failed := f.pass(time.Minute); len(failed) > len(f.names)/2 {
		f.t.Errorf("%d of %d reads failed, such as: %v", len(failed), len(f.names), failed[0])
	}
	f.way.Set(faults.Link{Flip: 1e-4, Body: true})
	f.failing(5*time.Second, chunk.ErrCorrupt, cache.ErrUnavailable)
	f.way.Set(faults.Link{})
	f.way.Cut()
}

// TestCacheFaults breaks the L1 folder under its readers: the zone serves.
func TestCacheFaults(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "l1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := os.Geteuid() == 0
	if root {
		small(t, dir, "64m")
	}
	f := newFleet(t, filepath.Join(dir, "cache"))
	f.warm()
	f.startFetcher(patient)
	f.all()
	f.contained()
	f.front.Forget()
	crowd := f.crowd(3)
	for range 3 {
		for _, hurt := range []func(string) error{emptied, truncated, replaced} {
			if err := hurt(f.cache); err != nil {
				t.Error(err)
			}
			crowd.reads(2 * len(f.names))
		}
	}
	if root {
		f.readOnly(dir, true)
		crowd.reads(2 * len(f.names))
		f.readOnly(dir, false)
		if err := errors.Join(emptied(f.cache), fill(dir)); err != nil {
			t.Error(err)
		}
		crowd.reads(2 * len(f.names))
		if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
			t.Error(err)
		}
		crowd.reads(2 * len(f.names))
	}
	crowd.end()
	if gets := f.front.Seen().Gets; gets > 0 {
		t.Errorf("%d chunks came from the origin", gets)
	}
	f.healed()
	f.contained()
	checkChunks(t, f.cache)
}

// emptied, truncated and replaced are what may happen to an L1 folder.
func emptied(dir string) (err error) {
	for range 100 { // fetchers may be adding to it
		if err = os.RemoveAll(filepath.Join(dir, "chunks")); err == nil {
			break
		}
	}
	return err
}

func truncated(dir string) error {
	return eachChunk(dir, func(path string, size int64) error {
		if err := os.Chmod(path, 0o644); err != nil {
			return err
		}
		return os.Truncate(path, size/3)
	})
}

// replaced puts other bytes in the place of the files, as a disk that rots does
// while nobody has them open.
func replaced(dir string) error {
	return eachChunk(dir, func(path string, size int64) error {
		temp := path + ".rotten"
		return errors.Join(os.WriteFile(temp, testoci.Noise(1, int(size)), 0o444), os.Rename(temp, path))
	})
}

// eachChunk goes over the files of chunks, which others may remove meanwhile.
func eachChunk(dir string, do func(path string, size int64) error) error {
	files, err := filepath.Glob(filepath.Join(dir, "chunks", "*", "*"))
	for _, path := range files {
		info, serr := os.Stat(path)
		if serr == nil {
			serr = do(path, info.Size())
		}
		if serr != nil && !errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, serr)
		}
	}
	return err
}

// crowd reads chunks at random until its end. No read may fail.
type crowd struct {
	f    *zoneFleet
	work sync.WaitGroup
	over atomic.Bool
	done atomic.Int64 // reads
}

func (f *zoneFleet) crowd(size int) *crowd {
	c := &crowd{f: f}
	for i := range size {
		draw := rand.New(rand.NewPCG(uint64(i), 1))
		client := f.client(patience)
		c.work.Go(func() {
			defer client.Close()
			for !c.over.Load() {
				if err := f.read(f.t.Context(), client, f.names[draw.IntN(len(f.names))]); err != nil {
					f.t.Error(err)
					c.over.Store(true)
				}
				c.done.Add(1)
			}
		})
	}
	f.t.Cleanup(c.end)
	return c
}

// reads waits until so many more have been done.
func (c *crowd) reads(more int) {
	c.f.t.Helper()
	end := c.done.Load() + int64(more)
	c.f.until("they read on", func() bool { return c.done.Load() >= end || c.over.Load() })
}

func (c *crowd) end() {
	c.over.Store(true)
	c.work.Wait()
}
