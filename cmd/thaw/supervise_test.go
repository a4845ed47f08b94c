//go:build cloud

package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// locked is a buffer for many writers.
type locked struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// shellRole is a role that a line of shell plays.
func shellRole(name, script string, said func(string)) role {
	return role{name: name, args: func() []string { return []string{"-c", script} }, said: said}
}

// A role that ends is started again; at the end all end, the last one first.
func TestSupervise(t *testing.T) {
	dir := t.TempDir()
	order := filepath.Join(dir, "order")
	var log locked
	s := newSupervisor("/bin/sh", &log, slog.New(slog.NewTextHandler(&log, nil)))
	var starts atomic.Int32
	again := make(chan int, 8)
	trap := func(name string) string {
		return "trap 'echo " + name + " >> " + order + "; exit 0' TERM; echo $$; while :; do sleep 0.05; done"
	}
	err := s.run(func() error {
		if err := s.start(t.Context(), shellRole("first", trap("first"), func(pid string) {
			starts.Add(1)
			n, _ := strconv.Atoi(pid)
			again <- n
		})); err != nil {
			return err
		}
		if err := s.start(t.Context(), shellRole("second", trap("second"), func(string) {})); err != nil {
			return err
		}
		if err := syscall.Kill(<-again, syscall.SIGKILL); err != nil {
			return err
		}
		<-again
		return nil
	})
	if err != nil || starts.Load() != 2 {
		t.Errorf("%v, %d starts: %s", err, starts.Load(), log.String())
	}
	if ended, _ := os.ReadFile(order); string(ended) != "second\nfirst\n" {
		t.Errorf("ended in the order %q", ended)
	}
	if !strings.Contains(log.String(), "started again") || !strings.Contains(log.String(), "role=first") {
		t.Errorf("nobody was told: %s", log.String())
	}
}

// A role that ends soon is started less and less often, but no less than every ten
// seconds, which what it ran counts for; one that ran long begins anew.
func TestBackOff(t *testing.T) {
	const ms = time.Millisecond
	var b backOff
	for n, x := range []struct{ ran, want time.Duration }{
		{0, 100 * ms}, {0, 200 * ms}, {0, 400 * ms}, {300 * ms, 500 * ms}, {0, 1600 * ms}, {0, 3200 * ms}, {0, 6400 * ms},
		{0, 10 * time.Second}, {0, 10 * time.Second}, {4 * time.Second, 6 * time.Second}, {10 * time.Second, 0},
		{30 * time.Second, 0}, {0, 10 * time.Second}, // not long enough
		{31 * time.Second, 0}, {0, 200 * ms}, {0, 400 * ms},
	} {
		if got := b.rest(x.ran); got != x.want {
			t.Errorf("end %d, after %v: it waits %v, want %v", n, x.ran, got, x.want)
		}
	}
}

// One that does not come up ends the whole at once, with its reason.
func TestSuperviseFails(t *testing.T) {
	for script, want := range map[string]string{"exit 3": "exit status 3", "kill -9 $$": "signal: killed"} {
		s := newSupervisor("/bin/sh", new(locked), slog.New(slog.DiscardHandler))
		err := s.run(func() error { return s.start(t.Context(), shellRole("x", script, func(string) {})) })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", script, err)
		}
	}
	s := newSupervisor("/bin/sh", new(locked), slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.run(func() error { return s.start(ctx, shellRole("x", "exec sleep 1000", func(string) {})) }) // says nothing
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
