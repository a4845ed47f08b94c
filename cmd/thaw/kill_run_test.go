package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killedRun is a container whose processes are killed, while another of the
// same state goes on.
type killedRun struct {
	*machine
	bystander *running
	around    []string // what of the bystander is on this machine
}

const bystanderSeed = 500

func newKilledRun(t *testing.T) *killedRun {
	t.Helper()
	m := newMachine(t)
	m.convert("app", 1)
	m.convert("other", bystanderSeed)
	k := &killedRun{machine: m, bystander: m.serve("other")}
	k.bystander.reads(bystanderSeed, 0)
	var err error
	if k.around, err = k.leftNow(); err != nil {
		t.Fatal(err)
	}
	return k
}

// victim is the command that is killed. It reads, and ends by itself.
func (k *killedRun) victim() *running {
	args := []string{"run", "app", "/bin/inside", "sum"}
	for i := range 6 * dataFiles { // a good part of the run is the program's
		args = append(args, dataPath(i%dataFiles))
	}
	return k.start(args...)
}

// check has the next command clean up, and looks that it did, and that the
// other instance is as it was.
func (k *killedRun) check(what string) {
	k.t.Helper()
	if e := k.thaw("prune"); e.code != 0 {
		k.t.Fatalf("%s: prune: %+v", what, e)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var left []string
	for range 200 { // the kernel takes a moment for some ends
		all, err := k.leftNow()
		if err != nil {
			k.t.Fatal(err)
		}
		left = slices.DeleteFunc(all, func(l string) bool {
			// A fetcher that was killed is another process.
			return slices.Contains(k.around, l) || strings.HasPrefix(l, "process") && strings.Contains(l, " fetcher ")
		})
		if len(left) == 0 {
			break
		}
		<-tick.C
	}
	if len(left) > 0 {
		k.t.Fatalf("%s: left after prune: %s", what, strings.Join(left, "; "))
	}
	if files, err := os.ReadDir(k.state + "/overlays"); err != nil || len(files) != 1 {
		k.t.Fatalf("%s: what was written: %v, %v", what, files, err)
	}
	k.bystander.reads(bystanderSeed, len(what)%dataFiles)
}

// targets gives the processes of the victim that there are, by their kinds.
func (k *killedRun) targets(run int) map[string]int {
	k.t.Helper()
	all, err := k.processes()
	if err != nil {
		k.t.Fatal(err)
	}
	found := map[string]int{"run": run}
	for pid, what := range all {
		switch {
		case strings.Contains(what, " fetcher "):
			found["fetcher"] = pid
		case strings.HasPrefix(what, "thaw-agent app"):
			found["agent"] = pid
		case strings.HasPrefix(what, "/bin/inside sum"):
			found["program"] = pid
		}
	}
	return found
}

// atMoment kills a process at a moment after the start of the run, of the kind
// that is wished if there is one, and tells which.
func (k *killedRun) atMoment(moment time.Duration, wish string) string {
	k.t.Helper()
	due := time.After(moment)
	r := k.victim()
	<-due
	kind, pid := "run", r.cmd.Process.Pid
	if wish != "run" {
		if p := k.targets(pid)[wish]; p != 0 {
			kind, pid = wish, p
		}
	}
	alive := unix.Kill(pid, unix.SIGKILL) == nil
	e := r.wait()
	switch {
	case kind == "run":
		alive = e.code == -1
	case e.code == -1:
		k.t.Fatalf("%s killed after %v: the run hung", kind, moment)
	}
	if !alive {
		kind = ""
	}
	return kind
}

// The processes of a container are killed at moments spread over its run.
func TestKilledRunAtMoments(t *testing.T) {
	k := newKilledRun(t)
	kinds := []string{"run", "agent", "program", "fetcher"}
	hits := map[string]int{}
	for block := range killBlocks {
		began := time.Now()
		if e := k.victim().wait(); e.code != 0 {
			t.Fatal(e)
		}
		length := time.Since(began)
		for i := block; i < killMoments; i += killBlocks {
			moment := length * time.Duration(2*i+1) / (2 * killMoments)
			kind := ""
			for try := 0; kind == "" && try < momentTries; try++ {
				kind = k.atMoment(moment, kinds[(i/killBlocks+block)%len(kinds)])
				k.check(fmt.Sprintf("%q killed after %v of %v", kind, moment, length))
				moment -= moment / 8 // a run is shorter at times
			}
			hits[kind]++
		}
	}
	t.Logf("killed: %v", hits)
	if killMoments-hits[""] < killHits {
		t.Errorf("only %d moments hit a live process, want %d", killMoments-hits[""], killHits)
	}
	for _, kind := range kinds {
		if hits[kind] < 2 { // the program lives for a moment only
			t.Errorf("only %d of them hit the %s", hits[kind], kind)
		}
	}
}

// steps watches for what a run makes, renames and removes.
func (k *killedRun) steps() *os.File {
	k.t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, dir := range []string{k.runDir() + "/images", k.runDir() + "/instances", k.state + "/overlays", "/sys/fs/cgroup/pids"} {
		_, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE)
		if err != nil && !strings.HasPrefix(dir, "/sys") { // hosts differ
			k.t.Fatal(err)
		}
	}
	return os.NewFile(uintptr(fd), "inotify")
}

// countSteps counts those that are there to read, and waits for one at least
// while the run lasts.
func (k *killedRun) countSteps(f *os.File, over <-chan struct{}) int {
	buffer := make([]byte, 1<<16)
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 5); n <= 0 {
			select {
			case <-over:
				return 0
			default:
				continue
			}
		}
		n, err := unix.Read(int(f.Fd()), buffer)
		if err != nil {
			k.t.Fatal(err)
		}
		count := 0
		for at := 0; at+unix.SizeofInotifyEvent <= n; count++ {
			at += unix.SizeofInotifyEvent + int(buffer[at+12]) + int(buffer[at+13])<<8
		}
		return count
	}
}

// The keeper is killed at each change that a run makes in the folders that
// others look into.
func TestKilledRunAtSteps(t *testing.T) {
	k := newKilledRun(t)
	killed := 0
	for step := 1; ; step++ {
		f := k.steps()
		r := k.victim()
		over := make(chan struct{})
		var e ended
		go func() {
			e = r.wait()
			close(over)
		}()
		seen := 0
		for seen < step {
			n := k.countSteps(f, over)
			if n == 0 {
				break
			}
			seen += n
		}
		_ = r.cmd.Process.Kill() // it may have ended
		<-over
		f.Close()
		k.check(fmt.Sprintf("killed at step %d", step))
		if e.code == -1 {
			killed++
		}
		if seen < step { // a run has no more
			break
		}
	}
	t.Logf("killed at %d steps", killed)
	if killed < 8 {
		t.Errorf("killed at %d steps only", killed)
	}
}
