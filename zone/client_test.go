package zone

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// TestSource holds the client to what every chunk.Source promises, for whole
// chunks and for stripes.
func TestSource(t *testing.T) {
	for _, kn := range [][2]int{{1, 1}, {4, 5}, {2, 4}} {
		t.Run(fmt.Sprintf("%d-of-%d", kn[0], kn[1]), func(t *testing.T) {
			noLeaks(t)
			chunktest.Source(t, func(t *testing.T, objects map[chunk.Name][]byte) chunk.Source {
				z := newZone(t, kn[1], Options{K: kn[0], N: kn[1]})
				for name, data := range objects {
					if len(data) <= chunk.MaxSize {
						if err := z.Put(t.Context(), name, data); err != nil {
							t.Fatal(err)
						}
						continue
					}
					for i, n := range z.at(name) { // what a node of other rules might hold
						n.plant(z.id(name, i), make([]byte, HeaderSize+(len(data)+kn[0]-1)/kn[0]))
					}
				}
				return z
			})
		})
	}
}

// TestLengths reads chunks of every kind of length through all codes.
func TestLengths(t *testing.T) {
	for _, kn := range [][2]int{{1, 1}, {1, 3}, {4, 5}, {4, 6}} {
		z := newZone(t, kn[1], Options{K: kn[0], N: kn[1]})
		for i, size := range []int{1, 3, 4, 5, 1000, 64 << 10, 192 << 10, 512<<10 - 4096, 2 << 20} {
			z.wants(z.fill(byte(i), size))
		}
		if s := z.Stats(); s.Hits != 9 || s.Fills != 9 || s.Bad+s.Failed+s.Misses+s.Mismatched+s.Refused > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestConstantWork: n requests for a hit and for a miss, whatever the nodes do.
func TestConstantWork(t *testing.T) {
	z := newZone(t, 5, Options{Repairs: -1})
	s := z.fill(1, 1000)
	absent := chunktest.Sample(2, 1000).Name
	for _, name := range []chunk.Name{s.Name, absent, s.Name, absent} {
		before, unsent := map[string]int64{}, z.Stats().Cancelled
		for addr, n := range z.nodes {
			before[addr] = n.gets.Load()
		}
		_, _ = z.Get(t.Context(), name)
		until(t, "one request to each node, but for one that was not needed before it was sent", func() bool {
			sent := int64(z.Stats().Cancelled - unsent)
			for addr, n := range z.nodes {
				sent += min(n.gets.Load()-before[addr], 1)
			}
			return sent >= 5
		})
		for addr, n := range z.nodes {
			if more := n.gets.Load() - before[addr]; more > 1 {
				t.Errorf("%d requests to one node", more)
			}
		}
	}
	if s := z.Stats(); s.Hits != 2 || s.Misses != 2 || s.FirstK.Count() != 2 || s.Rebuild.Count() != 2 || s.Hash.Count() != 2 {
		t.Errorf("%+v", s)
	}
	if _, err := json.Marshal(z.Stats()); err != nil {
		t.Error(err)
	}
}

// TestNewClient refuses what can't work, and what looks half meant.
func TestNewClient(t *testing.T) {
	for says, o := range map[string]Options{
		"needs 5 members":     {Zone: "a:1,b:1", K: 4, N: 5},
		"k ≤ n":               {Zone: "a:1", K: 2, N: 1},
		"not host:port":       {},
		"visible bytes":       {Zone: "a:1", Worker: "a b"},
		"up to 64":            {Zone: "a:1", Worker: strings.Repeat("x", 65)},
		"no such file":        {Zone: "file:/nowhere/zone"},
		"want more than 0":    {Zone: "a:1", Deadline: -1},
		"named twice":         {Zone: "a:1,a:1"},
		"1 ≤ k":               {Zone: "a:1", K: 0, N: 5},
		"neither an address ": {Zone: "dns:a/b:1"},
	} {
		if c, err := NewClient(o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, %v; want %q", o, c, err, says)
		}
	}
}

// TestPatient: who takes another's place begins with a list that is broken by
// now, and uses it once it is mended; nonsense stays nonsense.
func TestPatient(t *testing.T) {
	noLeaks(t)
	n := newTestNode(t)
	path := filepath.Join(t.TempDir(), "zone")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	warned := make(chan error, 10)
	c, err := NewClient(Options{Zone: "file:" + path, Patient: true, Deadline: time.Minute, Warn: func(err error) { warned <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := chunktest.Sample(1, 1000)
	if _, err := c.Get(t.Context(), s.Name); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("without a list: %v", err)
	}
	write(t, path+".new", n.addr()+"\n", 0)
	// At once: that nothing is there would be another warning.
	if err := unix.Renameat2(unix.AT_FDCWD, path+".new", unix.AT_FDCWD, path, unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	until(t, "the list is used", func() bool { return c.Put(t.Context(), s.Name, s.Data) == nil })
	if got, err := c.Get(t.Context(), s.Name); err != nil || !bytes.Equal(got, s.Data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-warned; !strings.Contains(err.Error(), "is not a file") || len(warned) > 0 {
		t.Errorf("warned of %v, and %d more", err, len(warned))
	}
	for _, zone := range []string{"", "a:1,a:1", "file:"} {
		if c, err := NewClient(Options{Zone: zone, Patient: true}); err == nil {
			t.Errorf("%q: %v", zone, c.Close())
		}
	}
}

// TestDefaultCode: whole chunks below five members, stripes from then on, and
// then for good.
func TestDefaultCode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	var list []string
	for i := range 6 {
		list = append(list, fmt.Sprintf("127.0.0.1:%d", i+1))
	}
	write(t, path, "", 0)
	warned := make(chan error, 10)
	c, err := NewClient(Options{Zone: "file:" + path, Warn: func(err error) { warned <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-warned; !strings.Contains(err.Error(), "0 members") {
		t.Error(err)
	}
	if _, err := c.Get(t.Context(), chunk.Name{}); !errors.Is(err, chunk.ErrNotFound) {
		t.Errorf("a zone without members: %v", err)
	}
	c.Fill(chunk.Name{}, []byte{1})
	if err := c.Put(t.Context(), chunk.Name{}, []byte{1}); err == nil || c.Stats().Dropped != 1 {
		t.Errorf("put into a zone without members: %v, %+v", err, c.Stats())
	}
	for i, step := range []struct{ members, n int }{{1, 1}, {4, 1}, {5, 5}, {6, 5}, {4, 5}} {
		write(t, path, strings.Join(list[:step.members], "\n"), time.Duration(i+1)*time.Second)
		until(t, "the list is read again", func() bool {
			s := c.Stats()
			return len(s.Nodes) == step.members && s.N == step.n
		})
	}
	if err := <-warned; !strings.Contains(err.Error(), "4 members for 4-of-5") {
		t.Error(err)
	}
	write(t, path, "nonsense", 10*time.Second)
	if err := <-warned; !strings.Contains(err.Error(), "nonsense") || len(c.Stats().Nodes) != 4 {
		t.Errorf("a wrong list: %v, %d members", err, len(c.Stats().Nodes))
	}
}

// TestMembersChange: one of five nodes is replaced under its name while chunks
// are read. No read fails, and what the new one lacks is put on it.
func TestMembersChange(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 6, Options{K: 4, N: 5})
	addrs := sorted(z.nodes)
	list := func(version int, addrs ...string) string {
		s := fmt.Sprintf("version %d\n", version)
		for i, addr := range addrs {
			s += fmt.Sprintf("%s name=n%d\n", addr, i)
		}
		return s
	}
	path := filepath.Join(t.TempDir(), "zone")
	write(t, path, list(1, addrs[:5]...), 0)
	c, err := NewClient(Options{Zone: "file:" + path, K: 4, N: 5, Deadline: time.Minute, Repairs: 1000, Warn: func(err error) { t.Error(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var chunks []chunk.Sealed
	for i := range byte(10) {
		s := chunktest.Sample(i, 1000)
		if err := c.Put(t.Context(), s.Name, s.Data); err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, s)
	}
	stop, wg := make(chan struct{}), sync.WaitGroup{}
	for range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				s := chunks[i%len(chunks)]
				if got, err := c.Get(t.Context(), s.Name); err != nil || !bytes.Equal(got, s.Data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	write(t, path, list(2, addrs[5], addrs[1], addrs[2], addrs[3], addrs[4]), time.Second)
	until(t, "the new node has a stripe of each chunk", func() bool { return z.nodes[addrs[5]].puts.Load() >= 10 })
	close(stop)
	wg.Wait()
	if s := c.Stats(); s.Version != 2 || s.Failed+s.Misses > 0 {
		t.Errorf("%+v", s)
	}
}

// TestClose: what is under way ends, and nothing is done afterwards.
func TestClose(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 5, Options{})
	s := z.fill(1, 1000)
	for _, n := range z.nodes {
		n.behave(hang)
	}
	failed := make(chan error)
	go func() {
		_, err := z.Get(t.Context(), s.Name)
		failed <- err
	}()
	until(t, "the requests are under way", func() bool {
		sum := int64(0)
		for _, n := range z.nodes {
			sum += n.gets.Load()
		}
		return sum == 5
	})
	if err := z.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("Get gave a chunk of nodes that hang")
	}
	z.Fill(s.Name, s.Data)
	if _, err := z.Get(t.Context(), s.Name); !errors.Is(err, errClosed) {
		t.Errorf("Get after Close: %v", err)
	}
	if err := z.Put(t.Context(), s.Name, s.Data); !errors.Is(err, errClosed) {
		t.Errorf("Put after Close: %v", err)
	}
	if err := z.Close(); err != nil {
		t.Error(err)
	}
}

// TestMembersChangeUnderReads: whatever lists come, no read gives wrong bytes,
// hangs or fails in a way that does not lead to the origin, and the table of the
// first list may be wanted by many at once.
func TestMembersChangeUnderReads(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 7, Options{K: 2, N: 3, Repairs: 1000, Warn: func(error) {}})
	addrs := sorted(z.nodes)
	var chunks []chunk.Sealed
	for i := range byte(20) {
		chunks = append(chunks, chunktest.Sample(i, 1000+int(i)))
	}
	var ended atomic.Bool
	var given atomic.Int64
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := worker; !ended.Load(); i++ {
				s := chunks[i%len(chunks)]
				got, err := z.Get(t.Context(), s.Name)
				switch {
				case err == nil && bytes.Equal(got, s.Data):
					given.Add(1)
				case err == nil || !errors.Is(err, chunk.ErrNotFound) && !strings.Contains(err.Error(), "no member for it"):
					t.Errorf("%d bytes, %v", len(got), err)
				case i%2 == 0:
					z.Fill(s.Name, s.Data)
				default:
					_ = z.Put(t.Context(), s.Name, s.Data)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(1, 2))
	for version := range 12 {
		list := fmt.Sprintf("version %d\n", version+1)
		for i, at := range random.Perm(len(addrs))[:random.IntN(len(addrs)+1)] {
			list += fmt.Sprintf("%s weight=%d rack=r%d name=n%d\n", addrs[at], 1+random.IntN(1000), random.IntN(3), (i+version)%9)
		}
		m, err := parseFile([]byte(list))
		if err != nil {
			t.Fatal(err)
		}
		_ = z.use(m)
		z.Stats()
	}
	m, err := parseList(strings.Join(addrs, ","))
	if err != nil {
		t.Fatal(err)
	}
	if err := z.use(m); err != nil {
		t.Error(err)
	}
	before := given.Load()
	until(t, "chunks are given again", func() bool { return given.Load() > before+20 })
	ended.Store(true)
	wg.Wait()
}

// TestCallerLeaves: a Get ends with its context, not with the deadline.
func TestCallerLeaves(t *testing.T) {
	z := newZone(t, 5, Options{Deadline: time.Hour})
	s := z.fill(1, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	for _, n := range z.nodes {
		n.behave(hang)
	}
	until(t, "a request", func() bool {
		go cancel()
		_, err := z.Get(ctx, s.Name)
		return errors.Is(err, context.Canceled)
	})
}

// TestUnheard: that no node ever answers is told, with the cause, and once; not
// any more as soon as one has, or where the zone merely lacks a chunk.
func TestUnheard(t *testing.T) {
	var up atomic.Bool
	warned := make(chan error, 10)
	z := newZone(t, 1, Options{
		Warn: func(err error) { warned <- err },
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if up.Load() {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			return nil, errors.New("nobody is there")
		},
	})
	if u := z.Stats().Unheard; u != "" {
		t.Errorf("unheard before it was asked: %q", u)
	}
	absent := chunktest.Sample(2, 1000).Name
	for range 3 {
		if _, err := z.Get(t.Context(), absent); err == nil || errors.Is(err, chunk.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if u := z.Stats().Unheard; !strings.HasSuffix(u, "nobody is there") || strings.Contains(u, absent.String()) {
		t.Errorf("%q", u)
	}
	if len(warned) != 1 {
		t.Errorf("%d warnings", len(warned))
	}
	up.Store(true)
	if _, err := z.Get(t.Context(), absent); !errors.Is(err, chunk.ErrNotFound) {
		t.Fatal(err)
	}
	up.Store(false)
	z.transport.CloseIdleConnections()
	_, _ = z.Get(t.Context(), absent)
	if u := z.Stats().Unheard; u != "" {
		t.Errorf("one has answered: %q", u)
	}
	z.failing.Store(time.Now().Add(-silentFor).UnixNano())
	for range 3 {
		_, _ = z.Get(t.Context(), absent)
	}
	if u := z.Stats().Unheard; !strings.HasSuffix(u, "nobody is there") || len(warned) != 2 {
		t.Errorf("all have died: %q, %d warnings", u, len(warned))
	}
	up.Store(true)
	_, _ = z.Get(t.Context(), absent)
	if u, since := z.Stats().Unheard, z.failing.Load(); u != "" || since != 0 {
		t.Errorf("one answers again: %q, failing since %d", u, since)
	}
}

// TestNotANode: what is at the address is another kind of server. It gives no
// chunk and nothing else, takes no longer than the deadline, nobody goes where
// it sends them, and it is told.
func TestNotANode(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	forEver := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			for page := make([]byte, 64<<10); ; {
				if _, err := w.Write(page); err != nil {
					return
				}
			}
		}
	}
	for name, handler := range map[string]http.Handler{
		"no such page": http.NotFoundHandler(), "redirect": http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect),
		"a page for everything": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>welcome</html>") }),
		"a stripe's length": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("ETag", `"01234567"`)
			_, _ = w.Write(make([]byte, HeaderSize+1000))
		}),
		"for ever": forEver(http.StatusOK), "not for ever": forEver(http.StatusNotFound),
		"no page, in parts": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.(http.Flusher).Flush() }),
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(handler)
			defer s.Close()
			warned := make(chan error, 10)
			c, err := NewClient(Options{Zone: s.Listener.Addr().String(), Worker: "w", Deadline: time.Minute, Warn: func(err error) { warned <- err }})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for range 2 {
				if data, err := c.Get(t.Context(), chunktest.Sample(2, 1000).Name); err == nil || data != nil || errors.Is(err, chunk.ErrNotFound) {
					t.Errorf("%d bytes, %v", len(data), err)
				}
			}
			if u := c.Stats().Unheard; !strings.Contains(u, s.Listener.Addr().String()) || len(warned) != 1 {
				t.Errorf("%q, %d warnings", u, len(warned))
			}
		})
	}
}

// TestUnheardTLS: plain requests to nodes with TLS and the other way round.
func TestUnheardTLS(t *testing.T) {
	for name, wrong := range map[string]*tls.Config{"plain": nil, "other authority": {}} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(http.NotFoundHandler())
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.StartTLS()
			defer s.Close()
			c, err := NewClient(Options{Zone: s.Listener.Addr().String(), Deadline: time.Minute, TLS: wrong})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Get(t.Context(), chunktest.Sample(2, 1000).Name); err == nil {
				t.Fatal("it gave something")
			}
			if u := c.Stats().Unheard; !strings.Contains(u, s.Listener.Addr().String()) {
				t.Errorf("%q", u)
			}
		})
	}
}
