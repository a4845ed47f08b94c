package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"thaw/host"
)

// TestReadme runs the README's examples (its blocks of sh) as they are, in a
// folder that looks like the repository, with a state of its own.
func TestReadme(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the README's examples start containers, which needs root")
	}
	corpus := os.Getenv("THAW_CORPUS")
	if corpus == "" {
		corpus = "../../out/corpus"
	}
	corpus, err := filepath.Abs(corpus)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(corpus, "python", "index.json")); err != nil {
		t.Skipf("NOT TESTED: no image python: `make corpus` builds it, THAW_CORPUS says where it is: %v", err)
	}
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	script.WriteString("set -euxo pipefail\n")
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script.WriteString(block[1])
	}
	if n := strings.Count(script.String(), "\nthaw "); n < 5 {
		t.Fatalf("%d commands in the README: the pattern is wrong", n)
	}
	script.WriteString("wait\n")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(corpus, filepath.Join(dir, "out", "corpus")); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script.String())
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "THAW_STATE="+filepath.Join(dir, "state"), partsEnv+"="+builtParts(t),
		"THAW_LISTEN=127.0.0.1:0", "THAW_REGISTRY=127.0.0.1:0") // the usual ones may be in use
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	h, err := host.Open(filepath.Join(dir, "state"))
	if err == nil {
		err = h.Remove(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
	for _, want := range []string{`3\.14159`, `0 differences`, `mounted at .*out/mnt`, `thaw: read .* chunks from the origin`, `REPORT RequestId: .*Init Duration`, `1 of \d+ invokes were cold`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("nothing like %q in\n%s", want, out)
		}
	}
}
