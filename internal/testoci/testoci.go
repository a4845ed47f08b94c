// Package testoci makes small OCI images for tests: tars entry by entry, and
// layouts of them that any reader of the format takes.
package testoci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Entry is one tar entry. Body sets the header's size; a mode of 0 becomes
// 0644, or 0755 for a directory; an empty type is a regular file.
type Entry struct {
	tar.Header
	Body []byte
}

// File is a regular file.
func File(name string, body []byte) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg}, Body: body}
}

// Dir is a directory.
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir}}
}

// Noise gives n bytes that do not compress, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	var s [32]byte
	copy(s[:], fmt.Sprint(seed))
	_, _ = rand.NewChaCha8(s).Read(b) // never fails
	return b
}

// Tar gives an archive of the entries, with constant times where none is set.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.Body))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.Body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// Layout writes an OCI layout of one image with gzip layers into dir, which is
// made, and gives the source that names it ("oci:DIR"). Layers are tars, base
// first; env goes into the config.
func Layout(t testing.TB, dir string, env []string, layers ...[]byte) string {
	t.Helper()
	return layout{t, dir}.write(map[string]any{"Env": env, "Cmd": []string{"/bin/true"}}, layers)
}

// GoProgram compiles the sample function in Go, which takes a second.
func GoProgram(t testing.TB) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "function")
	c := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "thaw/corpus/functions/go")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// GoFunction is Layout for GoProgram, alone in its image.
func GoFunction(t testing.TB, dir string) string {
	t.Helper()
	e := File("var/task/bootstrap", GoProgram(t))
	e.Mode = 0o755
	config := map[string]any{"Entrypoint": []string{"/var/task/bootstrap"}, "WorkingDir": "/var/task"}
	return layout{t, dir}.write(config, [][]byte{Tar(t, Dir("dev"), Dir("proc"), Dir("sys"), Dir("tmp"), Dir("etc"), Dir("opt"), Dir("var"), Dir("var/task"), e)})
}

// write writes an image of layers, with what its config has inside.
func (l layout) write(inner map[string]any, layers [][]byte) string {
	t := l.t
	t.Helper()
	var manifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	manifest.SchemaVersion, manifest.MediaType = 2, "application/vnd.oci.image.manifest.v1+json"
	diffs := []string{}
	for _, raw := range layers {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		_, _ = w.Write(raw) // into memory
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		diffs = append(diffs, digest(raw))
		manifest.Layers = append(manifest.Layers, l.blob("application/vnd.oci.image.layer.v1.tar+gzip", z.Bytes()))
	}
	config := map[string]any{
		"architecture": "amd64", "os": "linux", "config": inner,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}
	manifest.Config = l.blob("application/vnd.oci.image.config.v1+json", l.json(config))
	top := l.blob(manifest.MediaType, l.json(manifest))
	l.file("index.json", l.json(map[string]any{"schemaVersion": 2, "manifests": []descriptor{top}}))
	l.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return "oci:" + l.dir
}

type layout struct {
	t   testing.TB
	dir string
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (l layout) json(v any) []byte {
	l.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

func (l layout) file(name string, b []byte) {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l layout) blob(mediaType string, b []byte) descriptor {
	l.t.Helper()
	d := digest(b)
	l.file(filepath.Join("blobs", "sha256", d[len("sha256:"):]), b)
	return descriptor{mediaType, d, len(b)}
}
