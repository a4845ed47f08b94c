package host

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asideEnv has the test's program say on which thread Aside runs a function.
const asideEnv = "THAW_TEST_ASIDE"

// TestAside runs in a process of its own, since only main is on the first thread.
func TestAside(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asideEnv+"=1")
	out, err := cmd.Output()
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 || strings.TrimSpace(string(out)) != "another" {
		t.Errorf("%q, %v", out, err)
	}
}

// tellAside is that process.
func tellAside() int {
	return Aside(func() int {
		if unix.Gettid() == os.Getpid() {
			os.Stdout.WriteString("the first\n")
		} else {
			os.Stdout.WriteString("another\n")
		}
		return 7
	})
}
