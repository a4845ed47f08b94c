package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"thaw/internal/testbin"
	"thaw/invokewire"
)

// told is what the sample function tells.
type told struct {
	Instance  string
	Invokes   int
	Memory    int `json:"memory_mb"`
	User      int
	LogStream string `json:"log_stream"`
	ARN       string
	Version   string
	Wrote     string
	Forked    string
	Env       map[string]string
	Files     map[string]string
	Get       map[string]string
	RemainMS  int64 `json:"remain_ms"`
}

// ask has the function do something, and tell.
func (r *rig) ask(id, request, do string) (told, said) {
	r.t.Helper()
	got := r.invoke(id, request, `{"do":`+do+`}`)
	var v told
	if got.status == http.StatusOK && got.failed == "" {
		if err := json.Unmarshal([]byte(got.body), &v); err != nil {
			r.t.Fatalf("%s: %v", got.body, err)
		}
	}
	return v, got
}

var (
	coldTail = regexp.MustCompile(`^START RequestId: r1 Version: \$LATEST\nEND RequestId: r1\nREPORT RequestId: r1\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 512 MB\tMax Memory Used: \d+ MB\tInit Duration: \d+\.\d\d ms\t\n$`)
	warmTail = regexp.MustCompile(`^START RequestId: r2 Version: \$LATEST\nhello\nEND RequestId: r2\nREPORT RequestId: r2\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 512 MB\tMax Memory Used: \d+ MB\t\n$`)
)

// A function starts cold and answers, then warm, in one instance, as somebody
// without rights, with each OCI runtime.
func TestColdAndWarm(t *testing.T) {
	for _, runtime := range []string{"crun", "runc", "runsc"} {
		t.Run(runtime, func(t *testing.T) {
			path := testbin.Runtime(t, runtime)
			r := newRig(t, func(o *Options) { o.Runtime = path })
			r.start("i1", "", spec(func(s *invokewire.Spec) { s.Env["MINE"] = "1" }))
			cold := r.invoke("i1", "r1", `{"hello":1}`)
			if cold.status != 200 || cold.body != `{"hello":1}` || cold.failed != "" || !coldTail.MatchString(cold.tail) {
				t.Errorf("%+v", cold)
			}
			v, warm := r.ask("i1", "r2", `{"log_text":"hello","env":["MINE","FROM_IMAGE","AWS_LAMBDA_RUNTIME_API"],"files":["/etc/hosts","/proc/self/status"]}`)
			if !warmTail.MatchString(warm.tail) || warm.kind != invokewire.StartWarm || v.Invokes != 2 || v.User != firstUser || v.Memory != 512 || v.LogStream != warm.stream || !strings.HasSuffix(v.ARN, ":live") {
				t.Errorf("%+v, %+v", warm, v)
			}
			if v.Env["MINE"] != "1" || v.Env["FROM_IMAGE"] != "1" || v.Env["AWS_LAMBDA_RUNTIME_API"] != apiAddress || !strings.HasPrefix(v.Files["/etc/hosts"], "127.0.0.1\tlocalhost") {
				t.Errorf("%v %v", v.Env, v.Files)
			}
			for _, want := range []string{"CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "CapInh:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
				if runtime == "runsc" && strings.HasPrefix(want, "Seccomp") { // gVisor filters outside
					continue
				}
				if !strings.Contains(v.Files["/proc/self/status"], want) {
					t.Errorf("no %q in\n%s", want, v.Files["/proc/self/status"])
				}
			}
		})
	}
}

// A short invoke's REPORT tells of the memory that it has taken itself.
func TestMemoryUsed(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	for n, taken := range []int{0, 40, 60, 0} { // MB; they are kept
		got := r.invoke("i1", fmt.Sprint("r", n), fmt.Sprintf(`{"do":{"allocate_mb":%d}}`, taken))
		_, text, _ := strings.Cut(got.tail, "Max Memory Used: ")
		var used int
		if _, err := fmt.Sscan(text, &used); err != nil || used < []int{1, 40, 100, 100}[n] || used > 160 {
			t.Errorf("with %d MB more: %q", taken, got.tail)
		}
	}
}

// Full and partial starts can be forced, are counted, and their stages tell them
// apart: a partial one makes no root and no slot.
func TestForcedStarts(t *testing.T) {
	r := newRig(t, nil)
	for n, force := range []string{invokewire.StartFull, invokewire.StartPartial, invokewire.StartPartial, invokewire.StartFull} {
		id := fmt.Sprintf("i%d", n)
		r.start(id, force, spec(nil))
		if got := r.invoke(id, "r1", `1`); got.kind != force || got.body != "1" {
			t.Errorf("%s: %+v", force, got)
		}
		all := r.w.history.list()
		last := all[len(all)-1]
		_, image := last.Stages["image"]
		if (force == invokewire.StartFull) != image || last.Kind != force || last.Stages["sandbox"] == 0 || last.Stages["init"] == 0 {
			t.Errorf("%s: %+v", force, last)
		}
		if resp := r.do("DELETE", "/instances/"+id, nil); resp.StatusCode != http.StatusNoContent {
			t.Error(resp.Status)
		}
	}
	if s := r.w.state(true); s.Starts[invokewire.StartFull] != 2 || s.Starts[invokewire.StartPartial] != 2 || len(s.Instances) != 0 {
		t.Errorf("%+v", s)
	}
}

// A function that takes too long is ended, its caller told, and it starts anew
// within the next invoke, with the same /tmp.
func TestTimeout(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	before, _ := r.ask("i1", "r0", `{"write_mb":1}`)
	done := make(chan said, 1)
	go func() { done <- r.invoke("i1", "r1", `{"do":{"log_text":"soon","sleep_ms":600000}}`) }()
	r.until("it has logged", func() bool { return slices.Contains(lines(t, r.w.logs, query{}), "soon") })
	r.expire("i1")
	got := <-done
	if got.status != 200 || got.failed != "Unhandled" || got.body != `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: r1 Error: Task timed out after 180.00 seconds"}` {
		t.Errorf("%+v", got)
	}
	want := regexp.MustCompile(`^START RequestId: r1 Version: \$LATEST\nsoon\n\S+ r1 Task timed out after 180.00 seconds\n\nEND RequestId: r1\nREPORT RequestId: r1\tDuration: 180000.00 ms\tBilled Duration: 180000 ms\t.*\tStatus: timeout\n$`)
	if !want.MatchString(got.tail) {
		t.Errorf("tail %q", got.tail)
	}
	after, said := r.ask("i1", "r2", `{"calls":["GET /2018-06-01/ping"],"env":["HOME"]}`)
	if said.failed != "" || after.Instance == before.Instance || after.Instance == "" || after.Invokes != 1 || strings.Contains(said.tail, "Init Duration") {
		t.Errorf("%+v after %+v", said, before)
	}
	if left, _ := filepath.Glob(filepath.Join(r.tmp("i1"), "*")); len(left) == 0 {
		t.Error("/tmp is another")
	}
}

// expire lets the time of an instance's invoke be over.
func (r *rig) expire(id string) {
	i := r.w.find(id)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.call.timer.Reset(0)
}

// tmp is where an instance's /tmp is on this machine.
func (r *rig) tmp(id string) string { return r.w.find(id).box.slot.tmp }

// A process that ends is told to the caller, by status or signal, and the next
// invoke finds a new one. gVisor is one process to the kernel, which ends all of it
// when there is no more memory: then the next invoke needs another instance.
func TestExit(t *testing.T) {
	for _, runtime := range []string{"crun", "runsc"} {
		t.Run(runtime, func(t *testing.T) {
			path := testbin.Runtime(t, runtime)
			r := newRig(t, func(o *Options) { o.Runtime = path })
			r.start("i1", "", spec(func(s *invokewire.Spec) { s.Memory = 256 }))
			var tail string
			for n, c := range []struct{ do, message string }{
				{`{"exit":127}`, "Runtime exited with error: exit status 127"},
				{`{"exit":0}`, "Runtime exited without providing a reason"},
				{`{"allocate_mb":400}`, "Runtime exited with error: signal: killed"}, // out of memory
			} {
				tail = r.exits(fmt.Sprintf("r%d", n), c.do, c.message)
			}
			if !strings.Contains(tail, "\tMemory Size: 256 MB\tMax Memory Used: 256 MB\t") {
				t.Errorf("out of memory: %q", tail)
			}
			if runtime == "runsc" {
				r.until("the instance is gone", func() bool { return r.phase("i1") == "" })
			} else if _, got := r.ask("i1", "r9", `{}`); got.failed != "" || got.status != 200 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// exits has the function of i1 end, wants its caller to be told so, and gives what its log ends with.
func (r *rig) exits(id, do, message string) (tail string) {
	r.t.Helper()
	got := r.invoke("i1", id, `{"do":`+do+`}`)
	want := `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: ` + id + ` Error: ` + message + `"}`
	if got.status != 200 || got.failed != "Unhandled" || got.body != want || !strings.Contains(got.tail, "\tStatus: error\tError Type: Runtime.ExitError\n") {
		r.t.Errorf("%s: %+v", do, got)
	}
	return got.tail
}

// An error that the function reports is passed on, and the instance lives.
func TestFunctionError(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	got := r.invoke("i1", "r1", `{"do":{"error":"no luck"}}`)
	if got.status != 200 || got.failed != "Unhandled" || !strings.Contains(got.body, `"errorMessage":"no luck"`) || strings.Contains(got.tail, "Status:") {
		t.Errorf("%+v", got)
	}
	if v, _ := r.ask("i1", "r2", `{}`); v.Invokes != 2 {
		t.Errorf("%+v", v)
	}
}

// An answer that is too large is an error in its place.
func TestLargeAnswers(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(func(s *invokewire.Spec) { s.Memory = 1769 }))
	event := `"` + strings.Repeat("x", 6<<20-2) + `"`
	if got := r.invoke("i1", "r1", event); got.body != event {
		t.Errorf("%d bytes, %q", len(got.body), got.failed)
	}
	got := r.invoke("i1", "r2", fmt.Sprintf(`{"do":{"answer_bytes":%d}}`, invokewire.MaxPayload+1))
	body, failed := got.body, got.failed
	if got.trailingFailed != "" {
		decoded, err := base64.StdEncoding.DecodeString(got.trailingFailed)
		if err != nil {
			t.Fatal(err)
		}
		body, failed = string(decoded), "Unhandled"
	}
	if want := `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}`; body != want || failed == "" {
		t.Errorf("%.200s %q", body, failed)
	}
}

// Inits that fail are reported, and run again within the first invoke, whose
// caller learns why.
func TestInitFailures(t *testing.T) {
	r := newRig(t, nil)
	for n, c := range []struct {
		change     func(*invokewire.Spec)
		kind, text string
	}{
		{func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_EXIT"] = "3" }, "Runtime.ExitError", "RequestId: r1 Error: Runtime exited with error: exit status 3"},
		{func(s *invokewire.Spec) { s.Entrypoint = []string{"/missing"} }, "Runtime.InvalidEntrypoint", "RequestId: r1 Error: "},
		{func(s *invokewire.Spec) { s.Workdir = "/missing" }, "Runtime.InvalidWorkingDir", "RequestId: r1 Error: "},
	} {
		id := fmt.Sprintf("i%d", n)
		r.start(id, "", spec(c.change))
		got := r.invoke(id, "r1", `{}`)
		if got.status != 200 || got.failed != "Unhandled" || !strings.HasPrefix(got.body, `{"errorType":"`+c.kind+`","errorMessage":"`+c.text) {
			t.Errorf("%s: %+v", c.kind, got)
		}
		log := strings.Join(lines(t, r.w.logs, query{stream: r.w.find(id).log.name}), "\n")
		want := regexp.MustCompile(`^INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: ` + c.kind + "\nSTART")
		if !want.MatchString(log) || !strings.Contains(log, "\tPhase: invoke\tStatus: error\tError Type: "+c.kind) {
			t.Errorf("%s: log\n%s", c.kind, log)
		}
	}
}

// /tmp is on disk: it takes more than the memory, and no more than its size.
func TestTmp(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(func(s *invokewire.Spec) { s.Memory, s.Timeout = 128, 15*time.Minute }))
	if v, got := r.ask("i1", "r1", `{"write_mb":400}`); v.Wrote != "400 MiB" && !strings.HasPrefix(v.Wrote, "400") {
		t.Errorf("%+v %+v", v, got)
	}
	if v, got := r.ask("i1", "r2", `{"write_mb":-1}`); !strings.Contains(v.Wrote, "no space left") || !strings.Contains(v.Wrote, "112") {
		t.Errorf("%q %+v", v.Wrote, got)
	}
	if v, got := r.ask("i1", "r3", `{}`); v.Invokes != 3 {
		t.Errorf("%+v", got)
	}
}

// An idle instance is frozen, uses no processor, and an invoke thaws it.
func TestFreeze(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	for n := range 3 {
		if got := r.invoke("i1", "r1", `1`); got.body != "1" {
			t.Fatalf("%d: %+v", n, got)
		}
		group := r.w.find("i1").box.group
		r.until("the instance is frozen", group.Frozen)
		before, err := group.CPUTime()
		if err != nil {
			t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond)
		if later, err := group.CPUTime(); err != nil || later-before > time.Millisecond { // what is counted of the freeze itself
			t.Errorf("frozen, it used %v; %v", later-before, err)
		}
		if got := r.invoke("i1", "r2", `2`); got.body != "2" {
			t.Fatalf("%d: %+v", n, got)
		}
		if after, err := group.CPUTime(); err != nil || after <= before {
			t.Errorf("%v, then %v; %v", before, after, err)
		}
	}
}

// An instance is frozen once it has been idle for 100 ms, neither before nor
// while it works, and each invoke counts anew.
func TestFreezesAfter100Milliseconds(t *testing.T) {
	onStage(t, false, func(s *stage) {
		frozen := func(after time.Duration, want bool) {
			s.t.Helper()
			<-time.After(after)
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.waking != want {
				s.t.Fatalf("%v later it is frozen: %t, want %t", after, s.waking, want)
			}
		}
		s.freezer = nil // as of one that has just started
		s.mu.Lock()
		s.rest()
		s.mu.Unlock()
		frozen(100*time.Millisecond-1, false)
		frozen(1, true)
		for range 2 { // found frozen, and found idle
			_, wait := s.begins("r")
			s.hears(invokewire.FrameInvoke)
			frozen(time.Second, false)
			s.answers("r", "1")
			wait()
			frozen(100*time.Millisecond-1, false)
		}
		frozen(1, true)
	})
}

// An instance takes one invoke at a time.
func TestBusy(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	done := make(chan said, 1)
	go func() { done <- r.invoke("i1", "r1", `{"do":{"sleep_ms":600000}}`) }()
	r.until("it works", func() bool {
		s := r.w.state(true)
		return len(s.Instances) == 1 && s.Instances[0].Phase == invokewire.PhaseBusy
	})
	if got := r.invoke("i1", "r2", `{}`); got.status != http.StatusConflict {
		t.Errorf("%+v", got)
	}
	if resp := r.do("DELETE", "/instances/i1", nil); resp.StatusCode != http.StatusConflict {
		t.Error(resp.Status)
	}
	if resp := r.do("DELETE", "/instances/i1?force", nil); resp.StatusCode != http.StatusNoContent {
		t.Error(resp.Status)
	}
	if got := <-done; got.status != 200 || !strings.Contains(got.body, "signal: killed") {
		t.Errorf("%+v", got)
	}
	if got := r.invoke("i1", "r3", `{}`); got.status != http.StatusGone {
		t.Errorf("%+v", got)
	}
}

// A worker that ends breaks its answers off: no function has failed.
func TestEndsAtWork(t *testing.T) {
	r := newRig(t, nil)
	r.start("i1", "", spec(nil))
	done := make(chan said, 1)
	go func() { done <- r.invoke("i1", "r1", `{"do":{"sleep_ms":600000}}`) }()
	r.until("it works", func() bool { return r.phase("i1") == invokewire.PhaseBusy })
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if got := <-done; got.cut == nil {
		t.Errorf("%+v", got)
	}
}

// A flood of log lines is cut, counted, and the tail still ends with REPORT.
func TestLogFlood(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Logs.Invoke = 64 << 10 })
	r.start("i1", "", spec(nil))
	_, got := r.ask("i1", "r1", `{"log_lines":200000,"log_text":"flood"}`)
	if !regexp.MustCompile(`\n\[thaw\] \d+ more lines, \d+ bytes, were not kept: an invoke may log 65536 bytes\nEND RequestId: r1\nREPORT .*\t\n$`).MatchString(got.tail) {
		t.Errorf("tail %q", got.tail)
	}
	info, err := os.Stat(r.w.find("i1").log.file.path)
	if err != nil || info.Size() > 4*64<<10 {
		t.Errorf("%v, %v", info, err)
	}
}

// A freeze that comes after an invoke has come and gone stops nobody: what is idle
// is frozen, or not, but the next invoke finds it running.
func TestLateFreeze(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(nil))
	if got := r.invoke("i", "r1", "1"); got.body != "1" {
		t.Fatalf("%+v", got)
	}
	i := r.w.find("i")
	r.until("it is frozen", i.box.group.Frozen)
	i.mu.Lock()
	i.freezer = time.AfterFunc(time.Hour, func() {}) // nobody else freezes it
	i.mu.Unlock()
	if got := r.invoke("i", "r2", "2"); got.body != "2" {
		t.Fatalf("%+v", got)
	}
	if !i.drowse() {
		t.Fatal("it is not idle")
	}
	if got := r.invoke("i", "r3", "3"); got.body != "3" {
		t.Fatalf("%+v", got)
	}
	if err := i.box.group.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.frozen(nil)
	if i.box.group.Frozen() {
		t.Error("it is frozen, and nobody knows")
	}
	if got := r.invoke("i", "r4", "4"); got.body != "4" {
		t.Errorf("%+v", got)
	}
	i.mu.Lock()
	i.freezer = time.AfterFunc(time.Hour, i.freeze)
	i.mu.Unlock()
	if !i.drowse() {
		t.Fatal("it is not idle")
	}
	i.frozen(fmt.Errorf("it took too long: %w", context.DeadlineExceeded))
	r.until("it is frozen at the next try", i.box.group.Frozen)
	if got := r.invoke("i", "r5", "5"); got.body != "5" {
		t.Errorf("%+v", got)
	}
}
