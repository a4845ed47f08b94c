package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cgroups"
	"thaw/invokewire"
)

// stage is an instance whose thaw-init is the test: what it says is taken in the
// order in which the test says it, whatever else waits to run.
type stage struct {
	*instance
	t    *testing.T
	logs *logStore
	told *invokewire.Frames // what the instance says
}

// onStage runs a test on an idle instance, in a bubble. stale: it has to be
// initialised again.
func onStage(t *testing.T, stale bool, test func(s *stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		defer theirs.Close()
		w := &Worker{log: slog.New(slog.DiscardHandler), counts: newCounts(), limits: usualLimits(), users: map[string]uint32{}, logs: newLogStore(filepath.Join(t.TempDir(), "logs"), LogLimits{}, slog.New(slog.DiscardHandler)), history: &history{}}
		i, err := w.newInstance(invokewire.Start{ID: "i", Spec: spec(nil)})
		if err != nil {
			t.Fatal(err)
		}
		defer i.log.close()
		i.box = &box{slot: &slot{conn: ours, frames: invokewire.NewFrames(ours), group: &cgroups.Group{}}, w: w, root: &root{}}
		i.box.root.config.Entrypoint = []string{"/function"}
		i.phase, i.stale, i.freezer = invokewire.PhaseIdle, stale, time.AfterFunc(time.Hour, func() {})
		close(i.ready)
		test(&stage{i, t, w.logs, invokewire.NewFrames(theirs)})
		w.work.Wait()
	})
}

// says has the instance take a frame.
func (s *stage) says(kind invokewire.Kind, v any) {
	s.t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.take(invokewire.Frame{Kind: kind, Data: data}); err != nil {
		s.t.Fatal(err)
	}
}

// hears reads the frame that has to be next, and does what is asked for at once.
func (s *stage) hears(want invokewire.Kind) {
	s.t.Helper()
	frame, err := s.told.Read()
	if err != nil || frame.Kind != want {
		s.t.Fatalf("told %v, %v, want %v", frame.Kind, err, want)
	}
	if want == invokewire.FrameReset {
		s.says(invokewire.FrameResetDone, []byte(nil))
	}
	if want == invokewire.FrameInvoke {
		var in invokewire.Invoke
		if err := frame.Decode(&in); err != nil {
			s.t.Fatal(err)
		}
		if err := s.told.ReadPayload(make([]byte, in.Length)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// begins gives the function an invoke. wait waits for the answer.
func (s *stage) begins(id string) (c *call, wait func() (body, log string)) {
	s.t.Helper()
	got := httptest.NewRecorder()
	c = &call{invoke: invokewire.Invoke{RequestID: id}, tail: true, out: &answer{w: got}, answered: make(chan struct{}), done: make(chan struct{})}
	if err := s.claim(s.t.Context(), c); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	payloads := newPayloads()
	go func() {
		ended <- s.run(s.t.Context(), c, func(ctx context.Context) (*payload, error) {
			p, err := payloads.get(ctx, 1)
			if err == nil {
				p.bytes.WriteString("1")
			}
			return p, err
		})
	}()
	return c, func() (string, string) {
		s.t.Helper()
		if err := <-ended; err != nil {
			s.t.Fatal(err)
		}
		return got.Body.String(), string(c.text)
	}
}

const posted = `{"errorType":"NoConfig","errorMessage":"none found","stackTrace":[]}`

// exitOf is the error of a runtime that has ended with status 1.
func exitOf(id string) string { return string(exitError(id, "exit status 1").body()) }

// What a function posts of its init is its caller's answer, also if the process has
// ended before anybody has looked, or before it is told.
func TestPostedBeforeExit(t *testing.T) {
	exited := invokewire.Exited{Status: 1, ErrorType: "Runtime.ExitError"}
	failed := invokewire.InitFailed{ErrorType: "Function.NoConfig", Body: []byte(posted)}
	for _, exitFirst := range []bool{false, true} {
		onStage(t, true, func(s *stage) {
			_, wait := s.begins("r1")
			s.hears(invokewire.FrameReset)
			synctest.Wait() // it writes the setup, and looks at nothing meanwhile
			if exitFirst {
				s.says(invokewire.FrameExited, exited)
			}
			s.says(invokewire.FrameInitFailed, failed)
			if !exitFirst {
				s.says(invokewire.FrameExited, exited)
			}
			s.hears(invokewire.FrameSetup)
			s.hears(invokewire.FrameReset)
			body, log := wait()
			if body != posted || strings.Count(log, "INIT_REPORT") != 1 || !strings.Contains(log, "\tPhase: invoke\tStatus: error\tError Type: Function.NoConfig\n") || strings.Contains(log, "ExitError") {
				t.Errorf("exit first %t: %s\n%s", exitFirst, body, log)
			}
		})
	}
}

// A process that ends as its init is done does not get the invoke.
func TestExitAfterInit(t *testing.T) {
	exited := invokewire.Exited{Status: 1, ErrorType: "Runtime.ExitError"}
	for _, exitFirst := range []bool{false, true} {
		onStage(t, true, func(s *stage) {
			_, wait := s.begins("r1")
			s.hears(invokewire.FrameReset)
			synctest.Wait()
			if exitFirst {
				s.says(invokewire.FrameExited, exited)
			}
			s.says(invokewire.FrameInitDone, invokewire.InitDone{})
			if !exitFirst {
				s.says(invokewire.FrameExited, exited)
			}
			s.hears(invokewire.FrameSetup)
			s.hears(invokewire.FrameReset)
			if body, log := wait(); body != exitOf("r1") || strings.Contains(log, "INIT_REPORT") || !s.stale {
				t.Errorf("exit first %t: %s\n%s", exitFirst, body, log)
			}
		})
	}
	onStage(t, false, func(s *stage) { // in the init of its start
		s.phase = invokewire.PhaseInit
		s.says(invokewire.FrameInitDone, invokewire.InitDone{})
		s.says(invokewire.FrameExited, exited)
		if !s.stale {
			t.Error("it is taken for ready")
		}
	})
}

// A process that ends between invokes is started again within the next, which the
// ends of what it has left do not fail.
func TestExitBetweenInvokes(t *testing.T) {
	onStage(t, false, func(s *stage) {
		s.says(invokewire.FrameExited, invokewire.Exited{Status: 1})
		_, wait := s.begins("r1")
		synctest.Wait()
		s.says(invokewire.FrameExited, invokewire.Exited{Name: "extension", Signal: 9, Status: -1})
		s.hears(invokewire.FrameReset)
		s.hears(invokewire.FrameSetup)
		s.says(invokewire.FrameInitDone, invokewire.InitDone{})
		s.hears(invokewire.FrameInvoke)
		s.answers("r1", "2")
		if body, log := wait(); body != "2" || strings.Contains(log, "Status:") || s.stale {
			t.Errorf("%s\n%s", body, log)
		}
	})
}

// answers is a whole answer, and the wait for the next invoke.
func (s *stage) answers(id, body string) {
	s.t.Helper()
	s.says(invokewire.FrameBegin, invokewire.Begin{RequestID: id})
	s.says(invokewire.FrameData, []byte(body))
	s.says(invokewire.FrameEnd, invokewire.End{})
	s.says(invokewire.FrameDone, invokewire.Done{RequestID: id})
}

// An invoke that fails while it is written is written whole before the reset, and
// one that has failed before is not written at all.
func TestFailWhileSaying(t *testing.T) {
	onStage(t, false, func(s *stage) {
		c, wait := s.begins("r1")
		synctest.Wait() // it writes
		s.fail(c, failure{error: timeoutError("r1", time.Second), timeout: true})
		s.hears(invokewire.FrameInvoke)
		s.hears(invokewire.FrameReset)
		if body, log := wait(); !strings.Contains(body, "Sandbox.Timedout") || strings.Count(log, "REPORT") != 1 {
			t.Errorf("%s\n%s", body, log)
		}
		c, wait = s.begins("r2")
		synctest.Wait()
		s.fail(c, failure{error: timeoutError("r2", time.Second), timeout: true})
		s.hears(invokewire.FrameReset)
		s.hears(invokewire.FrameSetup)
		s.says(invokewire.FrameInitDone, invokewire.InitDone{}) // too late
		s.hears(invokewire.FrameReset)
		wait()
		if s.say(c, func() error { t.Error("what has failed is told"); return nil }) || !s.stale {
			t.Error("a call that has failed goes on")
		}
	})
}

// A timeout that comes as the function is done changes nothing: there is one
// REPORT, and nothing is reset, which by then may work for somebody else.
func TestTimeoutAsDone(t *testing.T) {
	onStage(t, false, func(s *stage) {
		c, wait := s.begins("r1")
		s.hears(invokewire.FrameInvoke)
		s.log.mu.Lock() // keeps it from writing its last lines
		said := make(chan struct{})
		go func() { s.answers("r1", "2"); close(said) }()
		for decided := false; !decided; {
			s.instance.mu.Lock()
			decided = c.decided
			s.instance.mu.Unlock()
			runtime.Gosched()
		}
		s.fail(c, failure{error: timeoutError("r1", time.Second), timeout: true})
		s.log.mu.Unlock()
		<-said
		body, log := wait()
		synctest.Wait()
		if body != "2" || strings.Count(log, "REPORT") != 1 || strings.Contains(log, "Status:") || s.stale || s.state().Phase != invokewire.PhaseIdle {
			t.Errorf("%s\n%s", body, log)
		}
		c, wait = s.begins("r2") // and the other way round
		s.hears(invokewire.FrameInvoke)
		s.says(invokewire.FrameBegin, invokewire.Begin{RequestID: "r2"})
		s.fail(c, failure{error: timeoutError("r2", time.Second), timeout: true})
		s.doneWith(c)
		s.hears(invokewire.FrameReset)
		if _, log := wait(); strings.Count(log, "REPORT") != 1 || !bytes.HasSuffix([]byte(log), []byte("Status: timeout\n")) {
			t.Error(log)
		}
	})
}

// A function that is killed between invokes starts anew within the next.
func TestKilledWhileIdle(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(nil))
	before, _ := r.ask("i", "r1", `{}`)
	i := r.w.find("i")
	pids, err := i.box.group.Procs()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && string(status) == "function\n" {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	r.until("its end is known", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.thaw() // where a frozen process does not die
		return i.stale
	})
	if after, got := r.ask("i", "r2", `{}`); got.failed != "" || after.Invokes != 1 || after.Instance == before.Instance {
		t.Errorf("%+v after %+v", got, before)
	}
	if r.w.find("i") != i {
		t.Error("the instance is gone")
	}
}
