package cgroups

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxStatus bounds how many processes PeakMemory asks: each costs 20 µs, and a
// function that forks without end must not make its worker busy.
const maxStatus = 64

// PeakMemory samples the group's anonymous and shared memory, and returns the
// most that was seen, in bytes: Lambda's "Max Memory Used". Page cache is no
// part of it, so what the kernel remembers itself (memory.peak, v1's
// max_usage_in_bytes) is not the answer: it counts all that was read of the
// image, and all that was written to /tmp.
//
// Between two calls a peak is not lost if it was that of one process that still
// lives: the kernel remembers each one's. A peak of several processes together,
// or of one that has ended, is only seen by a call that comes in time. Call it
// at the end of each invoke. The kernel's numbers are behind by up to 256 KiB
// for each processor. It takes some 100 µs.
//
// Once the kernel has ended one of the processes because there was no more memory,
// the peak is all that the group has ever used, of any kind.
func (g *Group) PeakMemory() (int64, error) {
	now, most, dir, err := g.memory()
	if err != nil {
		return 0, fmt.Errorf("cgroup %s: memory: %w", g.path, err)
	}
	seen := max(now, min(processPeak(dir), most))
	if g.outOfMemory() {
		seen = max(seen, min(most, g.memoryNumber("memory.limit_in_bytes", "memory.max")))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.peak = max(g.peak, seen)
	return g.peak, nil
}

// memory returns the anonymous and shared memory now, the most that the group
// has ever used of any kind, and the folder of its controller.
func (g *Group) memory() (now, most int64, dir string, err error) {
	dir, names := g.v1["memory"], [2]string{"total_rss", "total_shmem"}
	if dir == "" {
		dir, names = g.v2, [2]string{"anon", "shmem"}
	}
	stat, err := readFrom(dir, "memory.stat")
	if err != nil {
		return 0, 0, "", g.missing(dir, "memory", err)
	}
	all := fields(stat)
	now, most = all[names[0]]+all[names[1]], 1<<62
	if n := g.MostMemory(); n > 0 {
		most = n
	}
	return now, most, dir, nil
}

// MostMemory is the most that the group has ever used of any kind of memory, page
// cache included, in bytes, as the kernel remembers it; 0 if it does not (v2
// before Linux 5.19). It takes some 10 µs: while it stays, PeakMemory does too,
// but for memory that has taken the place of page cache.
func (g *Group) MostMemory() int64 {
	return g.memoryNumber("memory.max_usage_in_bytes", "memory.peak")
}

// memoryFile is where the group's memory is told or limited: the controller's
// folder, "" if there is none, and the file by its name on v1 or v2.
func (g *Group) memoryFile(v1, v2 string) (dir, file string) {
	if dir := g.v1["memory"]; dir != "" {
		return dir, v1
	}
	return g.v2, v2
}

// memoryNumber reads a file of one number; 0 if it has none, such as v2's "max".
func (g *Group) memoryNumber(v1, v2 string) int64 {
	data, _ := readFrom(g.memoryFile(v1, v2))
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
	return n
}

// outOfMemory tells whether the kernel has ended a process of the group for its memory.
func (g *Group) outOfMemory() bool {
	data, _ := readFrom(g.memoryFile("memory.oom_control", "memory.events"))
	return fields(data)["oom_kill"] > 0
}

// missing says whether it is the group or the controller that is not there.
func (g *Group) missing(dir, controller string, err error) error {
	if !gone(err) {
		return err
	}
	if _, is := os.Stat(dir); dir == "" || is == nil {
		return fmt.Errorf("%w: %s", ErrNoController, controller)
	}
	return ErrNoGroup
}

// processPeak is the most anonymous and shared memory that any one process of
// a group has had: its high-water mark without the files that it has mapped
// now.
func processPeak(dir string) int64 {
	data, _ := readFrom(dir, "cgroup.procs")
	pids := numbers(data)
	var most int64
	for _, pid := range pids[:min(len(pids), maxStatus)] {
		status, err := readFrom(filepath.Join("/proc", strconv.Itoa(pid)), "status")
		if err == nil {
			most = max(most, parseStatus(status))
		}
	}
	return most
}

// parseStatus reads a /proc/PID/status; 0 = it says nothing of memory.
func parseStatus(status []byte) int64 {
	var mark, files int64
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		text, _, _ := strings.Cut(strings.TrimSpace(rest), " ") // "123 kB"
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 || n > 1<<50 {
			continue
		}
		switch name {
		case "VmHWM":
			mark = n << 10
		case "RssFile":
			files = n << 10
		}
	}
	return max(0, mark-files)
}

// CPUTime is how long the group's processes have run, of all time.
func (g *Group) CPUTime() (time.Duration, error) {
	if dir := g.v1["cpuacct"]; dir != "" {
		data, err := readFrom(dir, "cpuacct.usage")
		if err != nil {
			return 0, fmt.Errorf("cgroup %s: processor time: %w", g.path, known(err))
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cgroup %s: processor time: %w", g.path, err)
		}
		return time.Duration(n), nil
	}
	data, err := readFrom(g.v2, "cpu.stat")
	if err != nil {
		return 0, fmt.Errorf("cgroup %s: processor time: %w", g.path, g.missing(g.v2, "cpu", err))
	}
	return time.Duration(fields(data)["usage_usec"]) * time.Microsecond, nil
}

// maxThreads bounds how many threads Busy asks: each costs some 10 µs.
const maxThreads = 256

// Busy tells whether a thread of the group runs, or would if there were a
// processor for it: not if all wait for something else. Of more than maxThreads,
// those that began first are asked. Threads of groups below it are not.
func (g *Group) Busy() bool {
	for _, dir := range g.all {
		for _, name := range []string{"tasks", "cgroup.threads"} { // v1, v2
			data, _ := readFrom(dir, name)
			threads := numbers(data)
			slices.Sort(threads)
			if slices.ContainsFunc(threads[:min(len(threads), maxThreads)], runnable) {
				return true
			}
			if len(threads) > 0 {
				return false
			}
		}
	}
	return false
}

// runnable tells it of a thread, by its state in /proc/TID/stat.
func runnable(thread int) bool {
	stat, _ := readFrom(filepath.Join("/proc", strconv.Itoa(thread)), "stat")
	after := bytes.LastIndexByte(stat, ')') // its name, which may have any
	return after >= 0 && bytes.HasPrefix(stat[after+1:], []byte(" R "))
}
