package host

import "runtime"

// Aside runs f on other threads than the process's first, and gives its result.
// It is for main, which calls it before anything else runs.
//
// The kernel gives a signal for a process to its first thread if that does not
// block it (signal(7) leaves the choice open; complete_signal in kernel/signal.c
// makes it). If that one is in a call which no signal ends, as mount(2) of a
// device whose reads wait, it stays there, and nobody hears of Ctrl-C. So the
// first thread does nothing but wait.
func Aside(f func() int) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	status := make(chan int)
	go func() { status <- f() }()
	return <-status
}
