package node

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/zone"
)

const flashSize = 64 << 20

// fewer stripes than MinMemory holds: as long as no more are on their way to
// flash, memory evicts none of them, however slow that is.
const fewer = MinMemory / (512 << 10 / 4) / 2

// flashed waits until so many stripes are on flash.
func flashed(t *testing.T, want uint64, stats func() Stats) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); ; <-tick.C {
		s := stats()
		if s.Puts.Flashed == want {
			return
		}
		if time.Now().After(end) || s.Puts.Skipped+s.Puts.Failed > 0 {
			t.Fatalf("want %d on flash: %+v", want, s.Puts)
		}
	}
}

// What memory has no room for comes from flash, and comes back into memory.
func TestFlashBehindMemory(t *testing.T) {
	everywhere(t, Options{Memory: MinMemory, Flash: "yes", FlashSize: flashSize}, func(t *testing.T, n *Node, f front) {
		for i := range uint64(80) {
			id, b := usualStripe(i)
			f.want(t, 201, "PUT "+id.Path(), b)
			if (i+1)%fewer == 0 {
				flashed(t, i+1, n.Stats)
			}
		}
		for i := range uint64(80) {
			id, b := usualStripe(i)
			if r := f.want(t, 200, "GET "+id.Path(), nil); !bytes.Equal(r.body, b) || r.header.Get("ETag") != zone.ETag(b) {
				t.Fatalf("stripe %d: other bytes", i)
			}
		}
		waitFor(t, "the last answer to be counted", func() bool { s := n.Stats(); return s.Gets.FromFlash.Count() == s.Gets.Flash })
		s := n.Stats()
		if s.Gets.Flash < 40 || s.Memory.Used > s.Memory.Limit || s.Flash.Stripes != 80 {
			t.Fatalf("%+v", s)
		}
		id, b := usualStripe(79)
		f.want(t, 200, "GET "+id.Path(), nil)
		if after := n.Stats(); after.Gets.Memory != s.Gets.Memory+1 {
			t.Error("what was read from flash is not in memory")
		}
		// A put of what only flash has knows that it is there, and what it is.
		first, fb := usualStripe(0)
		n.mem.remove(first)
		f.want(t, 200, "PUT "+first.Path(), fb)
		_, other := stripe(0, code{4, 5, 0}, 512<<10, 1)
		n.mem.remove(first)
		f.want(t, 412, "PUT "+first.Path(), other)
		n.mem.remove(first)
		f.want(t, 201, "PUT "+first.Path(), other, "If-Match", zone.ETag(fb))
		if r := f.want(t, 200, "GET "+first.Path(), nil); !bytes.Equal(r.body, other) {
			t.Error("flash gives what was replaced")
		}
		_ = b
	})
}

func TestRestart(t *testing.T) {
	o := Options{Memory: flashSize, Flash: t.TempDir(), FlashSize: flashSize, Warn: func(err error) { t.Log(err) }}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	n.bounds.drain = patience
	for i := range uint64(100) {
		id, b := usualStripe(i)
		if out, err := n.put(id, b, ""); out != stored {
			t.Fatal(err)
		}
	}
	if err := n.Close(); err != nil { // it writes what is queued
		t.Fatal(err)
	}
	again := open(t, o)
	if s := again.Stats(); s.Flash.Stripes != 100 || s.Memory.Stripes != 0 {
		t.Fatalf("%+v", s)
	}
	holds(t, again, 100, 100)
}

// holds wants at least so many of the first stripes, with their bytes.
func holds(t *testing.T, n *Node, of uint64, want int) {
	t.Helper()
	found := 0
	for i := range of {
		id, b := usualStripe(i)
		if got := bytesOf(t, n, id); got != nil && !bytes.Equal(got, b) {
			t.Fatalf("stripe %d: other bytes", i)
		} else if got != nil {
			found++
		}
	}
	if found < want {
		t.Errorf("%d of %d stripes, want %d", found, of, want)
	}
}

// bytesOf gives a stripe as it would be sent, or nil.
func bytesOf(t *testing.T, n *Node, id zone.StripeID) []byte {
	t.Helper()
	var f found
	ok, err := n.find(id, &f)
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		return nil
	}
	defer n.release(&f)
	if err := n.copyOut(&f); err != nil {
		t.Fatal(err)
	}
	return append(bytes.Clone(f.head[:]), f.payload...)
}

// Bytes that rot on flash are missing, never given, and may be put again.
func TestRottenFlash(t *testing.T) {
	o := Options{Memory: flashSize, Flash: t.TempDir(), FlashSize: flashSize, Warn: func(error) {}}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	n.bounds.drain = patience
	for i := range uint64(60) {
		id, b := usualStripe(i)
		if out, err := n.put(id, b, ""); out != stored {
			t.Fatal(err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(o.Flash, "segment-*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for _, path := range segments {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for range len(b) / (1 << 20) {
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	again := open(t, o)
	holds(t, again, 60, 20)
	if s := again.Stats(); s.Corrupt == 0 && s.Flash.Stripes == 60 {
		t.Fatal("nothing was hit")
	}
	for i := range uint64(60) {
		id, b := usualStripe(i)
		if out, err := again.put(id, b, ""); out != stored && out != had {
			t.Fatal(err)
		}
	}
}

// A copy that was on its way to flash when it was replaced does not stay there.
func TestReplacedOnItsWayToFlash(t *testing.T) {
	n := open(t, Options{Flash: t.TempDir(), FlashSize: flashSize})
	id, old := stripe(1, code{4, 5, 0}, 512<<10, 1)
	_, right := stripe(1, code{4, 5, 0}, 512<<10, 2)
	for _, b := range [][]byte{old, right, right} {
		if err := n.disk.put(id, b); err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(t, n, id); !bytes.Equal(got, b) {
			t.Error("flash gives another copy than was put last")
		}
		n.mem.remove(id)
	}
	if s := n.Stats(); s.Store.Added != 2 {
		t.Errorf("%d copies written, want 2", s.Store.Added)
	}
}

// What is under another name on flash is not given under this one.
func TestFlashOfAnother(t *testing.T) {
	n := open(t, Options{Flash: t.TempDir(), FlashSize: flashSize})
	id, _ := usualStripe(1)
	_, other := usualStripe(2)
	if _, err := n.disk.store.Put(key(id), other); err != nil {
		t.Fatal(err)
	}
	if got := bytesOf(t, n, id); got != nil {
		t.Fatal("another stripe was given")
	}
	if s := n.Stats(); s.Corrupt != 1 || s.Flash.Stripes != 0 {
		t.Errorf("%+v", s)
	}
}

// childEnv is the folder of the node that TestChild is.
const childEnv = "THAW_TEST_NODE"

// TestChild is the node of TestKill.
func TestChild(t *testing.T) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		t.Skip("only TestKill starts it")
	}
	n := open(t, Options{Memory: 8 << 20, Flash: dir, FlashSize: flashSize})
	fmt.Printf("listening %s\n", serve(t, n, nil))
	_, _ = os.Stdin.Read(make([]byte, 1)) // until it is killed
}

// A killed node has on flash what it had written, whole, and had taken no more
// memory than it may.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$")
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := ""
	for lines := bufio.NewScanner(out); address == "" && lines.Scan(); {
		_, address, _ = strings.Cut(lines.Text(), "listening ")
	}
	f := front{&http.Client{}, "http://" + address}
	defer f.CloseIdleConnections()
	status := func() (s Stats) {
		if err := json.Unmarshal(f.want(t, 200, "GET /status", nil).body, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	const count = 20 * fewer
	for i := range uint64(count) {
		id, b := usualStripe(i)
		f.want(t, 201, "PUT "+id.Path(), b)
		f.want(t, 200, "GET "+id.Path(), nil)
		if (i+1)%fewer == 0 {
			flashed(t, i+1, status)
		}
	}
	if kib := residentSet(t, cmd.Process.Pid); kib > 200<<10 { // loosely: 40 MiB of them were put
		t.Errorf("%d KiB resident", kib)
	}
	for i := range uint64(20) { // some of these are on their way to flash
		id, b := usualStripe(count + i)
		f.want(t, 201, "PUT "+id.Path(), b)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()                                                      // it was killed
	n := open(t, Options{Flash: dir, FlashSize: flashSize})             // it could not be locked if it lived
	if s := n.Stats(); s.Flash.Stripes < count || s.Store.Corrupt > 1 { // a slot may be torn
		t.Fatalf("%+v", s.Store)
	}
	holds(t, n, count+20, count)
}

// residentSet is a process's memory in KiB.
func residentSet(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// A flash store that takes nothing is told of once, not for every stripe.
func TestFlashThatTakesNothing(t *testing.T) {
	warned := make(chan error, 100)
	n := open(t, Options{Flash: t.TempDir(), FlashSize: 32 << 20, Warn: func(err error) { warned <- err }})
	if err := n.disk.store.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(5) {
		id, b := usualStripe(i)
		if out, err := n.put(id, b, ""); out != stored {
			t.Fatal(err)
		}
	}
	waitFor(t, "all to fail", func() bool { return n.Stats().Puts.Failed == 5 })
	if len(warned) != 1 {
		t.Errorf("%d warnings", len(warned))
	}
}
