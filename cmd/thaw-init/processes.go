package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// reapPause is how long it may take to see that all processes are gone, should
	// a signal get lost.
	reapPause = 20 * time.Millisecond
	// firstToDie is the score of what runs for the function: if memory is short,
	// thaw-init is the last to be taken.
	firstToDie = "500"
)

// process is one that was started here, by its name: an extension's, or none.
type process struct {
	name string
	pid  int
	out  *pump
	// done is closed when it has ended; status is valid then.
	done   chan struct{}
	status syscall.WaitStatus
}

// program is what a process is to be.
type program struct {
	name     string
	argv     []string // the first is a path
	env      []string
	dir      string
	uid, gid uint32
}

// processes are all of the instance's but this one.
type processes struct {
	forks  chan func()
	signal chan os.Signal

	mu   sync.Mutex // guards what follows, and is held over fork and wait
	mine map[int]*process
}

// begin starts to reap, and the thread that forks: it never ends, since what is
// forked may be bound to the life of the thread, and it has no rights that those
// who come from it could get at.
func (p *processes) begin() {
	p.mine, p.forks, p.signal = map[int]*process{}, make(chan func()), make(chan os.Signal, 1)
	signal.Notify(p.signal, unix.SIGCHLD)
	go func() {
		for range p.signal {
			_ = p.reap()
		}
	}()
	go func() {
		runtime.LockOSThread()
		for f := range p.forks {
			f()
		}
	}()
}

// dropRights has the calling thread give nothing to those it forks.
func dropRights() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // a kernel without has none
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		// Without SETPCAP they stay, and are of no use: another user has no rights, and gets no new ones.
		_ = unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&head, &data[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// start starts a program; what it writes goes to send.
func (p *processes) start(g program, send func(name string, text []byte) error) (*process, error) {
	out, write, err := newPump(g.name, send)
	if err != nil {
		return nil, err
	}
	defer write.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if err != nil {
		out.abandon()
		return nil, err
	}
	defer null.Close()
	groups, _ := os.Getgroups()
	attr := &syscall.ProcAttr{
		Dir: g.dir, Env: g.env, Files: []uintptr{null.Fd(), write.Fd(), write.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: g.uid, Gid: g.gid, NoSetGroups: len(groups) == 0}},
	}
	proc := &process{name: g.name, out: out, done: make(chan struct{})}
	forked := make(chan error)
	p.forks <- func() {
		err := dropRights()
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			defer lastToDie()()
			if proc.pid, err = syscall.ForkExec(g.argv[0], g.argv, attr); err == nil {
				p.mine[proc.pid] = proc
			}
		}
		forked <- err
	}
	if err := <-forked; err != nil {
		out.abandon()
		return nil, fmt.Errorf("fork/exec %s: %w", g.argv[0], err)
	}
	go out.run()
	return proc, nil
}

// lastToDie has what is forked until the returned function is called be taken
// before this process, if memory is short. Who may not lower its score may take
// back what it has raised. Where there is no /proc, all stay alike.
func lastToDie() func() {
	const path = "/proc/self/oom_score_adj"
	was, err := os.ReadFile(path)
	if err != nil || os.WriteFile(path, []byte(firstToDie), 0) != nil {
		return func() {}
	}
	return func() { _ = os.WriteFile(path, bytes.TrimSpace(was), 0) }
}

// reap takes all that have ended, orphans too. It gives ECHILD if nothing is left.
func (p *processes) reap() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			return err
		}
		if proc := p.mine[pid]; proc != nil {
			delete(p.mine, pid)
			proc.status = status
			close(proc.done)
		}
	}
}

// kill sends a signal to a process, if it is there still.
func (p *processes) kill(proc *process, sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mine[proc.pid] == proc {
		_ = syscall.Kill(proc.pid, sig)
	}
}

// killAll ends every other process and waits until all are gone. There is no way
// out of it: whoever forks meanwhile is killed with its parent, or in the next round.
func (p *processes) killAll() {
	for {
		_ = syscall.Kill(-1, syscall.SIGKILL)
		if err := p.reap(); errors.Is(err, syscall.ECHILD) {
			return
		}
		time.Sleep(reapPause / 10)
	}
}
