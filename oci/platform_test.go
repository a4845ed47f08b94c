package oci

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"":               "linux/" + runtime.GOARCH,
		"linux/arm64":    "linux/arm64",
		"linux/arm/v6":   "linux/arm/v6",
		"linux":          "error",
		"linux/":         "error",
		"/amd64":         "error",
		"linux/arm/v6/x": "error",
		"linux/arm/":     "error",
	} {
		p, err := parsePlatform(in)
		got := p.String()
		if err != nil {
			got = "error"
		}
		if got != want || err == nil && p.explicit != (in != "") {
			t.Errorf("%q: %s, %v", in, got, err)
		}
	}
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		want string
		have []string // best first; then "|" and those that do not run
	}{
		{"linux/amd64", []string{"linux/amd64", "|", "linux/amd64/v2", "linux/386", "windows/amd64"}},
		{"linux/amd64", []string{"linux/amd64/v1", "|", "linux/amd64/v3"}},
		{"linux/amd64/v3", []string{"linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "|", "linux/amd64/v4"}},
		{"linux/arm64", []string{"linux/arm64/v8", "|", "linux/arm64/v9", "linux/arm"}},
		{"linux/arm64/v8", []string{"linux/arm64", "|", "linux/arm/v7"}},
		{"linux/arm", []string{"linux/arm/v7", "linux/arm/v6", "linux/arm/v5", "|", "linux/arm/v8"}},
		{"linux/arm/v6", []string{"linux/arm/v6", "linux/arm/v5", "|", "linux/arm/v7", "linux/arm"}},
		{"linux/ppc64le", []string{"linux/ppc64le", "|", "linux/ppc64le/power10", "linux/ppc64"}},
		{"linux/mips/softfloat", []string{"linux/mips/softfloat", "|", "linux/mips", "linux/mips/vhard"}},
	} {
		want, err := parsePlatform(c.want)
		check(t, err)
		last, refuse := 1<<20, false
		for _, h := range c.have {
			if h == "|" {
				refuse = true
				continue
			}
			have, err := parsePlatform(h)
			check(t, err)
			score := want.accepts(have)
			if refuse != (score == 0) || !refuse && score >= last {
				t.Errorf("%s on %s: score %d after %d", h, c.want, score, last)
			}
			last = score
		}
	}
}

// platforms makes an image per platform, whose config says so and whose one
// label tells them apart.
func platforms(t *testing.T, f *fixture, names ...string) []v1.Descriptor {
	t.Helper()
	var entries []v1.Descriptor
	for _, n := range names {
		p, err := parsePlatform(n)
		check(t, err)
		f.config["os"], f.config["architecture"], f.config["variant"] = p.os, p.arch, p.variant
		entries = append(entries, forPlatform(f.seal(t).manifestDesc, n))
	}
	return entries
}

func TestPlatformChoice(t *testing.T) {
	f := newFixture(t, gzipLayer(t, tarOf(t)))
	note := forPlatform(f.add(t, types.OCIManifestSchema1, []byte("not even JSON")), "unknown/unknown")
	all := append([]v1.Descriptor{note}, platforms(t, f, "linux/arm/v6", "linux/arm/v7", "linux/arm64", "linux/amd64", "windows/amd64")...)
	index := func(entries ...v1.Descriptor) v1.Descriptor {
		return f.addJSON(t, types.OCIImageIndex, v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: entries})
	}
	silent := all[3]
	silent.Platform = nil
	deep := index(all...)
	for range maxDepth {
		deep = index(deep)
	}
	docker := f.addJSON(t, types.DockerManifestList, v1.IndexManifest{SchemaVersion: 2, MediaType: types.DockerManifestList, Manifests: all})
	for _, c := range []struct {
		name, platform, want string
		entries              []v1.Descriptor
	}{
		{"index", "linux/amd64", "linux/amd64", []v1.Descriptor{index(all...)}},
		{"docker list", "linux/arm64", "linux/arm64", []v1.Descriptor{docker}},
		{"layout with platforms", "windows/amd64", "windows/amd64", all},
		{"variant", "linux/arm", "linux/arm/v7", []v1.Descriptor{index(all...)}},
		{"lower variant", "linux/arm/v6", "linux/arm/v6", all},
		{"nested", "linux/amd64", "linux/amd64", []v1.Descriptor{index(index(all[1]), index(all[4]))}},
		{"beside nested", "linux/arm64", "linux/arm64", []v1.Descriptor{index(index(all[3]), all[3])}},
		{"only one, unstated", "linux/arm64", "linux/arm64", []v1.Descriptor{index(note, silent)}},
		{"lone image", "linux/arm64", "linux/arm64", []v1.Descriptor{silent}},
		{"lone image of any kind", "", "linux/arm64", []v1.Descriptor{silent}},
		{"none fits", "linux/s390x", "error: there is linux/arm/v6, linux/arm/v7, linux/arm64, linux/amd64, windows/amd64: ", all},
		{"none fits, unstated", "linux/amd64", "error: there is one for linux/arm64", []v1.Descriptor{index(silent)}},
		{"none fits, lone", "linux/amd64", "error: no image for linux/amd64, there is one for linux/arm64", []v1.Descriptor{silent}},
		{"several unstated", "linux/arm64", "error: an unstated platform", []v1.Descriptor{index(silent, silent)}},
		{"too deep", "linux/amd64", "error: deep", []v1.Descriptor{deep}},
		{"too many", "linux/amd64", "error: more than 64 indexes", []v1.Descriptor{index(manyIndexes(index)...)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := Open(t.Context(), "oci:"+f.layoutOf(t, c.entries...), Options{Platform: c.platform})
			if says, bad := strings.CutPrefix(c.want, "error: "); bad {
				if !strings.Contains(fmt.Sprint(err), says) || !errors.Is(err, ErrPlatform) && !errors.Is(err, ErrUnsupported) {
					t.Errorf("got %v", err)
				}
				return
			}
			check(t, err)
			defer img.Close()
			config, err := parseConfig(img.Config())
			check(t, err)
			if got := (platform{os: config.OS, arch: config.Architecture, variant: config.Variant}); got.String() != c.want {
				t.Errorf("got %s", got)
			}
		})
	}
}

// manyIndexes are more than may be read, each empty and different.
func manyIndexes(index func(...v1.Descriptor) v1.Descriptor) []v1.Descriptor {
	var all []v1.Descriptor
	for i := range maxIndexes {
		all = append(all, index(forPlatform(v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("00", 32)}}, fmt.Sprintf("linux/arch%d", i))))
	}
	return all
}
