package worker

import (
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/internal/testoci"
	"thaw/invokewire"
)

const (
	// hostileMemory is a hostile function's, in MB.
	hostileMemory = 256
	// scratchSlack is what the file system of /tmp may be larger than its files and
	// a fiftieth of them, in MiB.
	scratchSlack = 32
	// mostHeap is what a worker's heap may take with all hostile functions at once.
	mostHeap = 64 << 20
	// hostileLog is what an invoke may log, and loose what the platform's own lines take.
	hostileLog, loose = 256 << 10, 16 << 10
)

// Whatever a function does, its caller gets an answer in time, a neighbour of
// another tenant goes on, its limits hold, and the function's next invoke works,
// here or in another instance; then nothing of it is left.
func TestHostileFunctions(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Logs.Invoke = hostileLog })
	r.w.limits.reset = usualLimits().reset
	r.start("neighbour", "", spec(func(s *invokewire.Spec) { s.Function, s.Tenant = "neighbour", "other" }))
	if got := r.invoke("neighbour", "first", "1"); got.body != "1" {
		t.Fatalf("the neighbour: %+v", got)
	}
	var asked atomic.Int64
	over, ended := make(chan struct{}), make(chan struct{})
	go func() { // the only one who invokes it
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			if got := r.invoke("neighbour", "n", "1"); got.body != "1" || got.status != http.StatusOK {
				t.Errorf("the neighbour: %+v", got)
			}
			asked.Add(1)
			var m runtime.MemStats
			if runtime.ReadMemStats(&m); m.HeapInuse > mostHeap {
				t.Errorf("the worker's heap takes %d MiB", m.HeapInuse>>20)
			}
		}
	}()
	t.Run("all", func(t *testing.T) {
		for name, do := range testoci.Hostile() {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r.of(t).hostile(strings.NewReplacer(" ", "-", "/", "").Replace(name), do)
			})
		}
	})
	close(over)
	<-ended
	if asked.Load() == 0 {
		t.Error("the neighbour was not asked")
	}
}

// hostile invokes a function that does harm until it is ended, and once more.
func (r *rig) hostile(id, do string) {
	r.t.Helper()
	r.start(id, "", spec(func(s *invokewire.Spec) {
		s.Function, s.Memory, s.Timeout, s.Env["FUNCTION_IGNORE_SIGTERM"] = id, hostileMemory, time.Second, "1"
	}))
	i := r.w.find(id)
	<-i.ready
	if i.failed != nil {
		r.t.Fatal(i.failed)
	}
	group, scratch := i.box.slot.host.Cgroup(), i.box.slot.host.Dir("scratch")
	done := make(chan said, 1)
	go func() { done <- r.invoke(id, "r1", `{"do":`+do+`}`) }()
	var got said
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for working := true; working; {
		select {
		case got = <-done:
			working = false
		case <-tick.C:
			r.held(group, scratch)
		}
	}
	if got.status != 200 || !strings.Contains(got.tail, "REPORT RequestId: r1") || got.failed == "" && !strings.Contains(got.body, `"wrote":"error: after `) {
		r.t.Errorf("%.500s %.500s", got.body, got.tail)
	}
	i.mu.Lock()
	i.spec.Timeout = patience // the others do harm still
	i.mu.Unlock()
	if next := r.invoke(id, "r2", "2"); next.body != "2" && next.status != http.StatusGone {
		r.t.Errorf("the next: %+v", next)
	}
	r.do("DELETE", "/instances/"+id+"?force", nil).Body.Close()
	r.until("nothing of it is left", func() bool { return r.w.find(id) == nil })
	for controller := range map[string]bool{"pids": true, "memory": true} {
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", controller, group)); err == nil {
			r.t.Errorf("its group of %s is left", controller)
		}
	}
	if _, err := os.Stat(scratch); err == nil {
		r.t.Errorf("%s is left", scratch)
	}
	var bytes int64
	files, err := filesOf(filepath.Join(r.state, "logs", "000000000000", id))
	if err != nil {
		r.t.Fatal(err)
	}
	if bytes = sum(files); bytes > hostileLog+loose || bytes == 0 {
		r.t.Errorf("its log takes %d bytes", bytes)
	}
}

// held checks an instance's limits: those that the kernel was told, and what the
// kernel says is used. What is gone by now is fine.
func (r *rig) held(group, scratch string) {
	r.t.Helper()
	for _, c := range []struct {
		controller, limit, used string
		most                    int64
	}{
		{"pids", "pids.max", "pids.current", processLimit},
		{"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", hostileMemory<<20 + initMemory},
	} {
		dir := filepath.Join("/sys/fs/cgroup", c.controller, group) // of v1
		if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", c.controller)); err != nil {
			dir = filepath.Join("/sys/fs/cgroup", group)
			c.limit, c.used = c.controller+".max", c.controller+".current"
		}
		limit, lok := number(filepath.Join(dir, c.limit))
		used, uok := number(filepath.Join(dir, c.used))
		for range 1000 { // the kernel counts what is asked for before it refuses it
			if uok && used > c.most {
				used, uok = number(filepath.Join(dir, c.used))
			}
		}
		if lok && limit > c.most || uok && used > c.most {
			r.t.Errorf("%s: %d of %d, want %d at most", c.controller, used, limit, c.most)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(scratch, &fs); err == nil && fs.Type == unix.EXT4_SUPER_MAGIC {
		// What is used may not be asked: the kernel counts what is being written twice.
		if size := int64(fs.Blocks) * fs.Bsize; size > (slotTmp+slotTmp/50+scratchSlack)<<20 {
			r.t.Errorf("/tmp may take %d MiB", size>>20)
		}
	}
}

func number(path string) (int64, bool) {
	data, err := os.ReadFile(path)
	n, perr := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil && perr == nil
}

// So it is with what a function does before its first invoke.
func TestHostileInits(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Logs.Invoke = hostileLog })
	r.w.limits.init, r.w.limits.reset = time.Second, usualLimits().reset
	for name, do := range testoci.HostileInits() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, id := r.of(t), strings.ReplaceAll(name, " ", "-")
			r.start(id, "", spec(func(s *invokewire.Spec) {
				s.Function, s.Timeout, s.Env["FUNCTION_INIT_DO"] = id, time.Second, do
			}))
			if got := r.invoke(id, "r1", "1"); !strings.Contains(got.body, "Sandbox.Timedout") && got.status != http.StatusGone {
				t.Errorf("%+v", got)
			}
			r.do("DELETE", "/instances/"+id+"?force", nil).Body.Close()
			files, err := filesOf(filepath.Join(r.state, "logs", "000000000000", id))
			if n := sum(files); err != nil || n > 2*(hostileLog+loose) { // the init, and again within the invoke
				t.Errorf("its log takes %d bytes, %v", n, err)
			}
		})
	}
}

// of is the rig for a test within the test.
func (r *rig) of(t *testing.T) *rig {
	inner := *r
	inner.t = t
	return &inner
}
