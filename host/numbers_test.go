package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"thaw/agent"
	"thaw/cache"
)

// place puts a record where a process is expected, and gives the folder.
func (h *Host) place(t *testing.T, kind, key string, record any) string {
	t.Helper()
	dir := h.dir(kind, key)
	name := map[string]string{"fetchers": "fetcher.json", "images": "image.json"}[kind]
	err := makeDir(dir, searchOnly)
	if err == nil {
		err = writeRecord(filepath.Join(dir, name), record)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// answering listens for the time of the test. A nil f answers nothing.
func answering(t *testing.T, path string, f func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	if f != nil {
		work.Go(func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
				f(conn)
				_ = conn.Close()
			}
		})
	}
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait()
	})
}

// numbered serves what a fetcher does on a socket.
func numbered(t *testing.T, path string) {
	t.Helper()
	folder, err := cache.OpenFolder(t.TempDir(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		f := cache.NewFetcher(cache.FetcherOptions{Folder: folder, More: func() any { return map[string]int{"zone": 1} }})
		if err := f.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		work.Wait()
	})
}

// Those who hang, are gone or talk nonsense are told apart from those who
// answer, and hold up nobody.
func TestAsk(t *testing.T) {
	h := openTest(t)
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	gone := self
	gone.Start++ // whoever had the pid before
	if n, err := h.Ask(t.Context()); err != nil || len(n.Fetchers)+len(n.Images)+len(n.Instances) > 0 {
		t.Errorf("of nothing: %+v, %v", n, err)
	}
	fetcher := fetcherRecord{Process: self, Fetcher: Fetcher{Origin: "s3://user:word@o/x?access=secret", Cache: "/c"}}
	numbered(t, h.place(t, "fetchers", "f1", fetcher)+"/"+agent.SocketName)
	answering(t, h.place(t, "fetchers", "f2hangs", fetcher)+"/"+agent.SocketName, nil)
	h.place(t, "fetchers", "f3silent", fetcher)
	h.place(t, "fetchers", "f4gone", fetcherRecord{Process: gone})
	image := imageRecord{ID: "id", Name: "app", Process: self, Mounted: true}
	answering(t, h.place(t, "images", "i1", image)+"/control", func(c net.Conn) {
		if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && line == `{"op":"stats"}`+"\n" {
			fmt.Fprintln(c, `{"stats":{"zone":{"chunks":7}}}`)
		}
	})
	answering(t, h.place(t, "images", "i2hangs", image)+"/control", nil)
	answering(t, h.place(t, "images", "i3nonsense", image)+"/control", func(c net.Conn) { fmt.Fprintln(c, "hello") })
	h.place(t, "images", "i4gone", imageRecord{Process: gone})
	if err := os.Mkdir(h.dir("images", "i5starts"), 0o700); err != nil {
		t.Fatal(err)
	}

	var n Numbers
	for late := time.Now().Add(testPatience); ; { // who answers may be slower than anybody is waited for
		if n, err = h.Ask(t.Context()); err != nil || len(n.Fetchers) != 4 || len(n.Images) != 4 {
			t.Fatalf("%+v, %v", n, err)
		}
		if n.Fetchers[0].Err == nil && n.Images[0].Err == nil || time.Now().After(late) {
			break
		}
	}
	if f := n.Fetchers[0]; f.Err != nil || f.PID != os.Getpid() || f.Key != "f1" || f.Origin != "s3://o/x" || f.Cache != "/c" || f.Since.IsZero() ||
		f.Stats.Folder.Limit != 1<<30 || string(f.Stats.More) != `{"zone":1}` {
		t.Errorf("%+v", f)
	}
	for late := time.Now().Add(testPatience); ; {
		s := h.FetcherStats(t.Context(), &Use{key: "f1"})
		if string(s.More) == `{"zone":1}` {
			break
		}
		if time.Now().After(late) {
			t.Fatalf("%+v", s)
		}
	}
	if s := h.FetcherStats(t.Context(), &Use{key: "f3silent"}); s.More != nil {
		t.Errorf("of none: %+v", s)
	}
	if i := n.Images[0]; i.Err != nil || i.PID != os.Getpid() || i.Name != "app" || i.ID != "id" || !i.Mounted || i.Stats.Zone.Chunks != 7 {
		t.Errorf("%+v", i)
	}
	for _, a := range []Asked{n.Fetchers[1].Asked, n.Fetchers[2].Asked, n.Images[1].Asked, n.Images[2].Asked} {
		if a.Err == nil || errors.Is(a.Err, os.ErrProcessDone) {
			t.Errorf("%+v", a)
		}
	}
	for _, a := range []Asked{n.Fetchers[3].Asked, n.Images[3].Asked} {
		if !errors.Is(a.Err, os.ErrProcessDone) {
			t.Errorf("%+v", a)
		}
	}
}

// What ends between its record and the question is left out.
func TestAskEnded(t *testing.T) {
	h := openTest(t)
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	image := imageRecord{Process: self}
	dir := h.place(t, "images", "i", image)
	answering(t, dir+"/control", func(net.Conn) { _ = os.Remove(dir + "/image.json") })
	for late := time.Now().Add(testPatience); ; { // it may end later than anybody is waited for
		n, err := h.Ask(t.Context())
		if err == nil && len(n.Images) == 0 {
			break
		}
		if err = errors.Join(err, writeRecord(dir+"/image.json", image)); err != nil || time.Now().After(late) {
			t.Fatalf("%+v, %v", n, err)
		}
	}
	if err := os.RemoveAll(h.run); err != nil {
		t.Fatal(err)
	}
	if n, err := h.Ask(t.Context()); err != nil || len(n.Images) > 0 {
		t.Errorf("without a folder: %+v, %v", n, err)
	}
	if err := os.MkdirAll(h.dir("images"), 0o700); err != nil { // for the end of the test
		t.Fatal(err)
	}
	for _, kind := range []string{"fetchers", "instances"} {
		if err := os.MkdirAll(h.dir(kind), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
