package cache

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// pipes is a listener whose connections are pipes, for time that is not real.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(context.Context) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- theirs:
		return ours, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

// inBubble runs a test in fake time, with a fetcher and a client whose
// deadline is 30 s.
func inBubble(t *testing.T, upstreams []Upstream, test func(t *testing.T, f *Fetcher, c *Client)) {
	t.Helper()
	inBubbleOf(t, FetcherOptions{Upstreams: upstreams}, test)
}

// inBubbleOf gives the fetcher a folder in which something is: it has been
// counted, and nobody waits with a mutex for it, which would stop the bubble's
// time.
func inBubbleOf(t *testing.T, o FetcherOptions, test func(t *testing.T, f *Fetcher, c *Client)) {
	t.Helper()
	folder := newFolder(t, 1<<20)
	filled(t, folder, sample(9999, small))
	o.Folder = folder
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f, done := NewFetcher(o), make(chan error)
		l := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		go func() { done <- f.Serve(ctx, l) }()
		c := newClient(t, ClientOptions{Folder: folder.dir, Dial: l.dial, Deadline: 30 * time.Second, Memory: 1})
		test(t, f, c)
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestOriginHangs(t *testing.T) {
	o := newOrigin(func(ctx context.Context, _ chunk.Name) error { <-ctx.Done(); return ctx.Err() })
	chunks := o.put(t, 1, small)
	inBubble(t, upstream(o), func(t *testing.T, f *Fetcher, c *Client) {
		start := time.Now()
		_, err := c.Find(t.Context(), chunks[0].Name, small)
		if waited := time.Since(start); !errors.Is(err, ErrUnavailable) || waited != 30*time.Second {
			t.Errorf("after %v: %v", waited, err)
		}
		for _, part := range []string{chunks[0].Name.String()[:12], "origin: ", "waited 30.0 s"} {
			if !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q does not say %q in one line", err, part)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Find(ctx, chunks[0].Name, small); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one whose own context ended: %v", err)
		}
		o.first(nil)
		read(t, c, chunks[0]) // it came back
		if s := c.Stats(); s.Origin.Errors == 0 || s.Origin.Chunks != 1 {
			t.Errorf("stats %+v", s)
		}
	})
}

// TestFolderServesOn: while more reads hang than may be under way, what the
// folder has is read at once.
func TestFolderServesOn(t *testing.T) {
	hang := newOrigin(func(ctx context.Context, _ chunk.Name) error { <-ctx.Done(); return ctx.Err() })
	chunks := hang.put(t, 2*perConnection+1, small)
	inBubble(t, upstream(hang), func(t *testing.T, f *Fetcher, c *Client) {
		here := chunks[len(chunks)-1]
		filled(t, f.o.Folder, here)
		var all sync.WaitGroup
		for _, missing := range chunks[:len(chunks)-1] {
			all.Go(func() {
				if _, err := c.Find(t.Context(), missing.Name, small); !errors.Is(err, ErrUnavailable) {
					t.Errorf("Find: %v", err)
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		read(t, c, here)
		if waited := time.Since(start); waited != 0 {
			t.Errorf("waited %v", waited)
		}
		all.Wait()
	})
}

// TestTryHangs: a request that hangs is given up and made again.
func TestTryHangs(t *testing.T) {
	o := new(fakeOrigin)
	o.first(func(ctx context.Context, _ chunk.Name) error {
		if o.gets.Load() > 1 {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	})
	chunks := o.put(t, 1, small)
	inBubble(t, upstream(o), func(t *testing.T, f *Fetcher, c *Client) {
		start := time.Now()
		read(t, c, chunks[0])
		if waited := time.Since(start); waited < firstTry || waited > firstTry+time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestOriginFails(t *testing.T) {
	var down atomic.Bool
	o := newOrigin(func(context.Context, chunk.Name) error {
		if down.Load() {
			return errors.New("connection\nrefused")
		}
		return nil
	})
	chunks := o.put(t, 2, small)
	down.Store(true)
	inBubble(t, upstream(o), func(t *testing.T, f *Fetcher, c *Client) {
		_, err := c.Find(t.Context(), chunks[0].Name, small)
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "origin: connection refused (waited 30.0 s)") {
			t.Errorf("Find: %v", err)
		}
		if n := o.gets.Load(); n < 15 || n > 40 {
			t.Errorf("tried %d times in 30 s", n)
		}
		// The first waits 30 s; the origin comes back after 40, and one who
		// came later has waited long enough for it.
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := c.Find(t.Context(), chunks[1].Name, small); !errors.Is(err, ErrUnavailable) {
				t.Errorf("the first: %v", err)
			}
		})
		both.Go(func() { _ = sleep(t.Context(), 20*time.Second); read(t, c, chunks[1]) })
		_ = sleep(t.Context(), 40*time.Second)
		down.Store(false)
		both.Wait()
	})
}

// TestZone has two tiers: what one lacks, damages or fails to give, the other
// gives, and each is counted.
func TestZone(t *testing.T) {
	zone, o := new(fakeOrigin), new(fakeOrigin)
	chunks := o.put(t, 4, small)
	plant := func(c chunk.Sealed, data []byte) {
		if err := zone.Plant(t.Context(), c.Name, data); err != nil {
			t.Fatal(err)
		}
	}
	plant(chunks[0], chunks[0].Data)
	plant(chunks[1], bytes.Repeat([]byte{1}, small))
	zone.first(func(_ context.Context, name chunk.Name) error {
		if name == chunks[2].Name {
			return errors.New("on fire")
		}
		return nil
	})
	r := &rig{folder: newFolder(t, 1<<20)}
	told := make(chan chunk.Name, 10)
	tiers := append([]Upstream{{Tier: Zone, Source: func(root string) (chunk.Source, error) {
		if root != "r7" {
			return nil, errors.New("wrong root " + root)
		}
		return zone, nil
	}, Fill: func(root string, name chunk.Name, sealed []byte) {
		if root != "r7" || chunk.Check(sealed, name) != nil {
			t.Errorf("the zone is told wrong bytes of root %s", root)
		}
		told <- name
	}}}, upstream(o)...)
	f := serve(t, FetcherOptions{Folder: r.folder, Upstreams: tiers})
	c := newClient(t, ClientOptions{Folder: r.folder.dir, Root: "r7", Dial: dialer(f.socket)})
	for _, want := range chunks {
		read(t, c, want)
	}
	for _, c := range chunks[1:] {
		if name := <-told; name != c.Name {
			t.Errorf("the zone was told of %s, want %s, which it did not give", name, c.Name)
		}
	}
	if s := c.Stats(); s.Zone.Chunks != 1 || s.Origin.Chunks != 3 {
		t.Errorf("the client counted %+v", s)
	}
	if s := f.Stats(); s.Zone.Corrupt != 2 || s.Zone.Errors != 1 || s.Zone.Hits != 1 || s.Origin.Hits != 3 || s.Origin.Bytes != 3*small {
		t.Errorf("the fetcher counted %+v", s)
	}
	other := newClient(t, ClientOptions{Folder: r.folder.dir, Root: "r8", Dial: dialer(f.socket)})
	_, err := other.Find(t.Context(), sample(9, small).Name, small)
	if !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("what the last tier lacks: %v", err)
	}
}

func TestSourcePanics(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	r.origin.first(func(context.Context, chunk.Name) error { panic("boom") })
	if _, err := r.client.Find(t.Context(), r.chunks[0].Name, small); !errors.Is(err, errInternal) || !strings.Contains(err.Error(), "boom") {
		t.Errorf("Find: %v, want the panic", err)
	}
	r.origin.first(nil)
	r.read(t, r.chunks[0]) // the fetcher lives, and no lock is held
}

func TestPeers(t *testing.T) {
	r := newRig(t, 1, 1<<20)
	for uid, works := range map[int]bool{os.Getuid(): true, os.Getuid() + 1: false} {
		var warned atomic.Value
		f := serve(t, FetcherOptions{
			Folder: newFolder(t, 1<<20), Upstreams: upstream(r.origin), Peers: []uint32{uint32(uid)},
			Warn: func(err error) { warned.Store(err.Error()) },
		})
		if works {
			read(t, newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(f.socket)}), r.chunks[0])
			if w := warned.Load(); w != nil {
				t.Errorf("warned of %v", w)
			}
			continue
		}
		c := newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(f.socket), Deadline: 300 * time.Millisecond})
		eventually(t, func() bool { // the fetcher may be slower than the deadline
			v, err := c.Find(t.Context(), r.chunks[0].Name, small)
			if !errors.Is(err, ErrUnavailable) {
				t.Fatalf("user %d: %T, %v", uid, v, err)
			}
			return strings.Contains(err.Error(), "fetcher: ") && warned.Load() != nil
		})
	}
	f := NewFetcher(FetcherOptions{Peers: []uint32{0}})
	if conn, _ := net.Pipe(); f.checkPeer(conn) == nil {
		t.Error("a connection that tells no user was taken")
	}
}

// TestPeersAreToldOfSeldom: who reaches the socket may connect as often as it
// likes, and what is told of that goes to a log that nobody cuts.
func TestPeersAreToldOfSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		var s seldom
		for range 1000 {
			s.warn(func(err error) { told = append(told, err.Error()) }, errProtocol)
		}
		time.Sleep(warnEvery)
		s.warn(func(err error) { told = append(told, err.Error()) }, errProtocol)
		if len(told) != 2 || told[0] != "protocol error" || told[1] != "protocol error (and 999 others before)" {
			t.Errorf("told %q", told)
		}
	})
	var refused, ended atomic.Int32
	for _, uid := range []int{os.Getuid(), os.Getuid() + 1} {
		f := serve(t, FetcherOptions{Folder: newFolder(t, 1<<20), Peers: []uint32{uint32(uid)}, Warn: func(err error) {
			if strings.Contains(err.Error(), "may not connect") {
				refused.Add(1)
			} else {
				ended.Add(1)
			}
		}})
		for range 50 {
			conn, err := net.Dial("unix", f.socket)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			_, _ = io.Copy(io.Discard, conn) // until it is closed
			_ = conn.Close()
		}
		f.stop()
	}
	if refused.Load() != 1 || ended.Load() != 1 {
		t.Errorf("told of %d that were refused, and of %d that spoke garbage, want one each", refused.Load(), ended.Load())
	}
}

func TestNoFetcher(t *testing.T) {
	c := newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(filepath.Join(t.TempDir(), "none")), Deadline: 200 * time.Millisecond})
	eventually(t, func() bool { // to dial may take longer than the deadline
		_, err := c.Find(t.Context(), sample(1, small).Name, small)
		if !errors.Is(err, ErrUnavailable) {
			t.Fatalf("Find: %v", err)
		}
		return strings.Contains(err.Error(), "fetcher: dial unix")
	})
}

// TestTouches has a client report what it found in the folder.
func TestTouches(t *testing.T) {
	r := newRig(t, 3, 1<<20)
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	for _, c := range r.chunks[:2] {
		filled(t, r.folder, c)
		if err := os.Chtimes(chunkPath(r.folder.dir, c.Name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	touched := func(c chunk.Sealed) bool {
		info, err := os.Stat(chunkPath(r.folder.dir, c.Name))
		return err == nil && usesOf(info).last.After(old)
	}
	eventually(t, func() bool {
		c := r.bare(t)
		read(t, c, r.chunks[0])
		_ = c.Close() // it tells what was used, if it can connect within lastTouches
		return touched(r.chunks[0])
	})
	if touched(r.chunks[1]) {
		t.Error("a chunk that nobody read was touched")
	}
}

// TestBounds sends more gets at once than are allowed at a time.
func TestBounds(t *testing.T) {
	var now, most atomic.Int64
	o := newOrigin(func(context.Context, chunk.Name) error {
		for n := now.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		defer now.Add(-1)
		<-time.After(time.Millisecond)
		return nil
	})
	chunks := o.put(t, 40, small)
	folder := newFolder(t, 1<<20)
	f := serve(t, FetcherOptions{Folder: folder, Upstreams: upstream(o), Requests: 3, Connections: 2})
	var readers sync.WaitGroup
	for i, c := range []*Client{
		newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(f.socket)}),
		newClient(t, ClientOptions{Folder: t.TempDir(), Dial: dialer(f.socket)}),
	} {
		for j := range 20 {
			readers.Go(func() { read(t, c, chunks[i*20+j]) })
		}
	}
	readers.Wait()
	if n := most.Load(); n > 3 {
		t.Errorf("%d at a time, want at most 3", n)
	}
}

// source lets the suite for sources see a fetcher and a client: a chunk's
// length is what the test says.
type source struct {
	c     *Client
	sizes map[chunk.Name]int
}

func (s source) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	size := s.sizes[name]
	if size == 0 || size > chunk.MaxSize {
		size = 1
	}
	v, err := s.c.Find(ctx, name, size)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	data := make([]byte, size)
	_, err = v.ReadAt(data, 0)
	return data, err
}

func TestConformance(t *testing.T) {
	for _, memory := range []int64{1, 0} {
		chunktest.Source(t, func(t *testing.T, objects map[chunk.Name][]byte) chunk.Source {
			o, sizes := new(chunktest.Memory), map[chunk.Name]int{}
			for name, data := range objects {
				sizes[name] = len(data)
				if err := o.Plant(t.Context(), name, data); err != nil {
					t.Fatal(err)
				}
			}
			folder := newFolder(t, 10<<20)
			f := serve(t, FetcherOptions{Folder: folder, Upstreams: upstream(o)})
			return source{newClient(t, ClientOptions{Folder: folder.dir, Dial: dialer(f.socket), Memory: memory}), sizes}
		})
	}
}
