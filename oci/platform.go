package oci

import (
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// platform is what an image runs on. variant is "" where nobody said.
type platform struct {
	os, arch, variant string
	// explicit tells a user's wish from the default.
	explicit bool
}

// parsePlatform reads Options.Platform.
func parsePlatform(s string) (platform, error) {
	if s == "" {
		return platform{os: "linux", arch: runtime.GOARCH}, nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return platform{}, fmt.Errorf("oci: platform %q: write os/architecture or os/architecture/variant, such as linux/arm64", oneLine(s))
	}
	return platform{os: parts[0], arch: parts[1], variant: strings.Join(parts[2:], ""), explicit: true}, nil
}

// platformOf takes over a descriptor's platform.
func platformOf(p v1.Platform) platform {
	return platform{os: p.OS, arch: p.Architecture, variant: p.Variant}
}

// String gives os/architecture[/variant], in one line whatever the image says.
func (p platform) String() string {
	s := oneLine(p.os + "/" + p.arch)
	if p.variant != "" {
		s += "/" + oneLine(p.variant)
	}
	return s
}

// baseVariant is what an architecture without variant means in the image
// specification's table; the others have none.
var baseVariant = map[string]string{"amd64": "v1", "arm": "v7", "arm64": "v8"}

// level gives the number of a variant such as v7, 0 if it is none.
func (p platform) level() int {
	v := p.variant
	if v == "" {
		v = baseVariant[p.arch]
	}
	if !strings.HasPrefix(v, "v") {
		return 0
	}
	n, err := strconv.ParseUint(v[1:], 10, 8)
	if err != nil {
		return 0
	}
	return int(n)
}

// accepts tells how well an image for have runs on p: higher is better, 0 is
// not at all. A processor of one variant runs the images of lower ones.
func (p platform) accepts(have platform) int {
	if p.os != have.os || p.arch != have.arch {
		return 0
	}
	want, level := p.level(), have.level()
	switch {
	case p.variant == have.variant || want == level && level > 0:
		return 1 << 10 // above any level
	case level > 0 && level < want:
		return level
	}
	return 0
}

// checkConfig refuses a lone image whose config does not fit the platform that
// the user asked for. A config may leave the variant out: many do.
func (p platform) checkConfig(c imageConfig) error {
	have := platform{os: c.OS, arch: c.Architecture, variant: c.Variant}
	if !p.explicit || p.accepts(have) > 0 || have.variant == "" && have.os == p.os && have.arch == p.arch {
		return nil
	}
	return fmt.Errorf("no image for %s, there is one for %s: %w", p, have, ErrPlatform)
}
