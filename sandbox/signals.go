package sandbox

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signals are those sent to this process, caught from Catch on, so that none ends it in the middle of a start.
type Signals struct{ caught chan os.Signal }

// patience is how many SIGINT and SIGTERM an instance may ignore. Its first process ignores those it has no handler for, as any first
// process does, and somebody at a terminal must be able to end it.
const patience = 3

// Catch catches all signals that mean the instance: not those about our own children, writes and terminal, those
// that our caller ignores, and those that cannot be caught.
func Catch() *Signals {
	s := &Signals{caught: make(chan os.Signal, 64)}
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if signal.Ignored(sig) { // as nohup and shells' background jobs have it
			continue
		}
		switch sig {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGWINCH, unix.SIGTTIN, unix.SIGTTOU,
			32, 33: // the C library's own
		default:
			signal.Notify(s.caught, sig)
		}
	}
	return s
}

// Forward passes signals on to p until stop is called; those that were caught before come first. SIGTERM becomes the image's stop signal.
// The third SIGINT or SIGTERM kills. Call it once.
func (s *Signals) Forward(p *Process) (stop func()) {
	var done sync.WaitGroup
	done.Go(func() {
		asked := 0
		for caught := range s.caught {
			sig := caught.(syscall.Signal)
			if sig == unix.SIGINT || sig == unix.SIGTERM {
				asked++
			}
			switch {
			case asked >= patience:
				sig = unix.SIGKILL
			case sig == unix.SIGTERM:
				sig = p.stop
			}
			_ = p.Signal(sig)
		}
	})
	return sync.OnceFunc(func() {
		signal.Stop(s.caught)
		close(s.caught)
		done.Wait()
	})
}

// stopSignal reads a signal as images name it: "SIGQUIT", "QUIT", "3", "SIGRTMIN+3". What it does not know is SIGTERM.
func stopSignal(name string) syscall.Signal {
	name = strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "SIG")
	base := 0
	if offset, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		name, base = offset, 34
	}
	if n, err := strconv.Atoi(name); err == nil && base+n >= 1 && base+n <= 64 && n >= 0 {
		return syscall.Signal(base + n)
	}
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig
	}
	return syscall.SIGTERM
}
