package bench

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/sandbox"
)

// crowd is how many instances of one image run at once.
const crowd = 50

// BenchmarkFifty starts many instances of one image at once, and measures the
// memory of each besides that of its own program: of all our processes, and
// what the kernel keeps more than before.
func BenchmarkFifty(b *testing.B) {
	asRoot(b)
	p := newPlace(b, "python")
	warm := begin(b, p.thaw, p.args("run", "-i", "python", "sh", "-c", "echo ready; cat")...)
	warm.end(b)
	before := kernelMemory(b)
	all := make([]*running, crowd)
	b.Cleanup(func() {
		for _, r := range all {
			if r != nil && r.cmd.ProcessState == nil {
				_ = r.cmd.Process.Kill() // and what it kept is pruned
				_ = r.cmd.Wait()
			}
		}
	})
	start := time.Now()
	var work sync.WaitGroup
	for i := range all {
		work.Go(func() {
			all[i] = begin(b, p.thaw, p.args("run", "python", "sh", "-c", "echo ready; exec sleep 1000")...)
		})
	}
	work.Wait()
	took := time.Since(start)
	if b.Failed() {
		b.FailNow()
	}
	after := kernelMemory(b)
	sleeps := measureCrowd(b, p, before, after, all)
	say("fifty: all of %d run after %.1f s", crowd, took.Seconds())
	for _, pid := range sleeps {
		try(b, unix.Kill(pid, unix.SIGKILL))
	}
	for _, r := range all {
		_ = r.cmd.Wait() // killed programs have a status
		_ = r.in.Close()
	}
}

// measureCrowd prints what the instances take, and gives their programs.
func measureCrowd(b *testing.B, p *place, before, after map[string]int64, all []*running) (sleeps []int) {
	var shims, programs, others usage
	shared := map[int]bool{}
	for _, record := range []string{"images/*/image.json", "fetchers/*/fetcher.json"} {
		found, err := filepath.Glob(filepath.Join(p.runDir(), record))
		if err != nil || len(found) != 1 {
			b.Fatalf("%d of %s: %v", len(found), record, err)
		}
		var r struct{ Process struct{ PID int } }
		readJSON(b, found[0], &r)
		others.add(b, r.Process.PID)
		shared[r.Process.PID] = true
		say("fifty: %s (%d): PSS %.1f MiB", command(r.Process.PID), r.Process.PID, f(others.last))
	}
	shim := map[int]bool{}
	for _, r := range all {
		shims.add(b, r.cmd.Process.Pid)
		shim[r.cmd.Process.Pid] = true
	}
	for pid, parent := range parents(b) {
		switch {
		case !shim[parent] || shared[pid]: // they are children of the first
		case contained(pid):
			programs.add(b, pid)
			sleeps = append(sleeps, pid)
		default: // of a shim
			shims.add(b, pid)
		}
	}
	if len(sleeps) != len(all) || shims.n != len(all) {
		b.Errorf("%d programs and %d shims of %d instances", len(sleeps), shims.n, len(all))
	}
	growth := func(key string) int64 { return after[key] - before[key] }
	slab, cache := growth("Slab"), growth("Cached")+growth("Buffers")
	each := float64(shims.pss+others.pss+slab+cache) / float64(len(all)) / mib
	per := func(n int64) float64 { return f(n) / float64(len(all)) }
	say("fifty: %.2f MiB each (goal 4): shims %.2f, agent and fetcher %.2f, slab %.2f (%.2f of it reclaimable), page cache %.2f; besides: kernel stacks %.2f, page tables %.2f, per-CPU %.2f, tmpfs and shared %.2f",
		each, per(shims.pss), per(others.pss), per(slab), per(growth("SReclaimable")), per(cache),
		per(growth("KernelStack")), per(growth("PageTables")), per(growth("Percpu")), per(growth("Shmem")))
	say("fifty: of a shim, private %.2f MiB, PSS of files %.2f", per(shims.private), per(shims.file))
	say("fifty: the programs' own PSS %.2f MiB each; file pages of all together %.2f MiB, mapped by one %.2f: shared %.0f-fold",
		per(programs.pss), f(programs.file), per(programs.rssFile), float64(programs.rssFile)/float64(max(programs.file, 1)))
	b.ReportMetric(each, "MiB/instance")
	return sleeps
}

// usage is memory of processes, in bytes.
type usage struct {
	n                                 int
	pss, file, private, rssFile, last int64
}

// add counts a process by what the kernel says of its mappings (proc(5)).
func (u *usage) add(b testing.TB, pid int) {
	b.Helper()
	rollup := fields(b, fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	u.n++
	u.last = rollup["Pss"]
	u.pss += rollup["Pss"]
	u.file += rollup["Pss_File"]
	u.private += rollup["Private_Clean"] + rollup["Private_Dirty"]
	u.rssFile += fields(b, fmt.Sprintf("/proc/%d/status", pid))["RssFile"]
}

func kernelMemory(b testing.TB) map[string]int64 { return fields(b, "/proc/meminfo") }

// fields reads lines such as "Slab:  1234 kB", in bytes.
func fields(b testing.TB, path string) map[string]int64 {
	b.Helper()
	data, err := os.ReadFile(path)
	try(b, err)
	all := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		words := strings.Fields(line)
		if len(words) == 3 && words[2] == "kB" {
			kib, _ := strconv.ParseInt(words[1], 10, 64) // 0 if it is none
			all[strings.TrimSuffix(words[0], ":")] = kib << 10
		}
	}
	return all
}

// contained tells whether a process runs as a user of a container.
func contained(pid int) bool {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil && info.Sys().(*syscall.Stat_t).Uid >= sandbox.IDBase
}

// parents gives the parent of every process: the fourth field of its stat
// (proc(5)), behind the name, which may hold anything but ends with the last
// bracket.
func parents(b testing.TB) map[int]int {
	b.Helper()
	all := map[int]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	try(b, err)
	for _, path := range stats {
		data, _ := os.ReadFile(path) // it may have ended
		words := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
		if len(words) < 2 {
			continue
		}
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, err := strconv.Atoi(string(words[1]))
		try(b, perr, err)
		all[pid] = parent
	}
	return all
}

// command gives a process' first argument, or nothing once it has ended.
func command(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	name, _, _ := bytes.Cut(data, []byte{0})
	return filepath.Base(string(name))
}
