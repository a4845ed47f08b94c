package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
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
	for late := time.Now().Add(patience); ; { // the kernel takes a moment for some ends
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
		if time.Now().After(late) {
			k.t.Fatalf("%s: left after prune: %s", what, strings.Join(left, "; "))
		}
		<-tick.C
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
		case strings.HasPrefix(what, "thaw-agent ") && !slices.Contains(k.around, fmt.Sprintf("process %d: %s", pid, what)):
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

// atSight kills a process of a kind as soon as there is one, and tells whether
// there was.
func (k *killedRun) atSight(kind string) bool {
	k.t.Helper()
	r := k.victim()
	over := make(chan ended, 1)
	go func() { over <- r.wait() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if pid := k.targets(r.cmd.Process.Pid)[kind]; pid != 0 && unix.Kill(pid, unix.SIGKILL) == nil {
			if e := <-over; kind != "run" && e.code == -1 {
				k.t.Fatalf("%s killed at sight: the run hung", kind)
			}
			return true
		}
		select {
		case <-over:
			return false
		case <-tick.C:
		}
	}
}

// The processes of a container are killed at moments spread over its run.
func TestKilledRunAtMoments(t *testing.T) {
	t.Parallel() // it waits for processes mostly
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
		for try := 0; hits[kind] < 2 && try < momentTries; try++ { // the program lives for a moment only
			if k.atSight(kind) {
				hits[kind]++
			}
			k.check(fmt.Sprintf("%s killed at sight", kind))
		}
		if hits[kind] < 2 {
			t.Errorf("only %d of them hit the %s", hits[kind], kind)
		}
	}
}

// runSteps are what a run makes, renames and removes.
type runSteps struct {
	*os.File       // of inotify
	groups   int32 // the watch of a folder that others use too
	own      string
}

// steps watches for them.
func (k *killedRun) steps() *runSteps {
	k.t.Helper()
	s := &runSteps{own: filepath.Base(k.runDir())}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, dir := range []string{k.runDir() + "/images", k.runDir() + "/instances", k.state + "/overlays", "/sys/fs/cgroup/pids"} {
		watch, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE)
		if err != nil && !strings.HasPrefix(dir, "/sys") { // hosts differ
			k.t.Fatal(err)
		}
		s.groups = int32(watch)
	}
	s.File = os.NewFile(uintptr(fd), "inotify")
	return s
}

// count counts the events of inotify(7) in a buffer that are the run's.
func (s *runSteps) count(buffer []byte) (n int) {
	for len(buffer) >= unix.SizeofInotifyEvent {
		watch, length := int32(binary.NativeEndian.Uint32(buffer)), binary.NativeEndian.Uint32(buffer[12:])
		name := string(buffer[unix.SizeofInotifyEvent:][:length])
		if watch != s.groups || strings.Contains(name, s.own) {
			n++
		}
		buffer = buffer[unix.SizeofInotifyEvent+length:]
	}
	return n
}

// countSteps counts those that are there to read, and waits for one at least
// while the run lasts.
func (k *killedRun) countSteps(s *runSteps, over <-chan struct{}) int {
	buffer := make([]byte, 1<<16)
	for {
		fds := []unix.PollFd{{Fd: int32(s.Fd()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 5); n <= 0 {
			select {
			case <-over:
				return 0
			default:
				continue
			}
		}
		n, err := unix.Read(int(s.Fd()), buffer)
		if err != nil {
			k.t.Fatal(err)
		}
		if count := s.count(buffer[:n]); count > 0 {
			return count
		}
	}
}

// The keeper is killed at each change that a run makes in the folders that
// others look into.
func TestKilledRunAtSteps(t *testing.T) {
	t.Parallel() // it waits for processes mostly
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
