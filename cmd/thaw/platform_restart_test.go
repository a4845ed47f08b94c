package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// What was there is there again: after an end and a start, queued events too,
// and from a backup in another state folder that has the same images. One that
// was killed leaves nothing that keeps the next from starting.
func TestPlatformRestart(t *testing.T) {
	r := newRegion(t)
	r.must("deploy", "hello", sampleLayout(t), "--command", "/function", "--timeout", "60", "--publish")
	key := r.must("keys", "create", "--json")
	backup := filepath.Join(t.TempDir(), "backup")
	r.must("cluster", "backup", backup)
	r.queued(t, "an event that no worker got.")
	again := restarted(t, r, "--nodes=5")
	if out := again.must("invoke", "hello:1", `{"a":1}`); out != "{\"a\":1}\n" {
		t.Errorf("after a restart: %q", out)
	}
	again.until(t, "the queued event is tried", func() bool {
		return strings.Contains(again.must("logs", "hello"), "an event that no worker got.")
	})
	again.until(t, "a function reaches the Lambda API", func() bool { return strings.HasPrefix(again.reached(t), "403") })
	again.killed(t)
	if err := os.RemoveAll(filepath.Join(r.state, "fleet", "cluster")); err != nil {
		t.Fatal(err)
	}
	r.must("cluster", "restore", backup)
	if e := r.thaw("cluster", "restore", backup); e.code != 1 {
		t.Errorf("restoring over what is there: %+v", e)
	}
	third := restarted(t, r, "--network=none")
	if out := third.must("invoke", "hello", `{"a":2}`); out != "{\"a\":2}\n" {
		t.Errorf("from a backup: %q", out)
	}
	if got := third.reached(t); !strings.HasPrefix(got, "error: ") {
		t.Errorf("a function without a network reaches the Lambda API: %q", got)
	}
	var pair struct{ ID string }
	if err := json.Unmarshal([]byte(key), &pair); err != nil || !strings.Contains(third.must("keys", "list"), pair.ID) {
		t.Errorf("the key %s is gone: %v", pair.ID, err)
	}
	if e := r.thaw("up"); e.code != 1 || !strings.Contains(e.stderr, "runs already") {
		t.Errorf("a second platform: %+v", e)
	}
	third.down()
	if e := r.thaw("invoke", "hello"); e.code != 1 || !strings.Contains(e.stderr, "no platform runs") {
		t.Errorf("without a platform: %+v", e)
	}
}

// reached is what a function gets from the Lambda API inside.
func (r *region) reached(t *testing.T) string {
	t.Helper()
	const api = "http://thaw.internal:9000/2015-03-31/functions"
	var told toldOf
	if err := json.Unmarshal([]byte(r.must("invoke", "hello", `{"do":{"get":["`+api+`"]}}`)), &told); err != nil {
		t.Fatal(err)
	}
	return told.Get[api]
}

// queued ends the platform with an event in its queue, of which a function is to
// log a text, and that no worker has got: the worker stands still from before it
// is accepted until it is killed, when the platform has begun to end.
func (r *region) queued(t *testing.T, text string) {
	t.Helper()
	worker := r.role(t, "worker")
	try(t, syscall.Kill(worker, syscall.SIGSTOP))
	r.must("invoke", "hello", fmt.Sprintf(`{"do":{"log_text":%q}}`, text), "--async")
	try(t, r.up.cmd.Process.Signal(syscall.SIGINT))
	r.until(t, "the worker is told to end", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", worker))
		_, rest, ok := strings.Cut(string(status), "\nShdPnd:\t")
		line, _, _ := strings.Cut(rest, "\n")
		pending, perr := strconv.ParseUint(line, 16, 64)
		if err != nil || perr != nil || !ok {
			t.Fatalf("what waits for the worker: %v, %v", err, perr)
		}
		return pending&(1<<(syscall.SIGTERM-1)) != 0
	})
	try(t, syscall.Kill(worker, syscall.SIGKILL))
	if e := r.up.wait(); e.code != exitInterrupted && e.code != 0 {
		t.Errorf("up ended with status %d: %s", e.code, e.stderr)
	}
}

// killed kills thaw up itself: all that it runs ends.
func (r *region) killed(t *testing.T) {
	t.Helper()
	roles := children(r.up.cmd.Process.Pid)
	if len(roles) != len(platformRoles) {
		t.Errorf("it runs %v", roles)
	}
	try(t, r.up.cmd.Process.Kill())
	r.up.wait()
	r.until(t, "all roles have ended", func() bool {
		for _, pid := range roles {
			if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(line) > 0 {
				return false
			}
		}
		return true
	})
	if left, err := r.left(); err != nil || len(left) > 0 {
		t.Errorf("left by a platform that was killed: %s, %v", strings.Join(left, "; "), err)
	}
}
