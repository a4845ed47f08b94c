package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"thaw/oci"
)

func TestKernelFinding(t *testing.T) {
	for release, want := range map[string]bool{
		"6.1.0-26-amd64": true, "6.18.44-fc": true, "7.0": true, "10.2.1": true,
		"6.0.19": false, "5.15.0-100-generic": false, "4.19": false, "": false, "six": false,
	} {
		f := kernelFinding(release)
		if f.OK != want || !f.Needed || f.Detail == "" {
			t.Errorf("%q: %+v, want ok %v", release, f, want)
		}
	}
	if f := kernelFinding("5.10.0"); !strings.Contains(f.Mend, "linux-image") {
		t.Errorf("nothing mends an old kernel: %+v", f)
	}
}

func TestStateFinding(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	if f := stateFinding(dir); !f.OK || !strings.HasPrefix(f.Detail, dir+", ") {
		t.Errorf("a folder to be made: %+v", f)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("looking made the folder")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := stateFinding(filepath.Join(file, "state")); f.OK || f.Mend == "" {
		t.Errorf("a folder below a file: %+v", f)
	}
}

// TestExitProgram runs the program on this machine, and looks at that of others.
func TestExitProgram(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		program, err := exitProgram(arch, 42)
		if err != nil || len(program) > 200 {
			t.Fatalf("%s: %d bytes, %v", arch, len(program), err)
		}
		if arch != runtime.GOARCH {
			continue
		}
		path := filepath.Join(t.TempDir(), "try")
		if err := os.WriteFile(path, program, 0o755); err != nil {
			t.Fatal(err)
		}
		err = exec.Command(path).Run()
		if e := (*exec.ExitError)(nil); !errors.As(err, &e) || e.ExitCode() != 42 {
			t.Errorf("%v, want status 42", err)
		}
	}
	if _, err := exitProgram("abacus", 1); err == nil {
		t.Error("a program for a machine that nobody knows")
	}
}

// TestWriteLayout reads the layout with the code that reads everybody's.
func TestWriteLayout(t *testing.T) {
	dir := t.TempDir()
	if err := writeLayout(dir, []byte("program")); err != nil {
		t.Fatal(err)
	}
	img, err := oci.Open(t.Context(), "oci:"+dir, oci.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	layer, err := img.OpenLayer(t.Context(), 0, func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	defer layer.Close()
	data, err := io.ReadAll(layer)
	if err != nil || !bytes.Contains(data, []byte("program")) {
		t.Errorf("layer of %d bytes, %v", len(data), err)
	}
}

func TestDoctorPrints(t *testing.T) {
	all := []finding{
		{Name: "kernel", OK: true, Needed: true, Detail: "6.1"},
		{Name: "root", Needed: true, Detail: "user 7", Mend: "sudo thaw …"},
		{Name: "keyring", Detail: "none\nat all"},
	}
	var b bytes.Buffer
	if err := (&doctorCmd{}).print(&b, all); err != nil {
		t.Fatal(err)
	}
	want := "ok       kernel           6.1\nMISSING  root             user 7\n                          → sudo thaw …\nwithout  keyring          none; at all\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if err := (&doctorCmd{JSON: true}).print(&b, all[:1]); err != nil {
		t.Fatal(err)
	}
	if want := `{"name":"kernel","ok":true,"needed":true,"detail":"6.1"}` + "\n"; b.String() != want {
		t.Errorf("got %s want %s", b.String(), want)
	}
}

func TestLastLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                                     "",
		"thaw: read 0 B of 64.0 KiB (0.0 %)\n": "thaw: read 0 B of 64.0 KiB (0.0 %)",
		"noise\nthaw: it broke\nthaw: read 0 B of 64.0 KiB (0.0 %)\n": "it broke",
		"noise\nmore noise\n": "more noise",
	} {
		if got := lastLine([]byte(text)); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
