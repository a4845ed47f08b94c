package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	// mostPackages bounds what the agent is made of: its start pays for each.
	mostPackages = 160
	// mostBytes bounds the program: it is mapped once for each image.
	mostBytes = 5 << 20
	// longStart is far more than a start takes on any machine.
	longStart = 3 * time.Minute
)

// The agent holds keys: what could take them anywhere, and what is slow to
// start, is not in it.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 20 || len(deps) > mostPackages {
		t.Errorf("made of %d packages, want at most %d", len(deps), mostPackages)
	}
	for _, dep := range deps {
		for _, no := range []string{"net/http", "crypto/tls", "crypto/x509", "gocloud.dev", "thaw/origin", "thaw/keys", "thaw/catalog", "thaw/convert", "thaw/sandbox", "thaw/host", "text/template", "google.golang.org"} {
			if dep == no || strings.HasPrefix(dep, no+"/") {
				t.Errorf("it imports %s", dep)
			}
		}
	}
}

// Anybody may start it, and nothing happens.
func TestStartedByHand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "thaw-agent")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > mostBytes {
		t.Errorf("it has %d bytes, want at most %d, %v", info.Size(), mostBytes, err)
	}
	for _, args := range [][]string{{}, {"app"}, {"app", "more"}} {
		began := time.Now()
		cmd := exec.Command(path, args...)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.HasPrefix(string(out), "thaw-agent: ") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%q: %v, %q", args, err, out)
		}
		took := time.Since(began)
		t.Logf("%q: %v, ended after %v", args, err, took)
		if took > longStart {
			t.Errorf("IT TAKES %v TO START", took)
		}
	}
}
