package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// orphaned is what the kernel sends to a role when the process that has started it
// is killed, once for each thread of that: it may come any number of times.
const orphaned = syscall.SIGUSR1

// signals ends a context with the first SIGINT or SIGTERM. The second one kills
// at once: nothing that matters is left behind.
type signals struct {
	came   chan os.Signal
	more   chan os.Signal // gets what nobody looks at
	cancel context.CancelFunc

	once   sync.Once
	stop   chan struct{}
	waiter sync.WaitGroup
}

// catchSignals gives the context. The caller calls settle in the end.
func catchSignals() (context.Context, *signals) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &signals{came: make(chan os.Signal, 1), more: make(chan os.Signal, 1), cancel: cancel, stop: make(chan struct{})}
	signal.Notify(s.came, os.Interrupt, syscall.SIGTERM)
	s.waiter.Go(func() {
		select {
		case <-s.came:
			signal.Stop(s.came)
			cancel()
		case <-s.stop:
		}
	})
	return ctx, s
}

// adopt has orphaned end the context too. It never kills.
func (s *signals) adopt() {
	signal.Notify(s.more, orphaned)
	signal.Notify(s.came, orphaned)
}

// settle gives signals their usual effect again. One that came before has ended
// the context when it returns, one that comes after ends the process: a program
// that is then executed in the place of this one misses none that was taken.
func (s *signals) settle() {
	signal.Stop(s.came) // what it had taken is in the channel now
	signal.Stop(s.more)
	s.once.Do(func() { close(s.stop) })
	s.waiter.Wait()
	select {
	case <-s.came:
		s.cancel()
	default:
	}
}
