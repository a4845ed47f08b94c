package worker

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/host"
	"thaw/invokewire"
)

// runDir is where the runtime files of a state are (package host).
func runDir(state string) string {
	sum := sha256.Sum256([]byte(state))
	return "/run/thaw/" + hex.EncodeToString(sum[:6])
}

// agents gives the processes of a state's agents, blank or not.
func agents(state string) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		if line, _ := os.ReadFile(name); strings.HasPrefix(string(line), "thaw-agent\x00"+runDir(state)+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// blank gives the process of the agent that is started ahead, once there is one,
// and no other.
func (r *rig) blank() (pid int) {
	r.t.Helper()
	r.until("an agent is started ahead", func() bool {
		pids := agents(r.w.o.State)
		if len(pids) == 1 {
			pid = pids[0]
		}
		return len(pids) == 1 && r.w.blanks.count() == 1
	})
	return pid
}

// gone ends an instance, and has no image mounted.
func (r *rig) gone(id string) {
	r.t.Helper()
	if resp := r.do("DELETE", "/instances/"+id, nil); resp.StatusCode != http.StatusNoContent {
		r.t.Error(resp.Status)
	}
	if err := r.w.roots.drop(r.t.Context(), func(*root) bool { return true }); err != nil {
		r.t.Error(err)
	}
}

// A start whose image is not mounted takes an agent that was started ahead, as its
// stages tell, and one that is forced to find nothing prepared does not. Another is
// started in its place. One that was killed does no harm.
func TestBlankAgents(t *testing.T) {
	r := newRig(t, nil)
	for n, c := range []struct{ force, want string }{
		{"", host.StageBlank}, {invokewire.StartFull, host.StageAgent}, {"", host.StageBlank}, {"killed", host.StageAgent}, {"", host.StageBlank},
	} {
		pid := r.blank()
		if c.force == "killed" {
			c.force = ""
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		r.start("i", c.force, spec(nil))
		if got := r.invoke("i", "r1", "1"); got.body != "1" || got.kind != invokewire.StartFull {
			t.Fatalf("start %d: %+v", n, got)
		}
		all := r.w.history.list()
		last := all[len(all)-1].Stages
		_, blank := last[host.StageBlank]
		_, agent := last[host.StageAgent]
		if _, image := last["image"]; !image || blank != (c.want == host.StageBlank) || agent == blank {
			t.Errorf("start %d: stages %v, want %s", n, last, c.want)
		}
		mounted, err := r.w.o.Host.Ask(t.Context())
		if err != nil || len(mounted.Images) != 1 {
			t.Fatalf("%+v, %v", mounted, err)
		}
		if took := mounted.Images[0].PID == pid; took != blank {
			t.Errorf("start %d: its agent is %d, the blank one was %d", n, mounted.Images[0].PID, pid)
		}
		r.gone("i")
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if left := agents(r.w.o.State); len(left) > 0 {
		t.Errorf("agents are left: %v", left)
	}
}
