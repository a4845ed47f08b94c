package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"thaw/sandbox"
)

// exitKilled is the status of a program that SIGKILL ended.
const exitKilled = 128 + int(unix.SIGKILL)

// startPatience is how long a runtime may take to start a program: longer than
// the reads of a slow origin, and not for ever, which is how long crun waits
// for a child of its own that was killed.
const startPatience = 3 * time.Minute

// errAgentGone says why an instance was ended.
var errAgentGone = errors.New("the agent that served the image's device has ended: the instance was stopped")

// run starts the container and waits for its end.
func (k *keeper) run(w *watched, signals *sandbox.Signals) (int, error) {
	r, err := sandbox.Find(k.Runtime)
	if err != nil {
		return exitFailed, err
	}
	supervisor, err := sandbox.NewSupervisor(r)
	if err != nil {
		return exitFailed, err
	}
	began := time.Now()
	in := sandbox.Instance{ID: k.instance.ID, Bundle: k.instance.Dir("bundle"), State: k.instance.Dir("runtime"), Stdout: os.Stdout, Stderr: os.Stderr}
	if k.Interactive {
		in.Stdin = os.Stdin
	}
	if k.recording != nil {
		in.Await, in.Arrived = k.Ready, k.recording.ready
	}
	starting, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	p, err := supervisor.Start(starting, in)
	if err != nil {
		return sandbox.ExitCode(err), w.cause(err)
	}
	now := time.Now()
	k.Stages["container"] = ms(now.Sub(began))
	k.Stages["total"] = ms(now.Sub(k.Began))
	stop := signals.Forward(p)
	ended := make(chan struct{})
	w.work.Go(func() {
		select {
		case <-w.agentGone:
			_ = p.Signal(unix.SIGKILL)
		case <-ended:
		}
	})
	code, err := p.Wait()
	if err != nil {
		delete(k.Stages, "total") // it did not start
	}
	k.recording.exited(true)
	stop()
	close(ended)
	err = errors.Join(err, p.Close())
	if cause := w.cause(err); errors.Is(cause, errAgentGone) {
		return exitFailed, cause
	}
	if code == exitKilled && sandbox.OOMKilled(k.instance.Cgroup()) {
		say("out of memory: the kernel ended a program at the limit of the instance")
	}
	return code, err
}

// cause is why something failed: err, or what lies behind it.
func (w *watched) cause(err error) error {
	select {
	case <-w.agentGone:
		return errAgentGone
	default:
		return err
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// catchEnd catches the signals that end a mount, but for those that our caller
// ignores, as nohup has it.
func catchEnd() <-chan os.Signal {
	signals := make(chan os.Signal, 1)
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} {
		if !signal.Ignored(sig) {
			signal.Notify(signals, sig)
		}
	}
	return signals
}

// mount shows the image at the instance's folder.
func (k *keeper) mount() (err error) {
	began := time.Now()
	if k.Writable {
		err = k.instance.MountWritable(context.Background(), k.image, k.instance.Target, false)
	} else {
		err = k.instance.BindTo(k.image, k.instance.Target)
	}
	k.Stages["rootfs"] = ms(time.Since(began))
	return k.host.Explain(context.Background(), k.image, err)
}

// wait mounts the image, and keeps the mount until it is unmounted, a signal
// comes, or its agent ends.
func (k *keeper) wait(w *watched, signals <-chan os.Signal) error {
	if err := k.mount(); err != nil {
		return err
	}
	k.Stages["total"] = ms(time.Since(k.Began))
	fmt.Fprintf(os.Stderr, "thaw: %s is mounted at %s\n", k.instance.Image, k.instance.Target)
	gone, err := k.unmounted()
	if err != nil {
		return err
	}
	defer gone.close()
	select {
	case <-signals:
		return nil
	case <-gone.done:
		return nil
	case <-w.agentGone:
		return fmt.Errorf("the agent that served %s has ended: unmounting it", k.instance.Target)
	}
}
