//go:build cloud

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"thaw/text"
)

const (
	// backOffFrom and backOffTo bound how long lies between two starts of a role:
	// what ends at once is soon not started more often than once in backOffTo, and
	// what has run for so long is started again at once.
	backOffFrom, backOffTo = 100 * time.Millisecond, 10 * time.Second
	// roleSteady is how long a role has to run for its back-off to be forgotten.
	roleSteady = 30 * time.Second
	// roleReady is how long a role may take to say its address: a worker that
	// ends what its predecessor left takes seconds.
	roleReady = time.Minute
	// roleEnd is how long a role may take to end before it is killed: a worker
	// with hundreds of instances, or on a machine that is busy, takes more than half
	// a minute, and what it had is left behind if it is killed. Who has no time for
	// that sends a second signal.
	roleEnd = 90 * time.Second
	// addressLine bounds what a role says first, in bytes.
	addressLine = 4096
)

// role is a child of the supervisor.
type role struct {
	name string
	args func() []string // made anew for each start: addresses may have changed
	said func(address string)
}

// supervisor runs roles as children, starts those again that end, and ends them
// in the reverse order.
type supervisor struct {
	program string
	stderr  io.Writer
	log     *slog.Logger
	forks   chan fork
	all     []*supervised
}

// supervised is a role with what waits for its end.
type supervised struct {
	role
	stop  context.CancelFunc
	ended chan struct{}
}

// fork is a wish to have a command started.
type fork struct {
	cmd  *exec.Cmd
	done chan error
}

// newSupervisor makes a supervisor, which forks until ctx ends. The kernel ends
// children with the thread that started them: it is one that lives as long.
func newSupervisor(program string, stderr io.Writer, log *slog.Logger) *supervisor {
	return &supervisor{program: program, stderr: stderr, log: log, forks: make(chan fork)}
}

// run lets roles be started while it calls f, and ends all before it returns.
func (s *supervisor) run(f func() error) error {
	var work sync.WaitGroup
	work.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for w := range s.forks {
			w.done <- w.cmd.Start()
		}
	})
	err := f()
	for i := len(s.all) - 1; i >= 0; i-- { // who depends on another ends before it
		s.all[i].stop()
		<-s.all[i].ended
	}
	close(s.forks)
	work.Wait()
	return err
}

// start starts a role and waits until it has said its address. From then on it
// is started again whenever it ends, until run returns.
func (s *supervisor) start(ctx context.Context, r role) error {
	ours, stop := context.WithCancel(context.WithoutCancel(ctx)) // ends when its turn has come
	one := &supervised{role: r, stop: stop, ended: make(chan struct{})}
	s.all = append(s.all, one)
	first := make(chan error, 1)
	go func() {
		defer close(one.ended)
		s.keep(ours, r, first)
	}()
	select {
	case err := <-first:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// backOff is how long is to lie between the next two starts of a role; 0: backOffFrom.
type backOff time.Duration

// rest gives what is left to wait when a role has ended that ran for so long.
func (b *backOff) rest(ran time.Duration) time.Duration {
	pause := max(time.Duration(*b), backOffFrom)
	if ran > roleSteady {
		pause = backOffFrom
	}
	*b = backOff(min(2*pause, backOffTo))
	return max(0, pause-ran)
}

// keep runs a role again and again. first gets what came of the first start.
func (s *supervisor) keep(ctx context.Context, r role, first chan<- error) {
	var pause backOff
	up := false
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx, r, func() {
			if !up {
				first <- nil
			}
			up = true
		})
		if ctx.Err() != nil {
			break
		}
		if !up { // not even once: whoever asked decides
			first <- err
			return
		}
		rest := pause.rest(time.Since(began))
		s.log.Error("a role has ended, and is started again: "+text.Line(err.Error()), "role", r.name, "in", rest.Round(time.Millisecond).String())
		wait := time.NewTimer(rest)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
	}
}

// once runs a role until it ends, which is always an error.
func (s *supervisor) once(ctx context.Context, r role, ready func()) error {
	cmd := exec.CommandContext(ctx, s.program, r.args()...)
	cmd.Stderr = s.stderr
	// A group of its own, so that a terminal's Ctrl-C reaches only us.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: orphaned}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = roleEnd
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	w := fork{cmd, make(chan error, 1)}
	s.forks <- w
	if err := <-w.done; err != nil {
		return err
	}
	cut := context.AfterFunc(ctx, func() { _ = out.Close() }) // a child of its own may hold it open
	late := time.AfterFunc(roleReady, func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(io.LimitReader(out, addressLine)).ReadString('\n')
	inTime := late.Stop()
	cut()
	if err != nil {
		err = errors.New("it has not come up")
		if !inTime {
			err = fmt.Errorf("it has not come up in %v", roleReady)
		}
		return errors.Join(err, cmd.Wait())
	}
	r.said(strings.TrimSpace(line))
	ready()
	if err := cmd.Wait(); err != nil {
		return err
	}
	return errors.New("it ended by itself")
}
