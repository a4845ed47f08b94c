package main

import (
	"strings"
	"testing"
)

// A second user of what runs already is told which of its flags do not hold.
func TestFlagsOfTheFirst(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	first := m.serve("app")
	e := m.thaw("run", "--cache-size", "1GiB", "--origin-deadline", "7s", "app", "/bin/inside", "echo", "on")
	if e.out != "on\n" || strings.Count(e.stderr, "--cache-size=10GiB holds until") != 1 || strings.Count(e.stderr, "--origin-deadline=1m0s holds") != 1 {
		t.Errorf("%+v", e)
	}
	if e := m.thaw("run", "--log-format", "json", "app", "/bin/inside", "echo", "on"); e.out != "on\n" || strings.Contains(e.stderr, "holds") {
		t.Errorf("%+v", e)
	}
	if e := first.end(); e.code != 0 || strings.Contains(e.stderr, "holds") {
		t.Errorf("%+v", e)
	}
}
