package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thaw/internal/faults"
	"thaw/invokewire"
)

const (
	// patience is far more than anything here takes.
	patience = 3 * time.Minute
	// functionUser is whom functions run as.
	functionUser = 61234
	// roleEnv tells the test binary what it is inside of an instance.
	roleEnv = "THAW_TEST_ROLE"
)

// TestMain is also what runs in instances, if it is told to be.
func TestMain(m *testing.M) {
	if role := os.Getenv(roleEnv); role != "" {
		play(role)
		return
	}
	code := m.Run()
	_ = os.RemoveAll(programs.dir)
	os.Exit(code)
}

// programs are built once, into a folder that all users can read.
var programs struct {
	once sync.Once
	dir  string
	err  error
}

// built gives the folder with thaw-init and function.
func built(t testing.TB) string {
	t.Helper()
	programs.once.Do(func() {
		if programs.dir, programs.err = os.MkdirTemp("", "thaw-init"); programs.err != nil {
			return
		}
		self, err := os.Executable()
		if err == nil {
			err = errors.Join(os.Chmod(programs.dir, 0o755), copyFile(self, filepath.Join(programs.dir, "function")))
		}
		build := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", filepath.Join(programs.dir, "thaw-init"), ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, buildErr := build.CombinedOutput()
		if buildErr != nil {
			buildErr = fmt.Errorf("%w\n%s", buildErr, out)
		}
		programs.err = errors.Join(err, buildErr)
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return programs.dir
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}

// worker is the other end of an instance's socket.
type worker struct {
	t      testing.TB
	under  []string // a program that starts thaw-init
	conn   net.Conn
	frames *invokewire.Frames
	cmd    *exec.Cmd
	api    string
	logs   map[string]string // by who wrote
	hello  invokewire.Hello
	answer answer
	exits  []invokewire.Exited
	ended  chan error
	stderr bytes.Buffer
}

type answer struct {
	begin invokewire.Begin
	body  []byte
	end   invokewire.End
}

// newWorker starts thaw-init in namespaces of its own.
func newWorker(t testing.TB, under ...string) *worker {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "init")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{t: t, under: under}
	w.start(theirs)
	w.meet(conn)
	return w
}

// start starts thaw-init as the first process of a namespace.
func (w *worker) start(socket *os.File, args ...string) {
	w.t.Helper()
	if os.Geteuid() != 0 {
		w.t.Skip("SKIPPED: an instance needs namespaces and another user: run the tests as root")
	}
	argv := append(w.under, filepath.Join(built(w.t), "thaw-init"))
	argv = append(append([]string{"--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "--"}, argv...), args...)
	w.cmd = exec.Command("unshare", argv...)
	w.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "INIT_ONLY=1"}
	w.cmd.Stderr = &w.stderr
	if socket != nil {
		leak, err := os.Open("/etc/passwd") // what an OCI runtime might leave open
		if err != nil {
			w.t.Fatal(err)
		}
		defer leak.Close()
		w.cmd.ExtraFiles = []*os.File{socket, leak}
	}
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.ended, w.logs, w.api = make(chan error, 1), map[string]string{}, freeAddress(w.t)
	go func() { w.ended <- w.cmd.Wait() }()
	w.t.Cleanup(func() {
		if w.conn != nil {
			_ = w.conn.Close()
		}
		_ = w.cmd.Process.Kill() // and its child with it
		<-w.ended
		if said := w.stderr.String(); strings.Contains(said, "goroutine ") || strings.Contains(said, "DATA RACE") {
			w.t.Error("thaw-init has a bug")
		}
		if w.t.Failed() {
			w.t.Logf("thaw-init says %q, logs: %.2000q", w.stderr.String(), w.logs)
		}
	})
}

// freeAddress gives one that nobody else gets until the test has ended: instances
// of tests have the machine's network.
func freeAddress(t testing.TB) string {
	p, err := faults.NewProxy("127.0.0.1:1", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	p.Set(faults.Link{Refuse: true}) // the port is held, and another may listen
	return p.Addr()
}

// meet takes a connection and the hello on it.
func (w *worker) meet(conn net.Conn) {
	w.t.Helper()
	_ = conn.SetDeadline(time.Now().Add(patience))
	w.conn, w.frames = conn, invokewire.NewFrames(conn)
	w.decode(w.await(invokewire.FrameHello), &w.hello)
	if w.hello.Protocol != invokewire.FrameProtocol {
		w.t.Fatalf("%+v", w.hello)
	}
}

// setup is one for a role of the test binary.
func (w *worker) setup(role string) invokewire.Setup {
	return invokewire.Setup{
		Argv: []string{filepath.Join(built(w.t), "function"), "arg"}, UID: functionUser, GID: functionUser, API: w.api, Workdir: "/tmp",
		Env: []string{roleEnv + "=" + role, "AWS_LAMBDA_RUNTIME_API=" + w.api, "PATH=/usr/bin:/bin"}, ExtensionEnv: []string{roleEnv + "=extension", "AWS_LAMBDA_RUNTIME_API=" + w.api},
		Function: "f", Version: "$LATEST", Handler: "h", Account: "000000000000",
	}
}

// ready sets an instance up and waits for its init.
func (w *worker) ready(s invokewire.Setup) invokewire.InitDone {
	w.t.Helper()
	w.send(invokewire.FrameSetup, s)
	var done invokewire.InitDone
	w.decode(w.await(invokewire.FrameInitDone), &done)
	return done
}

func (w *worker) send(kind invokewire.Kind, v any) {
	w.t.Helper()
	if err := w.frames.WriteJSON(kind, v); err != nil {
		w.t.Fatal(err)
	}
}

func (w *worker) decode(f invokewire.Frame, v any) {
	w.t.Helper()
	if err := f.Decode(v); err != nil {
		w.t.Fatal(err)
	}
}

// next gives the next frame that is no log, and keeps what it says of an answer.
func (w *worker) next() invokewire.Frame {
	w.t.Helper()
	for {
		f, err := w.frames.Read()
		if err != nil {
			w.t.Fatalf("reading a frame: %v", err)
		}
		switch f.Kind {
		case invokewire.FrameLog:
			name, text, err := f.Log()
			if err != nil {
				w.t.Fatal(err)
			}
			w.logs[name] += string(text)
			continue
		case invokewire.FrameBegin:
			w.answer = answer{}
			w.decode(f, &w.answer.begin)
		case invokewire.FrameData:
			w.answer.body = append(w.answer.body, f.Data...)
		case invokewire.FrameEnd:
			w.decode(f, &w.answer.end)
		case invokewire.FrameExited:
			var e invokewire.Exited
			w.decode(f, &e)
			w.exits = append(w.exits, e)
		}
		return f
	}
}

// await gives the next frame of a kind, and fails at one that should not come before it.
func (w *worker) await(kind invokewire.Kind) invokewire.Frame {
	w.t.Helper()
	for {
		f := w.next()
		if f.Kind == kind {
			return f
		}
		switch f.Kind {
		case invokewire.FrameBegin, invokewire.FrameData, invokewire.FrameEnd:
		case invokewire.FrameExited:
			if kind == invokewire.FrameResetDone || kind == invokewire.FrameInitFailed {
				continue
			}
			w.t.Fatalf("%v of %+v, want %v", f.Kind, w.exits, kind)
		default:
			w.t.Fatalf("%v %s, want %v", f.Kind, f.Data, kind)
		}
	}
}

// awaitLog reads until somebody has written something.
func (w *worker) awaitLog(name, text string) {
	w.t.Helper()
	for !strings.Contains(w.logs[name], text) {
		f, err := w.frames.Read()
		if err != nil || f.Kind != invokewire.FrameLog {
			w.t.Fatalf("%v, %v, want %q in the log of %q: %q", f.Kind, err, text, name, w.logs)
		}
		who, more, _ := f.Log()
		w.logs[who] += string(more)
	}
}

// invoke makes one invoke and gives the answer.
func (w *worker) invoke(id, payload string) string {
	w.t.Helper()
	w.begin(id, payload)
	var done invokewire.Done
	w.decode(w.await(invokewire.FrameDone), &done)
	if done.RequestID != id || w.answer.begin.RequestID != id {
		w.t.Fatalf("%+v %+v, want %s", done, w.answer.begin, id)
	}
	return string(w.answer.body)
}

func (w *worker) begin(id, payload string) {
	w.t.Helper()
	i := invokewire.Invoke{RequestID: id, DeadlineMs: time.Now().Add(time.Hour).UnixMilli(), ARN: "arn:f"}
	if err := w.frames.WriteInvoke(i, []byte(payload)); err != nil {
		w.t.Fatal(err)
	}
}

// reset ends the instance's processes.
func (w *worker) reset(grace time.Duration) {
	w.t.Helper()
	w.send(invokewire.FrameReset, invokewire.Stop{Reason: "timeout", GraceMs: grace.Milliseconds()})
	w.await(invokewire.FrameResetDone)
}

// over reads until thaw-init is gone, and gives what it said with its exit.
func (w *worker) over() (string, error) {
	w.t.Helper()
	for {
		f, err := w.frames.Read()
		if err != nil {
			break
		}
		if name, text, err := f.Log(); err == nil {
			w.logs[name] += string(text)
		}
		if f.Kind == invokewire.FrameExited {
			var e invokewire.Exited
			w.decode(f, &e)
			w.exits = append(w.exits, e)
		}
	}
	select {
	case err := <-w.ended:
		w.ended <- err
		return w.stderr.String(), err
	case <-time.After(patience):
		w.t.Fatal("thaw-init does not end")
		return "", nil
	}
}

// pids gives the processes of the instance as the machine sees them, by their states.
func (w *worker) pids() map[string]int {
	w.t.Helper()
	inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid_for_children", w.cmd.Process.Pid))
	if err != nil {
		w.t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	states := map[string]int{}
	for _, dir := range all {
		if ns, err := os.Readlink(dir + "/ns/pid"); err != nil || ns != inside {
			continue
		}
		text, _ := os.ReadFile(dir + "/stat")
		_, rest, ok := strings.Cut(string(text), ") ")
		if ok {
			states[rest[:1]]++
			states["all"]++
		}
	}
	return states
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
