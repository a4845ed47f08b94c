package main

import (
	"os"
	"strings"
	"testing"
)

// What doctor tries of networks works here, and leaves nothing.
func TestDoctorNetwork(t *testing.T) {
	if f := freezerFinding(); !f.OK || !strings.Contains(f.Detail, "cgroup") {
		t.Errorf("freezer: %+v", f)
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making networks needs root")
	}
	if f := forwardingFinding(); f.Detail == "" || f.OK == (f.Mend != "") {
		t.Errorf("forwarding: %+v", f)
	}
	if f := tryEgress(t.Context()); !f.OK {
		t.Errorf("egress: %+v", f)
	}
	state := t.TempDir() // others' networks come and go meanwhile
	if took, err := makeEgress(t.Context(), state); err != nil || took <= 0 {
		t.Errorf("egress: %v, %v", took, err)
	}
	left, err := (&machine{state: state}).left()
	if err != nil || len(left) > 0 {
		t.Errorf("left: %s, %v", left, err)
	}
}
