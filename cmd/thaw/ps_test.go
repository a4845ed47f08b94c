package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/host"
)

func TestSince(t *testing.T) {
	now := time.Now()
	for want, then := range map[string]time.Time{
		"0s": now.Add(400 * time.Millisecond), "3s": now.Add(-3 * time.Second), "25h0m1s": now.Add(-25*time.Hour - time.Second),
		"-": now.Add(time.Hour), // the clock was set back
	} {
		if got := since(then, now); got != want {
			t.Errorf("%v ago is %q, want %q", now.Sub(then), got, want)
		}
	}
	if got := since(time.Time{}, now); got != "-" {
		t.Errorf("never is %q", got)
	}
}

func TestInstanceWhat(t *testing.T) {
	for want, i := range map[string]host.Instance{
		"mounted at /mnt": {Kind: host.KindMount, Target: "/mnt"}, "mount at /mnt": {Kind: host.KindMount, Target: "/mnt"},
		"(the image's own command)": {Kind: host.KindRun}, "a b": {Kind: host.KindRun, Command: []string{"a", "b"}},
	} {
		if got := instanceWhat(&i, strings.HasPrefix(want, "mounted")); got != want {
			t.Errorf("%+v: %q, want %q", i, got, want)
		}
	}
}

// A spoilt record is shown, and no verb fails for it.
func TestDamagedRecords(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	r := m.serve("app")
	left := filepath.Join(m.runDir(), "instances", "0123456789ab")
	found, err := filepath.Glob(filepath.Join(m.runDir(), "instances", "*", "instance.json"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v, %v", found, err)
	}
	if err := os.Mkdir(left, 0o711); err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{found[0]: "", left + "/instance.json": "{", left + "/lock": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(m.must("ps"), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1]+lines[2], " left over ") || !strings.Contains(lines[1]+lines[2], " damaged ") {
		t.Errorf("ps says %q", lines)
	}
	// It may say what tests beside this one have left, of whose state the folder is gone.
	runs, out := filepath.Base(filepath.Dir(found[0])), m.must("prune")
	if strings.Count(out, "removed instance 0123456789ab\n") != 1 || strings.Contains(out, runs) {
		t.Errorf("prune says %q, and %s runs", out, runs)
	}
	if e := m.thaw("umount", t.TempDir()); e.code != 1 || strings.Contains(e.stderr, "instance.json") {
		t.Errorf("umount: %+v", e)
	}
	r.reads(1, 0) // it runs on
	if e := r.end(); e.code != 0 {
		t.Errorf("%+v", e)
	}
}
