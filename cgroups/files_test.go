package cgroups

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// v2Group is a group on a host with v2 alone, whose kernel is a folder.
func v2Group(t *testing.T, files map[string]string) *Group {
	t.Helper()
	mount := t.TempDir()
	dir := filepath.Join(mount, "thaw-1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h := &Host{v2: mount}
	if h.Version() != "v2" || h.Freezer() != "cgroup.freeze" {
		t.Errorf("version %q, freezer %q", h.Version(), h.Freezer())
	}
	g, err := h.Open("/thaw-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// What is written to, and read of, a host that has v2 alone, which this machine
// may not be: a folder stands for the kernel.
func TestV2Files(t *testing.T) {
	g := v2Group(t, map[string]string{
		"cpu.max": "max 100000\n", "cpu.weight": "100\n", "cgroup.freeze": "0\n", "cgroup.events": "populated 1\nfrozen 1\n", "cgroup.procs": "",
		"memory.stat": "anon 1048576\nfile 99999999\nshmem 4096\n", "memory.peak": "2000000\n",
		"memory.events": "low 0\noom 3\noom_kill 2\n", "cpu.stat": "usage_usec 1500\nuser_usec 1000\n",
	})
	is := func(file, want string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(g.v2, file))
		if err != nil || string(data[:min(len(data), len(want))]) != want {
			t.Errorf("%s is %q, %v; want %q", file, data, err, want)
		}
	}
	if err := g.SetQuota(5*time.Millisecond, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	is("cpu.max", "5000 20000")
	if err := g.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	is("cgroup.freeze", "1")
	is("cpu.max", "5000 20000")
	if err := errors.Join(g.Thaw(), g.Unlimited()); err != nil {
		t.Fatal(err)
	}
	is("cgroup.freeze", "0")
	is("cpu.max", "max")
	if err := g.SetWeight(25); err != nil {
		t.Fatal(err)
	}
	is("cpu.weight", "25")
	if n, err := g.PeakMemory(); n != 1<<20+4096 || err != nil {
		t.Errorf("PeakMemory: %d, %v", n, err)
	}
	if n := g.MostMemory(); n != 2000000 {
		t.Errorf("MostMemory: %d", n)
	}
	if d, err := g.CPUTime(); d != 1500*time.Microsecond || err != nil {
		t.Errorf("CPUTime: %v, %v", d, err)
	}
}

// A host without controllers: what needs one says which.
func TestNoController(t *testing.T) {
	g := v2Group(t, map[string]string{"cgroup.procs": ""})
	for name, err := range map[string]error{
		"SetQuota":   g.SetQuota(time.Millisecond, time.Second),
		"Unlimited":  g.Unlimited(),
		"SetWeight":  g.SetWeight(100),
		"Freeze":     g.Freeze(t.Context()),
		"PeakMemory": second(g.PeakMemory()),
	} {
		if !errors.Is(err, ErrNoController) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHosts(t *testing.T) {
	all := map[string]string{"cpu": "/c", "freezer": "/f"}
	for want, h := range map[string]*Host{
		"v1 freezer.state":     {v1: all},
		"v1 ":                  {v1: map[string]string{"cpu": "/c"}},
		"hybrid cgroup.freeze": {v1: all, v2: "/u"},
	} {
		if got := h.Version() + " " + h.Freezer(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestParse(t *testing.T) {
	for status, want := range map[string]int64{
		"Name:\tx\nVmHWM:\t    1000 kB\nVmRSS:\t 900 kB\nRssAnon:\t 500 kB\nRssFile:\t     400 kB\n": 600 << 10,
		"Name:\tkthread\n":                    0,
		"VmHWM:\t1 kB\nRssFile:\t9 kB\n":      0,
		"VmHWM:\t99999999999999999999 kB\n":   0,
		"VmHWM:\t-5 kB\nVmHWM: many kB\n\n::": 0,
	} {
		if got := parseStatus([]byte(status)); got != want {
			t.Errorf("%q: %d, want %d", status, got, want)
		}
	}
	if got := fields([]byte("a 1\nb\n\nc x\nd 18446744073709551615\ne 5\n")); len(got) != 2 || got["a"] != 1 || got["e"] != 5 {
		t.Errorf("fields: %v", got)
	}
	if got := numbers([]byte("1\nx\n22\n")); len(got) != 2 || got[1] != 22 {
		t.Errorf("numbers: %v", got)
	}
}

func BenchmarkSteering(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: making cgroups needs root")
	}
	h, err := Find()
	if err != nil {
		b.Fatal(err)
	}
	path := "/thaw-bench-steering"
	for _, mount := range h.mounts() {
		if err := os.Mkdir(filepath.Join(mount, path), 0o755); err != nil {
			b.Fatal(err)
		}
		defer os.Remove(filepath.Join(mount, path))
	}
	g, err := h.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	b.Run("quota", func(b *testing.B) {
		for b.Loop() {
			if err := errors.Join(g.SetQuota(5*time.Millisecond, 20*time.Millisecond), g.Unlimited()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("thaw", func(b *testing.B) {
		for b.Loop() {
			if err := g.Thaw(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("peak", func(b *testing.B) {
		for b.Loop() {
			if _, err := g.PeakMemory(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
