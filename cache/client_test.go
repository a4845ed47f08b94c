package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"thaw/chunk"
)

func TestTiers(t *testing.T) {
	r := newRig(t, 3, 1<<20)
	filled(t, r.folder, r.chunks[0])
	for range 3 {
		for _, c := range r.chunks {
			r.read(t, c)
		}
	}
	s := r.client.Stats()
	if s.Cache.Chunks != 1 || s.Origin.Chunks != 2 || s.Cache.Bytes != small || s.Origin.Bytes != 2*small {
		t.Errorf("first touches %+v, want 1 by the cache, 2 by the origin", s)
	}
	if s.Cache.Hits != 7 || s.Origin.Hits != 2 || s.Cache.Corrupt+s.Origin.Corrupt+s.Cache.Errors+s.Origin.Errors != 0 {
		t.Errorf("hits %+v, want 7 by the cache, 2 by the origin", s)
	}
	if n := r.origin.gets.Load(); n != 2 {
		t.Errorf("the origin was asked %d times, want 2", n)
	}
	checkFolder(t, r.folder)
}

// TestDamageInFolder: a bad file is fetched again, replaced and counted.
func TestDamageInFolder(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"flipped":   func(b []byte) []byte { b[7] ^= 1; return b },
		"truncated": func(b []byte) []byte { return b[:9] },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, 1<<20)
			r.read(t, r.chunks[0])
			rewrite(t, chunkPath(r.folder.dir, r.chunks[0].Name), damage)
			r.read(t, r.chunks[0])
			if s := r.client.Stats(); s.Cache.Corrupt != 1 || s.Origin.Hits != 2 || s.Origin.Chunks != 1 {
				t.Errorf("stats %+v, want one corrupt in the cache, two fetches, one first touch", s)
			}
			if s := r.fetcher.Stats(); s.Cache.Corrupt != 1 {
				t.Errorf("the fetcher counted %+v, want one corrupt in the cache", s)
			}
			r.read(t, r.chunks[0])
			if s := r.client.Stats(); s.Cache.Corrupt != 1 || s.Cache.Hits != 1 {
				t.Errorf("stats %+v: the file was not replaced", s)
			}
			checkFolder(t, r.folder)
		})
	}
}

// TestCutWhileOpen cuts a file that a reader has open.
func TestCutWhileOpen(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	c := r.chunks[0]
	filled(t, r.folder, c)
	r.read(t, c) // hashes, and opens
	v, err := r.client.Find(t.Context(), c.Name, small)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, ok := v.(*openFile); !ok {
		t.Fatalf("found a %T, want the file", v)
	}
	rewrite(t, chunkPath(r.folder.dir, c.Name), func(b []byte) []byte { return b[:10] })
	got := make([]byte, 100)
	if _, err := v.ReadAt(got, small-100); err != nil || string(got) != string(c.Data[small-100:]) {
		t.Errorf("ReadAt of a cut file: %v, or wrong bytes", err)
	}
}

func TestOriginCorrupt(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	bad := append([]byte{}, r.chunks[0].Data...)
	bad[0] ^= 1
	for _, data := range [][]byte{bad, bad[:9], make([]byte, chunk.MaxSize+1)} {
		if err := r.origin.Plant(t.Context(), r.chunks[0].Name, data); err != nil {
			t.Fatal(err)
		}
		_, err := r.client.Find(t.Context(), r.chunks[0].Name, small)
		if !errors.Is(err, chunk.ErrCorrupt) || !strings.Contains(err.Error(), "origin: ") {
			t.Errorf("Find: %v, want ErrCorrupt of the origin", err)
		}
	}
	if s := r.fetcher.Stats(); s.Origin.Corrupt != 6 { // each asked twice
		t.Errorf("the fetcher counted %+v", s)
	}
	if s := r.client.Stats(); s.Origin.Corrupt != 3 {
		t.Errorf("the client counted %+v", s)
	}
	if n := checkFolder(t, r.folder); n != 0 {
		t.Errorf("%d chunks were kept", n)
	}
}

func TestNotFound(t *testing.T) {
	r := newRig(t, 0, 1<<20)
	name := sample(9, small).Name
	_, err := r.client.Find(t.Context(), name, small)
	if !errors.Is(err, chunk.ErrNotFound) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), name.String()[:12]) {
		t.Errorf("Find: %v, want ErrNotFound that names the chunk", err)
	}
	if _, err := r.client.Find(t.Context(), name, chunk.MaxSize+1); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("Find of too many bytes: %v", err)
	}
}

// TestWrongSize asks for a chunk by another length than it has.
func TestWrongSize(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	r.read(t, r.chunks[0])
	if _, err := r.client.Find(t.Context(), r.chunks[0].Name, small-1); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("Find: %v, want ErrCorrupt", err)
	}
	r.read(t, r.chunks[0])
}

// TestFolderTrouble takes the folder away in several ways while a client
// reads: all reads go on.
func TestFolderTrouble(t *testing.T) {
	for name, trouble := range map[string]func(t *testing.T, dir string){
		"removed": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"replaced by a file": func(t *testing.T, dir string) {
			if err := errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 8, 1<<20)
			for _, c := range r.chunks[:4] {
				r.read(t, c)
			}
			trouble(t, r.folder.dir)
			for _, c := range r.chunks {
				r.read(t, c)
			}
		})
	}
}

// TestSmallCache reads more than fits, again and again.
func TestSmallCache(t *testing.T) {
	r := newRig(t, 12, 5*small)
	for range 3 {
		for _, c := range r.chunks {
			r.read(t, c)
		}
	}
	if n := checkFolder(t, r.folder); n == 0 || r.folder.Stats().Evicted == 0 {
		t.Errorf("%d chunks, stats %+v", n, r.folder.Stats())
	}
}

// TestRestart kills the fetcher and starts another while clients read.
func TestRestart(t *testing.T) {
	r := newRig(t, 64, 1<<20)
	var readers sync.WaitGroup
	half := make(chan struct{})
	for i := range 2 {
		readers.Go(func() {
			for j, c := range r.chunks {
				if i == 0 && j == len(r.chunks)/2 {
					close(half)
				}
				r.read(t, c)
			}
		})
	}
	<-half
	r.fetcher.stop()
	serveAt(t, FetcherOptions{Folder: r.folder, Upstreams: upstream(r.origin)}, r.fetcher.socket)
	readers.Wait()
}

// TestManyReaders has one chunk fetched once for all who want it.
func TestManyReaders(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	goOn := make(chan struct{})
	r.origin.first(func(context.Context, chunk.Name) error { <-goOn; return nil })
	clients := []*Client{r.client, r.bare(t), r.bare(t)}
	var readers sync.WaitGroup
	for i := range 30 {
		readers.Go(func() { read(t, clients[i%len(clients)], r.chunks[0]) })
	}
	close(goOn)
	readers.Wait()
	if n := r.origin.gets.Load(); n != 1 {
		t.Errorf("%d gets, want 1", n)
	}
}

func TestClosed(t *testing.T) {
	r := newRig(t, 2, 1<<20)
	begun := make(chan struct{})
	r.origin.first(func(ctx context.Context, _ chunk.Name) error { close(begun); <-ctx.Done(); return ctx.Err() })
	done := make(chan error)
	go func() {
		_, err := r.client.Find(context.Background(), r.chunks[0].Name, small)
		done <- err
	}()
	<-begun
	_ = r.client.Close()
	if err := <-done; !errors.Is(err, errClosed) {
		t.Errorf("Find at Close: %v", err)
	}
	if _, err := r.client.Find(t.Context(), r.chunks[1].Name, small); !errors.Is(err, errClosed) {
		t.Errorf("Find after Close: %v", err)
	}
}

// TestReaderOutlives reads what was found after the file was pushed out of the
// list, and after Close.
func TestReaderOutlives(t *testing.T) {
	r := newRig(t, 3, 1<<20)
	for _, c := range r.chunks {
		filled(t, r.folder, c)
	}
	r.read(t, r.chunks[0])
	v, err := r.client.Find(t.Context(), r.chunks[0].Name, small)
	if err != nil {
		t.Fatal(err)
	}
	r.read(t, r.chunks[1])
	_ = r.client.Close()
	got := make([]byte, 10)
	if _, err := v.ReadAt(got, 0); err != nil || string(got) != string(r.chunks[0].Data[:10]) {
		t.Errorf("ReadAt: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if _, err := v.ReadAt(got, 0); err == nil {
		t.Error("the file was not closed")
	}
}

// TestHashedOnce changes a file and turns back its times but ctime: the client
// sees that, and does not hash a file again that has not changed.
func TestHashedOnce(t *testing.T) {
	r := newRig(t, 2, 1<<20)
	for _, c := range r.chunks {
		filled(t, r.folder, c)
		r.read(t, c) // pushes the other out
	}
	before := r.client.Stats()
	if v := r.client.reopen(r.chunks[0].Name, small); v == nil {
		t.Error("an unchanged file was not known again")
	} else {
		_ = v.Close()
	}
	if after := r.client.Stats(); after.Cache.Hits != before.Cache.Hits+1 {
		t.Errorf("hits %d, want %d", after.Cache.Hits, before.Cache.Hits+1)
	}
	path := chunkPath(r.folder.dir, r.chunks[1].Name)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, func(b []byte) []byte { b[0] ^= 1; return b })
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	r.read(t, r.chunks[1])
	if s := r.client.Stats(); s.Cache.Corrupt != 1 {
		t.Errorf("stats %+v, want one corrupt", s)
	}
}

// TestReadAt holds both kinds of found chunks to io.ReaderAt.
func TestReadAt(t *testing.T) {
	for _, kind := range []string{"*cache.held", "*cache.openFile"} {
		r := newRig(t, 1, 1<<20)
		want := r.chunks[0]
		if kind == "*cache.openFile" {
			filled(t, r.folder, want)
		}
		v, err := r.client.Find(t.Context(), want.Name, small)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%T", v); got != kind {
			t.Errorf("found a %s, want %s", got, kind)
		}
		if err := iotest.TestReader(io.NewSectionReader(v, 0, small), want.Data); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		p := make([]byte, 10)
		for off, n := range map[int64]int{small - 4: 4, small: 0, small + 9: 0} {
			if got, err := v.ReadAt(p, off); got != n || err != io.EOF {
				t.Errorf("%s: ReadAt %d: %d, %v", kind, off, got, err)
			}
		}
		if _, err := v.ReadAt(p, -1); err == nil || err == io.EOF {
			t.Errorf("%s: ReadAt -1: %v", kind, err)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMemory: what was received last stays in memory, up to the bound.
func TestMemory(t *testing.T) {
	r := newRig(t, 5, 1<<20)
	c := newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(r.fetcher.socket), Memory: 3 * small})
	for _, want := range r.chunks {
		read(t, c, want)
	}
	read(t, c, r.chunks[2])
	read(t, c, r.chunks[4])
	if s := c.Stats(); s.Cache.Hits != 2 || c.memory.weight != 3*small {
		t.Errorf("stats %+v, %d bytes in memory", s, c.memory.weight)
	}
	read(t, c, r.chunks[0]) // pushes out the one not used for longest
	for i, want := range []bool{true, false, true, false, true} {
		if got := c.records[r.chunks[i].Name].held != nil; got != want {
			t.Errorf("chunk %d in memory: %v, want %v", i, got, want)
		}
	}
}

// TestTouchesAreFew: of many hits one a minute is reported, some time later.
func TestTouchesAreFew(t *testing.T) {
	folder := newFolder(t, 1<<20)
	want := sample(1, small)
	filled(t, folder, want)
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, ClientOptions{Folder: folder.dir})
		var mu sync.Mutex
		sent := 0
		c.touches.send = func(names []chunk.Name) {
			mu.Lock()
			defer mu.Unlock()
			sent += len(names)
		}
		for range 30 { // for 150 s
			read(t, c, want)
			time.Sleep(5 * time.Second)
		}
		_ = c.Close()
		if sent != 3 {
			t.Errorf("%d touches, want 3", sent)
		}
	})
}
