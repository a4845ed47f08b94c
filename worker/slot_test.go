package worker

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/host"
	"thaw/invokewire"
	"thaw/network"
	"thaw/sandbox"
)

// filled has all slots prepared, and compares their kinds.
func (s *slots) filled(t *testing.T, want []slotKind) {
	t.Helper()
	for more := true; more; {
		var err error
		if more, err = s.prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.count() > s.want {
			t.Fatalf("%d slots", s.count())
		}
	}
	var kinds []slotKind
	for _, f := range s.free {
		kinds = append(kinds, f.kind)
	}
	if !slices.Equal(kinds, want) {
		t.Errorf("%v, want %v", kinds, want)
	}
}

// taken takes a slot, if there should be one.
func (s *slots) taken(t *testing.T, k slotKind, there bool) {
	t.Helper()
	got := s.take(k)
	if (got != nil) != there || got != nil && got.kind != k {
		t.Errorf("%v: %+v", k, got)
	}
	if got != nil {
		if err := got.close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// Slots are prepared of the kinds that were asked for last, as many of each, and
// never more in all than are wanted.
func TestSlotsFollowDemand(t *testing.T) {
	needRoot(t)
	h, err := host.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	usual, other := slotKind{slotTmp, true}, slotKind{1024, false}
	s := newSlots(3, usual, func(_ context.Context, k slotKind) (*slot, error) {
		i, err := h.NewInstance(host.KindFunction, nil, nil)
		return &slot{kind: k, host: i}, err
	})
	fill := func(want ...slotKind) { t.Helper(); s.filled(t, want) }
	take := func(k slotKind, there bool) { t.Helper(); s.taken(t, k, there) }
	fill(usual, usual, usual)
	take(other, false)
	fill(usual, usual, other)
	take(other, true)
	fill(usual, other, other)
	take(usual, true)
	fill(other, other, usual)
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	fill()
	take(usual, false)
	fill(other, usual, usual)
	if err := s.drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := h.Attached(); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
	none := newSlots(0, usual, s.build)
	if none.take(usual) != nil {
		t.Error("a slot of none")
	}
	if more, err := none.prepare(t.Context()); more || err != nil {
		t.Errorf("%t, %v", more, err)
	}
	if err := h.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// prepared gives the process of a prepared slot of a kind, once there is one.
func (r *rig) prepared(k slotKind) (pid int) {
	r.t.Helper()
	r.until("a sandbox is prepared", func() bool {
		r.w.slots.mu.Lock()
		defer r.w.slots.mu.Unlock()
		for _, f := range r.w.slots.free {
			if f.kind == k && f.process != nil {
				pid = f.process.PID
			}
		}
		return pid != 0
	})
	return pid
}

// A start takes a sandbox that runs already, with its network, and has nothing to
// start but the function; one that has ended meanwhile is not taken.
func TestPreparedSandbox(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	n, err := network.Open(network.Options{State: filepath.Join(dir, "net"), Run: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	r := newRig(t, func(o *Options) { o.Network = n })
	if !r.w.runtime.SharesKernel() {
		t.Skip("NOT TESTED: neither crun nor runc is here")
	}
	for n, c := range []struct{ egress, there, kill bool }{
		{egress: true, there: true}, {egress: false}, {egress: false, there: true}, {egress: false, there: true, kill: true}, {egress: true},
	} {
		id, pid := "i"+strconv.Itoa(n), 0
		if c.there {
			pid = r.prepared(slotKind{slotTmp, c.egress})
		}
		if c.kill {
			_ = unix.Kill(pid, unix.SIGKILL)
			r.until("it has ended", func() bool { return !(&slot{process: &sandbox.Process{PID: pid}}).alive() })
			r.w.slots.making.Lock() // none is prepared in its place meanwhile
		}
		r.start(id, "", spec(func(s *invokewire.Spec) { s.Egress, s.Memory = c.egress, 300 }))
		v, got := r.ask(id, "r1", `{"files":["/proc/self/mounts","/etc/resolv.conf","/sys/fs/cgroup/memory/memory.limit_in_bytes","/sys/fs/cgroup/memory.max"],"write_mb":1}`)
		if c.kill {
			r.w.slots.making.Unlock()
		}
		if got.failed != "" || v.Wrote == "" {
			t.Fatalf("%+v", got)
		}
		box := r.w.find(id).box
		all := r.w.history.list()
		last := all[len(all)-1].Stages
		_, launched := last["bundle"]
		_, attached := last["network"]
		taken := c.there && !c.kill
		if taken != (box.process.PID == pid) || launched == taken || attached != (c.egress && !taken) {
			t.Errorf("%+v: process %d, prepared %d, stages %v", c, box.process.PID, pid, last)
		}
		mounts, limit := v.Files["/proc/self/mounts"], strconv.Itoa(300<<20+initMemory)
		if strings.Count(mounts, " / ") != 1 || !strings.Contains(mounts, " / overlay ro,nosuid,nodev") || strings.Contains(mounts, "/.thaw") {
			t.Error(mounts)
		}
		if !strings.HasPrefix(v.Files["/sys/fs/cgroup/memory/memory.limit_in_bytes"]+v.Files["/sys/fs/cgroup/memory.max"], limit) && !strings.Contains(v.Files["/sys/fs/cgroup/memory.max"], limit) {
			t.Errorf("memory: %v, want %s", v.Files, limit)
		}
		if strings.Contains(v.Files["/etc/resolv.conf"], "nameserver") != c.egress {
			t.Error(v.Files["/etc/resolv.conf"])
		}
	}
	if err := r.stop(); err != nil { // before the network
		t.Error(err)
	}
}
