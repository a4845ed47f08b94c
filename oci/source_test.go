package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseSource(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"plain", "both", "both:1", "a:b", "a:b:c"} {
		check(t, os.MkdirAll(dir, 0o755))
	}
	for in, want := range map[string]source{
		"docker://debian:12":            {viaRegistry, "debian:12", ""},
		"debian:12":                     {viaRegistry, "debian:12", ""},
		"host:5000/x@sha256:00":         {viaRegistry, "host:5000/x@sha256:00", ""},
		"oci":                           {viaRegistry, "oci", ""},
		"docker:dind":                   {viaRegistry, "docker:dind", ""},
		"oci:plain":                     {viaLayout, "plain", ""},
		"oci:plain:":                    {viaLayout, "plain", ""},
		"oci:plain:v1":                  {viaLayout, "plain", "v1"},
		"oci:both:1":                    {viaLayout, "both", "1"}, // as skopeo reads it
		"oci:a:b":                       {viaLayout, "a:b", ""},
		"oci:a:b:v1":                    {viaLayout, "a:b", "v1"},
		"oci:a:b:c":                     {viaLayout, "a:b", "c"},
		"docker-archive:plain:x:5000/y": {viaDockerArchive, "plain", "x:5000/y"},
		"oci-archive:missing:v1":        {viaLayoutArchive, "missing", "v1"},
		"oci-archive:plain/x:v1":        {viaLayoutArchive, "plain/x", "v1"},
	} {
		got, err := parseSource(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"oci:", "oci::v1", "docker-archive:", "/some/where.tar", "./where.tar", "../where"} {
		if got, err := parseSource(in); err == nil {
			t.Errorf("%s: %+v", in, got)
		}
	}
	for _, in := range []string{"dir:x", "docker-daemon:debian:12", "containers-storage:x"} {
		if _, err := parseSource(in); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "docker://"+in) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestOpenRefusesBadInput(t *testing.T) {
	hermetic(t)
	f := newFixture(t)
	layout := f.layout(t)
	for source, want := range map[string]error{
		"oci:" + layout + "/missing":                  ErrNotFound,
		"oci:" + layout + "/index.json":               ErrUnsupported,
		"oci:" + layout + "/blobs":                    ErrNotFound,
		"oci:" + layout + ":v9":                       ErrNotFound,
		"oci:" + layout + ":@1":                       ErrNotFound,
		"oci:" + layout + ":@x":                       ErrNotFound,
		"oci-archive:" + layout:                       ErrUnsupported,
		"oci-archive:" + layout + "/none":             ErrNotFound,
		"oci-archive:" + layout + "/index.json":       ErrCorrupt,
		"docker-archive:" + layout + "/none":          ErrNotFound,
		"UPPER/case":                                  nil,
		"docker://":                                   nil,
		"x@sha512:" + strings.Repeat("ab", 64):        ErrUnsupported,
		"https://host/x":                              nil,
		"docker-archive:" + f.legacyArchive(t) + ":x": ErrNotFound,
	} {
		img, err := Open(t.Context(), source, Options{})
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", source, img, err)
		}
	}
	if _, err := Open(t.Context(), "oci:"+layout, Options{Platform: "linux"}); err == nil {
		t.Error("half a platform was taken")
	}
}

func TestLayoutTags(t *testing.T) {
	f := newFixture(t)
	var entries []v1.Descriptor
	for _, tag := range []string{"v1", "v2"} {
		f.config["author"] = tag
		entries = append(entries, named(f.seal(t).manifestDesc, tag))
	}
	whole := entries[1]
	whole.Annotations = map[string]string{refName: "v3", containerdName: "registry.example/library/app:v3"}
	dir := f.layoutOf(t, append(entries, whole)...)
	for tag, want := range map[string]string{":v1": "v1", ":v2": "v2", ":@0": "v1", ":@1": "v2", ":registry.example/library/app:v3": "v2"} {
		if img := open(t, "oci:"+dir+tag, Options{}); !strings.Contains(string(img.Config()), `"author":"`+want+`"`) {
			t.Errorf("%s: %s", tag, img.Config())
		}
	}
	if _, err := Open(t.Context(), "oci:"+dir, Options{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "v1, v2, v3") {
		t.Errorf("without tag: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0.0"}`), 0o644))
	if _, err := Open(t.Context(), "oci:"+dir+":v1", Options{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("layout 2: %v", err)
	}
	check(t, os.Remove(filepath.Join(dir, "oci-layout")))
	open(t, "oci:"+dir+":v1", Options{})
}
