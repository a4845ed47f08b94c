package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// partsEnv tells a test binary that is called thaw where its parts are. The
// program itself has no such variable.
const partsEnv = "THAW_TEST_PARTS"

// testParts is where builtParts builds, for all tests of a run.
var testParts struct {
	once sync.Once
	dir  string
	err  error
}

// cleaning removes the parts after the last test.
type cleaning struct{ m *testing.M }

func (c cleaning) Run() int {
	defer func() { _ = os.RemoveAll(testParts.dir) }()
	return c.m.Run()
}

// builtParts builds the parts as they are in the tree, once, and gives the
// folder. Processes of the test binary find them by partsEnv.
func builtParts(t *testing.T) string {
	t.Helper()
	testParts.once.Do(func() {
		if testParts.dir, testParts.err = os.MkdirTemp("", "thaw-parts"); testParts.err != nil {
			return
		}
		testParts.err = os.Chmod(testParts.dir, 0o755) // for tests that become another user
		out, err := exec.Command("./build", testParts.dir).CombinedOutput()
		if err != nil {
			testParts.err = errors.Join(testParts.err, err, errors.New(string(out)))
		}
	})
	if testParts.err != nil {
		t.Fatalf("building the parts: %v", testParts.err)
	}
	dependOn(t)
	return testParts.dir
}

// dependOn looks into the folders that parts are made of, so that go test does
// not take a result from before a change in them.
func dependOn(t *testing.T) {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-tags=cloud", "-f", "{{with .Module}}{{if .Main}}{{$.Dir}}{{end}}{{end}}", "../...").Output()
	dirs := strings.Fields(string(out))
	if err != nil || len(dirs) < 5 {
		t.Fatalf("the program's packages: %v, %v", dirs, err)
	}
	for _, dir := range dirs {
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestQuickBuild bounds what runs before main does: none of the SDKs may be in
// the build for folders and files, or in what it starts.
func TestQuickBuild(t *testing.T) {
	deps := func(flags ...string) []byte {
		out, err := exec.Command("go", append(append([]string{"list", "-deps"}, flags...), ".")...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	local, full := deps(), deps("-tags=cloud")
	for _, sdk := range []string{
		"gocloud.dev/", "cloud.google.com/", "google.golang.org/grpc", "github.com/aws/", "github.com/Azure/", "github.com/hashicorp/vault",
		"go.opentelemetry.io/", "github.com/prometheus/",
	} {
		if bytes.Contains(local, []byte("\n"+sdk)) {
			t.Errorf("the build without drivers of clouds has %s", sdk)
		}
		if !bytes.Contains(full, []byte("\n"+sdk)) {
			t.Errorf("the build with all drivers lacks %s: is that its name?", sdk)
		}
	}
}

// TestQuickStart bounds what our packages do before main, in every program that
// a start runs: tables that are made then, and regular expressions, have been a
// third of it. Bytes are counted, since they do not depend on the machine.
func TestQuickStart(t *testing.T) {
	const most = 1 << 10 // bytes that a package may allocate
	programs := []string{"thaw"}
	parts, err := filepath.Glob(builtParts(t) + "/thaw-*[^6]") // not the .sha256
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range append(programs, parts...) {
		cmd := exec.Command(program, "--help")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		out, _ := cmd.CombinedOutput() // not all know --help
		seen := 0
		for _, m := range regexp.MustCompile(`(?m)^init (\S+) @.* (\d+) bytes, `).FindAllStringSubmatch(string(out), -1) {
			seen++
			if n, err := strconv.Atoi(m[2]); strings.HasPrefix(m[1], "thaw/") && (err != nil || n > most) {
				t.Errorf("%s: package %s allocates %s bytes at every start, want at most %d", filepath.Base(program), m[1], m[2], most)
			}
		}
		if seen == 0 {
			t.Errorf("%s: no trace of its start in %q", program, out)
		}
	}
}

// somePart gives a part of that content under the name app.
func somePart(content string) fstest.MapFS {
	sum := sha256.Sum256([]byte(content))
	return fstest.MapFS{
		"app":        {Data: []byte(content)},
		"app.sha256": {Data: []byte(hex.EncodeToString(sum[:]) + "\n")},
	}
}

// partOf extracts app into a state.
func partOf(parts fs.FS, state string) (string, error) {
	g := &Globals{State: state, program: program{parts: parts}}
	return g.part("app")
}

func checkPart(t *testing.T, path, content string) fs.FileInfo {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("holds %q, %v; want %q", got, err, content)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != partPerm {
		t.Fatalf("%v, %v", info, err)
	}
	return info
}

func TestPart(t *testing.T) {
	state := filepath.Join(t.TempDir(), "not", "yet")
	path, err := partOf(somePart("one"), state)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(state, "parts", "7692c3ad3540bb80-app"); path != want {
		t.Errorf("%s, want %s", path, want)
	}
	first := checkPart(t, path, "one")
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	// It is taken as it is, unless it cannot be what it was.
	again, err := partOf(somePart("one"), state)
	if err != nil || again != path || !os.SameFile(first, checkPart(t, again, "one")) {
		t.Errorf("%s, %v", again, err)
	}
	for what, spoil := range map[string]func() error{
		"length":     func() error { return os.WriteFile(path, []byte("on"), 0o600) },
		"mode":       func() error { return os.Chmod(path, 0o644) },
		"writable":   func() error { return os.Chmod(path, 0o757) },
		"a link":     func() error { return errors.Join(os.Remove(path), os.Symlink("/bin/true", path)) },
		"not there":  func() error { return os.Remove(path) },
		"left alone": func() error { return nil },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if again, err := partOf(somePart("one"), state); err != nil || again != path {
			t.Errorf("%s: %s, %v", what, again, err)
		}
		checkPart(t, path, "one")
	}
}

func TestPartsAtOnce(t *testing.T) {
	state, content := t.TempDir(), strings.Repeat("part", 1<<18)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			path, err := partOf(somePart(content), state)
			if err != nil {
				t.Error(err)
				return
			}
			checkPart(t, path, content)
		})
	}
	wg.Wait()
	if left, err := os.ReadDir(filepath.Join(state, partsDir)); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestPartsOfOtherVersions(t *testing.T) {
	state := t.TempDir()
	var paths []string
	for i, content := range []string{"one", "two", "three"} {
		path, err := partOf(somePart(content), state)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
		if i == 0 { // as if written long ago
			killed := filepath.Join(state, partsDir, partTemp+"1")
			old := time.Now().Add(-partAge - time.Hour)
			if err := errors.Join(os.WriteFile(killed, nil, 0o600), os.Chtimes(killed, old, old), os.Chtimes(path, old, old)); err != nil {
				t.Fatal(err)
			}
		}
	}
	left, err := os.ReadDir(filepath.Join(state, partsDir))
	if err != nil || len(left) != 2 {
		t.Errorf("left: %v, %v; want the last two", left, err)
	}
	checkPart(t, paths[1], "two")
}

func TestPartsRefused(t *testing.T) {
	lie, short := somePart("one"), somePart("one")
	lie["app"] = &fstest.MapFile{Data: []byte("two")}
	short["app.sha256"] = &fstest.MapFile{Data: []byte("ab")}
	for name, c := range map[string]struct {
		parts fs.FS
		setup func(state string) error
		want  string
	}{
		"not built in":        {fstest.MapFS{}, nil, "make build"},
		"another sum":         {lie, nil, "is not what its SHA-256 says"},
		"no sum":              {short, nil, "is no SHA-256"},
		"others' folder":      {somePart("one"), func(s string) error { return errors.Join(os.Mkdir(s+"/parts", 0o755), os.Chmod(s+"/parts", 0o777)) }, "only this user"},
		"a link for a folder": {somePart("one"), func(s string) error { return errors.Join(os.Mkdir(s+"/own", 0o755), os.Symlink("own", s+"/parts")) }, "only this user"},
		"a file for a folder": {somePart("one"), func(s string) error { return os.WriteFile(s+"/parts", nil, 0o600) }, "only this user"},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			if c.setup != nil {
				if err := c.setup(state); err != nil {
					t.Fatal(err)
				}
			}
			path, err := partOf(c.parts, state)
			if err == nil || path != "" || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, %v; want one line with %q", path, err, c.want)
			}
			if left, _ := filepath.Glob(state + "/parts/*"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestScheme(t *testing.T) {
	for raw, want := range map[string]string{"s3://b": "s3", "S3://b": "s3", "file:///x": "file", "": "", "%zz": "", "x/y": ""} {
		if got := scheme(raw); got != want {
			t.Errorf("%q: %q, want %q", raw, got, want)
		}
	}
}
