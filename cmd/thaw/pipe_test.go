package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

// Who does not read what a run says changes nothing about it: neither does the
// program's status get lost, nor anything stay.
func TestNobodyReads(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 5)
	source := filepath.Join(t.TempDir(), "source") // something is said before the program starts, too
	if err := errors.Join(os.Mkdir(source, 0o755), unix.Mount("none", source, "ramfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.DetachAll(source); err != nil {
			t.Error(err)
		}
	})
	for want, args := range map[int][]string{
		7:   {"run", "-v", source + ":/volume", "app", "/bin/inside", "exit", "7"},
		125: {"run", "-v", source + ":/volume", "-v", "/etc/passwd:/etc/group/below", "app", "/bin/inside"}, // a file in the way
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := m.command(args...)
		cmd.Stdout, cmd.Stderr = w, w
		if err := errors.Join(r.Close(), cmd.Start(), w.Close()); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the state says it
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q: %v, want status %d", args, cmd.ProcessState, want)
		}
	}
	if out := m.must("ps"); out != "ID  IMAGE  STATUS  SINCE  PID  WHAT\n" {
		t.Errorf("left over: %s", out)
	}
}
