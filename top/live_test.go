package top

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/internal/testpty"
)

// patience bounds every wait: nothing takes it all unless it hangs.
const patience = 3 * time.Minute

// show runs what a test looks at, and gives what waits for its end.
func show(ctx context.Context, t *testing.T, p *testpty.Terminal, f func(context.Context) (Sample, error)) (end func()) {
	ended := make(chan error, 1)
	l := &Live{In: p.TTY, Out: p.TTY, Interval: time.Millisecond, Sample: f}
	go func() { ended <- l.Show(ctx) }()
	return func() {
		t.Helper()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Fatal("it does not end")
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
	p := testpty.Open(t, 30, 100)
	next, f := looks()
	end := show(t.Context(), t, p, f)
	const last = "fetcher g does not answer: no answer" + clearLine + clearBelow
	p.Await(enterScreen + home)
	next <- struct{}{}
	p.Await("images 1, instances 0  since the start of each")
	p.Await("TIER    HITS  CHUNKS")
	p.Await(last)
	next <- struct{}{}
	p.Await(home + "thaw  03:04:02  images 1, instances 0  in 1.0 s  (q quits)" + clearLine + "\r\n")
	frame := p.Await(last)
	if strings.Contains(frame, "\x1b[2J") || strings.Count(frame, "\n") != strings.Count(frame, clearLine+"\r\n") {
		t.Errorf("a page is not drawn line over line: %q", frame)
	}
	p.Type("secret")
	p.Resize(5, 20)
	if err := syscall.Kill(os.Getpid(), syscall.SIGWINCH); err != nil { // nobody's terminal gives no signal
		t.Fatal(err)
	}
	p.Await(home)
	lines := strings.Split(p.Await(clearBelow), "\r\n")
	if len(lines) != 5 || !strings.HasPrefix(lines[3], "cache   ") {
		t.Errorf("%d lines: %q", len(lines), lines)
	}
	for _, line := range lines {
		if text, _, _ := strings.Cut(line, clearLine); len([]rune(text)) > 20 || strings.Contains(text, "secret") {
			t.Errorf("line %q", line)
		}
	}
	p.Type("q")
	end()
	p.Await(leaveScreen)
	p.Restored()
}

// The end of the context is as good an end, and a failure is told where the
// table was.
func TestLiveFails(t *testing.T) {
	p := testpty.Open(t, 30, 100)
	ctx, cancel := context.WithCancel(t.Context())
	end := show(ctx, t, p, func(context.Context) (Sample, error) { return Sample{}, errors.New("no such\nzone") })
	p.Await("no such; zone")
	cancel()
	end()
	p.Await(leaveScreen)
	p.Restored()
}

// A look that hangs holds up neither the end nor, when it is told to, itself.
func TestLiveHangs(t *testing.T) {
	p := testpty.Open(t, 30, 100)
	asked := make(chan struct{})
	end := show(t.Context(), t, p, func(ctx context.Context) (Sample, error) {
		close(asked)
		<-ctx.Done()
		return Sample{}, ctx.Err()
	})
	<-asked
	p.Type("q")
	end()
	p.Await(leaveScreen)
	p.Restored()
}

// Keys may come from no terminal at all.
func TestLiveWithoutKeys(t *testing.T) {
	p := testpty.Open(t, 30, 100)
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	s, err := openScreen(in, p.TTY)
	if err == nil {
		err = errors.Join(s.draw([]string{"hello"}), s.close())
	}
	if err != nil {
		t.Fatal(err)
	}
	p.Await(home + "hello")
	p.Await(leaveScreen)
	p.Restored()
}

// What is no terminal has the size that terminals have had.
func TestDrawSize(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := &screen{out: int(w.Fd())}
	page := make([]string, 50)
	for i := range page {
		page[i] = strings.Repeat("µ", 100)
	}
	if err := errors.Join(s.draw(page), w.Close()); err != nil {
		t.Fatal(err)
	}
	drawn, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	row := strings.Repeat("µ", 80) + clearLine
	if want := home + strings.Repeat(row+"\r\n", 23) + row + clearBelow; string(drawn) != want {
		t.Errorf("%q", drawn)
	}
}

// A terminal that is gone is an error, and no loop.
func TestTerminalGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	l := &Live{In: w, Out: w, Interval: time.Hour, Sample: func(context.Context) (Sample, error) { return Sample{}, nil }}
	if err := l.Show(t.Context()); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v", err)
	}
}
