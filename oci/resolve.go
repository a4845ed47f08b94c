package oci

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	// maxDepth is how deep indexes may lie in one another. Tools nest once, to
	// put a multi-platform image under a layout's tag.
	maxDepth = 4
	// maxIndexes bounds the indexes read for one image: without it a tree of
	// them, though not deep, could ask for millions of requests.
	maxIndexes = 64
	// maxListed bounds the platforms named in an error.
	maxListed = 16
)

// store holds an image's documents and blobs by digest, unverified. A missing
// one gives ErrNotFound.
type store interface {
	manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	Close() error
}

// resolver finds one platform's image from an index or manifest on.
type resolver struct {
	store   store
	want    platform
	indexes int      // read so far
	seen    []string // platforms met, for the error
}

// image resolves doc to an Image that takes over the store. chosen says that an
// index has stated its platform.
func (r *resolver) image(ctx context.Context, doc document, chosen bool) (*Image, error) {
	top := doc.desc.Digest.String()
	if doc.kind == kindIndex {
		found, err := r.pickFrom(ctx, doc, 0)
		if err != nil {
			return nil, err
		}
		if found == nil {
			return nil, r.noneFits()
		}
		chosen = found.Platform != nil
		if doc, err = r.load(ctx, *found); err != nil {
			return nil, err
		}
		if doc.kind != kindManifest {
			return nil, fmt.Errorf("manifest %s is an index where an image was promised: %w", doc.desc.Digest, ErrCorrupt)
		}
	}
	img, err := r.fromManifest(ctx, doc, chosen)
	if err != nil {
		return nil, err
	}
	img.top = top
	return img, nil
}

// load reads a manifest or index that an entry describes, checked against it.
func (r *resolver) load(ctx context.Context, d v1.Descriptor) (document, error) {
	if err := checkDescriptor(d); err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	body, err := r.read(ctx, d, r.store.manifest)
	if err != nil {
		return document{}, fmt.Errorf("manifest: %w", err)
	}
	return newDocument(d, body)
}

// read reads one whole piece, checked against its descriptor, by one of the
// store's two methods.
func (r *resolver) read(ctx context.Context, d v1.Descriptor, open func(context.Context, v1.Descriptor) (io.ReadCloser, error)) ([]byte, error) {
	rc, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return readDocument(rc, d)
}

// pickFrom chooses from an index document; nil if it has nothing that fits.
func (r *resolver) pickFrom(ctx context.Context, doc document, depth int) (*v1.Descriptor, error) {
	if depth++; depth > maxDepth {
		return nil, fmt.Errorf("indexes lie more than %d deep in one another: %w", maxDepth, ErrUnsupported)
	}
	if r.indexes++; r.indexes > maxIndexes {
		return nil, fmt.Errorf("more than %d indexes: %w", maxIndexes, ErrUnsupported)
	}
	var index v1.IndexManifest
	if err := unmarshal(doc.body, &index, "index "+doc.desc.Digest.String()); err != nil {
		return nil, err
	}
	return r.pick(ctx, index.Manifests, depth)
}

// pick chooses the entry that fits best: by the platform it states, the first
// of equals; then from indexes inside; then the only one that states nothing,
// whose config must tell.
func (r *resolver) pick(ctx context.Context, entries []v1.Descriptor, depth int) (*v1.Descriptor, error) {
	var best *v1.Descriptor
	var nested, silent []v1.Descriptor
	score := 0
	for _, e := range entries {
		switch {
		case attestation(e):
		case e.MediaType.IsIndex():
			nested = append(nested, e)
		case e.Platform == nil:
			silent = append(silent, e)
		default:
			have := platformOf(*e.Platform)
			r.note(have.String())
			if s := r.want.accepts(have); s > score {
				best, score = &e, s
			}
		}
	}
	if best != nil {
		return best, nil
	}
	for _, e := range nested {
		doc, err := r.load(ctx, e)
		if err != nil {
			return nil, err
		}
		if found, err := r.pickFrom(ctx, doc, depth); found != nil || err != nil {
			return found, err
		}
	}
	if len(silent) == 1 {
		return &silent[0], nil
	}
	for range silent {
		r.note("an unstated platform")
	}
	return nil, nil
}

// attestation tells the entries that builders put beside images: provenance
// and the like, under a platform that no machine has.
func attestation(d v1.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" ||
		d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

// note remembers a platform met.
func (r *resolver) note(p string) {
	if !slices.Contains(r.seen, p) && len(r.seen) <= maxListed {
		r.seen = append(r.seen, p)
	}
}

// noneFits says what there is instead.
func (r *resolver) noneFits() error {
	there := "nothing"
	if len(r.seen) > 0 {
		there = strings.Join(r.seen[:min(len(r.seen), maxListed)], ", ")
	}
	if len(r.seen) > maxListed {
		there += ", …"
	}
	return fmt.Errorf("no image for %s, there is %s: %w", r.want, there, ErrPlatform)
}

// fromManifest reads the config and makes the image. chosen says that an index
// has vouched for the platform: configs of such images are often wrong.
func (r *resolver) fromManifest(ctx context.Context, doc document, chosen bool) (*Image, error) {
	var m v1.Manifest
	if err := unmarshal(doc.body, &m, "manifest "+doc.desc.Digest.String()); err != nil {
		return nil, err
	}
	if !m.Config.MediaType.IsConfig() {
		return nil, unsupported("config", m.Config.MediaType)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	body, err := r.read(ctx, m.Config, r.store.blob)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	config, err := parseConfig(body)
	if err != nil {
		return nil, err
	}
	if !chosen {
		if err := r.want.checkConfig(config); err != nil {
			return nil, err
		}
	}
	layers, err := layersOf(m, config)
	if err != nil {
		return nil, err
	}
	return &Image{config: body, digest: m.Config.Digest.String(), layers: layers, pieces: blobs{r.store, m.Layers}}, nil
}

// blobs is the pieces of an image whose layers are blobs of a store.
type blobs struct {
	store
	layers []v1.Descriptor
}

// open is pieces.open.
func (b blobs) open(ctx context.Context, i int) (io.ReadCloser, error) {
	return b.blob(ctx, b.layers[i])
}
