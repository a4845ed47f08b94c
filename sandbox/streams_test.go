package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// newTerminal makes a terminal: what somebody sits at, and what a program gets.
func newTerminal(t *testing.T) (console.Console, *os.File) {
	t.Helper()
	outer, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close(); inner.Close() })
	return outer, inner
}

// line reads until one line of a terminal contains want.
func line(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	for {
		got, err := r.ReadString('\n')
		if strings.HasSuffix(got, "\r\r\n") {
			t.Errorf("translated twice: %q", got)
		}
		if strings.Contains(got, want) {
			return
		}
		if err != nil {
			t.Fatalf("no %q before %v", want, err)
		}
	}
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	got, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *got
}

func TestTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		outer, inner := newTerminal(t)
		if err := outer.Resize(console.WinSize{Height: 31, Width: 101}); err != nil {
			t.Fatal(err)
		}
		before := termios(t, inner)
		c := r.config("tty")
		c.Terminal = true
		in := r.instance(c)
		in.Stdin, in.Stdout, in.Stderr = inner, inner, inner
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		if raw := termios(t, inner); raw.Lflag&unix.ICANON != 0 || raw.Oflag&unix.OPOST != 0 {
			t.Error("the caller's terminal is not raw")
		}
		seen := bufio.NewReader(outer)
		line(t, seen, "size ")
		if err := outer.Resize(console.WinSize{Height: 32, Width: 102}); err != nil {
			t.Fatal(err)
		}
		_ = unix.Kill(os.Getpid(), unix.SIGWINCH) // we are not in its foreground group, who would be told
		line(t, seen, "resized 32x102")
		for _, step := range [][2]string{{"hello\n", "hello"}, {"", "line hello"}, {"\x03", "interrupted"}, {"\x04", "end"}} {
			if _, err := outer.Write([]byte(step[0])); err != nil {
				t.Fatal(err)
			}
			line(t, seen, step[1])
		}
		if code, err := p.Wait(); code != 5 || err != nil {
			t.Error(code, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if after := termios(t, inner); after != before {
			t.Errorf("the caller's terminal was %+v, is %+v", before, after)
		}
	})
}

// With a terminal inside and none outside, the end of input is what a terminal has for it.
func TestTerminalOfPipes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		inR, inW := mustPipe(t)
		outR, outW := mustPipe(t)
		c := r.config("tty")
		c.Terminal = true
		in := r.instance(c)
		in.Stdin, in.Stdout = inR, outW
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := inW.WriteString("one\n"); err != nil {
			t.Fatal(err)
		}
		inW.Close()
		if code, err := p.Wait(); code != 5 || err != nil {
			t.Error(code, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		outW.Close()
		if got := readAll(outR); !strings.Contains(got, "line one\r\n") || !strings.HasSuffix(got, "end\r\n") {
			t.Errorf("%q", got)
		}
	})
}

// A terminal that does not start gives the caller's back, and leaves no socket that waits.
func TestTerminalNotStarted(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		outer, inner := newTerminal(t)
		before := termios(t, inner)
		c := r.config("none")
		c.Image, c.Terminal = []byte(`{}`), true
		c.Volumes = []Volume{{Source: r.dir, Target: "/volume"}}
		in := r.instance(c)
		in.Stdin, in.Stdout = inner, inner
		if _, err := r.start(c, in); ExitCode(err) != 127 {
			t.Errorf("%v", err)
		}
		if termios(t, inner) != before {
			t.Error("the caller's terminal is not as it was")
		}
		_ = outer
	})
}

// Somebody who runs without a terminal at one sees output in its order, and the program may open /dev/stderr.
func TestOutputToTerminal(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		outer, inner := newTerminal(t)
		c := r.config("turns", "/dev/stderr", "20")
		in := r.instance(c)
		in.Stdin, in.Stdout, in.Stderr = inner, inner, inner
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		seen := bufio.NewReader(outer)
		for i := range 20 {
			line(t, seen, fmt.Sprint("out ", i))
			line(t, seen, fmt.Sprint("err ", i))
		}
		if code, err := p.Wait(); code != 0 || err != nil {
			t.Error(code, err)
		}
	})
}
