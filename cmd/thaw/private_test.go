package main

import (
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"thaw/internal/testbin"
	"thaw/mount"
)

// What a machine's other users see of running containers is nothing: not the
// image, not what was written, not the names of folders; and containers start
// all the same, as root and as others, in each form, with each runtime.
func TestOtherUsersSeeNothing(t *testing.T) {
	t.Parallel() // it waits for processes mostly
	m := newMachine(t)
	m.convert("app", 7)
	volume := t.TempDir()
	for _, runtime := range []string{"crun", "runc", "runsc"} {
		t.Run(runtime, func(t *testing.T) {
			m.t = t
			path := testbin.Runtime(t, runtime)
			for _, flags := range [][]string{{"-u", "0"}, {"-u", "1000", "-v", volume + ":/volume"}, {"-u", "app", "--rw-block"}} {
				m.seesNothing(append([]string{"--runtime", path}, flags...)...)
			}
		})
	}
}

// seesNothing starts a container, and looks at it as others.
func (m *machine) seesNothing(flags ...string) {
	m.t.Helper()
	r := m.serve(append(flags, "app")...)
	r.reads(7, 0)
	if slices.Contains(flags, "-v") {
		if got := r.ask("ls /volume"); got != "" {
			m.t.Errorf("the volume says %q", got)
		}
	}
	mounts, err := mount.Under(m.runDir())
	if err != nil || len(mounts) < 3 {
		m.t.Fatalf("%v, %v", mounts, err)
	}
	for _, mnt := range mounts {
		seenBy(m.t, mnt.Dir, 0, true)
		seenBy(m.t, mnt.Dir, 65534, false)
	}
	if e := r.end(); e.code != 0 {
		m.t.Errorf("%q: status %d\n%s", flags, e.code, e.stderr)
	}
}

// seenBy checks whether a user can reach a folder.
func seenBy(t *testing.T, dir string, user uint32, want bool) {
	t.Helper()
	cmd := exec.Command("stat", "-f", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	out, err := cmd.CombinedOutput()
	if err == nil != want || err != nil && !strings.Contains(string(out), "Permission denied") {
		t.Errorf("user %d and %s: %v\n%s", user, dir, err, out)
	}
}
