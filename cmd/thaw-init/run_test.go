package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

func TestInvokes(t *testing.T) {
	w := newWorker(t)
	if w.hello.Phase != "fresh" {
		t.Error(w.hello)
	}
	if done := w.ready(w.setup("function")); len(done.Extensions) != 0 {
		t.Errorf("%+v", done)
	}
	if w.logs[""] != "starting\n" {
		t.Errorf("the log of init: %q", w.logs[""])
	}
	for n := range 3 {
		text := fmt.Sprint("line ", n)
		w.logs = map[string]string{}
		if got := w.invoke(fmt.Sprint("r", n), `{"Do":"print","Text":"`+text+`"}`); got != `"`+text+`"` {
			t.Errorf("%s", got)
		}
		// All of it is there before the invoke is done.
		if got, want := w.logs[""], text+"\n"+text+" without end"; got != want {
			t.Errorf("log %q, want %q", got, want)
		}
	}
	if got := w.invoke("fails", `{"Do":"fail","Text":"as told"}`); got != `{"errorMessage":"as told","errorType":"errorString"}` || w.answer.begin.ErrorType != "Runtime.Unknown" {
		t.Errorf("%s %+v", got, w.answer.begin)
	}
	text := strings.Repeat("z", invokewire.MaxPayload-len(`{"Do":"echo","Text":""}`))
	if got := w.invoke("large", `{"Do":"echo","Text":"`+text+`"}`); got != `"`+text+`"` {
		t.Errorf("%d bytes back", len(got))
	}
	if got := w.invoke("most", fmt.Sprintf(`{"Do":"bytes","N":%d}`, invokewire.MaxPayload)); len(got) != invokewire.MaxPayload {
		t.Errorf("%d bytes back", len(got))
	}
	w.begin("more", fmt.Sprintf(`{"Do":"bytes","N":%d}`, invokewire.MaxPayload+1))
	w.await(invokewire.FrameEnd)
	if got := w.answer.begin.ErrorType + w.answer.end.ErrorType; got != "Function.ResponseSizeTooLarge" {
		t.Errorf("%+v %+v", w.answer.begin, w.answer.end)
	}
}

// What the function sees is what it should, and the first process is out of its
// reach.
func TestInside(t *testing.T) {
	w := newWorker(t)
	s := w.setup("function")
	s.Env = append(s.Env, "SECRET=1")
	w.ready(s)
	var found map[string]string
	if err := json.Unmarshal([]byte(w.invoke("r", `{"Do":"look"}`)), &found); err != nil {
		t.Fatal(err)
	}
	user := strings.TrimSpace(strings.Repeat(fmt.Sprint(functionUser, " "), 4))
	for name, want := range map[string]string{
		"args": "arg", "Uid": user, "Gid": user, "Groups": "", "files": "1024", "NoNewPrivs": "1", "dir": "/tmp", "fd0": "/dev/null", "oom": "500",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"environ of init":     "open /proc/1/environ: permission denied",
		"descriptors of init": "open /proc/1/fd: permission denied",
		"memory of init":      "open /proc/1/mem: permission denied",
		"killing init":        "operation not permitted",
		"tracing init":        "operation not permitted",
		"stdout":              "<nil>",
	} {
		if found[name] != want {
			t.Errorf("%s: %q, want %q", name, found[name], want)
		}
	}
	if !strings.HasPrefix(found["env"], strings.Join(s.Env, " ")) || strings.Contains(found["env"], "INIT_ONLY") {
		t.Errorf("env: %s", found["env"])
	}
	if found["fd1"] != found["fd2"] || !strings.HasPrefix(found["fd1"], "pipe:") {
		t.Errorf("descriptors: %q %q", found["fd1"], found["fd2"])
	}
	for name, to := range found {
		if strings.HasPrefix(name, "fd") && to == "/etc/passwd" {
			t.Errorf("%s is one that thaw-init was started with", name)
		}
	}
	if !strings.Contains(w.logs[""], "to /dev/stdout\n") {
		t.Errorf("log %q", w.logs[""])
	}
}

// Three capabilities are enough.
func TestFewRights(t *testing.T) {
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("SKIPPED: no setpriv on this machine")
	}
	w := newWorker(t, "setpriv", "--bounding-set", "-all,+setuid,+setgid,+kill", "--inh-caps", "-all")
	if got := w.ofInit(t, "status"); !strings.Contains(got, "CapEff:\t00000000000000e0") {
		t.Errorf("it has more than that: %s", got)
	}
	for range 2 {
		w.ready(w.setup("function"))
		var found map[string]string
		if err := json.Unmarshal([]byte(w.invoke("r", `{"Do":"look"}`)), &found); err != nil {
			t.Fatal(err)
		}
		if found["CapEff"] != "0000000000000000" || found["NoNewPrivs"] != "1" || found["oom"] != "500" || found["killing init"] != "operation not permitted" || found["stdout"] != "<nil>" {
			t.Errorf("%v", found)
		}
		w.begin("h", `{"Do":"hang"}`)
		w.reset(0)
	}
	if got := strings.TrimSpace(w.ofInit(t, "oom_score_adj")); got != "0" {
		t.Errorf("its own score is %s", got)
	}
}

// However the runtime ends, the worker is told exactly.
func TestExits(t *testing.T) {
	for name, c := range map[string]struct {
		payload string
		want    invokewire.Exited
		text    string
	}{
		"status":    {`{"Do":"exit","N":5}`, invokewire.Exited{Status: 5}, "exit status 5"},
		"success":   {`{"Do":"exit","N":0}`, invokewire.Exited{}, "exit status 0"},
		"killed":    {`{"Do":"kill","N":9}`, invokewire.Exited{Status: -1, Signal: 9}, "signal: killed"},
		"terminate": {`{"Do":"kill","N":15}`, invokewire.Exited{Status: -1, Signal: 15}, "signal: terminated"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorker(t)
			w.ready(w.setup("function"))
			w.begin("r", c.payload)
			if f := w.next(); f.Kind != invokewire.FrameExited {
				t.Fatalf("%v %s", f.Kind, f.Data)
			}
			c.want.ErrorType = "Runtime.ExitError"
			if w.exits[0] != c.want || w.exits[0].String() != c.text {
				t.Errorf("%+v %v, want %+v", w.exits[0], w.exits[0], c.want)
			}
			w.reset(0)
			w.ready(w.setup("function"))
			w.invoke("again", `{}`)
		})
	}
}

// A runtime that is killed while it answers has not answered, whatever has come;
// its end is told in any case.
func TestKilledWithinAnswer(t *testing.T) {
	w := newWorker(t)
	for _, but := range []int{0, 1, 2, 6, 10, 16, 18} { // at its end, between its parts, and within them
		w.ready(w.setup("function"))
		w.exits, w.answer = nil, answer{}
		w.begin("r", fmt.Sprintf(`{"Do":"cut","N":%d}`, but))
		ends, reset := 0, false
		for f := w.next(); f.Kind != invokewire.FrameResetDone; f = w.next() {
			if f.Kind == invokewire.FrameEnd {
				ends++
			}
			if len(w.exits) > 0 && !reset {
				reset = true
				w.send(invokewire.FrameReset, invokewire.Stop{Reason: "failure"})
			}
		}
		if but > 0 && ends > 0 && w.answer.end.ErrorType != invokewire.ErrorTruncated || len(w.exits) != 1 || w.exits[0].ErrorType != "Runtime.ExitError" || ends > 1 {
			t.Errorf("%d bytes are missing: %+v, %+v", but, w.answer, w.exits)
		}
	}
}

func TestInitFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "garbage"), []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		_ = os.Chmod(d, 0o755)
	}
	for name, c := range map[string]struct {
		role        string
		change      func(*invokewire.Setup)
		kind, cause string
		body        string
		exit        *invokewire.Exited
	}{
		"exit":           {"exit", nil, "Runtime.ExitError", "", "", &invokewire.Exited{Status: 3, ErrorType: "Runtime.ExitError"}},
		"posted":         {"init-error", nil, "Runtime.HandlerNotFound", "", `{"errorMessage":"cannot"}`, nil},
		"no program":     {"", func(s *invokewire.Setup) { s.Argv = []string{"/not/there"} }, "Runtime.InvalidEntrypoint", "fork/exec /not/there: no such file or directory", "", nil},
		"not in PATH":    {"", func(s *invokewire.Setup) { s.Argv = []string{"no-such-program"} }, "Runtime.InvalidEntrypoint", `exec: "no-such-program": executable file not found in $PATH`, "", nil},
		"not executable": {"", func(s *invokewire.Setup) { s.Argv = []string{filepath.Join(dir, "text")} }, "Runtime.InvalidEntrypoint", "permission denied", "", nil},
		"garbage":        {"", func(s *invokewire.Setup) { s.Argv = []string{filepath.Join(dir, "garbage")} }, "Runtime.InvalidEntrypoint", "exec format error", "", nil},
		"no folder":      {"", func(s *invokewire.Setup) { s.Workdir = "/not/there" }, "Runtime.InvalidWorkingDir", "chdir /not/there: no such directory", "", nil},
		"a file":         {"", func(s *invokewire.Setup) { s.Workdir = "/etc/passwd" }, "Runtime.InvalidWorkingDir", "chdir /etc/passwd: no such directory", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorker(t)
			for range 2 { // after a reset it fails again in the same way
				s := w.setup(c.role)
				if c.change != nil {
					c.change(&s)
				}
				w.send(invokewire.FrameSetup, s)
				var failed invokewire.InitFailed
				w.decode(w.await(invokewire.FrameInitFailed), &failed)
				if failed.ErrorType != c.kind || !strings.HasSuffix(failed.Cause, c.cause) || string(failed.Body) != c.body || strings.Contains(failed.Cause, "\n") {
					t.Errorf("%+v", failed)
				}
				if c.exit != nil && (failed.Exit == nil || *failed.Exit != *c.exit) {
					t.Errorf("%+v", failed.Exit)
				}
				if name == "exit" && w.logs[""] != "last words" {
					t.Errorf("log %q", w.logs[""])
				}
				w.logs = map[string]string{}
				w.reset(0)
			}
		})
	}
}

// A reset ends all but thaw-init, whatever they have become, and the next setup
// starts anew.
func TestReset(t *testing.T) {
	w := newWorker(t)
	for range 3 {
		w.ready(w.setup("function"))
		w.invoke("d", `{"Do":"daemon"}`)
		w.begin("h", `{"Do":"hang"}`)
		until(t, "runtime and daemon run", func() bool { return w.pids()["all"] >= 3 })
		w.reset(0)
		if e := w.exits[len(w.exits)-1]; e.Signal != 9 || e.ErrorType != "" {
			t.Errorf("%+v", e)
		}
		if left := w.pids(); left["all"] != 1 {
			t.Errorf("left: %v", left)
		}
	}
}

// Orphans are reaped while the function goes on, and a bomb of them ends with a
// reset.
func TestOrphans(t *testing.T) {
	w := newWorker(t)
	w.ready(w.setup("function"))
	w.invoke("r", `{"Do":"orphans","N":100}`)
	until(t, "orphans are gone", func() bool { return w.pids()["all"] == 2 })
	w.begin("bomb", `{"Do":"bomb"}`)
	until(t, "many processes", func() bool { return w.pids()["all"] > 150 })
	w.reset(0)
	if left := w.pids(); left["all"] != 1 {
		t.Errorf("left: %v", left)
	}
	w.ready(w.setup("function"))
	w.invoke("r", `{}`)
}

// Who writes without end waits for the worker, and costs thaw-init nothing.
func TestFlood(t *testing.T) {
	const bytes, mostKiB = 16 << 20, 16 << 10
	w := newWorker(t)
	w.ready(w.setup("function"))
	w.begin("r", fmt.Sprintf(`{"Do":"flood","N":%d}`, bytes))
	before, same := "", 0
	until(t, "the writer waits", func() bool { // for a worker that does not read
		now := w.ioOfInit(t)
		if same++; now != before || now == "" {
			before, same = now, 0
		}
		return same > 20
	})
	if kib := w.memoryOfInit(t); kib > mostKiB {
		t.Errorf("thaw-init has %d KiB", kib)
	}
	got := 0
	for {
		f, err := w.frames.Read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind == invokewire.FrameDone {
			break
		}
		if _, text, err := f.Log(); err == nil {
			got += len(text)
			if text[len(text)-1] != '\n' || len(text)%121 != 0 {
				t.Fatalf("a line is cut: %d bytes", len(text))
			}
		}
	}
	if want := bytes / 121 * 121; got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if kib := w.memoryOfInit(t); kib > mostKiB {
		t.Errorf("thaw-init has %d KiB", kib)
	}
}

// BenchmarkInvoke is the way through thaw-init and back, with Go's client.
func BenchmarkInvoke(b *testing.B) {
	w := newWorker(b)
	w.ready(w.setup("function"))
	for b.Loop() {
		w.invoke("r", `{"Text":"t"}`)
	}
}

// ofInit reads a file of thaw-init's, as the machine sees it.
func (w *worker) ofInit(t *testing.T, name string) string {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", w.cmd.Process.Pid, w.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(string(children)), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (w *worker) ioOfInit(t *testing.T) string {
	_, rest, _ := strings.Cut(w.ofInit(t, "io"), "rchar: ")
	n, _, _ := strings.Cut(rest, "\n")
	return n
}

func (w *worker) memoryOfInit(t *testing.T) (kib int) {
	_, rest, _ := strings.Cut(w.ofInit(t, "status"), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d KiB at most", kib)
	return kib
}

// A worker that comes back finds the instance as it left it.
func TestRedial(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accept := func() net.Conn {
		_ = l.(*net.UnixListener).SetDeadline(time.Now().Add(patience))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	w := &worker{t: t}
	w.start(nil, "--socket", path)
	w.meet(accept())
	w.ready(w.setup("function"))
	w.invoke("r1", `{}`)
	for n, phase := range []string{"idle", "idle", "busy"} {
		if phase == "busy" {
			w.begin("r2", `{"Do":"hang"}`)
			w.awaitLog("", "hanging\n")
		}
		_ = w.conn.Close()
		w.meet(accept())
		if w.hello.Phase != phase {
			t.Errorf("%d: %+v", n, w.hello)
		}
		if phase == "idle" {
			w.invoke(fmt.Sprint("again", n), `{}`)
		}
	}
	w.reset(0)
	w.ready(w.setup("function"))
	w.invoke("r3", `{}`)
}
