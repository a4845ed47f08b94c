package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/containerd/console"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// streams are an instance's standard streams, in one of two ways. Without a terminal it gets the caller's files; those that it could not
// open by name it gets as a pipe, which a goroutine empties. With a terminal it gets one that the runtime makes; goroutines carry bytes
// between it and the caller's, which is raw meanwhile.
type streams struct {
	runc.IO // nil: go-runc calls nothing but Set
	given   Instance

	stdin          io.Reader // what the runtime's command gets; nil is /dev/null
	stdout, stderr io.Writer
	pipes          []pipe

	socket   *runc.Socket    // over which the runtime sends the terminal
	terminal console.Console // the instance's, our side
	caller   console.Console // nil if the caller has none

	passed        func(*exec.Cmd) // tells of the runtime's command before it starts; or nil
	arrived       func()          // once
	output, input sync.WaitGroup
	stop          *os.File // closed to end input
	resized       chan os.Signal
}

// pipe is one between an instance and a file of the caller's.
type pipe struct{ from, to, inside *os.File }

func newStreams(in Instance, terminal bool) (*streams, error) {
	s := &streams{given: in, arrived: sync.OnceFunc(func() { in.Arrived() })}
	var err error
	if terminal {
		name := filepath.Join(in.Bundle, "tty.sock")
		_ = os.Remove(name)
		if s.socket, err = runc.NewConsoleSocket(name); err != nil {
			return nil, fmt.Errorf("terminal: %w", err)
		}
		return s, nil
	}
	if in.Stdin != nil { // a nil *os.File is not a nil io.Reader
		s.stdin = in.Stdin
	}
	s.stdout, err = s.open(in.Stdout)
	if same(in.Stdout, in.Stderr) {
		s.stderr = s.stdout // one pipe keeps their order
	} else if err == nil {
		s.stderr, err = s.open(in.Stderr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("standard streams: %w", err), s.abandon())
	}
	return s, nil
}

// open makes an output something that the instance may open by name again, as programs do that log to /dev/stdout: its users own none of
// the caller's files. A pipe is opened to all who can reach it, which are those that hold it; a terminal or a file stays as it is and is
// reached through a pipe; anything else is passed. If a text is awaited, all is reached through a pipe.
func (s *streams) open(f *os.File) (io.Writer, error) {
	if f == nil {
		return nil, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	_, notTerminal := console.ConsoleFromFile(f)
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFIFO && anonymous(f) && s.given.Await == "":
		return f, unix.Fchmod(int(f.Fd()), 0o666)
	case kind == unix.S_IFREG, notTerminal == nil, s.given.Await != "":
		from, inside, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		s.pipes = append(s.pipes, pipe{from: from, to: f, inside: inside})
		return inside, unix.Fchmod(int(inside.Fd()), 0o666)
	}
	return f, nil
}

func anonymous(f *os.File) bool {
	var s unix.Statfs_t
	return unix.Fstatfs(int(f.Fd()), &s) == nil && s.Type == unix.PIPEFS_MAGIC
}

func same(a, b *os.File) bool {
	if a == nil || b == nil {
		return false
	}
	first, err := a.Stat()
	second, err2 := b.Stat()
	return err == nil && err2 == nil && os.SameFile(first, second)
}

// begin carries bytes from now on. The instance runs.
func (s *streams) begin() error {
	for _, p := range s.pipes {
		p.inside.Close()
		s.output.Go(func() {
			s.pass(p.to, p.from)
			p.from.Close() // if nobody takes the output, the instance gets SIGPIPE as it would without us
		})
	}
	s.pipes = nil
	if s.socket == nil {
		return nil
	}
	var err error
	if s.terminal, err = s.socket.ReceiveMaster(); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	stop, ours, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	s.stop = ours
	if s.given.Stdin != nil { // before anything is passed on: what is shown is not to be translated
		if caller, cerr := console.ConsoleFromFile(s.given.Stdin); cerr == nil {
			s.caller = caller
			err = s.attach()
		}
	}
	if s.given.Stdout != nil {
		s.output.Go(func() { s.pass(s.given.Stdout, s.terminal) })
	}
	s.input.Go(func() { s.carry(stop) })
	return err
}

// attach makes the caller's terminal raw and keeps the instance's as large as it is.
func (s *streams) attach() error {
	s.resized = make(chan os.Signal, 1)
	signal.Notify(s.resized, unix.SIGWINCH)
	_ = s.terminal.ResizeFrom(s.caller) // a terminal without a size is one
	s.input.Go(func() {
		for range s.resized {
			_ = s.terminal.ResizeFrom(s.caller)
		}
	})
	// Not by console.SetRaw, which leaves output to be translated: the instance's terminal has done that.
	if _, err := term.MakeRaw(int(s.given.Stdin.Fd())); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	return nil
}

// carry takes what is typed to the instance, until stop is closed at its other end.
func (s *streams) carry(stop *os.File) {
	defer stop.Close()
	wanted := []unix.PollFd{{Fd: int32(stop.Fd()), Events: unix.POLLIN}}
	if s.given.Stdin != nil {
		wanted = append(wanted, unix.PollFd{Fd: int32(s.given.Stdin.Fd()), Events: unix.POLLIN})
	}
	buffer := make([]byte, 4096) // what a terminal gives at most
	for {
		if _, err := unix.Poll(wanted, -1); err != nil && !errors.Is(err, unix.EINTR) || wanted[0].Revents != 0 {
			return
		}
		if len(wanted) == 1 || wanted[1].Revents == 0 {
			continue
		}
		n, err := s.given.Stdin.Read(buffer)
		if err != nil {
			buffer[0], n = 4, 1 // end of transmission: what a terminal has instead of an end of file
			wanted = wanted[:1]
		}
		if _, err := s.terminal.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// drain waits until all that the instance wrote has been passed on. The instance is gone.
func (s *streams) drain() { s.output.Wait() }

// close ends input and puts the caller's terminal back.
func (s *streams) close() error {
	if s.socket == nil {
		return nil
	}
	s.socket.Close()
	s.socket = nil
	var err error
	if s.caller != nil {
		signal.Stop(s.resized)
		close(s.resized)
		err = s.caller.Reset()
	}
	if s.stop != nil {
		s.stop.Close()
		s.input.Wait()
	}
	if s.terminal != nil {
		s.terminal.Close()
	}
	return err
}

// abandon closes all, for an instance that did not start. What a runtime wrote into a pipe of ours is in its log too.
func (s *streams) abandon() error {
	for _, p := range s.pipes {
		p.inside.Close()
		p.from.Close()
	}
	return s.close()
}

// Set gives a runtime's command the streams.
func (s *streams) Set(cmd *exec.Cmd) {
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.stdin, s.stdout, s.stderr
	if s.passed != nil {
		s.passed(cmd)
	}
}
