// Package testbin finds the programs that setup.sh builds for tests.
package testbin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// patience bounds a trial: nothing takes it all unless it hangs.
const patience = 3 * time.Minute

// Path is where a program of that name is, if it was built: in the folder bin of
// the repository. Tests run in their package's folder.
func Path(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "bin", name)
		}
	}
	t.Fatal("no go.mod above the working folder: run tests in their package's folder")
	return ""
}

// Runtime gives what starts containers under an OCI runtime of that name: for runsc,
// which Debian 12 does not have, the path of the one that was built. A test without
// the right to start containers, or on a machine where gVisor by itself does not run
// a program, is skipped, loudly.
func Runtime(t testing.TB, name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skipf("NOT TESTED: starting containers under %s needs root", name)
	}
	if name != "runsc" {
		return name
	}
	name = Path(t, name)
	if err := try(t.Context(), name, t.TempDir()); err != nil {
		t.Skipf("NOT TESTED: nothing is run under gVisor: %v", err)
	}
	return name
}

// try has gVisor run a program by itself.
func try(ctx context.Context, runsc, state string) error {
	if _, err := os.Stat(runsc); err != nil {
		return fmt.Errorf("it was not built: %w: run make setup", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, runsc, "--root="+state, "--platform=systrap", "--network=none", "--ignore-cgroups", "do", "true").CombinedOutput()
	if err != nil {
		return fmt.Errorf("it does not run on this machine: %w: %s", err, out)
	}
	return nil
}
