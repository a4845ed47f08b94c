package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thaw/invokewire"
)

const (
	// mostPackages bounds what thaw-init is made of: each instance pays for its
	// start and its memory.
	mostPackages = 130
	// mostBytes is what its description promises, and more than it needs.
	mostBytes = 5 << 20
)

// It is the process next to the function: what could reach further, and what is
// slow to start, is not in it.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	t.Logf("%d packages", len(deps))
	if len(deps) < 20 || len(deps) > mostPackages {
		t.Errorf("made of %d packages, want at most %d", len(deps), mostPackages)
	}
	for _, dep := range deps {
		for _, no := range []string{"net/http", "crypto/tls", "crypto/x509", "os/exec", "regexp", "text/template", "thaw/worker", "thaw/cluster", "github.com"} {
			if dep == no || strings.HasPrefix(dep, no+"/") {
				t.Errorf("it imports %s", dep)
			}
		}
	}
}

// Anybody may start it, and nothing happens.
func TestStartedByHand(t *testing.T) {
	path := filepath.Join(built(t), "thaw-init")
	if info, err := os.Stat(path); err != nil || info.Size() > mostBytes {
		t.Errorf("it has %d bytes, want at most %d, %v", info.Size(), mostBytes, err)
	}
	for _, args := range [][]string{{}, {"app"}, {"--socket", "/x"}, {"--socket"}} {
		out, err := exec.Command(path, args...).CombinedOutput()
		if err == nil || string(out) != "thaw-init: this program is started by thaw\n" {
			t.Errorf("%q: %v, %q", args, err, out)
		}
	}
}

// What a worker should not say ends the instance, with one line.
func TestWorkerRefused(t *testing.T) {
	for name, c := range map[string]struct {
		say  func(*worker)
		want string
	}{
		"no frame":       {func(w *worker) { _, _ = w.conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, "bad frame"},
		"not for it":     {func(w *worker) { w.send(invokewire.FrameDone, invokewire.Done{}) }, "done is not for thaw-init"},
		"no JSON":        {func(w *worker) { _ = w.frames.Write(invokewire.FrameSetup, []byte("SECRET")) }, "cannot be read"},
		"an early one":   {func(w *worker) { w.begin("r", "{}") }, "an invoke before a setup"},
		"its own user":   {func(w *worker) { s := w.setup(""); s.UID = 0; w.send(invokewire.FrameSetup, s) }, "another user and group"},
		"its own group":  {func(w *worker) { s := w.setup(""); s.GID = 0; w.send(invokewire.FrameSetup, s) }, "another user and group"},
		"no program":     {func(w *worker) { s := w.setup(""); s.Argv = nil; w.send(invokewire.FrameSetup, s) }, "without a program"},
		"few files":      {func(w *worker) { s := w.setup(""); s.Files = 10; w.send(invokewire.FrameSetup, s) }, "at least 256"},
		"no address":     {func(w *worker) { s := w.setup(""); s.API = "192.0.2.1:1"; w.send(invokewire.FrameSetup, s) }, "is the loopback interface up"},
		"a second setup": {func(w *worker) { w.ready(w.setup("function")); w.send(invokewire.FrameSetup, w.setup("function")) }, "without a reset"},
		"two invokes":    {func(w *worker) { w.ready(w.setup("function")); w.begin("a", `{"Do":"hang"}`); w.begin("b", "{}") }, "no invoke is expected"},
		"its end":        {func(w *worker) { _ = w.conn.Close() }, "the worker is gone"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorker(t)
			c.say(w)
			said, err := w.over()
			if err == nil || !strings.HasPrefix(said, "thaw-init: ") || !strings.Contains(said, c.want) || strings.Count(said, "\n") != 1 || strings.Contains(said, "SECRET") {
				t.Errorf("%v, %q; want a line with %q", err, said, c.want)
			}
		})
	}
}

// A shutdown is an end without a complaint, also of one that has nothing.
func TestShutdown(t *testing.T) {
	for _, set := range []bool{false, true} {
		w := newWorker(t)
		if set {
			w.ready(w.setup("function"))
		}
		w.send(invokewire.FrameShutdown, invokewire.Stop{Reason: "spindown"})
		if said, err := w.over(); err != nil || said != "" {
			t.Errorf("%v, %q", err, said)
		}
	}
}

// What is sent to the instance from outside, the runtime gets.
func TestSignals(t *testing.T) {
	w := newWorker(t)
	w.ready(w.setup("sigterm"))
	children, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(w.cmd.Process.Pid), "task", strconv.Itoa(w.cmd.Process.Pid), "children"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGTERM)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.awaitLog("", "got SIGTERM")
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/x": 0o644, "b/x": 0o755, "c/x": 0o755} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), nil, mode)); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + strings.Join([]string{"/not/there", dir + "/a", dir + "/b", dir + "/c"}, ":")
	for name, c := range map[string]struct {
		env  []string
		want string
	}{
		"x":      {[]string{"A=b", path}, dir + "/b/x"},
		"./x":    {[]string{path}, "./x"},
		"/y":     {nil, "/y"},
		"y":      {[]string{path}, ""},
		"sh":     {nil, "/usr/bin/sh"},
		"a b":    {[]string{"PATH="}, ""},
		"subdir": {[]string{path}, ""},
	} {
		got, err := find(name, c.env)
		if got != c.want && got != strings.TrimPrefix(c.want, "/usr") || (err == nil) != (c.want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// Lines stay whole, in any pieces they come in, and a flush sends what is none.
func TestPump(t *testing.T) {
	var mu sync.Mutex
	var sent []string
	p, write, err := newPump("n", func(name string, text []byte) error {
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, name+":"+string(text))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	go p.run()
	took := func() string {
		mu.Lock()
		defer mu.Unlock()
		defer func() { sent = nil }()
		return strings.Join(sent, "|")
	}
	step := func(text, want string) {
		t.Helper()
		if _, err := io.WriteString(write, text); err != nil {
			t.Fatal(err)
		}
		p.flush()
		if got := strings.ReplaceAll(took(), "|n:", ""); got != want {
			t.Errorf("%.100q, want %.100q", got, want)
		}
	}
	step("", "")
	step("one\ntwo\n", "n:one\ntwo\n")
	step("part", "n:part")
	step(" and the rest\n", "n: and the rest\n")
	var wg sync.WaitGroup
	long := strings.Repeat("l", 3*invokewire.MaxLog/2)
	wg.Go(func() { _, _ = io.WriteString(write, long+"\nshort\n"); _ = write.Close() })
	<-p.done
	wg.Wait()
	p.flush() // after its end too
	if got := took(); got != "n:"+long[:invokewire.MaxLog]+"|n:"+long[invokewire.MaxLog:]+"\nshort\n" && strings.ReplaceAll(got, "|n:", "") != "n:"+long+"\nshort\n" {
		t.Errorf("%d bytes", len(got))
	}
	for _, piece := range strings.Split(took(), "|") {
		if len(piece) > invokewire.MaxLog+2 {
			t.Errorf("a piece of %d bytes", len(piece))
		}
	}
}

// Frames that cannot be sent are lost, and end the connection.
func TestLink(t *testing.T) {
	a, b := net.Pipe()
	l := &link{dial: func() (net.Conn, error) { return a, nil }}
	if err := l.sendJSON(invokewire.FrameHello, nil); !errors.Is(err, errLost) {
		t.Error(err)
	}
	if _, err := l.connect(); err != nil {
		t.Fatal(err)
	}
	if err := l.send(func(f *invokewire.Frames) error {
		return f.WriteLog("", bytes.Repeat([]byte("x"), 2*invokewire.MaxLog))
	}); !errors.Is(err, invokewire.ErrFrame) {
		t.Error(err)
	}
	_ = b.Close()
	if err := l.sendJSON(invokewire.FrameHello, nil); !errors.Is(err, errLost) {
		t.Error(err)
	}
	l.close()
	if _, err := dialFor(filepath.Join(t.TempDir(), "none"), time.Millisecond); !errors.Is(err, errGone) {
		t.Error(err)
	}
}
