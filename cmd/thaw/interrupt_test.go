package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/mount"
)

// A start whose mount waits for a fetcher that does not answer ends when asked,
// long before the origin's deadline, and leaves another image as it was.
func TestInterruptedWhileMounting(t *testing.T) {
	for _, verb := range []string{"run", "mount"} {
		t.Run(verb, func(t *testing.T) {
			m := newMachine(t)
			m.flags = []string{"--origin-deadline", "10m"}
			m.convert("app", 1)
			m.convert("other", 100, "--chunk-size", "64KiB") // it shares no chunk with app
			other := m.serve("other")
			fetcher := m.fetcher()
			stop(t, fetcher)
			args := []string{verb, "app"}
			if verb == "mount" {
				args = append(args, t.TempDir())
			}
			start := m.start(args...)
			m.awaitLoops(2) // with its loop device begin the kernel's reads
			if err := start.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			e := start.wait()
			if err := syscall.Kill(fetcher, syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if e.code != exitInterrupted || !strings.Contains(e.stderr, "thaw: interrupted") {
				t.Errorf("%+v", e)
			}
			m.awaitLoops(1)
			other.reads(100, 3)
			if e := other.end(); e.code != 0 {
				t.Errorf("the other image: %+v", e)
			}
		})
	}
}

// fetcher gives the process of the state's only fetcher.
func (m *machine) fetcher() int {
	m.t.Helper()
	processes, err := m.processes()
	if err != nil {
		m.t.Fatal(err)
	}
	for pid, args := range processes {
		if strings.Contains(args, " fetcher --") {
			return pid
		}
	}
	m.t.Fatalf("no fetcher among %v", processes)
	return 0
}

// awaitLoops waits until the state has a number of loop devices.
func (m *machine) awaitLoops(want int) {
	m.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		devices, err := mount.Loops(m.runDir())
		if err != nil {
			m.t.Fatal(err)
		}
		if len(devices) == want {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			m.t.Fatalf("%d loop devices, want %d", len(devices), want)
		}
	}
}

// stop stops a process, and returns when it has stopped.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if _, state, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(state, "T") {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("process %d does not stop: %s", pid, stat)
		}
	}
}
