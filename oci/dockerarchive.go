package oci

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// savedImage is an element of a docker archive's manifest.json, which lists the
// images of the archive. All three forms of the archive have that file:
//
//	<config hex>.json, <id>/layer.tar       docker save before 25; links for repeats
//	<config hex>.json, <hex>.tar            podman and buildah
//	blobs/sha256/<hex>, index.json          docker save since 25: also a layout
//
// Config and Layers are names in the archive, base layer first. RepoTags may be
// null: an image saved by its id has none.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// openDockerArchive opens an image of what docker save wrote. The newer form is
// a layout as well; manifest.json is read in both.
func openDockerArchive(ctx context.Context, src source, want platform) (*Image, error) {
	files, err := openArchive(ctx, src.path)
	if err != nil {
		return nil, err
	}
	img, err := imageOfDockerArchive(files, src.tag, want)
	if err != nil {
		files.Close()
	}
	return img, err
}

// imageOfDockerArchive resolves a tag.
func imageOfDockerArchive(files tree, tag string, want platform) (*Image, error) {
	body, err := readFile(files, "manifest.json")
	if err != nil {
		return nil, fmt.Errorf("docker archive (oci-archive: reads a layout): %w", err)
	}
	var images []savedImage
	if err := unmarshal(body, &images, "manifest.json"); err != nil {
		return nil, err
	}
	saved, err := pickSaved(images, tag)
	if err != nil {
		return nil, err
	}
	config, err := readFile(files, saved.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if stated, got := statedDigest(saved.Config), digestOf(config); stated != "" && stated != got {
		return nil, fmt.Errorf("config %s has digest %s: %w", stated, got, ErrCorrupt)
	}
	parsed, err := parseConfig(config)
	if err != nil {
		return nil, err
	}
	if err := want.checkConfig(parsed); err != nil {
		return nil, err
	}
	layers, err := savedLayers(files, saved.Layers, parsed)
	if err != nil {
		return nil, err
	}
	return &Image{config: config, digest: digestOf(config), layers: layers, pieces: savedPieces{files, saved.Layers}}, nil
}

// pickSaved chooses by repository tag, by @N, or the only image there is.
func pickSaved(images []savedImage, tag string) (savedImage, error) {
	var names []string
	for _, m := range images {
		names = append(names, m.RepoTags...)
	}
	switch {
	case len(images) == 0:
		return savedImage{}, fmt.Errorf("no image in it: %w", ErrNotFound)
	case strings.HasPrefix(tag, "@"):
		if n, err := strconv.ParseUint(tag[1:], 10, 31); err == nil && n < uint64(len(images)) {
			return images[n], nil
		}
		return savedImage{}, fmt.Errorf("no image %s of %d: %w", oneLine(tag), len(images), ErrNotFound)
	case tag == "" && len(images) == 1:
		return images[0], nil
	case tag == "":
		return savedImage{}, fmt.Errorf("several images, choose one by its tag or @N: %s: %w", listNames(names), ErrNotFound)
	}
	for _, m := range images {
		if slices.ContainsFunc(m.RepoTags, func(have string) bool { return sameTag(have, tag) }) {
			return m, nil
		}
	}
	return savedImage{}, fmt.Errorf("no image %s, there is %s: %w", oneLine(tag), listNames(names), ErrNotFound)
}

// sameTag compares repository tags by what they mean: the writers differ in
// whether they spell registry, library/ and latest out.
func sameTag(a, b string) bool {
	if a == b {
		return true
	}
	x, err := name.NewTag(a)
	if err != nil {
		return false
	}
	y, err := name.NewTag(b)
	return err == nil && x.Name() == y.Name()
}

// statedDigest is the digest that a config's file name states: <hex>.json,
// sha256:<hex> or blobs/sha256/<hex>. Any other name states none.
func statedDigest(file string) string {
	hex := strings.TrimSuffix(strings.TrimPrefix(path.Base(file), "sha256:"), ".json")
	if h, err := v1.NewHash("sha256:" + hex); err == nil {
		return h.String()
	}
	return ""
}

// savedLayers describes the layers by what their first bytes show: the archive
// states no media types. It states a digest of the stored bytes only where a
// layer lies as a layout's blob; for a plain tar the diff id is that digest.
func savedLayers(files tree, names []string, c imageConfig) ([]Layer, error) {
	if err := checkCount(len(names), c); err != nil {
		return nil, err
	}
	layers := make([]Layer, len(names))
	for i, file := range names {
		head, size, err := peek(files, file)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		l := Layer{DiffID: c.RootFS.DiffIDs[i], Size: size}
		switch sniff(head) {
		case gzipped:
			l.MediaType = string(types.DockerLayer)
		case zstandard:
			l.MediaType = string(dockerZstdLayer)
		default:
			l.MediaType, l.Digest = string(types.DockerUncompressedLayer), l.DiffID
		}
		if strings.HasPrefix(path.Clean(file), "blobs/sha256/") && statedDigest(file) != "" {
			l.Digest = statedDigest(file)
		}
		layers[i] = l
	}
	return layers, nil
}

// peek reads the up to 4 first bytes of a file, enough for sniff, and tells its
// length in bytes.
func peek(files tree, file string) (head []byte, size int64, err error) {
	rc, size, err := files.open(file)
	if err != nil {
		return nil, 0, err
	}
	defer rc.Close()
	head, err = io.ReadAll(io.LimitReader(rc, 4))
	return head, size, err
}

// savedPieces is the pieces of a docker archive's image: the names of its layers
// in the archive. It closes the archive.
type savedPieces struct {
	tree
	layers []string
}

// open is pieces.open.
func (p savedPieces) open(_ context.Context, i int) (io.ReadCloser, error) {
	rc, _, err := p.tree.open(p.layers[i])
	return rc, err
}
