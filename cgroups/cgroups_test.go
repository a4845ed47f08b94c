package cgroups

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// helperEnv makes the test program one of the processes that are steered.
const helperEnv = "THAW_CGROUPS_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		help(what)
		return
	}
	os.Exit(m.Run())
}

// help does what a line on standard input says, and answers each with one.
func help(what string) {
	if what == "burn" {
		for range 2 {
			go func() {
				for {
				}
			}()
		}
	}
	var kept [][]byte
	block := make([]byte, 1<<20)
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		word, arg, _ := strings.Cut(in.Text(), " ")
		switch word {
		case "touch": // so many MB, and keep them
			n, _ := strconv.Atoi(arg)
			b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				fmt.Println(err)
				continue
			}
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			kept = append(kept, b)
		case "free":
			for _, b := range kept {
				_ = unix.Munmap(b)
			}
			kept = nil
		case "write": // a file
			f, err := os.Create(arg)
			for range 48 {
				_, e := f.Write(block)
				err = errors.Join(err, e)
			}
			if err != nil {
				fmt.Println(err)
				continue
			}
		}
		fmt.Println("done")
	}
	os.Exit(0)
}

// process is a running helper.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

func (p *process) do(line string) {
	p.t.Helper()
	fmt.Fprintln(p.in, line)
	if !p.out.Scan() || p.out.Text() != "done" {
		p.t.Fatalf("helper: %s: %q, %v", line, p.out.Text(), p.out.Err())
	}
}

// start starts a helper inside a group.
func start(t *testing.T, g *Group, what string) *process {
	t.Helper()
	in, toIn, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+what, "GOMAXPROCS=4")
	cmd.Stdin, cmd.Stderr = in, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	p := &process{t, cmd, toIn, bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = g.Thaw()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		toIn.Close()
	})
	for _, dir := range g.all {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	p.do("ready")
	return p
}

// newPath makes a group in each hierarchy that ok agrees to, and returns its
// path. It is gone when the test ends.
func newPath(t *testing.T, ok func(mount string) bool) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making cgroups needs root")
	}
	h, err := Find()
	if err != nil {
		t.Skipf("SKIPPED: no cgroups here: %v", err)
	}
	path := fmt.Sprintf("/thaw-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	for _, mount := range h.mounts() {
		if !ok(mount) {
			continue
		}
		dir := filepath.Join(mount, path)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if cpus, err := os.ReadFile(filepath.Join(mount, "cpuset.cpus")); err == nil {
			mems, _ := os.ReadFile(filepath.Join(mount, "cpuset.mems"))
			_ = os.WriteFile(filepath.Join(dir, "cpuset.cpus"), cpus, 0)
			_ = os.WriteFile(filepath.Join(dir, "cpuset.mems"), mems, 0)
		}
		t.Cleanup(func() {
			if err := within(func() bool { return unix.Rmdir(dir) == nil }); err != nil {
				t.Errorf("%s cannot be removed", dir)
			}
		})
	}
	return path
}

func everywhere(string) bool { return true }

// newGroup makes a group for a test.
func newGroup(t *testing.T) *Group {
	t.Helper()
	path := newPath(t, everywhere)
	g, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// within waits for something to become true.
func within(true func() bool) error {
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); {
		if true() {
			return nil
		}
		<-time.After(time.Millisecond)
	}
	return errors.New("not within 3 minutes")
}

// used is the processor time that a group takes in a while, and how long that
// was: a machine that is busy comes back later.
func used(t *testing.T, g *Group, while time.Duration) (cpu, took time.Duration) {
	t.Helper()
	begun := time.Now()
	before, err := g.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(while)
	after, err := g.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	return after - before, time.Since(begun)
}

// A hard quota holds, changes take hold at once, and none is none.
func TestQuota(t *testing.T) {
	g := newGroup(t)
	start(t, g, "burn")
	const while = 300 * time.Millisecond
	for _, c := range []struct {
		quota, period time.Duration
		most          float64 // share of the time
	}{
		{time.Millisecond, 20 * time.Millisecond, 1. / 8},
		{1447 * time.Microsecond, 20 * time.Millisecond, 1. / 5}, // 128 MB
		{10 * time.Millisecond, 100 * time.Millisecond, 3. / 8},
	} {
		if err := g.SetQuota(c.quota, c.period); err != nil {
			t.Fatal(err)
		}
		if got, took := used(t, g, while); got > time.Duration(c.most*float64(took)) {
			t.Errorf("%v in %v: used %v in %v", c.quota, c.period, got, took)
		}
	}
	if err := g.Unlimited(); err != nil {
		t.Fatal(err)
	}
	begun, err := g.CPUTime()
	if err != nil {
		t.Fatal(err)
	}
	if err := within(func() bool { n, _ := g.CPUTime(); return n-begun > while/2 }); err != nil {
		t.Errorf("unlimited: %v", err)
	}
}

// Processes that have no processor are busy, those that wait for something else
// are not, however little both run.
func TestBusy(t *testing.T) {
	g := newGroup(t)
	if g.Busy() {
		t.Error("nobody is there")
	}
	start(t, g, "wait")
	if err := within(func() bool { return !g.Busy() }); err != nil {
		t.Errorf("one that waits: %v", err)
	}
	start(t, g, "burn")
	if err := g.SetQuota(time.Millisecond, time.Second); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if !g.Busy() {
			t.Fatal("one that is kept from running waits")
		}
	}
}

// A limit of memory can be raised and lowered.
func TestSetMemory(t *testing.T) {
	g := newGroup(t)
	start(t, g, "burn")
	dir, file := g.v1["memory"], "memory.limit_in_bytes"
	if dir == "" {
		dir, file = g.v2, "memory.max"
	}
	for _, limit := range []int64{64 << 20, 512 << 20, 32 << 20} {
		if err := g.SetMemory(limit); err != nil {
			t.Fatal(err)
		}
		if text, err := readFrom(dir, file); err != nil || strings.TrimSpace(string(text)) != strconv.FormatInt(limit, 10) {
			t.Errorf("%q, %v, want %d", text, err, limit)
		}
	}
	if err := (&Group{}).SetMemory(1 << 20); !errors.Is(err, ErrNoController) {
		t.Error(err)
	}
}

func TestSetWeight(t *testing.T) {
	g := newGroup(t)
	start(t, g, "burn")
	dir, file, want := g.v1["cpu"], "cpu.shares", map[int]string{1: "10", 25: "256", 100: "1024"}
	if dir == "" {
		dir, file, want = g.v2, "cpu.weight", map[int]string{1: "1", 25: "25", 100: "100"}
	}
	for weight, text := range want {
		if err := g.SetWeight(weight); err != nil {
			t.Fatal(err)
		}
		if got, err := readFrom(dir, file); err != nil || strings.TrimSpace(string(got)) != text {
			t.Errorf("%d: %q, %v, want %s", weight, got, err, text)
		}
	}
}

func TestQuotaRefused(t *testing.T) {
	g := newGroup(t)
	if err := g.SetQuota(5*time.Millisecond, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]time.Duration{{0, 20 * time.Millisecond}, {-1, time.Second}, {time.Microsecond, 20 * time.Millisecond}, {time.Millisecond, 0}, {time.Millisecond, 2 * time.Second}} {
		if err := g.SetQuota(c[0], c[1]); err == nil {
			t.Errorf("%v in %v is no error", c[0], c[1])
		}
	}
	if limit, err := read(g.quota); err != nil || limit != g.limit {
		t.Errorf("the kernel has %q, %v; remembered %q", limit, err, g.limit)
	}
}

// Frozen processes do not run; a quota so small that they wait for it most of
// the time does not keep them from freezing, and is there again afterwards.
func TestFreeze(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "burn")
	for range 3 {
		if err := g.SetQuota(time.Millisecond, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		<-time.After(20 * time.Millisecond) // so that it waits for its quota
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !g.Frozen() {
			t.Error("not Frozen after Freeze")
		}
		if limit, _ := read(g.quota); limit != g.limit || limit == unlimited(g.splitCPU()) {
			t.Errorf("frozen, the quota is %q, want %q", limit, g.limit)
		}
		if got, _ := used(t, g, 50*time.Millisecond); got > time.Millisecond {
			t.Errorf("frozen, it used %v", got)
		}
		if err := errors.Join(g.Unlimited(), g.Thaw()); err != nil {
			t.Fatal(err)
		}
		if g.Frozen() {
			t.Error("Frozen after Thaw")
		}
		p.do("answer")
	}
}

// v1's freezer alone, as under a runtime that does not see v2.
func TestFreezeV1(t *testing.T) {
	h, err := Find()
	if err != nil || h.v1["freezer"] == "" {
		t.Skipf("SKIPPED: no v1 freezer here: %v", err)
	}
	for name, ok := range map[string]func(string) bool{
		"no group in v2": func(mount string) bool { return mount != h.v2 },
		"empty in v2":    everywhere,
	} {
		t.Run(name, func(t *testing.T) {
			g, err := h.Open(newPath(t, ok))
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			all := g.all
			g.all = slices.DeleteFunc(slices.Clone(all), func(dir string) bool { return dir == g.v2 })
			p := start(t, g, "burn")
			g.all = all
			if err := g.SetQuota(time.Millisecond, 20*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			if text, err := read(g.state1); err != nil || text != "FROZEN" {
				t.Errorf("freezer.state is %q, %v", text, err)
			}
			if err := g.Thaw(); err != nil {
				t.Fatal(err)
			}
			p.do("answer")
			if err := errors.Join(g.Freeze(t.Context()), g.Kill(t.Context())); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A thaw does not wait for a freeze that is under way, and ends it; a freeze
// whose time is up leaves the group as it was.
func TestFreezeEnds(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "burn")
	if err := g.SetQuota(5*time.Millisecond, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	mine, _, err := g.beginFreeze()
	if err != nil {
		t.Fatal(err)
	}
	if err := g.SetQuota(7*time.Millisecond, 20*time.Millisecond); err != nil { // remembered
		t.Fatal(err)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	if done, err := g.endFreeze(mine, nil); done || !errors.Is(err, ErrThawed) {
		t.Errorf("a freeze that was thawed: %v, %v", done, err)
	}
	p.do("answer")
	if limit, _ := read(g.quota); !strings.HasPrefix(limit, "7000") {
		t.Errorf("the quota is %q, want 7000", limit)
	}

	over, cancel := context.WithCancel(t.Context())
	cancel()
	err = g.Freeze(over)
	switch {
	case err == nil: // it was quicker
		err = g.Thaw()
	case errors.Is(err, context.Canceled):
		err = nil
	}
	if err != nil || g.Frozen() {
		t.Errorf("a freeze without time: %v, frozen %v", err, g.Frozen())
	}
	p.do("answer")
	if limit, _ := read(g.quota); !strings.HasPrefix(limit, "7000") {
		t.Errorf("the quota is %q, want 7000", limit)
	}
}

// Freeze, thaw and quota from many sides at once: in the end it runs.
func TestConcurrent(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "burn")
	var wg sync.WaitGroup
	var froze atomic.Int32
	for i := range 4 {
		wg.Go(func() {
			for j := range 20 {
				switch (i + j) % 4 {
				case 0:
					if err := g.Freeze(t.Context()); err == nil {
						froze.Add(1)
					} else if !errors.Is(err, ErrThawed) {
						t.Error(err)
					}
				case 1, 2:
					if err := g.Thaw(); err != nil {
						t.Error(err)
					}
				default:
					if err := g.SetQuota(time.Duration(2+j)*time.Millisecond, 20*time.Millisecond); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("froze %d times", froze.Load())
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	if limit, err := read(g.quota); limit != g.limit || err != nil {
		t.Errorf("the kernel has %q, remembered %q", limit, g.limit)
	}
	p.do("answer")
}

// Kill ends frozen processes, too, and those that wait for their quota.
func TestKill(t *testing.T) {
	g := newGroup(t)
	var all []*process
	for range 3 {
		all = append(all, start(t, g, "burn"))
	}
	if pids, err := g.Procs(); err != nil || len(pids) != len(all) {
		t.Errorf("Procs: %v, %v; want %d", pids, err, len(all))
	}
	if err := g.SetQuota(time.Millisecond, 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(g.Freeze(t.Context()), g.Kill(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if err := p.cmd.Wait(); err == nil || p.cmd.ProcessState.ExitCode() != -1 {
			t.Errorf("%v, %v; want killed", err, p.cmd.ProcessState)
		}
	}
	if pids, err := g.Procs(); err != nil || len(pids) != 0 {
		t.Errorf("Procs after Kill: %v, %v", pids, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Errorf("Kill of nothing: %v", err)
	}
}

// What a crash leaves frozen is thawed by its name.
func TestThawAll(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "burn")
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	h, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.ThawAll("/thaw-test-" + strconv.Itoa(os.Getpid())); err != nil {
		t.Fatal(err)
	}
	p.do("answer")
	if err := h.ThawAll("/no-such-folder/thaw-"); err != nil {
		t.Errorf("nothing to thaw: %v", err)
	}
}

// Max Memory Used is what processes have touched, and neither a file that was
// written nor, once it has been seen, less because it was given back.
func TestPeakMemory(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "idle")
	base, err := g.PeakMemory()
	if err != nil {
		t.Fatal(err)
	}
	p.do("write " + filepath.Join(t.TempDir(), "file"))
	const touched, slack = 64 << 20, 12 << 20 // the helper itself, and what the kernel's numbers are behind
	if got, err := g.PeakMemory(); err != nil || got > base+2*slack {
		t.Errorf("after a file of 48 MiB: %d MiB, %v; before it %d MiB", got>>20, err, base>>20)
	}
	p.do("touch 64")
	p.do("free") // between two samples: the kernel remembers
	got, err := g.PeakMemory()
	if err != nil || got < touched-slack || got > base+touched+2*slack {
		t.Errorf("after 64 MiB that were given back: %d MiB, %v", got>>20, err)
	}
	p.do("touch 96")
	if got, err = g.PeakMemory(); err != nil || got < 96<<20-slack {
		t.Errorf("with 96 MiB: %d MiB, %v", got>>20, err)
	}
	p.do("free")
	if after, err := g.PeakMemory(); err != nil || after < got {
		t.Errorf("it forgot: %d MiB, %v; was %d MiB", after>>20, err, got>>20)
	}
	if most := g.MostMemory(); most != 0 && most < got-slack {
		t.Errorf("at most %d MiB of any kind, and %d without files", most>>20, got>>20)
	}
}

// What took all the memory has ended before anybody could look.
func TestPeakMemoryOut(t *testing.T) {
	g := newGroup(t)
	p := start(t, g, "idle")
	const limit = 64 << 20
	if err := g.SetMemory(limit); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(p.in, "touch 96")
	if p.out.Scan() {
		t.Fatalf("96 MiB of 64: %q", p.out.Text())
	}
	if got, err := g.PeakMemory(); err != nil || got < limit-1<<20 || got > limit {
		t.Errorf("%d MiB, %v, want 64", got>>20, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, path := range []string{"", "/", "thaw-1", "/..", "/thaw/.."} {
		if g, err := Open(path); err == nil || errors.Is(err, ErrNoGroup) {
			t.Errorf("Open(%q): %v, %v", path, g, err)
		}
	}
	if _, err := Open("/thaw-there-is-none"); !errors.Is(err, ErrNoGroup) && !errors.Is(err, ErrNoController) {
		t.Errorf("a group that is not there: %v", err)
	}
}

// Of a group that somebody has removed, everything says so.
func TestRemoved(t *testing.T) {
	g := newGroup(t)
	for _, dir := range g.all {
		if err := unix.Rmdir(dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, err := range map[string]error{
		"SetQuota": g.SetQuota(time.Millisecond, time.Second),
		"Freeze":   g.Freeze(t.Context()),
		"Thaw":     g.Thaw(),
		"Peak":     second(g.PeakMemory()),
		"CPUTime":  second(g.CPUTime()),
		"Procs":    second(g.Procs()),
	} {
		if !errors.Is(err, ErrNoGroup) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Errorf("Kill of what is gone: %v", err)
	}
	for _, dir := range g.all { // for the test's own cleaning up
		_ = os.Mkdir(dir, 0o755)
	}
}

func second[T any](_ T, err error) error { return err }
