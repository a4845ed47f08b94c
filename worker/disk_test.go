package worker

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// refused has a start refused, and gives why.
func (r *rig) refused(id string) string {
	r.t.Helper()
	resp := r.do("POST", "/instances", invokewire.Start{ID: id, Spec: spec(nil)})
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusTooManyRequests {
		r.t.Errorf("%s %s, %v", resp.Status, text, err)
	}
	return string(text)
}

// What functions write to /tmp counts. Beyond the limit nothing is started, idle
// instances end, the largest first, and those that work are let be.
func TestDiskLimit(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Disk = 64 << 20 })
	long := func(s *invokewire.Spec) { s.Timeout = 10 * time.Minute }
	for id, size := range map[string]int{"small": 8, "large": 25} { // MB
		r.start(id, "", spec(long))
		if got := r.invoke(id, "r1", `{"do":{"write_mb":`+strconv.Itoa(size)+`}}`); got.status != http.StatusOK {
			t.Fatalf("%+v", got)
		}
	}
	r.start("busy", "", spec(long))
	done := make(chan said)
	go func() { done <- r.invoke("busy", "r1", `{"do":{"write_mb":35,"hold_ms":600000}}`) }() // works from the first byte on
	r.until("the larger of the idle has ended", func() bool { return r.w.find("large") == nil })
	r.w.relieve(t.Context())
	if r.w.find("small") == nil || r.w.find("busy").state().Phase != invokewire.PhaseBusy {
		t.Error("more was ended than had to be")
	}
	s := r.w.state(false)
	if s.Disk != 64<<20 || s.DiskUsed == 0 {
		t.Errorf("%+v", s)
	}
	if n := r.w.tmp(); n < 8<<20 {
		t.Errorf("/tmp of all take %d bytes", n)
	}
	r.do("DELETE", "/instances/busy?force", nil).Body.Close()
	if got := <-done; got.failed == "" {
		t.Errorf("%+v", got)
	}
}

// Why starts are refused is in the log, once a minute.
func TestDiskFullTold(t *testing.T) {
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	w := &Worker{o: Options{Disk: LeastDisk, Memory: 1 << 30}, log: log, logs: newLogStore(t.TempDir(), LogLimits{}, log), open: true}
	w.logs.bytes.Store(LeastDisk/2 + 1)
	for range 2 {
		if err := w.start(invokewire.Start{ID: "i"}); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
	}
	if got := said.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=WARN`) || !strings.Contains(got, `used="4.0 MiB" limit="8.0 MiB" logs="4.0 MiB" instances=0`) {
		t.Errorf("%q", got)
	}
	first := w.toldFull
	w.tellFull(first.Add(fullEvery - 1))
	w.tellFull(first.Add(fullEvery))
	if n := strings.Count(said.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
}

// Starts are refused that there is no disk for, until there is.
func TestDiskAdmission(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Disk = 2*diskReserve + diskReserve/2 })
	for _, id := range []string{"a", "b"} {
		r.start(id, "", spec(nil))
		r.invoke(id, "r1", "1")
	}
	if most := r.w.logs.limits.Total; most != r.w.o.Disk/2 {
		t.Errorf("logs may take %d bytes of %d", most, r.w.o.Disk)
	}
	if why := r.refused("c"); !strings.Contains(why, "no disk for the /tmp of another instance") {
		t.Error(why)
	}
	r.do("DELETE", "/instances/a", nil).Body.Close()
	r.start("c", "", spec(nil))
	r.invoke("c", "r1", "1")
	r.do("DELETE", "/instances/b", nil).Body.Close() // beyond the limit what is idle would end
	r.w.measure()
	before := r.w.find("c").written.Load()
	r.ask("c", "r2", `{"write_mb":6}`)
	r.w.measure()
	if after := r.w.find("c").written.Load(); before > 2<<20 || after < 6<<20 || after > 8<<20 {
		t.Errorf("6 MB take %d bytes, after %d", after, before)
	}
}
