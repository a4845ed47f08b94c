package top

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/text"
)

// Live says how to show what happens.
type Live struct {
	In, Out  *os.File // a terminal; In may be anything else
	Interval time.Duration
	// Sample looks, in bounded time.
	Sample func(context.Context) (Sample, error)
}

// sampled is what Sample gave.
type sampled struct {
	Sample
	err error
}

// Show shows what happens until ctx ends or q is typed. Then the terminal is as
// it was.
func (l *Live) Show(ctx context.Context) (err error) {
	resized, stopped := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	signal.Notify(stopped, syscall.SIGTSTP)
	defer signal.Stop(resized)
	defer signal.Stop(stopped)
	s, err := openScreen(l.In, l.Out)
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer func() { err = errors.Join(err, s.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	samples := make(chan sampled, 1)
	look := func() {
		work.Go(func() {
			at, err := l.Sample(ctx)
			samples <- sampled{at, err}
		})
	}
	look()
	next := time.NewTimer(l.Interval)
	next.Stop()
	page := []string{"…"}
	var w Watcher
	for changed := true; ; {
		if changed {
			if err := s.draw(page); err != nil {
				return err
			}
		}
		changed = true
		select {
		case <-ctx.Done():
			return nil
		case <-s.quit:
			return nil
		case <-resized:
		case <-stopped:
			if err := s.pause(); err != nil {
				return err
			}
		case got := <-samples:
			page = l.page(&w, got)
			next.Reset(l.Interval)
		case <-next.C:
			changed = false
			look()
		}
	}
}

// page gives what is shown.
func (l *Live) page(w *Watcher, got sampled) []string {
	if got.err != nil {
		return []string{text.Line(got.err.Error())}
	}
	r := w.Report(got.Sample)
	instances := 0
	for _, i := range r.Images {
		instances += i.Instances
	}
	what := "since the start of each"
	if r.Seconds > 0 {
		what = fmt.Sprintf("in %.1f s", r.Seconds)
	}
	head := fmt.Sprintf("thaw  %s  images %d, instances %d  %s  (q quits)", r.Time.Format(time.TimeOnly), len(r.Images), instances, what)
	return append([]string{head, ""}, r.lines()...)
}

// pause gives the terminal back while the process is stopped.
func (s *screen) pause() error {
	if err := s.leave(); err != nil {
		return err
	}
	// To this very thread: with kill(2) it could run on until another one has
	// stopped all.
	runtime.LockOSThread()
	err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
	runtime.UnlockOSThread()
	if err != nil {
		return err
	}
	return s.enter()
}
