package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Tar is a layer that the caller has as an uncompressed tar. Open gives its
// bytes from the beginning, each time it is called, from many goroutines; they
// are checked against DiffID and Size as those of any layer are.
type Tar struct {
	DiffID string // "sha256:" and 64 hex digits
	Size   int64
	Open   func() (io.ReadCloser, error)
}

// Compose makes an image of the layers of base, which may be nil, and of tars
// on top. change edits the config that the image gets: base's as JSON decodes
// it, or an empty one; the diff ids are set afterwards. The image closes base
// with itself, and never if Compose fails. It has no Digest.
func Compose(base *Image, change func(config map[string]any), top ...Tar) (*Image, error) {
	config := map[string]any{}
	if base == nil {
		base = &Image{config: []byte(`{}`), pieces: composed{}}
	}
	if err := json.Unmarshal(base.config, &config); err != nil {
		return nil, fmt.Errorf("oci: config: %w", ErrCorrupt)
	}
	layers, ids := base.Layers(), []string{}
	for _, t := range top {
		layers = append(layers, Layer{DiffID: t.DiffID, Digest: t.DiffID, MediaType: string(types.OCIUncompressedLayer), Size: t.Size})
	}
	for _, l := range layers {
		ids = append(ids, l.DiffID)
	}
	change(config)
	config["rootfs"] = map[string]any{"type": "layers", "diff_ids": ids}
	delete(config, "history") // it would have to tell of the new layers too
	body, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("oci: config: %w", err)
	}
	parsed, err := parseConfig(body)
	if err == nil {
		err = checkCount(len(layers), parsed)
	}
	if err == nil && len(body) > maxDocument {
		err = fmt.Errorf("config has more than %d bytes: %w", maxDocument, ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("oci: %w", err)
	}
	return &Image{
		name: base.name, config: body, digest: digestOf(body), layers: layers,
		pieces: composed{base, top},
	}, nil
}

// composed is the pieces of a composed image. Its base may be nil.
type composed struct {
	base *Image
	top  []Tar
}

// open is pieces.open.
func (c composed) open(ctx context.Context, i int) (io.ReadCloser, error) {
	below := len(c.base.layers)
	if i < below {
		return c.base.pieces.open(ctx, i)
	}
	return c.top[i-below].Open()
}

// Close is pieces.Close.
func (c composed) Close() error {
	if c.base == nil {
		return nil
	}
	return c.base.Close()
}
