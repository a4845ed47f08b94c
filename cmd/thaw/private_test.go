package main

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"thaw/mount"
	"thaw/sandbox"
)

// What a machine's other users see of running containers is nothing: not the
// image, not what was written, not the names of folders; and containers start
// all the same, as root and as others, in each form, with each runtime.
func TestOtherUsersSeeNothing(t *testing.T) {
	t.Parallel() // it waits for processes mostly
	m := newMachine(t)
	m.convert("app", 7)
	volume := t.TempDir()
	runtimes := []string{"crun", "runc"}
	if _, err := sandbox.Find("runsc"); err == nil {
		runtimes = append(runtimes, "runsc")
	}
	for _, runtime := range runtimes {
		for _, flags := range [][]string{{"-u", "0"}, {"-u", "1000", "-v", volume + ":/volume"}, {"-u", "app", "--rw-block"}} {
			r := m.serve(append(append([]string{"--runtime", runtime}, flags...), "app")...)
			r.reads(7, 0)
			if len(flags) == 4 {
				if got := r.ask("ls /volume"); got != "" {
					t.Errorf("%s: the volume says %q", runtime, got)
				}
			}
			mounts, err := mount.Under(m.runDir())
			if err != nil || len(mounts) < 3 {
				t.Fatalf("%v, %v", mounts, err)
			}
			for _, mnt := range mounts {
				seenBy(t, mnt.Dir, 0, true)
				seenBy(t, mnt.Dir, 65534, false)
			}
			if e := r.end(); e.code != 0 {
				t.Errorf("%s %q: status %d\n%s", runtime, flags, e.code, e.stderr)
			}
		}
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
