package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/network"
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
	before, _ := filepath.Glob(filepath.Join(network.RunDir, "*"))
	if f := tryEgress(t.Context()); !f.OK {
		t.Errorf("egress: %+v", f)
	}
	after, _ := filepath.Glob(filepath.Join(network.RunDir, "*"))
	for _, name := range after {
		if !strings.Contains(strings.Join(before, " "), name) {
			t.Errorf("%s is left", name)
		}
	}
}
