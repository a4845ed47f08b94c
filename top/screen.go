package top

import (
	"errors"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What a terminal understands (ECMA-48, and xterm's private modes).
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l" // the other screen, no cursor, no wrapping
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	home        = "\x1b[H"
	clearLine   = "\x1b[K"
	clearBelow  = "\x1b[J"
)

// screen is a terminal that shows one page. Its Ctrl-C and Ctrl-Z are signals
// still; what else is typed is not shown.
type screen struct {
	in, out int           // descriptors
	before  *unix.Termios // nil: in is no terminal

	quit   chan struct{} // closed by q
	wake   *os.File      // ends keys
	typing sync.WaitGroup
}

// openScreen takes the terminal, until close.
func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{in: int(in.Fd()), out: int(out.Fd()), quit: make(chan struct{})}
	if before, err := unix.IoctlGetTermios(s.in, unix.TCGETS); err == nil {
		s.before = before
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	if s.before == nil {
		return s, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, s.leave())
	}
	s.wake = w
	s.typing.Go(func() {
		defer r.Close()
		s.keys(r)
	})
	return s, nil
}

// close gives the terminal back as it was.
func (s *screen) close() error {
	if s.wake != nil {
		_ = s.wake.Close()
	}
	s.typing.Wait()
	return s.leave()
}

func (s *screen) enter() error {
	if s.before != nil {
		quiet := *s.before
		quiet.Lflag &^= unix.ECHO | unix.ICANON
		quiet.Cc[unix.VMIN], quiet.Cc[unix.VTIME] = 1, 0
		quiet.Cc[unix.VQUIT] = 0 // it would leave the terminal as it is
		if err := unix.IoctlSetTermios(s.in, unix.TCSETS, &quiet); err != nil {
			return err
		}
	}
	return s.write(enterScreen)
}

func (s *screen) leave() error {
	err := s.write(leaveScreen)
	if s.before != nil {
		err = errors.Join(err, unix.IoctlSetTermios(s.in, unix.TCSETSF, s.before)) // and forget what was typed
	}
	return err
}

// draw shows the lines in the place of those before, in one write and without
// clearing first: what stays the same does not flicker.
func (s *screen) draw(lines []string) error {
	rows, columns := 24, 80 // what a terminal has that says nothing
	if size, err := unix.IoctlGetWinsize(s.out, unix.TIOCGWINSZ); err == nil && size.Row > 0 && size.Col > 0 {
		rows, columns = int(size.Row), int(size.Col)
	}
	var b strings.Builder
	b.WriteString(home)
	for i, line := range lines[:min(len(lines), rows)] {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(cut(line, columns) + clearLine)
	}
	b.WriteString(clearBelow)
	return s.write(b.String())
}

// write writes all of it.
func (s *screen) write(text string) error {
	for len(text) > 0 {
		n, err := unix.Write(s.out, []byte(text))
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return os.NewSyscallError("write", err)
		}
		text = text[max(n, 0):]
	}
	return nil
}

// cut gives the first n characters.
func cut(line string, n int) string {
	for i := range line {
		if n == 0 {
			return line[:i]
		}
		n--
	}
	return line
}

// keys reads what is typed until wake's other end is closed.
func (s *screen) keys(wake *os.File) {
	for {
		fds := []unix.PollFd{{Fd: int32(s.in), Events: unix.POLLIN}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) || fds[1].Revents != 0 {
			return
		}
		if fds[0].Revents == 0 {
			continue
		}
		var typed [64]byte
		n, err := unix.Read(s.in, typed[:])
		if err != nil && !errors.Is(err, unix.EINTR) || n == 0 {
			return
		}
		if strings.ContainsAny(string(typed[:max(n, 0)]), "qQ") {
			close(s.quit)
			return
		}
	}
}
