package main

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent"
)

// watched tells what happens to those the instance depends on.
type watched struct {
	agentGone chan struct{} // closed when the agent has ended
	events    *agent.Conn   // nil if the agent had ended
	cancel    context.CancelFunc
	work      sync.WaitGroup
}

// watch looks after agent and fetcher until it is stopped: failed reads are
// told, a fetcher that was killed is started again.
func (k *keeper) watch() *watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{agentGone: make(chan struct{}), cancel: cancel}
	// Before anything is read, so that nothing fails unheard.
	if conn, err := k.host.Agent(ctx, k.image); err == nil {
		if err := conn.Listen(); err == nil {
			w.events = conn
			w.work.Go(func() { conn.Events(func(line string) { say("%s", line) }) })
		} else {
			_ = conn.Close()
		}
	}
	w.work.Go(func() {
		f, err := k.host.AgentEnd(k.image)
		if err == nil && f != nil && !waitEnd(ctx, f) {
			return
		}
		close(w.agentGone)
	})
	w.work.Go(func() { k.keepFetcher(ctx) })
	return w
}

// stop ends the watching. What failed until now is told.
func (w *watched) stop() {
	w.cancel()
	if w.events != nil {
		_ = w.events.Finish()
	}
	w.work.Wait()
	if w.events != nil {
		_ = w.events.Close()
	}
}

// How soon a fetcher that has ended is started again: at once if it has lived,
// since instances wait for it, and ever less often if it ends again and again,
// since a start costs more than a pause.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Second
	longLife   = 10 * time.Second
)

func nextPause(pause, lived time.Duration) time.Duration {
	if lived >= longLife {
		return firstPause
	}
	return min(2*pause, lastPause)
}

// keepFetcher starts the fetcher again whenever it has ended. What keeps it from
// that is told once, and may pass.
func (k *keeper) keepFetcher(ctx context.Context) {
	told := ""
	for pause := firstPause; ctx.Err() == nil; {
		began := time.Now()
		f, err := k.host.ReviveFetcher(ctx, k.fetcher)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			say("%v", err)
		}
		if f != nil && !waitEnd(ctx, f) {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = nextPause(pause, time.Since(began))
	}
}

// waitEnd waits for the end of the process behind a pidfd, and closes it; false
// if ctx ended before.
func waitEnd(ctx context.Context, f *os.File) bool {
	defer f.Close()
	stopR, stopW, err := os.Pipe()
	if err != nil {
		return false
	}
	defer stopR.Close()
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = stopW.Close(); close(closed) })
	defer func() {
		if stop() {
			_ = stopW.Close()
		} else {
			<-closed
		}
	}()
	for {
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}, {Fd: int32(stopR.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || fds[1].Revents != 0:
			return false
		case fds[0].Revents != 0:
			return true
		}
	}
}
