package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// spoiled is an image that Open must refuse. change gives the entries of the
// layout's index; none stands for the fixture's manifest, sealed again.
type spoiled struct {
	name   string
	change func(t *testing.T, f *fixture) []v1.Descriptor
	want   error
	says   string
}

func spoiledDocuments() []spoiled {
	raw := func(typ types.MediaType, body string) func(*testing.T, *fixture) []v1.Descriptor {
		return func(t *testing.T, f *fixture) []v1.Descriptor {
			return []v1.Descriptor{f.add(t, typ, []byte(body))}
		}
	}
	manifest := func(change func(*fixture)) func(*testing.T, *fixture) []v1.Descriptor {
		return func(t *testing.T, f *fixture) []v1.Descriptor {
			change(f)
			return []v1.Descriptor{f.addJSON(t, types.OCIManifestSchema1, f.manifest)}
		}
	}
	config := func(body string) func(*testing.T, *fixture) []v1.Descriptor {
		return func(t *testing.T, f *fixture) []v1.Descriptor {
			f.manifest.Config = f.add(t, types.OCIConfigJSON, []byte(body))
			return []v1.Descriptor{f.addJSON(t, types.OCIManifestSchema1, f.manifest)}
		}
	}
	m := types.OCIManifestSchema1
	sha512 := v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("ab", 64)}
	return []spoiled{
		{"manifest is no JSON", raw(m, `{"schemaVersion":2,`), ErrCorrupt, "not JSON"},
		{"manifest with tail", raw(m, `{"schemaVersion":2} {}`), ErrCorrupt, "not JSON"},
		{"manifest of wrong form", raw(m, `{"schemaVersion":2,"layers":"x"}`), ErrCorrupt, "layers"},
		{"manifest is a list", raw(m, `[]`), ErrCorrupt, ""},
		{"manifest is null", raw(m, `null`), ErrCorrupt, "empty"},
		{"bad digest", raw(m, `{"schemaVersion":2,"config":{"digest":"sha256:xyz"}}`), ErrCorrupt, "hash"},
		{"unknown manifest", raw("application/vnd.acme+json", `{"schemaVersion":2}`), ErrUnsupported, "application/vnd.acme+json"},
		{"unknown stated manifest", raw(m, `{"schemaVersion":2,"mediaType":"application/vnd.acme+json"}`), ErrUnsupported, "application/vnd.acme+json"},
		{"no manifest type at all", raw("", `{}`), ErrUnsupported, "without media type"},
		{"schema 1", raw(types.DockerManifestSchema1Signed, `{"schemaVersion":1,"fsLayers":[]}`), ErrUnsupported, "schema 1"},
		{"schema 1 called 2", raw(types.DockerManifestSchema2, `{"schemaVersion":1,"fsLayers":[]}`), ErrUnsupported, "schema 1"},
		{"index called manifest", raw(m, `{"schemaVersion":2,"manifests":[]}`), ErrCorrupt, "form"},
		{"manifest called index", raw(types.OCIImageIndex, `{"schemaVersion":2,"config":{},"layers":[]}`), ErrCorrupt, "form"},
		{"two minds", raw(m, `{"schemaVersion":2,"mediaType":"`+string(types.OCIImageIndex)+`","manifests":[]}`), ErrCorrupt, "is called"},
		{"both at once", raw(m, `{"schemaVersion":2,"manifests":[],"layers":[]}`), ErrCorrupt, "at once"},
		{"empty index", raw(types.OCIImageIndex, `{"schemaVersion":2,"manifests":[]}`), ErrNotFound, "there is nothing"},

		{"unknown config", manifest(func(f *fixture) { f.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), ErrUnsupported, "helm"},
		{"config without digest", manifest(func(f *fixture) {
			f.manifest.Config.Digest = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("00", 32)}
		}), ErrNotFound, "config"},
		{"config by sha512", manifest(func(f *fixture) { f.manifest.Config.Digest = sha512 }), ErrUnsupported, "sha512"},
		{"config of other length", manifest(func(f *fixture) { f.manifest.Config.Size++ }), ErrCorrupt, "bytes"},
		{"config too long", manifest(func(f *fixture) {
			b := bytes.Repeat([]byte(" "), maxDocument+1)
			h, _ := v1.NewHash(digestOf(b))
			f.blobs[h.String()] = b
			f.manifest.Config.Digest, f.manifest.Config.Size = h, int64(len(b))
		}), ErrUnsupported, "more than"},
		{"config is no JSON", config(`hello`), ErrCorrupt, "config is not JSON"},
		{"config of wrong form", config(`{"rootfs":[]}`), ErrCorrupt, "config"},
		{"too few diff ids", config(`{"rootfs":{"diff_ids":[]}}`), ErrCorrupt, "manifest has 1 layers and its config 0 diff ids"},
		{"bad diff id", config(`{"rootfs":{"diff_ids":["sha256:../../etc"]}}`), ErrCorrupt, "diff id 0"},
		{"diff id by sha512", config(`{"rootfs":{"diff_ids":["` + sha512.String() + `"]}}`), ErrUnsupported, "sha512"},

		{"unknown layer", manifest(func(f *fixture) { f.manifest.Layers[0].MediaType += "+encrypted" }), ErrUnsupported, "layer 0 of media type application/vnd.oci.image.layer.v1.tar+gzip+encrypted"},
		{"layer without type", manifest(func(f *fixture) { f.manifest.Layers[0].MediaType = "" }), ErrUnsupported, "without media type"},
		{"layer of negative size", manifest(func(f *fixture) { f.manifest.Layers[0].Size = -1 }), ErrCorrupt, "size -1"},
		{"layer by sha512", manifest(func(f *fixture) { f.manifest.Layers[0].Digest = sha512 }), ErrUnsupported, "sha512"},
		{"too many layers", tooManyLayers, ErrUnsupported, "1001 layers"},
	}
}

func tooManyLayers(t *testing.T, f *fixture) []v1.Descriptor {
	var ids []string
	for range maxLayers {
		f.manifest.Layers = append(f.manifest.Layers, f.manifest.Layers[0])
	}
	for range f.manifest.Layers {
		ids = append(ids, digestOf(nil))
	}
	f.setDiffIDs(ids...)
	return []v1.Descriptor{f.seal(t).manifestDesc}
}

func TestSpoiledDocuments(t *testing.T) {
	for _, s := range spoiledDocuments() {
		t.Run(s.name, func(t *testing.T) {
			f := newFixture(t, gzipLayer(t, tarOf(t)))
			entries := s.change(t, f)
			_, err := Open(t.Context(), "oci:"+f.layoutOf(t, entries...), Options{})
			if !errors.Is(err, s.want) || !strings.Contains(fmt.Sprint(err), s.says) {
				t.Errorf("got %v, want %v saying %q", err, s.want, s.says)
			}
		})
	}
}

// TestDamagedDocuments flips a bit of each document after its digest was taken.
func TestDamagedDocuments(t *testing.T) {
	f := newFixture(t, gzipLayer(t, tarOf(t)))
	for what, d := range map[string]v1.Descriptor{"manifest": f.manifestDesc, "config": f.manifest.Config} {
		dir := f.layout(t)
		name := filepath.Join(dir, "blobs", "sha256", d.Digest.Hex)
		b := bytes.Clone(f.blobs[d.Digest.String()])
		b[len(b)-2] ^= 1
		check(t, os.WriteFile(name, b, 0o644))
		if _, err := Open(t.Context(), "oci:"+dir, Options{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), d.Digest.Hex) {
			t.Errorf("%s: %v", what, err)
		}
		check(t, os.Remove(name))
		if _, err := Open(t.Context(), "oci:"+dir, Options{}); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s removed: %v", what, err)
		}
	}
}

// TestUntypedManifest reads what OCI allows: no media type inside.
func TestUntypedManifest(t *testing.T) {
	f := newFixture(t, gzipLayer(t, tarOf(t)))
	f.manifest.MediaType = ""
	open(t, "oci:"+f.seal(t).layout(t), Options{})
	index := f.addJSON(t, "", map[string]any{"schemaVersion": 2, "manifests": []v1.Descriptor{f.manifestDesc}})
	open(t, "oci:"+f.layoutOf(t, index), Options{})
}

// FuzzDocument feeds manifests, indexes and configs: whatever they say, the
// answer is an image or one of the package's errors.
func FuzzDocument(f *testing.F) {
	good := newFixture(f, gzipLayer(f, tarOf(f)))
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: []v1.Descriptor{forPlatform(good.manifestDesc, "linux/amd64")}})
	check(f, err)
	config := good.blobs[good.manifest.Config.Digest.String()]
	f.Add(good.blobs[good.manifestDesc.Digest.String()], config)
	f.Add(index, config)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":null,"size":1e99}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, body, config []byte) {
		fix := &fixture{blobs: map[string][]byte{}}
		doc, err := newDocument(fix.add(t, "", body), body)
		if err == nil && doc.kind == kindManifest {
			var m v1.Manifest
			var c imageConfig
			if err = unmarshal(body, &m, "manifest"); err == nil {
				if c, err = parseConfig(config); err == nil {
					_, err = layersOf(m, c)
				}
			}
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("neither corrupt nor unsupported: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("more than a line: %q", err)
		}
	})
}
