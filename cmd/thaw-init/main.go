// Thaw-init is the first process of an instance: it starts the function's
// extensions and runtime as another user, serves them the Runtime API, and speaks
// with the worker over one socket, as invokewire's Frames have it. Only thaw starts it:
//
//	thaw-init                  the socket is descriptor 3
//	thaw-init --socket PATH    the socket is dialled, and again when it breaks
//
// It decides nothing: when an invoke takes too long, or a process has ended that
// should not have, the worker says what is to be done. It needs the capabilities
// SETUID, SETGID and KILL, and gives none to those it starts.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"
)

const (
	// socketFD is where the socket is if it is not dialled.
	socketFD = 3
	// dialTime is how long a worker may be away before its instance ends.
	dialTime = 30 * time.Second
	// dialPause is how soon it is looked for again.
	dialPause = 20 * time.Millisecond
)

func main() {
	dial := dialer(os.Args[1:])
	// In no other place may it kill all that it can: that would be the machine.
	if dial == nil || os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "thaw-init: this program is started by thaw")
		os.Exit(2)
	}
	if err := run(dial); err != nil {
		fmt.Fprintln(os.Stderr, "thaw-init:", err)
		os.Exit(1)
	}
}

// dialer gives what gets a connection to the worker, again if it can; nil if the
// arguments say nothing that is known.
func dialer(args []string) func() (net.Conn, error) {
	switch {
	case len(args) == 0:
		taken := false
		return func() (net.Conn, error) {
			if taken {
				return nil, errGone
			}
			taken = true
			return inherited()
		}
	case len(args) == 2 && args[0] == "--socket":
		return func() (net.Conn, error) { return dialFor(args[1], dialTime) }
	}
	return nil
}

// inherited takes the socket that is there already, once: the descriptor may be
// another's later.
func inherited() (net.Conn, error) {
	file := os.NewFile(socketFD, "socket")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not the worker's socket: %w", socketFD, err)
	}
	return conn, nil
}

// dialFor dials until it succeeds or some time has passed.
func dialFor(path string, within time.Duration) (net.Conn, error) {
	for until := time.Now().Add(within); ; time.Sleep(dialPause) {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		if time.Now().After(until) {
			return nil, fmt.Errorf("%w: %w", errGone, err)
		}
	}
}

// run is an instance's life. Its end is that of all other processes, too.
func run(dial func() (net.Conn, error)) error {
	// An instance may have a tenth of a processor: threads that look for work would
	// take it from the function.
	runtime.GOMAXPROCS(1)
	if err := protect(); err != nil {
		return err
	}
	l := &link{dial: dial}
	defer l.close()
	i := newInstance(l)
	i.procs.begin()
	err := l.serve(i.hello, i.take)
	if errors.Is(err, errOver) {
		return nil
	}
	return err
}
