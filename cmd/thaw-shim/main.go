// Thaw-shim keeps one instance: a container that it starts, or a mounted
// folder. It takes the place of the thaw that prepared the instance, so that
// what stays in memory for each is small, and it ends with the instance, after
// everything that it was the last to use is gone.
//
// Exit status: that of the instance's program; 125 if it could not be started
// or its device failed, 126 and 127 as a shell has them; 0 for a mount.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"thaw/host"
	"thaw/sandbox"
	"thaw/text"
)

const (
	// exitFailed is docker's status for a failure that is not the program's.
	exitFailed = 125
	// smallHeap in bytes keeps the collector from growing what waits for hours.
	smallHeap = 8 << 20
)

// keeper keeps an instance.
type keeper struct {
	host.Order
	host           *host.Host
	instance       *host.Instance
	image, fetcher *host.Use
	recording      *recording
}

func main() { os.Exit(host.Aside(keepOne)) }

func keepOne() int {
	debug.SetMemoryLimit(smallHeap)
	if !signal.Ignored(unix.SIGPIPE) { // that nobody takes the output is the program's end, not ours
		signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	}
	k, err := newKeeper(os.Args[1:])
	if err != nil {
		say("%v", err)
		return exitFailed
	}
	return k.keep()
}

func newKeeper(args []string) (*keeper, error) {
	k := &keeper{}
	var err error
	if k.instance, k.image, k.fetcher, err = host.Resume(args); err != nil {
		return nil, err
	}
	k.host = k.instance.Host()
	k.Order, err = k.instance.Order()
	return k, err
}

// keep runs the instance to its end and cleans up. It gives the exit status.
func (k *keeper) keep() int {
	var w *watched
	var code int
	var err error
	// No signal may end us from now on, also after the program's end: we have to
	// clean up. Those that mean the instance are caught for it first, or one that
	// comes in between would be lost.
	if k.instance.Kind == host.KindRun {
		signals := sandbox.Catch()
		_ = sandbox.Catch()
		w = k.watch()
		k.recording = newRecording(&k.Order, k.takeTrace)
		code, err = k.run(w, signals)
		k.recording.exited(false) // or it is known
	} else {
		signals := catchEnd()
		_ = sandbox.Catch()
		w = k.watch()
		if err = k.wait(w, signals); err != nil {
			code = exitFailed
		}
	}
	ctx := context.Background()
	after := k.host.Stats(ctx, k.image)
	unheard := k.unheard(ctx, after)
	w.stop()
	rerr := errors.Join(k.instance.End(ctx), k.host.ReleaseImage(ctx, k.image), k.host.ReleaseFetcher(ctx, k.fetcher))
	if err != nil && !sandbox.Told(err) {
		say("%v", err)
	}
	k.recording.wait()
	k.host.Close()
	if rerr != nil {
		say("cleaning up: %v (thaw prune tries again)", rerr)
	}
	if unheard != "" {
		say("no node of the zone has answered, and the origin gave what it may hold: %s", unheard)
	}
	if _, started := k.Stages["total"]; started {
		if serr := k.report(after); serr != nil {
			say("%v", serr)
		}
	}
	return code
}

// say tells the user one line.
func say(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "thaw: "+text.Line(strings.TrimSpace(fmt.Sprintf(format, args...))))
}
