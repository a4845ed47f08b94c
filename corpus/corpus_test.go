// Package corpus holds the recipes of real images, the input of demo, tests and benchmarks; build makes them. Its tests look at what was built.
package corpus

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

type image struct {
	layers []string // blob digests, base first
	diffs  []string // diff ids
	bytes  int64
}

// built reads an image of the corpus.
func built(t *testing.T, name string) image {
	t.Helper()
	dir := os.Getenv("THAW_CORPUS")
	if dir == "" {
		dir = filepath.Join("..", "out", "corpus")
	}
	dir = filepath.Join(dir, name)
	if _, err := os.Stat(dir); os.IsNotExist(err) {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not built: run ./setup.sh", dir)
		}
		t.Skipf("NOT TESTED: %s is not built; as root, run corpus/build", dir)
	}
	var index, manifest, config struct {
		Manifests, Layers []struct {
			Digest string
			Size   int64
		}
		Config struct{ Digest string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	read := func(v any, path ...string) {
		data, err := os.ReadFile(filepath.Join(append([]string{dir}, path...)...))
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	read(&index, "index.json")
	read(&manifest, "blobs", "sha256", strings.TrimPrefix(index.Manifests[0].Digest, "sha256:"))
	var i image
	for _, l := range manifest.Layers {
		i.layers = append(i.layers, l.Digest)
		i.bytes += l.Size
	}
	read(&config, "blobs", "sha256", strings.TrimPrefix(manifest.Config.Digest, "sha256:"))
	i.diffs = config.RootFS.DiffIDs
	if len(i.diffs) != len(i.layers) || len(i.layers) == 0 {
		t.Fatalf("%s: %d layers, %d diff ids", name, len(i.layers), len(i.diffs))
	}
	return i
}

func TestImagesShareWhatTheyAreBuiltOn(t *testing.T) {
	base, node, python := built(t, "base"), built(t, "node"), built(t, "python")
	for name, parent := range map[string]image{
		"python": base, "node": base, "jre": base, "app-on-base": base, "app-on-node": node, "app-v1": python, "app-v2": python,
		"fn-shell": base, "fn-node": node, "fn-python": python, "fn-java": built(t, "jre"),
	} {
		if i := built(t, name); len(i.layers) <= len(parent.layers) || !slices.Equal(i.layers[:len(parent.layers)], parent.layers) {
			t.Errorf("%s: layers %v are not on top of %v", name, i.layers, parent.layers)
		}
	}
}

func TestVersionsDifferInASmallTop(t *testing.T) {
	one, two := built(t, "app-v1"), built(t, "app-v2")
	top := len(one.layers) - 1
	if top != len(two.layers)-1 || !slices.Equal(one.layers[:top], two.layers[:top]) || one.layers[top] == two.layers[top] {
		t.Errorf("app-v1 %v\napp-v2 %v", one.layers, two.layers)
	}
}

// TestSameApplicationOnTwoBases wants it installed twice: what it brings is
// equal, and the package database beside it is not.
func TestSameApplicationOnTwoBases(t *testing.T) {
	one, two := built(t, "app-on-base"), built(t, "app-on-node")
	if a, b := one.layers[len(one.layers)-1], two.layers[len(two.layers)-1]; a == b {
		t.Errorf("one top layer, %s: nothing was installed", a)
	}
}

func TestPackingsHoldTheSameLayers(t *testing.T) {
	base := built(t, "base")
	for _, name := range []string{"base-zstd", "base-plain"} {
		if i := built(t, name); !slices.Equal(i.diffs, base.diffs) || slices.Equal(i.layers, base.layers) {
			t.Errorf("%s: layers %v of diff ids %v, base %v of %v", name, i.layers, i.diffs, base.layers, base.diffs)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"no image nothing; there are: base python": {"nothing"},
		"unknown option --what":                    {"--what"},
		"--out needs a folder":                     {"--out"},
	} {
		out, err := exec.CommandContext(t.Context(), "./build", args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("build %v: %v, %q; want %q", args, err, out, want)
		}
	}
}
