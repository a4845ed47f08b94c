package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	runc "github.com/containerd/go-runc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Supervisor starts instances with one runtime. A process has one at most: it makes the process the reaper of all its descendants, and
// itself the one who starts go-runc's commands, which is a variable of the whole process. Its methods are safe for concurrent use.
type Supervisor struct {
	runtime  Runtime
	launcher *launcher
}

// NewSupervisor makes this process the supervisor of instances.
func NewSupervisor(r Runtime) (*Supervisor, error) { return newSupervisor(r, false) }

// NewSharedSupervisor is NewSupervisor for a process that starts children of its own as well, and waits for them: those who wait for an
// instance reap nobody else. Orphans stay until Sweep.
func NewSharedSupervisor(r Runtime) (*Supervisor, error) { return newSupervisor(r, true) }

func newSupervisor(r Runtime, shared bool) (*Supervisor, error) {
	l, err := newLauncher(r.hideUnified)
	if err != nil {
		return nil, err
	}
	l.shared = shared
	runc.Monitor = l
	return &Supervisor{runtime: r, launcher: l}, nil
}

// Instance says which bundle to start, and with what as its standard streams.
type Instance struct {
	ID     string // unique below State; letters, digits, "-", "_", "."
	Bundle string // absolute path of what WriteBundle wrote
	State  string // absolute path of the folder for the runtime's own state, on a local file system; made if it is missing

	// The instance gets these very files, or with a terminal copies of their bytes. A nil Stdin is /dev/null.
	// Files that the instance may not open by name (/dev/stdout) are put behind a pipe.
	Stdin, Stdout, Stderr *os.File
	// Files are its descriptors 3 and on. The caller closes its copies.
	Files []*os.File `json:"-"`

	// Await is a text without line ends: when the output first holds it, on either stream, and it has been passed on, Arrived is called,
	// once. "" awaits nothing. Arrived holds up the output until it returns.
	Await   string
	Arrived func() `json:"-"`
}

// Process is a running instance. Close it.
type Process struct {
	PID int // of its first process, on the host; not reused before Wait has returned

	process *os.Process // holds a pidfd: a signal never reaches another that got the same id
	stop    syscall.Signal
	streams *streams
	wait    func() (int, error)
}

// Start makes a container of the bundle and starts its program. After an error Delete is still due. The error says in one line what is
// wrong, and ExitCode what to exit with; on a standard error that the instance gets as it is, the runtime's own words precede it. If this
// process dies meanwhile, so does the runtime.
func (s *Supervisor) Start(ctx context.Context, in Instance) (*Process, error) {
	if err := checkID(in.ID); err != nil {
		return nil, err
	}
	var spec struct { // what is needed of a specs.Spec: less to decode
		Process     *specs.Process
		Root        *specs.Root
		Annotations map[string]string
		Linux       struct{ Namespaces []specs.LinuxNamespace }
	}
	data, err := os.ReadFile(filepath.Join(in.Bundle, "config.json"))
	if err == nil {
		err = json.Unmarshal(data, &spec)
	}
	if err == nil && (spec.Process == nil || spec.Root == nil) {
		err = errors.New("no process, or no root")
	}
	if err != nil {
		return nil, fmt.Errorf("bundle %s: config.json: %w", in.Bundle, err)
	}
	if err := os.MkdirAll(in.State, 0o700); err != nil {
		return nil, fmt.Errorf("runtime's state: %w", err)
	}
	st, err := newStreams(in, spec.Process.Terminal)
	if err != nil {
		return nil, err
	}
	network := networkOf(spec.Linux.Namespaces)
	pid, end, err := s.launcher.adopt(func() (int, error) { return s.run(ctx, in, st, network) })
	if err != nil {
		return nil, errors.Join(err, st.abandon())
	}
	if name := spec.Annotations[keepFilterKey]; name != "" && s.runtime.Name == "crun" {
		keepFilter(filepath.Join(in.State, in.ID), name)
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("instance: %w", err), st.abandon())
	}
	p := &Process{PID: pid, process: process, stop: stopSignal(spec.Annotations[stopSignalKey]), streams: st}
	if s.launcher.shared {
		if err := p.watch(s.launcher); err != nil {
			return nil, errors.Join(err, st.abandon())
		}
		return p, st.begin()
	}
	p.wait = sync.OnceValues(func() (int, error) {
		how, err := s.launcher.wait(end)
		if err == nil && how.unborn && how.ExitStatus() > 0 {
			err = whyNot(spec.Root.Path, spec.Process)
		}
		return p.end(how.WaitStatus, err)
	})
	if err := st.begin(); err != nil {
		_ = p.Signal(syscall.SIGKILL)
		_, _ = p.Wait()
		return nil, errors.Join(err, st.abandon())
	}
	return p, nil
}

// networkOf says in gVisor's words which network an instance has: none but its own, the host's, or that of a namespace which it joins.
func networkOf(all []specs.LinuxNamespace) string {
	i := slices.IndexFunc(all, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	switch {
	case i < 0:
		return "host"
	case all[i].Path != "":
		return "sandbox"
	}
	return "none"
}

func (s *Supervisor) run(ctx context.Context, in Instance, st *streams, network string) (int, error) {
	log, pidFile := filepath.Join(in.Bundle, "runtime.log"), filepath.Join(in.Bundle, "pid")
	_ = os.Remove(log)
	opts := &runc.CreateOpts{IO: st, PidFile: pidFile, Detach: true}
	if st.socket != nil {
		opts.ConsoleSocket = st.socket
	}
	client := s.client(in.State)
	client.Log = log
	client.ExtraArgs = s.runtime.options(network)
	if s.runtime.Name == "runsc" { // it knows no --preserve-fds
		opts.ExtraArgs = passFiles(len(in.Files))
		st.passed = func(cmd *exec.Cmd) { s.launcher.files.Store(cmd, in.Files) }
	} else {
		opts.ExtraFiles = in.Files
	}
	if _, err := client.Run(ctx, in.ID, in.Bundle, opts); err != nil {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("start: %w", ctx.Err())
		}
		failed := s.runtime.explain(err, log)
		failed.told = in.Stderr != nil && st.stderr == in.Stderr
		return 0, failed
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", s.runtime.Name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s wrote %.20q for the instance's process id", s.runtime.Name, text)
	}
	return pid, nil
}

func (s *Supervisor) client(state string) *runc.Runc {
	return &runc.Runc{Command: s.runtime.Path, Root: state, LogFormat: runc.JSON, PdeathSignal: syscall.SIGKILL}
}

// State asks the runtime about an instance: "created", "running", "paused" or "stopped".
func (s *Supervisor) State(ctx context.Context, state, id string) (string, error) {
	c, err := s.client(state).State(ctx, id)
	if err != nil {
		return "", fmt.Errorf("%s: state of %s: %w", s.runtime.Name, id, err)
	}
	return c.Status, nil
}

// Wait waits for the instance's end, and until all that it wrote has been passed on. It gives the exit code: its status, or 128 + the
// signal that ended it. A program that the kernel did not execute is an error, with that of ExitCode. It reaps whatever else ends meanwhile and was not started by a Supervisor. It may be called more than once.
func (p *Process) Wait() (int, error) { return p.wait() }

func (p *Process) end(status syscall.WaitStatus, err error) (int, error) {
	if err != nil {
		p.streams.drain()
		return ExitCode(err), err
	}
	p.streams.drain()
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// Signal sends the instance's first process a signal. One that has ended gets none.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal the instance: %w", err)
	}
	return nil
}

// Close gives the caller's terminal back as it was. It does not end the instance.
func (p *Process) Close() error { return errors.Join(p.streams.close(), p.process.Release()) }

// Exit codes for what kept a program from starting, as docker has them.
const (
	codeOurs          = 125
	codeNotExecutable = 126
	codeNotFound      = 127
)

// startError is why a runtime did not start a program.
type startError struct {
	text    string
	code    int
	certain bool // about the very file
	told    bool // by the runtime itself, on the instance's standard error
}

func (e *startError) Error() string { return e.text }

// ExitCode is what a command exits with that could not start an instance: 127 if the program was not found, 126 if it could not be
// executed, else 125.
func ExitCode(err error) int {
	var s *startError
	if errors.As(err, &s) {
		return s.code
	}
	return codeOurs
}

// Told reports whether a runtime has said why it did not start a program where its errors go: on the instance's standard error.
func Told(err error) bool {
	var s *startError
	return errors.As(err, &s) && s.told
}

// explain makes one line of what a runtime logged before it failed.
func (r Runtime) explain(err error, log string) *startError {
	text := ""
	if f, openErr := os.Open(log); openErr == nil {
		data, _ := io.ReadAll(io.LimitReader(f, 1<<20))
		f.Close()
		text = lastError(string(data))
	}
	e := &startError{text: text, code: codeOurs}
	switch lower := strings.ToLower(text); {
	case text == "":
		e.text = err.Error()
	case !strings.Contains(lower, "exec") && !strings.Contains(lower, "failed to load"): // not about the program
	case strings.Contains(lower, "permission denied"), strings.Contains(lower, "exec format error"), strings.Contains(lower, "not permitted"):
		e.code = codeNotExecutable
	case strings.Contains(lower, "not found"), strings.Contains(lower, "no such file"):
		e.code = codeNotFound
	}
	e.text = r.Name + ": " + strings.TrimPrefix(e.text, r.Name+" run failed: ")
	return e
}

// lastError finds the last error in a runtime's log, a JSON object a line.
func lastError(log string) string {
	found := ""
	for line := range strings.Lines(log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg != "" && (entry.Level == "error" || entry.Level == "fatal" || found == "") {
			found = entry.Msg
		}
	}
	return strings.Join(strings.Fields(found), " ")
}
