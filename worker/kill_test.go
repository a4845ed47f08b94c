package worker

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/host"
	"thaw/invokewire"
	"thaw/sandbox"
)

// work is a worker that says its address and serves until it is killed. Its parts
// are those of the test that started it.
func work(state, dir string) error {
	o, err := options(dir, state, "")
	if err != nil {
		return err
	}
	w, err := New(o)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: w.Handler(), ReadHeaderTimeout: patience}
	go func() { _ = server.Serve(l) }()
	fmt.Println(l.Addr())
	return w.Run(context.Background())
}

// A worker that is killed, with instances in all phases, leaves nothing that the
// next one does not find and end.
func TestKilledWorker(t *testing.T) {
	needRoot(t)
	state := filepath.Join(t.TempDir(), "state")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, asWorker, state, parts)
	cmd.Stderr, cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, url: "http://" + strings.TrimSpace(line), client: &http.Client{Transport: &http.Transport{ReadBufferSize: 16 << 10}}}
	r.until("the worker takes starts", func() bool {
		return r.do("POST", "/instances", invokewire.Start{ID: "idle", Spec: spec(nil)}).StatusCode == 202
	})
	if got := r.invoke("idle", "r1", "1"); got.body != "1" {
		t.Fatalf("%+v", got)
	}
	r.start("busy", "", spec(nil))
	go func() { // its answer never comes
		req, err := http.NewRequest("POST", r.url+"/instances/busy/invoke", strings.NewReader(`{"do":{"sleep_ms":600000}}`))
		if err != nil {
			return
		}
		req.Header.Set(invokewire.HeaderToken, "token")
		req.Header.Set(invokewire.HeaderRequestID, "r2")
		if resp, err := r.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	r.until("one is frozen, one works", func() bool {
		return frozen() && r.phase("busy") == invokewire.PhaseBusy
	})
	r.kill(cmd, state)
	next := newRigOn(t, state) // without slots, whose groups would be there as well
	left, err := sandbox.Cgroups("/thaw-" + filepath.Base(runDir(state)))
	if err != nil || len(left) > 0 {
		t.Errorf("groups are left: %v, %v", left, err)
	}
	all, err := next.w.o.Host.Instances()
	for _, i := range all {
		if i.Keeper != os.Getpid() {
			t.Errorf("left: %+v", i)
		}
	}
	if err != nil {
		t.Error(err)
	}
	next.start("idle", "", spec(nil))
	if got := next.invoke("idle", "r3", "3"); got.body != "3" {
		t.Errorf("%+v", got)
	}
}

// kill kills a worker that has an image mounted, in the midst of a start. Its blank
// agent does not outlive it.
func (r *rig) kill(worker *exec.Cmd, state string) {
	r.t.Helper()
	r.until("one agent serves, one is started ahead", func() bool { return len(agents(state)) == 2 })
	r.start("starting", "", spec(nil))
	_ = worker.Process.Kill()
	_ = worker.Wait() // the signal says it
	r.until("the blank agent has ended", func() bool { return len(agents(state)) == 1 })
}

// frozen tells whether some group of ours is.
func frozen() bool {
	files, _ := filepath.Glob("/sys/fs/cgroup/freezer/thaw-*/freezer.state")
	more, _ := filepath.Glob("/sys/fs/cgroup/thaw-*/cgroup.freeze")
	unified, _ := filepath.Glob("/sys/fs/cgroup/unified/thaw-*/cgroup.freeze")
	for _, name := range append(append(files, more...), unified...) {
		if text, _ := os.ReadFile(name); strings.HasPrefix(string(text), "FROZEN") || strings.HasPrefix(string(text), "1") {
			return true
		}
	}
	return false
}

// phase is an instance's.
func (r *rig) phase(id string) string {
	var s invokewire.WorkerState
	resp := r.do("GET", "/state", nil)
	defer resp.Body.Close()
	r.decode(resp, &s)
	for _, i := range s.Instances {
		if i.ID == id {
			return i.Phase
		}
	}
	return ""
}

// newRigOn is newRig on a state that is there, with nothing prepared.
func newRigOn(t *testing.T, state string) *rig {
	t.Helper()
	o, err := options(parts, state, "")
	if err != nil {
		t.Fatal(err)
	}
	o.Slots = -1
	return runRig(t, state, o)
}

// Instances whose image's agent was killed are gone, whether they work or not,
// and are no function's failure; the next start mounts the image anew.
func TestKilledAgent(t *testing.T) {
	r := newRig(t, nil)
	for _, id := range []string{"i1", "works"} {
		r.start(id, "", spec(nil))
		if got := r.invoke(id, "r1", "1"); got.body != "1" {
			t.Fatalf("%+v", got)
		}
	}
	cut := make(chan said, 1)
	go func() { cut <- r.invoke("works", "r2", `{"do":{"sleep_ms":600000}}`) }()
	r.until("it works", func() bool { return r.phase("works") == invokewire.PhaseBusy })
	n, err := r.w.o.Host.Ask(t.Context())
	if err != nil || len(n.Images) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	if err := syscall.Kill(n.Images[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := <-cut; got.cut == nil {
		t.Errorf("the one that worked has answered %+v", got)
	}
	r.until("both are gone", func() bool { return r.phase("i1") == "" && r.phase("works") == "" })
	if got := r.invoke("i1", "r3", "1"); got.status != http.StatusGone {
		t.Errorf("%+v", got)
	}
	r.start("i2", "", spec(nil))
	if got := r.invoke("i2", "r4", "2"); got.body != "2" || got.kind != invokewire.StartFull {
		t.Errorf("%+v", got)
	}
}

// A fetcher that was killed is there again though an image cannot be taken down:
// a start mounts it, and waits for chunks.
func TestKilledFetcher(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	if got := r.invoke("i1", "r1", "1"); got.body != "1" {
		t.Fatalf("%+v", got)
	}
	n, err := r.w.o.Host.Ask(t.Context())
	if err != nil || len(n.Images) != 1 || len(n.Fetchers) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	held, err := os.Open(filepath.Join(runDir(r.state), "images", n.Images[0].Key+".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	kill := func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	kill(n.Images[0].PID)
	r.until("the image is about to be taken down", func() bool {
		r.w.roots.mu.Lock()
		defer r.w.roots.mu.Unlock()
		return len(r.w.roots.all)+len(r.w.roots.old) == 0
	})
	for range 2 {
		before := n.Fetchers[0].PID
		kill(before)
		r.until("there is another", func() bool {
			n, err = r.w.o.Host.Ask(t.Context())
			return err == nil && len(n.Fetchers) == 1 && n.Fetchers[0].PID != before
		})
	}
}

// A start in whose midst the agent is killed is the worker's failure, not the
// function's.
func TestKilledAgentInInit(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_DO"] = `{"log_text":"initialising","sleep_ms":600000}` }))
	i := r.w.find("i1")
	r.until("it is initialised", func() bool { return r.w.logs.bytes.Load() > 0 })
	n, err := r.w.o.Host.Ask(t.Context())
	if err != nil || len(n.Images) != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	if err := syscall.Kill(n.Images[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.until("it is known", func() bool {
		r.w.roots.mu.Lock()
		defer r.w.roots.mu.Unlock()
		return len(r.w.roots.all) == 0
	})
	i.box.kill()
	if resp := r.do("GET", "/instances/i1/ready", nil); resp.StatusCode != http.StatusInternalServerError {
		t.Error(resp.Status)
	}
	r.until("it is gone", func() bool { return r.phase("i1") == "" })
}

// An instance that is killed in its init says whose fault that is, and leaves nothing.
func TestKilledInInit(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_DO"] = `{"log_text":"initialising","sleep_ms":600000}` }))
	i := r.w.find("i1")
	r.until("it is initialised", func() bool { return r.w.logs.bytes.Load() > 0 })
	if err := syscall.Kill(i.box.process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if resp := r.do("GET", "/instances/i1/ready", nil); resp.StatusCode != http.StatusUnprocessableEntity {
		t.Error(resp.Status)
	}
	r.until("it is gone", func() bool { return r.phase("i1") == "" })
}

// A killed instance answers its caller in time, is gone, and leaves nothing.
func TestKilledInstance(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	done := make(chan said, 1)
	go func() { done <- r.invoke("i1", "r1", `{"do":{"sleep_ms":600000}}`) }()
	r.until("it works", func() bool { return r.phase("i1") == invokewire.PhaseBusy })
	if err := syscall.Kill(r.w.find("i1").box.process.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := <-done; got.failed != "Unhandled" || !strings.Contains(got.body, "signal: killed") || !strings.Contains(got.tail, "REPORT RequestId: r1") {
		t.Errorf("%+v", got)
	}
	r.until("it is gone", func() bool { return r.phase("i1") == "" })
	if got := r.invoke("i1", "r2", "1"); got.status != http.StatusGone {
		t.Errorf("%+v", got)
	}
	all, err := r.w.o.Host.Instances()
	for _, i := range all {
		if i.Kind == host.KindFunction && i.ImageID != "" {
			t.Errorf("left: %+v, %v", i, err)
		}
	}
}

// What thaw-init does not take holds no turn of others' long payloads: it ends with
// the function's time, or the payload's if that is over sooner.
func TestStuckPayload(t *testing.T) {
	r := newRig(t, nil)
	for id, timeout := range map[string]time.Duration{"late": time.Second, "long": 15 * time.Minute} {
		r.start(id, "", spec(nil))
		if got := r.invoke(id, "r0", "1"); got.body != "1" {
			t.Fatalf("%+v", got)
		}
		r.limit(id, timeout)
		if err := syscall.Kill(r.w.find(id).box.process.PID, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	payload := `"` + strings.Repeat("x", 2<<20) + `"`
	if got := r.invoke("late", "r1", payload); !strings.Contains(got.body, "Task timed out after 1.00 seconds") || !strings.Contains(got.tail, "Status: timeout") {
		t.Errorf("%+v", got)
	}
	r.w.payloads.handing = 100 * time.Millisecond
	if got := r.invoke("long", "r2", payload); !strings.Contains(got.body, "signal: killed") {
		t.Errorf("%+v", got)
	}
	r.until("all turns are free", func() bool { return len(r.w.payloads.turns) == 0 })
	r.until("both are gone", func() bool { return r.phase("late") == "" && r.phase("long") == "" })
}
