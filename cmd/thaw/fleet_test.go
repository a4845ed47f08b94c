package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/internal/faults"
	"thaw/internal/tests3"
	"thaw/zone"
)

// The fleet's code: any fleetNodes-fleetSpare of its nodes give a chunk.
const fleetNodes, fleetSpare = 5, 1

// zoneFleet is all that a byte of an image passes on its way, as processes on
// loopback, and what may go wrong between them:
//
//	reader → fetcher → proxy → node, five times
//	                 → proxy → front → S3 server
//
// Its readers are cache clients in this process that keep nothing, and
// containers where the test runs as root.
type zoneFleet struct {
	*machine
	server *tests3.Server
	front  *tests3.Front // counts, and answers with errors
	way    *faults.Proxy // to the front
	nodes  []*member
	putter *zone.Client
	chunks map[chunk.Name][]byte // the image's, sealed, as the converter wrote them
	names  []chunk.Name
	cache  string // folder

	socket  string
	fetcher *exec.Cmd
	flags   []string // of the fetcher that runs

	gate  sync.RWMutex // held by reads; alone, by who needs a moment without
	mu    sync.Mutex
	peaks map[string]int // guarded by mu: most memory of each kind of process, KiB
}

// newFleet starts nodes and origin and converts an image called app into the
// origin alone. cacheDir is to be the L1 folder; "" is one in the state.
func newFleet(t *testing.T, cacheDir string) *zoneFleet {
	t.Helper()
	f := &zoneFleet{server: tests3.Start(t), chunks: map[chunk.Name][]byte{}, peaks: map[string]int{}}
	if os.Geteuid() == 0 {
		f.machine = newMachine(t)
	} else {
		t.Log("NOT TESTED: containers, and disks that are full, need root")
		f.machine = &machine{t: t, state: filepath.Join(t.TempDir(), "state"), env: append(os.Environ(), partsEnv+"="+builtParts(t), "AWS_EC2_METADATA_DISABLED=true")}
	}
	f.front = f.server.Front(t, nil, "/chunks/")
	f.way = newProxy(t, strings.TrimPrefix(f.front.URL, "http://"), 100)
	origin := f.server.Bucket(t, "http://"+f.way.Addr()) + "&region=us-east-1"
	f.machine.flags = []string{"--origin", origin}
	f.convert("app", 1)
	for _, path := range chunkFiles(t, f.server.Objects()) {
		if !strings.Contains(path, "/chunks/") {
			continue
		}
		data, err := os.ReadFile(path)
		name, _ := chunk.ParseName(filepath.Base(path))
		if err != nil || chunk.Check(data, name) != nil {
			t.Fatalf("%s: %v", path, err)
		}
		f.chunks[name] = data
	}
	f.names = slices.SortedFunc(maps.Keys(f.chunks), func(a, b chunk.Name) int { return bytes.Compare(a[:], b[:]) })
	var addresses []string
	for i := range fleetNodes {
		n := &member{f: f, flash: filepath.Join(t.TempDir(), "flash"), log: filepath.Join(t.TempDir(), "log"), proxy: newProxy(t, "127.0.0.1:1", uint64(i))}
		n.must(n.start())
		t.Cleanup(func() { n.end(unix.SIGKILL) })
		f.nodes, addresses = append(f.nodes, n), append(addresses, n.proxy.Addr())
	}
	f.cache, f.socket = cacheDir, filepath.Join(t.TempDir(), "s")
	if f.cache == "" {
		f.cache = filepath.Join(f.state, "cache")
	}
	f.machine.flags = append(f.machine.flags, "--zone", strings.Join(addresses, ","), "--cache", f.cache)
	var err error
	if f.putter, err = zone.NewClient(zone.Options{Zone: strings.Join(addresses, ","), Deadline: patience, Repairs: -1}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.putter.Close() })
	t.Cleanup(func() { f.endFetcher() })
	return f
}

// in has a test, or one of its own, say what is wrong.
func (f *zoneFleet) in(t *testing.T) { f.machine.t = t }

func newProxy(t *testing.T, target string, seed uint64) *faults.Proxy {
	t.Helper()
	p, err := faults.NewProxy(target, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// member is a node of a fleet, and the proxy that clients reach it through.
type member struct {
	f          *zoneFleet
	flash, log string
	proxy      *faults.Proxy
	addr       string
	cmd        *exec.Cmd // nil while none runs
}

func (n *member) must(err error) {
	n.f.t.Helper()
	if err != nil {
		said, _ := os.ReadFile(n.log)
		n.f.t.Fatalf("node %s: %v\n%s", n.flash, err, said)
	}
}

// start starts the process with what its flash holds. An error: it refused.
func (n *member) start() error {
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command("thaw", "--state", n.f.state, "zone", "--listen=127.0.0.1:0", "--memory=16MiB", "--flash="+n.flash, "--flash-size=32MiB")
	cmd.Env, cmd.Stderr = n.f.env, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // a test that panics cleans nothing
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return errors.Join(err, cmd.Wait())
	}
	n.cmd, n.addr = cmd, strings.TrimSpace(line)
	n.proxy.Retarget(n.addr)
	return nil
}

// end ends the process and waits for it.
func (n *member) end(sig syscall.Signal) {
	if n.cmd == nil {
		return
	}
	n.f.weigh("node", n.cmd.Process.Pid)
	_ = n.cmd.Process.Signal(sig)
	_ = n.cmd.Process.Signal(unix.SIGCONT) // it may be stopped
	late := time.AfterFunc(patience, func() { _ = n.cmd.Process.Kill() })
	defer late.Stop()
	_ = n.cmd.Wait() // how it ended is up to who asked for it
	n.cmd = nil
}

// again ends the process in order, changes what it left, and starts it.
func (n *member) again(change func()) {
	n.f.t.Helper()
	n.end(unix.SIGTERM)
	change()
	n.must(n.start())
}

func (n *member) signal(sig syscall.Signal) {
	n.f.t.Helper()
	n.must(n.cmd.Process.Signal(sig))
}

// weigh notes the most memory that a process has had.
func (f *zoneFleet) weigh(kind string, pid int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmHWM:" {
			kib, _ := strconv.Atoi(fields[1])
			f.mu.Lock()
			f.peaks[kind] = max(f.peaks[kind], kib)
			f.mu.Unlock()
		}
	}
}

// startFetcher starts the process that f's clients ask.
func (f *zoneFleet) startFetcher(flags ...string) {
	f.t.Helper()
	f.flags = flags
	_ = os.Remove(f.socket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: f.socket, Net: "unix"})
	if err != nil {
		f.t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		f.t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	serving, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // it says so; clients wait in the socket's queue
	if err != nil {
		f.t.Fatal(err)
	}
	defer serving.Close()
	log, err := os.OpenFile(f.socket+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	f.fetcher = f.command(append(slices.Clone(flags), "fetcher")...)
	f.fetcher.ExtraFiles, f.fetcher.Stderr = []*os.File{file, r, serving}, log
	f.fetcher.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := f.fetcher.Start(); err != nil {
		f.t.Fatal(err)
	}
	if _, err := w.Write([]byte{'\n'}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *zoneFleet) endFetcher() {
	if f.fetcher != nil {
		f.weigh("fetcher", f.fetcher.Process.Pid)
		_ = f.fetcher.Process.Kill()
		_ = f.fetcher.Wait()
		f.fetcher = nil
	}
}

// client gives one that keeps next to nothing, so that it asks each time.
func (f *zoneFleet) client(deadline time.Duration) *cache.Client {
	f.t.Helper()
	var d net.Dialer
	c, err := cache.NewClient(cache.ClientOptions{
		Folder: f.cache, Root: "r1", Deadline: deadline, Memory: 1, Files: 1,
		Dial: func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "unix", f.socket) },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return c
}

// errWrong is a read of other bytes than the source's.
var errWrong = errors.New("WRONG BYTES")

// read reads a chunk whole and compares it.
func (f *zoneFleet) read(ctx context.Context, c *cache.Client, name chunk.Name) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	want := f.chunks[name]
	v, err := c.Find(ctx, name, len(want))
	if err != nil {
		return err
	}
	defer v.Close()
	got := make([]byte, len(want))
	if n, err := v.ReadAt(got, 0); n != len(want) {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: chunk %s", errWrong, name)
	}
	return nil
}

// readers is how many read at a time.
const readers = 32

// pass empties the cache and reads every chunk. Wrong bytes end the test. A
// reader has a chunk before the fetcher has stored it: what came for those
// before is stored first, or it would be in the cache again.
func (f *zoneFleet) pass(deadline time.Duration) (failed []error) {
	f.t.Helper()
	settled(f.t, f.socket, false)
	if err := emptied(f.cache); err != nil {
		f.t.Fatal(err)
	}
	f.front.Forget()
	c := f.client(deadline)
	defer c.Close()
	var mu sync.Mutex
	var work sync.WaitGroup
	for r := range readers {
		work.Go(func() {
			for i := r; i < len(f.names); i += readers {
				if err := f.read(f.t.Context(), c, f.names[i]); err != nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	work.Wait()
	for _, err := range failed {
		if errors.Is(err, errWrong) {
			f.t.Fatal(err)
		}
	}
	return failed
}

// all reads every chunk from an empty cache, and wants no failure. It gives the
// number of times that the origin was asked for one.
func (f *zoneFleet) all() (gets int) {
	f.t.Helper()
	if failed := f.pass(patience); len(failed) > 0 {
		f.t.Fatalf("%d of %d reads failed, such as: %v", len(failed), len(f.names), failed[0])
	}
	return f.front.Seen().Gets
}

// held is how many of the image's stripes their nodes give, whole: what rots on
// flash is found when it is read. Nodes that do not answer hold none.
func (f *zoneFleet) held() int {
	var ids []zone.StripeID
	var query []byte
	for _, name := range f.names {
		for i := range fleetNodes {
			id := zone.StripeID{Name: name, K: fleetNodes - fleetSpare, N: fleetNodes, Index: uint8(i)}
			ids, query = append(ids, id), id.Append(query)
		}
	}
	client := http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	body := func(res *http.Response, err error) []byte {
		if err != nil {
			return nil
		}
		defer res.Body.Close()
		data, _ := io.ReadAll(res.Body) // what is short is not whole
		return data
	}
	whole := 0
	for _, node := range f.nodes {
		for i, has := range body(client.Post("http://"+node.addr+zone.HavePath, "", bytes.NewReader(query))) {
			if has != 1 || i >= len(ids) {
				continue
			}
			if s, err := zone.ParseStripe(body(client.Get("http://" + node.addr + ids[i].Path()))); err == nil && s.ID() == ids[i] {
				whole++
			}
		}
	}
	return whole
}

// full is what held gives of a zone that lacks nothing.
func (f *zoneFleet) full() int { return len(f.names) * fleetNodes }

// until tries again and again, and gives up after a long while.
func (f *zoneFleet) until(what string, so func() bool) {
	f.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); !so(); {
		select {
		case <-tick.C:
		case <-late:
			f.t.Fatalf("it never was so: %s", what)
		}
	}
}

// readOnly makes the mount of a folder so, or not, while readers pause: nothing
// may be open for writing.
func (f *zoneFleet) readOnly(dir string, so bool) {
	f.t.Helper()
	f.gate.Lock()
	defer f.gate.Unlock()
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND) // of the mount: the file system also minds files that are open and removed
	if so {
		flags |= unix.MS_RDONLY
	}
	f.until("the folder is mounted otherwise", func() bool {
		err := unix.Mount("", dir, "", flags, "")
		if err != nil && !errors.Is(err, unix.EBUSY) {
			f.t.Fatal(err)
		}
		return err == nil
	})
}

// warm puts every stripe on its node. Nothing may be wrong with the nodes.
func (f *zoneFleet) warm() {
	f.t.Helper()
	f.until("the zone has all stripes", func() bool {
		if f.held() == f.full() {
			return true
		}
		for name, data := range f.chunks {
			if err := f.putter.Put(f.t.Context(), name, data); err != nil {
				f.t.Logf("warming the zone: %v", err)
			}
		}
		return false
	})
}

// healed reads until the zone has all again and the origin is asked for
// nothing. No read may fail.
func (f *zoneFleet) healed() {
	f.t.Helper()
	f.until("the zone is whole, and gives all", func() bool { return f.all() == 0 && f.held() == f.full() })
}
