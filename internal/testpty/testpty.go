// Package testpty gives tests a terminal to run programs on.
package testpty

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait: nothing takes it all unless it hangs.
const patience = 3 * time.Minute

// Terminal is one, and what was drawn on it.
type Terminal struct {
	t            testing.TB
	TTY          *os.File // what a program has
	master       *os.File
	before       *unix.Termios
	mu           sync.Mutex // guards drawn
	drawn        bytes.Buffer
	more, closed chan struct{}
}

// Open gives a terminal for the time of the test, which draws nothing by itself.
func Open(t testing.TB, rows, columns uint16) *Terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("NOT TESTED: there are no terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &Terminal{t: t, master: master, TTY: tty, more: make(chan struct{}, 1), closed: make(chan struct{})}
	p.Resize(rows, columns)
	if p.before, err = unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil {
		t.Fatal(err)
	}
	p.before.Oflag &^= unix.OPOST // what is drawn comes as it is
	if err := unix.IoctlSetTermios(int(tty.Fd()), unix.TCSETS, p.before); err != nil {
		t.Fatal(err)
	}
	go p.read()
	t.Cleanup(func() {
		_ = tty.Close() // ends read
		<-p.closed
		_ = master.Close()
	})
	return p
}

// read keeps what is drawn, until nobody has the terminal open.
func (p *Terminal) read() {
	defer close(p.closed)
	b := make([]byte, 4096)
	for {
		n, err := p.master.Read(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.drawn.Write(b[:n])
		p.mu.Unlock()
		select {
		case p.more <- struct{}{}:
		default:
		}
	}
}

// Resize gives it another size; who runs on it as a job is told.
func (p *Terminal) Resize(rows, columns uint16) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		p.t.Fatal(err)
	}
}

// Await waits until want is drawn after what was awaited before, and gives what
// was drawn up to it.
func (p *Terminal) Await(want string) string {
	p.t.Helper()
	for late := time.After(patience); ; {
		p.mu.Lock()
		got := p.drawn.String()
		if i := strings.Index(got, want); i >= 0 {
			p.drawn.Next(i + len(want))
			p.mu.Unlock()
			return got[:i]
		}
		p.mu.Unlock()
		select {
		case <-p.more:
		case <-late:
			p.t.Fatalf("%q was not drawn: %q", want, got[:min(len(got), 4000)])
		}
	}
}

// Type types.
func (p *Terminal) Type(text string) {
	p.t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// Restored checks that the settings are as they were.
func (p *Terminal) Restored() {
	p.t.Helper()
	after, err := unix.IoctlGetTermios(int(p.TTY.Fd()), unix.TCGETS)
	if err != nil || *after != *p.before {
		p.t.Errorf("the terminal was %+v, is %+v, %v", p.before, after, err)
	}
}
