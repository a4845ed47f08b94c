package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// startedKey is of the processes that cmdStarts has started, by variable.
type startedKey struct{}

// cmdStarts starts a command, and sets a variable to the first line that it
// prints. It ends with the script at the latest.
func cmdStarts(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"PATH", "HOME", "THAW_STATE", partsEnv} {
		cmd.Env = append(cmd.Env, name+"="+ts.Getenv(name))
	}
	cmd.Stderr = ts.Stderr()
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
	})
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	read := bufio.NewReader(out)
	line, err := read.ReadString('\n')
	ts.Check(err)
	go func() { _, _ = io.Copy(io.Discard, read) }() // until it ends: or it would wait for a reader
	ts.Setenv(args[0], strings.TrimSpace(line))
	nodesOf(ts)[args[0]] = cmd
}

func nodesOf(ts *testscript.TestScript) map[string]*exec.Cmd {
	return ts.Value(startedKey{}).(map[string]*exec.Cmd)
}

// cmdEnds sends a signal to what cmdStarts has started, and waits for its end:
// that of TERM and INT has to be a good one. Then nobody may listen at the
// addresses that it had printed.
func cmdEnds(ts *testscript.TestScript, _ bool, args []string) {
	cmd := nodesOf(ts)[args[0]]
	signal := map[string]os.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL}[args[1]]
	ts.Check(cmd.Process.Signal(signal))
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil && signal != syscall.SIGKILL {
		ts.Fatalf("after %s: %v", args[1], err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for address := range strings.SplitSeq(ts.Getenv(args[0]), ",") {
		for {
			c, err := net.Dial("tcp", address)
			if err != nil {
				break
			}
			ts.Check(c.Close())
			if <-tick.C; time.Now().After(end) {
				ts.Fatalf("somebody listens at %s still", address)
			}
		}
	}
}

// cmdLoses kills the first child of what cmdStarts has started, and waits until
// that has noticed.
func cmdLoses(ts *testscript.TestScript, _ bool, args []string) {
	task := fmt.Sprintf("/proc/%d/task", nodesOf(ts)[args[0]].Process.Pid)
	threads, err := os.ReadDir(task)
	ts.Check(err)
	var children []string
	for _, thread := range threads {
		b, err := os.ReadFile(filepath.Join(task, thread.Name(), "children"))
		ts.Check(err)
		children = append(children, strings.Fields(string(b))...)
	}
	pid, err := strconv.Atoi(children[0])
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); syscall.Kill(pid, 0) == nil; <-tick.C {
		if time.Now().After(end) {
			ts.Fatalf("child %d is a zombie", pid)
		}
	}
}
