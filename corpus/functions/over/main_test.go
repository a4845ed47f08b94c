package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"thaw/internal/testoci"
)

const epoch = "1767225600"

// recipe is a folder of a function's files, and its config.
func recipe(t *testing.T) (folder, config string) {
	t.Helper()
	dir := t.TempDir()
	folder, config = filepath.Join(dir, "root"), filepath.Join(dir, "config.json")
	for name, mode := range map[string]os.FileMode{"var/task/bootstrap": 0o755, "var/task/data": 0o644} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(config, []byte(`{"Entrypoint":["/var/task/bootstrap"],"Cmd":null}`), 0o644); err != nil {
		t.Fatal(err)
	}
	return folder, config
}

func made(t *testing.T, layout string) (v1.Image, *v1.ConfigFile) {
	t.Helper()
	img, err := below(layout)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	return img, c
}

func TestOver(t *testing.T) {
	folder, config := recipe(t)
	parent := filepath.Join(t.TempDir(), "parent")
	testoci.Layout(t, parent, []string{"A=b"}, testoci.Tar(t, testoci.File("etc/x", []byte("below"))))
	to := filepath.Join(t.TempDir(), "function")
	if err := run([]string{"-parent", parent, "-config", config, folder, to}, epoch); err != nil {
		t.Fatal(err)
	}
	img, c := made(t, to)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 2 || fmt.Sprint(c.Config.Entrypoint) != "[/var/task/bootstrap]" || c.Config.Cmd != nil || fmt.Sprint(c.Config.Env) != "[A=b]" {
		t.Errorf("%d layers, config %+v", len(layers), c.Config)
	}
	rc, err := layers[1].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if want := 6 * 512; err != nil || len(got) < want {
		t.Errorf("layer of %d bytes, %v", len(got), err)
	}
	if err := run([]string{"-parent", parent, "-config", config, folder, to}, epoch); err == nil {
		t.Error("wrote over what was there")
	}
}

func TestAloneAndReproducible(t *testing.T) {
	folder, config := recipe(t)
	var digests []v1.Hash
	for range 2 {
		to := filepath.Join(t.TempDir(), "function")
		if err := run([]string{"-config", config, folder, to}, epoch); err != nil {
			t.Fatal(err)
		}
		img, c := made(t, to)
		if c.OS != "linux" || len(c.RootFS.DiffIDs) != 1 {
			t.Errorf("config %+v", c)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	if digests[0] != digests[1] {
		t.Errorf("twice the same gave %v", digests)
	}
}

func TestRefuses(t *testing.T) {
	folder, config := recipe(t)
	to := filepath.Join(t.TempDir(), "function")
	if err := run([]string{"-config", config, folder, to}, "yesterday"); err == nil {
		t.Error("took a wrong time")
	}
	if err := run([]string{folder, to}, epoch); err == nil {
		t.Error("took no config")
	}
	if err := run([]string{"-parent", folder, "-config", config, folder, to}, epoch); err == nil {
		t.Error("took a parent that is none")
	}
	if err := os.Symlink("/etc", filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{"-config", config, folder, to}, epoch); err == nil {
		t.Error("took a link")
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("left a layout")
	}
}
