package cache

import (
	"bytes"
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// testPatience bounds every wait that a test hopes not to have.
const testPatience = 3 * time.Minute

// small is a chunk size that keeps tests quick: nothing here depends on it.
const small = 4 << 10

// fakeOrigin is a Source that counts, and does what the test says first.
type fakeOrigin struct {
	chunktest.Memory
	gets atomic.Int64

	mu   sync.Mutex // guards what follows
	hook before
}

// before runs in place of a get, if it gives an error.
type before func(ctx context.Context, name chunk.Name) error

func newOrigin(hook before) *fakeOrigin {
	o := new(fakeOrigin)
	o.first(hook)
	return o
}

func (o *fakeOrigin) first(hook before) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hook = hook
}

func (o *fakeOrigin) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	o.gets.Add(1)
	o.mu.Lock()
	hook := o.hook
	o.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, name); err != nil {
			return nil, err
		}
	}
	return o.Memory.Get(ctx, name)
}

// put gives the origin n chunks of size bytes.
func (o *fakeOrigin) put(t testing.TB, n, size int) []chunk.Sealed {
	t.Helper()
	var chunks []chunk.Sealed
	for i := range n {
		c := sample(i, size)
		if err := o.Plant(context.Background(), c.Name, c.Data); err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, c)
	}
	return chunks
}

// sample gives the same chunk for the same number.
func sample(i, size int) chunk.Sealed {
	plain := bytes.Repeat([]byte{1, byte(i), byte(i >> 8)}, size/3+1)[:size]
	return chunk.Seal(chunk.Salt{}, plain)
}

func newFolder(t testing.TB, limit int64) *Folder {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "cache"), limit)
}

func open(t testing.TB, dir string, limit int64) *Folder {
	t.Helper()
	f, err := openPatiently(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// openPatiently opens a folder for which others are waited for as long as it
// takes: that a machine is slow is no reason to get a chunk twice, or to keep
// none.
func openPatiently(dir string, limit int64) (*Folder, error) {
	f, err := OpenFolder(dir, limit)
	if err == nil {
		f.patience, f.keepWithin = testPatience, testPatience
	}
	return f, err
}

// upstream is the origin as a fetcher is given it.
func upstream(o chunk.Source) []Upstream {
	return []Upstream{{Tier: Origin, Source: func(string) (chunk.Source, error) { return o, nil }}}
}

// fetcher is one that serves at a socket until stop or the test's end.
type fetcher struct {
	*Fetcher
	socket string
	stop   func()
}

// serve starts a fetcher at a socket of its own.
func serve(t testing.TB, o FetcherOptions) *fetcher {
	t.Helper()
	dir, err := os.MkdirTemp("", "thaw") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return serveAt(t, o, filepath.Join(dir, "s"))
}

func serveAt(t testing.TB, o FetcherOptions, socket string) *fetcher {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := NewFetcher(o)
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return &fetcher{f, socket, stop}
}

func dialer(socket string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
}

func newClient(t testing.TB, o ClientOptions) *Client {
	t.Helper()
	if o.Root == "" {
		o.Root = "r1"
	}
	if o.Dial == nil {
		o.Dial = dialer("/dev/null")
	}
	if o.Deadline == 0 {
		o.Deadline = testPatience
	}
	c, err := NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// rig is a folder, an origin, a fetcher and a client, joined.
type rig struct {
	origin  *fakeOrigin
	folder  *Folder
	fetcher *fetcher
	client  *Client
	chunks  []chunk.Sealed
}

// newRig makes one whose origin has n chunks. Its client keeps nothing in
// memory and one file open, so that each read shows the folder.
func newRig(t testing.TB, n int, limit int64) *rig {
	t.Helper()
	r := &rig{origin: new(fakeOrigin), folder: newFolder(t, limit)}
	r.chunks = r.origin.put(t, n, small)
	r.fetcher = serve(t, FetcherOptions{Folder: r.folder, Upstreams: upstream(r.origin)})
	r.client = r.bare(t)
	return r
}

func (r *rig) bare(t testing.TB) *Client {
	t.Helper()
	return newClient(t, ClientOptions{Folder: r.folder.dir, Dial: dialer(r.fetcher.socket), Memory: 1, Files: 1})
}

// read reads a chunk, and waits until the fetcher has kept it.
func (r *rig) read(t testing.TB, want chunk.Sealed) {
	t.Helper()
	read(t, r.client, want)
	r.fetcher.settle(t)
}

// settle waits until nothing is under way: who was answered has its chunk a
// moment before the fetcher gives its bytes back.
func (f *fetcher) settle(t testing.TB) {
	t.Helper()
	eventually(t, func() bool { return f.flights.count() == 0 && f.now.requests.Load() == 0 })
}

// read reads a whole chunk through the client, and holds it to its bytes.
func read(t testing.TB, c *Client, want chunk.Sealed) {
	t.Helper()
	v, err := c.Find(context.Background(), want.Name, len(want.Data))
	if err != nil {
		t.Errorf("Find: %v", err)
		return
	}
	defer v.Close()
	got := make([]byte, len(want.Data))
	if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, want.Data) {
		t.Errorf("ReadAt: %v, or the bytes of chunk %s are wrong", err, want.Name)
	}
}

// filled puts a chunk into a folder.
func filled(t testing.TB, f *Folder, c chunk.Sealed) {
	t.Helper()
	if _, _, err := f.Fill(context.Background(), c.Name, len(c.Data), giving(c)); err != nil {
		t.Fatal(err)
	}
}

func giving(c chunk.Sealed) func(context.Context) ([]byte, error) {
	return func(context.Context) ([]byte, error) { return bytes.Clone(c.Data), nil }
}

// has tells whether the folder has a file of that name.
func (f *Folder) has(name chunk.Name) bool {
	_, err := os.Lstat(chunkPath(f.dir, name))
	return err == nil
}

// checkFolder holds a folder at rest to its promises: every file is a whole
// chunk that all may read and none may write, nothing unfinished is left, and
// the bytes are within the counter and the counter within the limit.
func checkFolder(t testing.TB, f *Folder) (chunks int) {
	t.Helper()
	stored := int64(0)
	err := filepath.WalkDir(f.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(f.dir, path)
		if rel == usedName || rel == lockName || rel == pastName {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := chunk.ParseName(d.Name())
		if err != nil || chunk.Check(data, name) != nil || info.Mode().Perm() != filePerm || path != chunkPath(f.dir, name) {
			t.Errorf("%s is no whole chunk (%d bytes, %v)", rel, info.Size(), info.Mode())
		}
		stored += info.Size()
		chunks++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	used := f.Stats().Used
	if used >= 0 && used < stored || stored > f.limit || used > f.limit {
		t.Errorf("%d bytes stored, %d counted, limit %d", stored, used, f.limit)
	}
	return chunks
}
