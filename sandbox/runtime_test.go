package sandbox

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"runc", "runsc", "crun-1.21", "other"} {
		write(t, dir, name, "#!/bin/sh\n")
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	if r, err := Find(""); err != nil || r.Name != "runc" || r.Path != filepath.Join(dir, "runc") {
		t.Errorf("%+v, %v", r, err)
	}
	for _, name := range []string{"crun-1.21", filepath.Join(dir, "crun-1.21")} {
		if r, err := Find(name); err != nil || r.Name != "crun" || r.hideUnified != isCgroup2(unified) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r, err := Find("runsc"); err != nil || r.Name != "runsc" {
		t.Errorf("%+v, %v", r, err)
	}
	for name, want := range map[string]string{"other": "must begin with", "none": "apt-get install", dir + "/none": "no such file"} {
		if r, err := Find(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := Find(""); err == nil || !strings.Contains(err.Error(), "apt-get install crun") {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	facts := Check(context.Background())
	names := map[string]bool{}
	for _, f := range facts {
		t.Logf("%+v", f)
		names[f.Name] = true
		if f.Detail == "" || strings.Contains(f.Detail, "\n") || f.OK && f.Mend != "" {
			t.Errorf("%+v", f)
		}
	}
	for _, name := range []string{"OCI runtime", "cgroups", "user namespaces", "overlayfs", "ext4", "FUSE", "loop devices", "seccomp", "root"} {
		if !names[name] {
			t.Errorf("nothing about %s", name)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if f := Check(context.Background())[0]; f.OK || f.Mend != "apt-get install crun" {
		t.Errorf("without a runtime: %+v", f)
	}
}

func TestDeleteRefuses(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "keep/file", "")
	for _, test := range [][2]string{{"..", "/thaw-x"}, {"", "/thaw-x"}, {"a/b", "/thaw-x"}, {"id", "/"}, {"id", ""}, {"id", "thaw-x"}, {"id", "/.."}} {
		if err := Delete(context.Background(), dir, test[0], test[1]); err == nil {
			t.Errorf("%q", test)
		}
	}
	if err := Delete(context.Background(), dir, "id", "/thaw-test-never-was"); err != nil {
		t.Error(err)
	}
	write(t, dir, "id/half-written", "")
	write(t, dir, "id_sandbox:id.state", "{")
	write(t, dir, "id2/other", "")
	if err := Delete(context.Background(), dir, "id", "/thaw-test-never-was"); err != nil {
		t.Error(err)
	}
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("left %v", entries)
	}
}

// A tree of groups with a process in each goes, whatever state it is in.
func TestDeleteTree(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: making cgroups needs root")
	}
	dirs, err := hierarchies()
	if err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	}
	group := "/" + filepath.Base(newFolder(t))
	var children []*exec.Cmd
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(dir, group, "in/deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		child := exec.Command("sleep", "1000")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		children = append(children, child)
		// Some hierarchies take no process before they are configured: that is one case more.
		_ = os.WriteFile(filepath.Join(dir, group, "in/deep/cgroup.procs"), []byte(strconv.Itoa(child.Process.Pid)), 0)
		_ = os.WriteFile(filepath.Join(dir, group, "in/deep/freezer.state"), []byte("FROZEN"), 0)
	}
	if found, err := Cgroups(group[:len(group)-1]); err != nil || len(found) != 1 || found[0] != group {
		t.Errorf("%v, %v", found, err)
	}
	if err := Delete(t.Context(), t.TempDir(), "id", group); err != nil {
		t.Error(err)
	}
	if found, err := Cgroups(group); err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	for _, child := range children {
		_ = child.Process.Kill() // those that no group took
		var exit *exec.ExitError
		if err := child.Wait(); !errors.As(err, &exit) {
			t.Error(err)
		}
	}
}
