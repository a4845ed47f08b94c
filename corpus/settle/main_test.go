package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var errClosed = errors.New("closed")

const epoch = "1767225600" // 2026-01-01

var (
	latest = time.Unix(1767225600, 0)
	old    = time.Date(1999, 5, 4, 3, 2, 1, 0, time.UTC)
	young  = time.Date(2031, 5, 4, 3, 2, 1, 0, time.UTC)
)

// layerTar is a layer as a builder leaves it: old files, young ones, and entries of kinds that must survive as they are.
func layerTar(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: young},
		{Name: "etc/old", Typeflag: tar.TypeReg, Mode: 0o644, Size: 3, ModTime: old},
		{Name: "etc/young", Typeflag: tar.TypeReg, Mode: 0o4711, Uid: 70_000, Size: 3, ModTime: young},
		{Name: "etc/link", Typeflag: tar.TypeLink, Linkname: "etc/old", ModTime: young},
		{Name: "etc/.wh.gone", Typeflag: tar.TypeReg, ModTime: young},
		{Name: "bin", Typeflag: tar.TypeSymlink, Linkname: "usr/bin", ModTime: old},
		{
			Name: "ping", Typeflag: tar.TypeReg, Size: 3, ModTime: young,
			PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20"},
		},
		{Name: strings.Repeat("long/", 60) + "x", Typeflag: tar.TypeReg, Size: 3, ModTime: old},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("abc")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// rawLayout writes the layout a builder pushes; built is the time it stamps the image with.
func rawLayout(t *testing.T, dir string, built time.Time, layers ...[]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	m := manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.manifest.v1+json"}
	for _, l := range layers {
		sum := sha256.Sum256(l)
		d := descriptor{MediaType: packings["none"].mediaType, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(len(l))}
		if err := os.WriteFile(blobPath(dir, d.Digest), l, 0o644); err != nil {
			t.Fatal(err)
		}
		m.Layers = append(m.Layers, d)
	}
	created := built.Format(time.RFC3339Nano)
	config := map[string]any{
		"created": created, "architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"sh"}},
		"history": []any{map[string]any{"created": "2020-01-01T00:00:00Z"}, map[string]any{"created": created, "comment": "FROM " + created}},
	}
	var err error
	if m.Config, err = writeBlob(dir, "application/vnd.oci.image.config.v1+json", config); err != nil {
		t.Fatal(err)
	}
	d, err := writeBlob(dir, m.MediaType, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(dir, "index.json"), index{SchemaVersion: 2, Manifests: []descriptor{d}}); err != nil {
		t.Fatal(err)
	}
}

// settled runs the program and returns what index.json, manifest and config of the new layout say.
func settled(t *testing.T, from string, flags ...string) (index, manifest, map[string]any) {
	t.Helper()
	to := filepath.Join(t.TempDir(), "new")
	if err := run(append(flags, from, to), epoch); err != nil {
		t.Fatal(err)
	}
	var i index
	var m manifest
	var config map[string]any
	for _, read := range []func() error{
		func() error { return readJSON(filepath.Join(to, "index.json"), &i) },
		func() error { return readJSON(blobPath(to, i.Manifests[0].Digest), &m) },
		func() error { return readJSON(blobPath(to, m.Config.Digest), &config) },
	} {
		if err := read(); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range append(m.Layers, m.Config) {
		data, err := os.ReadFile(blobPath(to, d.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); d.Digest != "sha256:"+hex.EncodeToString(sum[:]) || d.Size != int64(len(data)) {
			t.Errorf("blob %s: %d bytes hash to %x", d.Digest, len(data), sum)
		}
	}
	return i, m, config
}

func TestClampKeepsAllButTime(t *testing.T) {
	in := layerTar(t)
	var out, again bytes.Buffer
	if err := clamp(&out, bytes.NewReader(in), latest); err != nil {
		t.Fatal(err)
	}
	if err := clamp(&again, bytes.NewReader(out.Bytes()), latest); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("clamping a clamped tar changed it")
	}
	before, after := tar.NewReader(bytes.NewReader(in)), tar.NewReader(&out)
	for {
		want, err := before.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		got, gotErr := after.Next()
		if err != nil || gotErr != nil {
			t.Fatal(err, gotErr)
		}
		if want.ModTime.After(latest) {
			want.ModTime = latest
		}
		w, g := describe(t, want, before), describe(t, got, after)
		if w != g {
			t.Errorf("got\n%s\nwant\n%s", g, w)
		}
	}
	if _, err := after.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("more entries came out than went in: %v", err)
	}
}

func describe(t *testing.T, h *tar.Header, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	h.ModTime = h.ModTime.UTC()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + string(data)
}

func TestSameImageWheneverBuilt(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	rawLayout(t, a, young, layerTar(t))
	rawLayout(t, b, young.Add(1000*time.Hour), layerTar(t))
	one, _, config := settled(t, a)
	two, _, _ := settled(t, b)
	if one.Manifests[0].Digest != two.Manifests[0].Digest {
		t.Errorf("two builds of one recipe: %s and %s", one.Manifests[0].Digest, two.Manifests[0].Digest)
	}
	history := config["history"].([]any)
	first, last := history[0].(map[string]any)["created"], history[1].(map[string]any)["created"]
	if config["created"] != "2026-01-01T00:00:00Z" || first != "2020-01-01T00:00:00Z" || last != "2026-01-01T00:00:00Z" {
		t.Errorf("created %v, history %v and %v", config["created"], first, last)
	}
}

func TestPackingsHoldTheSameLayers(t *testing.T) {
	from, cache := t.TempDir(), t.TempDir()
	rawLayout(t, from, young, layerTar(t))
	configs, blobs := map[string]bool{}, map[string]bool{}
	for _, name := range []string{"gzip", "zstd", "none", "gzip"} {
		_, m, _ := settled(t, from, "-compression", name, "-cache", cache)
		configs[m.Config.Digest] = true
		blobs[m.Layers[0].Digest] = true
		if m.Layers[0].MediaType != packings[name].mediaType {
			t.Errorf("%s: media type %s", name, m.Layers[0].MediaType)
		}
	}
	if len(configs) != 1 || len(blobs) != 3 {
		t.Errorf("three packings of one image gave %d configs and %d blobs; want 1 and 3", len(configs), len(blobs))
	}
	if kept, err := os.ReadDir(cache); err != nil || len(kept) != 3 {
		t.Errorf("cache holds %d layers (%v), want 3", len(kept), err)
	}
}

func TestPackAgain(t *testing.T) {
	from := t.TempDir()
	rawLayout(t, from, young, layerTar(t), layerTar(t)[:0:0], layerTar(t))
	to := filepath.Join(t.TempDir(), "gzip")
	if err := run([]string{from, to}, epoch); err == nil {
		t.Error("an empty file passed for a layer")
	}
	if _, err := os.Stat(to); !os.IsNotExist(err) {
		t.Errorf("a failed run left %s: %v", to, err)
	}
	rawLayout(t, from, young, layerTar(t), layerTar(t))
	for _, step := range []string{"zstd", "gzip", "none"} {
		next := filepath.Join(t.TempDir(), step)
		if err := run([]string{"-compression", step, from, next}, epoch); err != nil {
			t.Fatalf("to %s: %v", step, err)
		}
		from = next
	}
	if _, m, _ := settled(t, from); len(m.Layers) != 2 {
		t.Errorf("%d layers, want 2", len(m.Layers))
	}
}

func TestRefusals(t *testing.T) {
	from := t.TempDir()
	rawLayout(t, from, young, layerTar(t))
	fresh := filepath.Join(t.TempDir(), "new")
	for want, args := range map[string][]string{
		"exists":              {from, t.TempDir()},
		"unknown compression": {"-compression", "lzma", from, fresh},
		"got 1 arguments":     {from},
		"no such file":        {t.TempDir(), fresh},
	} {
		if err := run(args, epoch); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if err := run([]string{from, fresh}, ""); err == nil {
		t.Error("ran without SOURCE_DATE_EPOCH")
	}
	if err := clamp(io.Discard, bytes.NewReader(layerTar(t)[:700]), latest); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a cut tar: %v", err)
	}
	if err := clamp(failing{}, bytes.NewReader(layerTar(t)), latest); !errors.Is(err, errClosed) {
		t.Errorf("a failing writer: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errClosed }
