package top

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait: nothing takes it all unless it hangs.
const patience = time.Minute

// pty is a terminal, and what was drawn on it.
type pty struct {
	t            *testing.T
	master, tty  *os.File
	before       *unix.Termios
	mu           sync.Mutex // guards drawn
	drawn        bytes.Buffer
	more, closed chan struct{}
}

func newPTY(t *testing.T, rows, columns uint16) *pty {
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
	p := &pty{t: t, master: master, tty: tty, more: make(chan struct{}, 1), closed: make(chan struct{})}
	p.resize(rows, columns)
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
func (p *pty) read() {
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

func (p *pty) resize(rows, columns uint16) {
	p.t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		p.t.Fatal(err)
	}
}

// await waits until something is drawn, and gives all from there on to the next.
func (p *pty) await(want string) string {
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

func (p *pty) typed(text string) {
	p.t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// restored checks that the terminal is as it was.
func (p *pty) restored() {
	p.t.Helper()
	p.await(leaveScreen)
	after, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
	if err != nil || *after != *p.before {
		p.t.Errorf("the terminal was %+v, is %+v, %v", p.before, after, err)
	}
}

// show runs what a test looks at, and gives what waits for its end.
func (p *pty) show(ctx context.Context, f func(context.Context) (Sample, error)) (end func()) {
	ended := make(chan error, 1)
	l := &Live{In: p.tty, Out: p.tty, Interval: time.Millisecond, Sample: f}
	go func() { ended <- l.Show(ctx) }()
	return func() {
		p.t.Helper()
		select {
		case err := <-ended:
			if err != nil {
				p.t.Error(err)
			}
		case <-time.After(patience):
			p.t.Fatal("it does not end")
		}
	}
}

// looks gives a sample, a second after the one before, each time next is sent
// to.
func looks() (next chan struct{}, f func(context.Context) (Sample, error)) {
	next = make(chan struct{})
	n := 0
	return next, func(ctx context.Context) (Sample, error) {
		select {
		case <-next:
		case <-ctx.Done():
		}
		n++
		return sample(n, int64(n)), nil
	}
}

// It draws in place, follows the terminal's size, shows nothing of what is
// typed, and q ends it.
func TestLive(t *testing.T) {
	p := newPTY(t, 30, 100)
	next, f := looks()
	end := p.show(t.Context(), f)
	const last = "fetcher g does not answer: no answer" + clearLine + clearBelow
	p.await(enterScreen + home)
	next <- struct{}{}
	p.await("images 1, instances 0  since the start of each")
	p.await("TIER    HITS  CHUNKS")
	p.await(last)
	next <- struct{}{}
	p.await(home + "thaw  03:04:02  images 1, instances 0  in 1.0 s  (q quits)" + clearLine + "\r\n")
	frame := p.await(last)
	if strings.Contains(frame, "\x1b[2J") || strings.Count(frame, "\n") != strings.Count(frame, clearLine+"\r\n") {
		t.Errorf("a page is not drawn line over line: %q", frame)
	}
	p.typed("secret")
	p.resize(5, 20)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // nobody's terminal gives no signal
		t.Fatal(err)
	}
	p.await(home)
	lines := strings.Split(p.await(clearBelow), "\r\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[3], "cache   ") {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	for _, line := range lines {
		if text, _, _ := strings.Cut(line, clearLine); len([]rune(text)) > 20 || strings.Contains(text, "secret") {
			t.Errorf("line %q", line)
		}
	}
	p.typed("q")
	end()
	p.restored()
}

// The end of the context is as good an end, and a failure is told where the
// table was.
func TestLiveFails(t *testing.T) {
	p := newPTY(t, 30, 100)
	ctx, cancel := context.WithCancel(t.Context())
	end := p.show(ctx, func(context.Context) (Sample, error) { return Sample{}, errors.New("no such\nzone") })
	p.await("no such?zone")
	cancel()
	end()
	p.restored()
}

// A look that hangs holds up neither the end nor, when it is told to, itself.
func TestLiveHangs(t *testing.T) {
	p := newPTY(t, 30, 100)
	asked := make(chan struct{})
	end := p.show(t.Context(), func(ctx context.Context) (Sample, error) {
		close(asked)
		<-ctx.Done()
		return Sample{}, ctx.Err()
	})
	<-asked
	p.typed("q")
	end()
	p.restored()
}

// Keys may come from no terminal at all.
func TestLiveWithoutKeys(t *testing.T) {
	p := newPTY(t, 30, 100)
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s, err := openScreen(in, p.tty)
	if err == nil {
		err = errors.Join(s.draw([]string{"hello"}), s.close())
	}
	if err != nil {
		t.Fatal(err)
	}
	p.await(home + "hello")
	p.restored()
}
