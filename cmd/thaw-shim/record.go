package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/host"
)

const (
	// recordTime is how long a start is recorded that has no text to end it.
	recordTime = time.Minute
	// readyTime is how long a program may take to print that text.
	readyTime = 10 * time.Minute
	// keepPatience is how long the end of an instance waits for its trace to be
	// stored.
	keepPatience = 10 * time.Second
	// maxWarning bounds in bytes what is read of why it was not.
	maxWarning = 4096
)

// recording is the recording of a start by the agent: it ends when the program
// is ready, and leaves a trace. Nil is none.
type recording struct {
	text  string                    // that the program prints when it is ready; "" = it is at its end
	take  func(file *os.File) error // ends the recording: the trace is in file
	by    []string                  // command that keeps the trace
	late  *time.Timer
	ended sync.Once
	kept  chan error // why the trace is not kept, or nil; told once

	keeping *os.File // the standard error of the program that keeps it; set by ended
}

// newRecording begins what the order has: the agent records already. The
// program's end is told to exited, and wait comes last.
func newRecording(o *host.Order, take func(file *os.File) error) *recording {
	if len(o.KeepTrace) == 0 {
		return nil
	}
	r := &recording{text: o.Ready, take: take, by: o.KeepTrace, kept: make(chan error, 1)}
	if r.text == "" {
		r.late = time.AfterFunc(recordTime, r.ready)
	} else {
		r.late = time.AfterFunc(readyTime, func() { r.never("in " + readyTime.String()) })
	}
	return r
}

// ready says that the program is ready. It does not wait.
func (r *recording) ready() {
	r.ended.Do(func() {
		out, in, err := os.Pipe()
		if err != nil {
			r.kept <- err
			return
		}
		r.keeping = out
		go func() { r.kept <- errors.Join(r.keep(in), said(out)) }()
	})
}

// never ends a recording that no ready has ended.
func (r *recording) never(when string) {
	r.ended.Do(func() { r.kept <- fmt.Errorf("the program has not printed %q %s", r.text, when) })
}

// exited says that the program has ended, or did not start.
func (r *recording) exited(started bool) {
	switch {
	case r == nil:
		return
	case !started:
		r.ended.Do(func() { r.kept <- nil })
	case r.text == "":
		r.ready()
	default:
		r.never("before its end")
	}
	r.late.Stop()
}

// takeTrace has the agent seal the trace of what was touched until now.
func (k *keeper) takeTrace(file *os.File) error {
	conn, err := k.host.Agent(context.Background(), k.image)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Ready(file)
}

// keep takes the trace from the agent to the program that keeps it, whose
// standard error is stderr.
func (r *recording) keep(stderr *os.File) error {
	defer stderr.Close()
	fd, err := unix.MemfdCreate("trace", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "trace")
	defer file.Close()
	if err := r.take(file); err != nil {
		return err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil { // the agent's copy has the same offset
		return err
	}
	cmd := exec.Command(r.by[0], r.by[1:]...)
	cmd.Stdin, cmd.Stderr = file, stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release() // who reaps orphans reaps it
}

// said waits for the end of a program that has the other end of a pipe, and
// gives what it said.
func said(pipe *os.File) error {
	text, err := io.ReadAll(io.LimitReader(pipe, maxWarning))
	_ = pipe.Close()
	if line := strings.TrimPrefix(strings.TrimSpace(string(text)), "thaw: "); line != "" {
		return errors.New(line)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("it could not be kept in time")
	}
	return err
}

// wait waits, not for long, until the trace is kept, and tells if it is not. It
// comes after exited.
func (r *recording) wait() {
	if r == nil {
		return
	}
	r.ended.Do(func() { r.kept <- nil })
	if r.keeping != nil {
		_ = r.keeping.SetReadDeadline(time.Now().Add(keepPatience))
	}
	if err := <-r.kept; err != nil {
		say("this start is not recorded: %v", err)
	}
}
