package worker

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// Processor time comes with memory: 1769 MB have one processor, counted over 20 ms.
func TestCPUShare(t *testing.T) {
	for mb, want := range map[int]time.Duration{1: time.Millisecond, 128: 1447 * time.Microsecond, 512: 5788 * time.Microsecond, 1769: cpuPeriod, 3538: 2 * cpuPeriod, 10240: 115771 * time.Microsecond} {
		if got := cpuShare(mb).Truncate(time.Microsecond); got != want || cpuPeriod != 20*time.Millisecond {
			t.Errorf("%d MB: %v in %v, want %v", mb, got, cpuPeriod, want)
		}
	}
}

// quota reads what the kernel lets an instance's processes run, as cgroup v2 writes
// kernel reads a file of an instance's group, in whichever hierarchy has it.
func (r *rig) kernel(id, name string) string {
	r.t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if !strings.Contains(line, " - cgroup") {
			continue
		}
		if data, err := os.ReadFile(filepath.Join(strings.Fields(line)[4], r.w.find(id).box.group.Path(), name)); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	return ""
}

// it: "max", or microseconds in each period.
func (r *rig) quota(id string) string {
	r.t.Helper()
	if limit := r.kernel(id, "cpu.max"); limit != "" {
		return strings.TrimSuffix(limit, " 100000") // the kernel's usual period
	}
	switch limit := r.kernel(id, "cpu.cfs_quota_us"); limit {
	case "":
		r.t.Fatal("the instance's group has no limit of processor time that could be read")
		return ""
	case "-1":
		return "max"
	default:
		return limit + " " + r.kernel(id, "cpu.cfs_period_us")
	}
}

// weight gives an instance's, as v2 counts.
func (r *rig) weight(id string) string {
	r.t.Helper()
	if shares := r.kernel(id, "cpu.shares"); shares != "" {
		n, err := strconv.Atoi(shares)
		if err != nil {
			r.t.Fatal(err)
		}
		return strconv.Itoa(n * 100 / 1024)
	}
	return r.kernel(id, "cpu.weight")
}

// A function has its share of processor time in invokes, and all that there is in its
// init.
func TestProcessorTime(t *testing.T) {
	r := newRig(t, nil)
	r.start("init", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_DO"] = `{"log_text":"in init","sleep_ms":600000}` }))
	var log []string
	r.until("it is in its init", func() bool {
		log = lines(t, r.w.logs, query{})
		return len(log) > 0 && log[len(log)-1] == "in init"
	})
	if got, weight := r.quota("init"), r.weight("init"); got != "max" || weight != "100" {
		t.Errorf("in an init: %s, weight %s", got, weight)
	}
	r.do("DELETE", "/instances/init?force", nil).Body.Close()
	r.start("i", "", spec(nil)) // of 512 MB
	open := r.gate("i")
	done := make(chan said, 1)
	go func() { done <- r.invoke("i", "r1", `{"do":{`+gated+`}}`) }()
	r.until("it has its share", func() bool { return r.quota("i") == "5788 20000" && r.weight("i") == "25" })
	open()
	if got := <-done; got.status != 200 || got.failed != "" {
		t.Errorf("%+v", got)
	}
}

// Who asked to know of the end has as much time for it as Lambda gives.
func TestGrace(t *testing.T) {
	internal, external := invokewire.Extension{Internal: true}, invokewire.Extension{}
	for _, c := range []struct {
		extensions []invokewire.Extension
		want       time.Duration
	}{
		{nil, 0},
		{[]invokewire.Extension{internal}, 500 * time.Millisecond},
		{[]invokewire.Extension{external, internal}, 2 * time.Second},
	} {
		i := &instance{w: &Worker{limits: usualLimits()}, extensions: c.extensions}
		if got := i.grace(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.extensions, got, c.want)
		}
	}
	if got := usualLimits().init; got != 10*time.Second {
		t.Errorf("an init may take %v", got)
	}
}
