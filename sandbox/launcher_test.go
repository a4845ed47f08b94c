package sandbox

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// A thread that cannot leave another's mount namespace does nothing any more: the next command is started at home. That thread stays, so
// this is for a process of its own.
func TestAstray(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root has mount namespaces")
	}
	const child = "THAW_TEST_ASTRAY"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestAstray$")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	l, err := newLauncher(false)
	if err != nil {
		t.Fatal(err)
	}
	nowhere, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close()
	here := func() string {
		link, err := os.Readlink("/proc/thread-self/ns/mnt")
		if err != nil {
			t.Error(err)
		}
		return link
	}
	places := make(chan string, 4)
	ended := make(chan error, 1)
	look := func() error { places <- here(); return nil }
	l.jobs <- look
	l.jobs <- func() error {
		ended <- elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNS) }, look)
		return nil
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	l.jobs <- func() error {
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = away(nowhere, func() error { return unix.Unshare(unix.CLONE_NEWNS) }, look)
		}
		ended <- err
		return err
	}
	if err := <-ended; !errors.Is(err, errAstray) {
		t.Fatalf("got %v", err)
	}
	l.jobs <- look
	home, visited, lost, after := <-places, <-places, <-places, <-places
	if visited == home || lost == home || after != home {
		t.Errorf("at %s, then %s, then %s, and then %s", home, visited, lost, after)
	}
	cmd := exec.Command("true")
	exit, err := l.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if status, err := l.Wait(cmd, exit); status != 0 || err != nil {
		t.Errorf("a command after that: %d, %v", status, err)
	}
}
