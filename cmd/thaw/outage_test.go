package main

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/internal/tests3"
)

// gate is a way to a server that can be shut.
type gate struct {
	address, to string
	t           *testing.T

	mu    sync.Mutex // guards what follows
	shut  bool       // connections are taken, and nothing passes
	conns map[net.Conn]bool

	listener net.Listener // nil while nobody listens
	work     sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	t.Helper()
	g := &gate{address: "127.0.0.1:0", to: to, t: t, conns: map[net.Conn]bool{}}
	g.open()
	t.Cleanup(g.close)
	return g
}

// open listens, and lets all pass.
func (g *gate) open() {
	g.t.Helper()
	l, err := net.Listen("tcp", g.address)
	if err != nil {
		g.t.Fatal(err)
	}
	g.address, g.listener = l.Addr().String(), l
	g.set(false)
	g.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.work.Go(func() { g.serve(conn) })
		}
	})
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	for c := range g.conns { // also those that were taken while it was shut: nothing will pass there
		c.Close()
	}
	clear(g.conns)
}

func (g *gate) serve(conn net.Conn) {
	g.mu.Lock()
	g.conns[conn] = true
	shut := g.shut
	g.mu.Unlock()
	if shut {
		_, _ = io.Copy(io.Discard, conn) // and no answer
		return
	}
	server, err := net.Dial("tcp", g.to)
	if err != nil {
		conn.Close()
		return
	}
	g.work.Go(func() {
		_, _ = io.Copy(server, conn)
		server.Close()
	})
	_, _ = io.Copy(conn, server)
	conn.Close()
}

// close ends all connections and listens no more.
func (g *gate) close() {
	if g.listener == nil {
		return
	}
	g.listener.Close()
	g.listener = nil
	g.set(true)
	g.work.Wait()
}

// A bucket goes away, in both ways, and comes back.
func TestOriginOutage(t *testing.T) {
	server := tests3.Start(t)
	m := newMachine(t)
	g := newGate(t, strings.TrimPrefix(server.URL, "http://"))
	m.flags = []string{"--origin", server.Bucket(t, "http://"+g.address) + "&region=us-east-1"}
	m.convert("app", 1)
	m.convert("other", 100)
	if out := m.must("run", "app", "/bin/inside", "echo", "first"); out != "first\n" {
		t.Fatal(out)
	}
	m.flags = append(m.flags, "--origin-deadline", "2s")
	stats := filepath.Join(t.TempDir(), "stats.json")
	for how, down := range map[string]func(){"refused": g.close, "hanging": func() { g.set(true) }} {
		down()
		// What was started before starts, and nothing else.
		e := m.thaw("run", "--stats-json", stats, "app", "/bin/inside", "echo", "again")
		if e.code != 0 || e.out != "again\n" || !strings.Contains(e.stderr, "starting what was started before") {
			t.Errorf("%s: %+v", how, e)
		}
		if n := numbersOf(t, stats); n.Chunks["origin"] != 0 || n.Chunks["cache"] == 0 {
			t.Errorf("%s: %+v", how, n)
		}
		if e := m.thaw("run", "other"); e.code != exitRunFailed || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", how, e)
		}
		// Its reads fail when their time is up, and work again with the origin.
		r := m.serve("app")
		file := 3
		if how == "hanging" {
			file = 5
		}
		if got := r.ask("sum %s", dataPath(file)); got != "error: input/output error" {
			t.Errorf("%s: %s", how, got)
		}
		if how == "refused" {
			g.open()
		} else {
			g.set(false)
		}
		failed := 1 + r.readsAgain(1, file)
		e = r.end()
		line := regexp.MustCompile(`(?m)^thaw: image app: read of image: .*chunk [0-9a-f]{12}.*origin: .*\(waited \d+\.\d s\)$`)
		if told := line.FindAllString(e.stderr, -1); e.code != 0 || len(told) == 0 || len(told) > 4*failed {
			t.Errorf("%s: %d reads failed; it told:\n%s", how, failed, e.stderr)
		}
	}
}

// An origin's folder is not mounted, and comes back.
func TestOriginFolderAway(t *testing.T) {
	m := newMachine(t)
	dir := filepath.Join(t.TempDir(), "origin")
	m.flags = []string{"--origin", "file://" + dir}
	hasty := append(slices.Clone(m.flags), "--origin-deadline", "2s")
	if out := m.must("images"); strings.Count(out, "\n") != 1 {
		t.Fatalf("a fresh origin has %s", out)
	}
	m.convert("app", 1)
	m.convert("other", 100)
	m.must("run", "app", "/bin/inside", "echo", "first")
	for how, leave := range map[string]func() error{
		"missing": func() error { return nil },
		"empty":   func() error { return os.Mkdir(dir, 0o755) },
	} {
		if err := errors.Join(os.Rename(dir, dir+".away"), leave()); err != nil {
			t.Fatal(err)
		}
		usual := m.flags
		m.flags = hasty
		e := m.thaw("run", "app", "/bin/inside", "echo", "again")
		if e.code != 0 || e.out != "again\n" || !strings.Contains(e.stderr, "starting what was started before") {
			t.Errorf("%s: %+v", how, e)
		}
		if e := m.thaw("run", "other"); e.code != exitRunFailed || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", how, e)
		}
		r := m.serve("app")
		if got := r.ask("sum %s", dataPath(3)); got != "error: input/output error" {
			t.Errorf("%s: %s", how, got)
		}
		_ = os.Remove(dir)
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
		r.readsAgain(1, 3)
		if e := r.end(); e.code != 0 || !strings.Contains(e.stderr, "is what it is on mounted?") {
			t.Errorf("%s: %+v", how, e)
		}
		m.flags = usual
		if err := os.RemoveAll(filepath.Join(m.state, "cache", "chunks")); err != nil {
			t.Fatal(err)
		}
		m.must("run", "app", "/bin/inside", "echo", "first")
	}
}

// A cache that cannot be written to is none, and no start waits for it.
func TestCacheReadOnly(t *testing.T) {
	m := newMachine(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	m.flags = []string{"--cache", dir}
	m.convert("app", 1)
	for range 2 {
		e := m.thaw("run", "app", "/bin/inside", "echo", "on")
		if e.code != 0 || e.out != "on\n" || !strings.Contains(e.stderr, "what is read is not kept") || !strings.Contains(e.stderr, ", 0 from the cache") {
			t.Errorf("%+v", e)
		}
	}
}
