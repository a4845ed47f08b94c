package agent

import (
	"bytes"
	"context"
	"encoding/json"
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
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/device"
	"thaw/mount"
)

// newTestControl gives a control at a socket, without a file system.
func newTestControl(t *testing.T) (*control, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	client, err := cache.NewClient(cache.ClientOptions{Folder: t.TempDir(), Root: "r1", Dial: func(context.Context) (net.Conn, error) {
		return nil, errors.New("nobody is there")
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	s := newSample(t)
	dev, err := device.New(s.manifest, client)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newControl(f, "app", dev, client)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now() // which it stays: what is told once in a second is told once in a test
	c.now = func() time.Time { return at }
	c.start()
	t.Cleanup(c.close)
	return c, path
}

func dialControl(t *testing.T, path string) *Conn {
	t.Helper()
	conn, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some were closed
	return conn
}

func fault(text string) mount.Fault {
	return mount.Fault{Op: "read", File: "image", Err: errors.New(text)}
}

func TestEvents(t *testing.T) {
	c, path := newTestControl(t)
	asks := dialControl(t, path)
	if fault, err := asks.Fault(); fault != nil || err != nil {
		t.Errorf("%v, %v", fault, err)
	}
	listens := dialControl(t, path)
	if err := listens.Listen(); err != nil {
		t.Fatal(err)
	}
	c.report(fault("chunk 1"))
	c.report(fault("chunk 2")) // at once: people want one line
	late := dialControl(t, path)
	if err := late.Listen(); err != nil {
		t.Fatal(err)
	}
	c.report(fault("chunk 3")) // the late one has heard nothing yet
	for conn, want := range map[*Conn]string{listens: "image app: read of image: chunk 1", late: "image app: read of image: chunk 3"} {
		if err := conn.Finish(); err != nil {
			t.Fatal(err)
		}
		var told []string
		conn.Events(func(line string) { told = append(told, line) })
		if len(told) != 1 || told[0] != want {
			t.Errorf("told %q, want %q", told, want)
		}
	}
	if fault, err := asks.Fault(); err != nil || fault == nil || fault.Error() != "image app: read of image: chunk 3" || errors.Is(fault, ErrLost) {
		t.Errorf("%v, %v", fault, err)
	}
	if s, err := asks.Stats(); err != nil || !s.IsZero() {
		t.Errorf("%+v, %v", s, err)
	}
}

// Listeners that have gone take nothing from those that come.
func TestManyListeners(t *testing.T) {
	c, path := newTestControl(t)
	for range maxControls / 64 {
		var all sync.WaitGroup
		for range 64 {
			all.Go(func() {
				conn, err := Dial(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if err := conn.Listen(); err != nil {
					t.Error(err)
				}
				_ = conn.Close() // as if killed
			})
		}
		all.Wait()
	}
	conn := dialControl(t, path)
	if err := conn.Listen(); err != nil {
		t.Fatal(err)
	}
	c.report(fault("one"))
	if err := conn.Finish(); err != nil {
		t.Fatal(err)
	}
	told := 0
	conn.Events(func(string) { told++ })
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// A listener that does not read holds up nobody.
func TestDeafListener(t *testing.T) {
	c, path := newTestControl(t)
	deaf := dialControl(t, path)
	if err := deaf.Listen(); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	for l := range c.listeners {
		for range 2 * eventQueue {
			select {
			case l <- strings.Repeat("x", 1<<16):
			default:
			}
		}
	}
	c.mu.Unlock()
	c.report(fault("one"))
	if text, err := dialControl(t, path).Fault(); err != nil || text == nil || !strings.HasSuffix(text.Error(), "one") {
		t.Errorf("%q, %v", text, err)
	}
	_ = deaf.Close()
	c.close() // waits for all
}

func TestRequestsRefused(t *testing.T) {
	_, path := newTestControl(t)
	for request, want := range map[string]string{
		`{"op":"dance"}`:             `{"error":"no request \"dance\""}`,
		`{}`:                         `{"error":"no request \"\""}`,
		`{"op":"add","name":"x"}`:    `{"error":"no file came with the request"}`,
		`hello`:                      `{"error":"not a request"}`,
		`{"op":1}`:                   `{"error":"not a request"}`,
		strings.Repeat("x", maxLine): ``,
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, request+"\n"); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.UnixConn).CloseWrite()
		got, _ := io.ReadAll(conn) // the answer says it
		if strings.TrimSuffix(string(got), "\n") != want {
			t.Errorf("%.40q: %q, want %q", request, got, want)
		}
		conn.Close()
	}
}

// Whatever is said at the socket, the next who asks gets an answer.
func FuzzControl(f *testing.F) {
	f.Add([]byte("{\"op\":\"stats\"}\n"))
	f.Add([]byte("{\"op\":\"events\"}\n{\"op\":\"stats\"}\n"))
	f.Add([]byte("{\"op\":\"fault\"}\n{\"op\":\"add\",\"name\":\"../x\"}\n"))
	f.Add([]byte("\n\n\x00{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("remove")) || bytes.ContainsAny(data, "\\") {
			t.Skip("SKIPPED: needs a file system to remove from")
		}
		_, path := newTestControl(t)
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = conn.Write(data) // it may have hung up
		_ = conn.(*net.UnixConn).CloseWrite()
		answers, _ := io.ReadAll(conn)
		for line := range bytes.Lines(answers) {
			if !json.Valid(line) {
				t.Errorf("%q was answered by %q", data, line)
			}
		}
		if _, err := dialControl(t, path).Stats(); err != nil {
			t.Errorf("after %q: %v", data, err)
		}
	})
}

// The control of a real agent: writable devices, failed reads.
func TestControlOfAgent(t *testing.T) {
	s := newSample(t)
	a := serves(t, s, patience)
	conn := a.dial(t)
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Add("one", file); err != nil {
		t.Fatal(err)
	}
	if err := conn.Add("one", file); err == nil || !strings.Contains(err.Error(), "rw/one") {
		t.Errorf("a second one: %v", err)
	}
	if err := conn.Add("../one", file); err == nil {
		t.Error("a bad name was taken")
	}
	rw := filepath.Join(a.dir, "fuse", "rw", "one")
	w, err := os.OpenFile(rw, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("written by us"), 70_000); err != nil {
		t.Fatal(err)
	}
	w.Close()
	got, err := os.ReadFile(rw)
	want := bytes.Clone(s.bytes)
	copy(want[70_000:], "written by us")
	if err != nil || len(got) != len(want) || !bytes.Equal(got, want) {
		t.Errorf("it reads otherwise than written: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(a.dir, "fuse", "image")); err != nil || !bytes.Equal(got, s.bytes) {
		t.Errorf("the image has changed: %v", err)
	}
	onDisk, err := os.ReadFile(file.Name())
	if err != nil || len(onDisk) == 0 || bytes.Contains(onDisk, []byte("written")) {
		t.Errorf("on disk: %d bytes, %v", len(onDisk), err)
	}
	if err := conn.Remove("one"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Remove("one"); err == nil {
		t.Error("removed twice")
	}
	if _, err := os.Stat(rw); err == nil {
		t.Error("it is there still")
	}
	file.Close()
	st, err := conn.Stats()
	if err != nil || st.Origin.Chunks != int64(len(s.manifest.Chunks)) {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestFaultOfAgent(t *testing.T) {
	s := newSample(t)
	gone := s.manifest.Chunks[2]
	s.store.Remove(gone.Name)
	a := serves(t, s, patience)
	listens := a.dial(t)
	if err := listens.Listen(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(a.dir, "fuse", "image")); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v", err)
	}
	if err := listens.Finish(); err != nil {
		t.Fatal(err)
	}
	var told []string
	listens.Events(func(line string) { told = append(told, line) })
	if fault, err := a.dial(t).Fault(); err != nil || !errors.Is(fault, ErrLost) {
		t.Errorf("%v, %v", fault, err)
	}
	want := regexp.MustCompile(`^image app: read of image: .*chunk ` + gone.Name.String()[:12] + `.*origin: .*not found`)
	// The kernel may ask again, and that may be a second later.
	if len(told) == 0 || slices.ContainsFunc(told, func(line string) bool { return !want.MatchString(line) }) {
		t.Errorf("told %q", told)
	}
}
