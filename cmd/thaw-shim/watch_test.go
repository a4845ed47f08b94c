package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// waits is a process that waits for the end of its input.
type waits struct {
	*exec.Cmd
	in io.Closer
}

func newWaits(t *testing.T) *waits {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &waits{cmd, in}
	t.Cleanup(w.end)
	return w
}

func (w *waits) end() {
	_ = w.in.Close()
	_ = w.Wait() // may be the second time
}

func (w *waits) pidfd(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(w.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "pidfd")
}

// descriptors counts those that are open.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestWaitEnd(t *testing.T) {
	w := newWaits(t)
	before := descriptors(t)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := w.pidfd(t)
	if waitEnd(ctx, f) {
		t.Error("a process that runs has ended")
	}
	if err := f.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("it is open still: %v", err)
	}

	ctx, cancel = context.WithCancel(t.Context())
	got := make(chan bool)
	f = w.pidfd(t)
	go func() { got <- waitEnd(ctx, f) }()
	cancel() // before or while it waits
	if <-got {
		t.Error("a process that runs has ended")
	}

	f = w.pidfd(t)
	go func() { got <- waitEnd(t.Context(), f) }()
	select {
	case <-got:
		t.Error("it did not wait")
	default:
	}
	w.end()
	if !<-got {
		t.Error("the end of the process was not seen")
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
}

// One that dies again and again is not started again and again at once.
func TestNextPause(t *testing.T) {
	pause := firstPause
	for range 20 {
		next := nextPause(pause, 0)
		if next < pause || next > lastPause {
			t.Fatalf("after %v comes %v", pause, next)
		}
		pause = next
	}
	if pause != lastPause {
		t.Errorf("at last %v, want %v", pause, lastPause)
	}
	if got := nextPause(pause, longLife); got != firstPause {
		t.Errorf("after a long life %v, want %v", got, firstPause)
	}
}
