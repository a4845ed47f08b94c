package main

import (
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// A signal that was taken is never lost, whenever it came.
func TestSignalsSettle(t *testing.T) {
	ctx, s := catchSignals()
	s.settle()
	s.settle()
	if ctx.Err() != nil {
		t.Error("ended without a signal")
	}
	taken := make(chan os.Signal, 1) // told at the same time, in any order
	signal.Notify(taken, syscall.SIGTERM)
	defer signal.Stop(taken)
	for range 200 {
		ctx, s := catchSignals()
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-taken
		s.settle()
		if ctx.Err() == nil {
			t.Fatal("lost")
		}
	}
}

// What says that the parent is dead ends the context, and kills nothing however
// often it comes.
func TestSignalsOrphaned(t *testing.T) {
	ctx, s := catchSignals()
	defer s.settle()
	s.adopt()
	for range 50 {
		if err := syscall.Kill(os.Getpid(), orphaned); err != nil {
			t.Fatal(err)
		}
		<-s.more
		<-ctx.Done()
	}
}
