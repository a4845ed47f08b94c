package testbin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	ours, err := filepath.Abs("../../bin/x")
	if got := Path(t, "x"); err != nil || got != ours {
		t.Errorf("%q, want %q, %v", got, ours, err)
	}
	t.Chdir("../..")
	if got := Path(t, "x"); got != ours {
		t.Errorf("%q at the top, want %q", got, ours)
	}
}

func TestRuntime(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: all is skipped for who is not root")
	}
	if got := Runtime(t, "runc"); got != "runc" {
		t.Error(got)
	}
}

// Whoever has no gVisor, or none that runs, is told why.
func TestTry(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ program, want string }{
		"works":  {"exit 0", ""},
		"fails":  {"echo no luck >&2; exit 1", "does not run on this machine: exit status 1: no luck"},
		"absent": {"", "make setup"},
	} {
		runsc := filepath.Join(dir, name)
		if c.program != "" {
			if err := os.WriteFile(runsc, []byte("#!/bin/sh\n"+c.program+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		err := try(t.Context(), runsc, dir)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
