package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testoci"
	"thaw/internal/tests3"
)

// TestBucket goes through an image's life in a bucket, with processes that
// start as the build without drivers of clouds.
func TestBucket(t *testing.T) {
	t.Setenv(partsEnv, builtParts(t))
	bucket := tests3.Start(t).Bucket(t, "")
	state := filepath.Join(t.TempDir(), "state")
	thaw := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "thaw", append([]string{"--state", state, "--origin", bucket}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("thaw %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	source := testoci.Layout(t, t.TempDir(), nil, testoci.Tar(t, testoci.File("f", testoci.Noise(1, 300_000))))
	thaw("convert", source, "--name", "app")
	if out := thaw("images"); strings.Count(out, "\n") != 2 || !strings.Contains(out, "app") {
		t.Errorf("images:\n%s", out)
	}
	thaw("verify", "app", "--against", source)
	thaw("rm", "app")
	if out := thaw("images"); strings.Contains(out, "app") {
		t.Errorf("after rm:\n%s", out)
	}
	if parts, err := filepath.Glob(state + "/parts/*-thaw-cloud"); err != nil || len(parts) != 1 {
		t.Errorf("%v, %v: want one build with all drivers", parts, err)
	}
	if files, err := filesBelow(state + "/origin"); err != nil || len(files) > 0 {
		t.Errorf("%v, %v: the origin is the bucket", files, err)
	}
}
