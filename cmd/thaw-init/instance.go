package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"thaw/invokewire"
	"thaw/quiet"
	"thaw/runtimeapi"
	"thaw/runtimeapi/http1"
)

const defaultAPI = "127.0.0.1:9001"

// Phases, as Hello tells them.
const (
	phaseFresh  = "fresh"
	phaseInit   = "init"
	phaseIdle   = "idle"
	phaseBusy   = "busy"
	phaseEnding = "ending"
)

// instance is the state of this one.
type instance struct {
	link  *link
	procs processes
	phase atomic.Value // string

	// Only the goroutine that takes frames uses these.
	listener net.Listener
	server   http1.Server

	current atomic.Pointer[generation] // nil: fresh
}

// generation is what one setup has started, until a reset.
type generation struct {
	*instance
	setup invokewire.Setup
	api   *runtimeapi.API
	// streaming: the caller of the present invoke takes the answer as it comes.
	streaming atomic.Bool
	// stop is closed when processes are being ended.
	stop chan struct{}
	work sync.WaitGroup // the start of processes, and who waits for their ends

	mu    sync.Mutex // guards what follows
	procs []*process
	ended bool // no process may be started any more
}

func newInstance(l *link) *instance {
	i := &instance{link: l}
	i.phase.Store(phaseFresh)
	i.server.Handler = i.answer
	return i
}

// hello is what the worker is told first.
func (i *instance) hello() invokewire.Hello {
	return invokewire.Hello{Protocol: invokewire.FrameProtocol, Phase: i.phase.Load().(string)}
}

// answer serves the APIs of the present generation.
func (i *instance) answer(r *http1.Request) http1.Answer {
	if g := i.current.Load(); g != nil {
		return g.api.Answer(r)
	}
	return http1.Answer{Status: 500}
}

// take obeys the worker.
func (i *instance) take(frames *invokewire.Frames, frame invokewire.Frame) error {
	switch frame.Kind {
	case invokewire.FrameSetup:
		var setup invokewire.Setup
		if err := frame.Decode(&setup); err != nil {
			return err
		}
		return i.begin(setup)
	case invokewire.FrameInvoke:
		var invoke invokewire.Invoke
		if err := frame.Decode(&invoke); err != nil {
			return err
		}
		payload := make([]byte, invoke.Length)
		if err := frames.ReadPayload(payload); err != nil {
			return lost(err)
		}
		return i.invoke(invoke, payload)
	case invokewire.FrameReset, invokewire.FrameShutdown:
		var stop invokewire.Stop
		if err := frame.Decode(&stop); err != nil {
			return err
		}
		i.end(stop)
		if frame.Kind == invokewire.FrameShutdown {
			return errOver
		}
		i.phase.Store(phaseFresh)
		return i.link.send(func(f *invokewire.Frames) error { return f.Write(invokewire.FrameResetDone, nil) })
	}
	return fmt.Errorf("%w: %v is not for thaw-init", invokewire.ErrFrame, frame.Kind)
}

// begin starts a generation.
func (i *instance) begin(setup invokewire.Setup) error {
	switch {
	case i.current.Load() != nil:
		return fmt.Errorf("%w: a second setup without a reset", invokewire.ErrFrame)
	case int(setup.UID) == os.Geteuid() || int(setup.GID) == os.Getegid():
		return fmt.Errorf("the function must run as another user and group than %d and %d", setup.UID, setup.GID)
	case len(setup.Argv) == 0 || setup.Argv[0] == "":
		return fmt.Errorf("%w: a setup without a program", invokewire.ErrFrame)
	}
	if i.listener == nil {
		if err := limitFiles(setup.Files); err != nil {
			return err
		}
		if err := i.listen(setup.API); err != nil {
			return err
		}
		i.forwardSignals()
	}
	i.phase.Store(phaseInit)
	g := &generation{instance: i, setup: setup, stop: make(chan struct{})}
	names, err := extensionNames(setup.Extensions)
	g.api = runtimeapi.New(runtimeapi.Options{
		Function: setup.Function, Version: setup.Version, Handler: setup.Handler, Account: setup.Account,
		External: names, MaxStreamed: setup.MaxStreamed, Sink: g.sink(),
	})
	i.current.Store(g)
	g.work.Go(func() { g.start(names, err) })
	return nil
}

func (i *instance) listen(address string) error {
	if address == "" {
		address = defaultAPI
	}
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return fmt.Errorf("serving the Runtime API, is the loopback interface up? %w", err)
	}
	i.listener = l
	go func() { _ = i.server.Serve(quiet.Listener(l)) }() // to this process's end
	return nil
}

// forwardSignals gives the runtime what somebody sends to this process, from
// outside: others here may not.
func (i *instance) forwardSignals() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	go func() {
		for s := range signals {
			if g := i.current.Load(); g != nil {
				g.signal("", s.(syscall.Signal))
			}
		}
	}()
}

// invoke hands an invoke on.
func (i *instance) invoke(in invokewire.Invoke, payload []byte) error {
	g := i.current.Load()
	if g == nil {
		return fmt.Errorf("%w: an invoke before a setup", invokewire.ErrFrame)
	}
	i.phase.Store(phaseBusy)
	g.streaming.Store(in.Streaming)
	err := g.api.Invoke(runtimeapi.Invoke{
		RequestID: in.RequestID, DeadlineMs: in.DeadlineMs, ARN: in.ARN, Trace: in.Trace, ClientContext: in.ClientContext, Cognito: in.Cognito,
		Payload: payload, Streaming: in.Streaming,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", invokewire.ErrFrame, err)
	}
	return nil
}
