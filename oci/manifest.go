package oci

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// kind is what a document is, after all that states its media type was heard.
type kind int

const (
	kindManifest kind = iota + 1
	kindIndex
)

// compression is how a layer's tar is stored.
type compression int

const (
	plain compression = iota
	gzipped
	zstandard
)

// layerTypes lists the media types of layers that are read. Nondistributable
// ones are like the others once they lie where we look; the URLs that their
// descriptors may carry are not followed, since an image's author would then
// choose what hosts we talk to.
var layerTypes = map[types.MediaType]compression{
	types.OCIUncompressedLayer:                          plain,
	types.OCILayer:                                      gzipped,
	types.OCILayerZStd:                                  zstandard,
	types.OCIUncompressedRestrictedLayer:                plain,
	types.OCIRestrictedLayer:                            gzipped,
	types.OCIUncompressedRestrictedLayer + "+zstd":      zstandard,
	types.DockerUncompressedLayer:                       plain,
	types.DockerLayer:                                   gzipped,
	types.DockerForeignLayer:                            gzipped,
	dockerZstdLayer:                                     zstandard,
	"application/vnd.docker.image.rootfs.diff.tar+gzip": gzipped,
}

// dockerZstdLayer is what BuildKit writes for a zstd layer with docker types.
const dockerZstdLayer types.MediaType = "application/vnd.docker.image.rootfs.diff.tar.zstd"

// imageConfig is the part of a config that this package uses.
type imageConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// document is a manifest or an index, checked against its descriptor.
type document struct {
	desc v1.Descriptor
	body []byte
	kind kind
}

// newDocument decides what body is. Its descriptor declares a media type, body
// may state its own, and one of schema 2 may do without (OCI's form then shows
// which it is). If the two differ in kind, or if body could be read as either,
// somebody is meant to be misled, and it is refused.
func newDocument(desc v1.Descriptor, body []byte) (document, error) {
	var head struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     types.MediaType `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
	}
	if err := unmarshal(body, &head, "manifest "+desc.Digest.String()); err != nil {
		return document{}, err
	}
	stated, declared := documentKind(head.MediaType), documentKind(desc.MediaType)
	looks := kindManifest
	if head.Manifests != nil {
		looks = kindIndex
	}
	switch {
	case head.MediaType.IsSchema1() || desc.MediaType.IsSchema1() || head.SchemaVersion == 1:
		return document{}, fmt.Errorf("manifest of schema 1 (%s); push the image again with a current tool: %w", types.DockerManifestSchema1, ErrUnsupported)
	case head.MediaType != "" && stated == 0:
		return document{}, unsupported("manifest", head.MediaType)
	case desc.MediaType != "" && declared == 0, stated == 0 && declared == 0 && head.SchemaVersion != 2:
		return document{}, unsupported("manifest", desc.MediaType)
	case stated != 0 && declared != 0 && stated != declared:
		return document{}, fmt.Errorf("manifest %s says it is %s and is called %s: %w", desc.Digest, head.MediaType, desc.MediaType, ErrCorrupt)
	case head.Manifests != nil && (head.Config != nil || head.Layers != nil):
		return document{}, fmt.Errorf("manifest %s is index and image at once: %w", desc.Digest, ErrCorrupt)
	case stated != 0 && stated != looks, stated == 0 && declared != 0 && declared != looks:
		return document{}, fmt.Errorf("manifest %s does not have the form of its media type: %w", desc.Digest, ErrCorrupt)
	}
	return document{desc: desc, body: body, kind: looks}, nil
}

// documentKind knows the four media types that are read, and gives 0 for others.
func documentKind(t types.MediaType) kind {
	switch {
	case t.IsImage():
		return kindManifest
	case t.IsIndex():
		return kindIndex
	}
	return 0
}

// layersOf joins manifest and config into layers, base first.
func layersOf(m v1.Manifest, c imageConfig) ([]Layer, error) {
	if err := checkCount(len(m.Layers), c); err != nil {
		return nil, err
	}
	layers := make([]Layer, len(m.Layers))
	for i, d := range m.Layers {
		if _, ok := layerTypes[d.MediaType]; !ok {
			return nil, unsupported(fmt.Sprintf("layer %d", i), d.MediaType)
		}
		if err := checkDescriptor(d); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers[i] = Layer{DiffID: c.RootFS.DiffIDs[i], Digest: d.Digest.String(), MediaType: string(d.MediaType), Size: d.Size}
	}
	return layers, nil
}

// checkCount refuses a config that does not go with n layers. Steps that added
// no layer stand in its history only, and neither count them.
func checkCount(n int, c imageConfig) error {
	if n != len(c.RootFS.DiffIDs) {
		return fmt.Errorf("manifest has %d layers and its config %d diff ids: %w", n, len(c.RootFS.DiffIDs), ErrCorrupt)
	}
	if n > maxLayers {
		return fmt.Errorf("image has %d layers, more than %d: %w", n, maxLayers, ErrUnsupported)
	}
	for i, id := range c.RootFS.DiffIDs {
		h, err := v1.NewHash(id)
		if err != nil {
			return fmt.Errorf("diff id %d is %q: %w", i, oneLine(id), ErrCorrupt)
		}
		if h.Algorithm != "sha256" {
			return fmt.Errorf("diff id %d is by %s: %w", i, h.Algorithm, ErrUnsupported)
		}
	}
	return nil
}

// parseConfig reads and checks a config's form.
func parseConfig(body []byte) (imageConfig, error) {
	var c imageConfig
	err := unmarshal(body, &c, "config")
	return c, err
}

// checkDescriptor refuses what cannot name a blob.
func checkDescriptor(d v1.Descriptor) error {
	switch {
	case d.Digest.Algorithm == "":
		return fmt.Errorf("descriptor without digest: %w", ErrCorrupt)
	case d.Digest.Algorithm != "sha256":
		return fmt.Errorf("digest by %s: %w", d.Digest.Algorithm, ErrUnsupported)
	case d.Size < 0:
		return fmt.Errorf("%s has size %d: %w", d.Digest, d.Size, ErrCorrupt)
	}
	return nil
}

// readDocument reads a whole document, bounded and checked against desc.
func readDocument(r io.Reader, desc v1.Descriptor) ([]byte, error) {
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", desc.Digest, desc.Size, maxDocument, ErrUnsupported)
	}
	body, err := io.ReadAll(io.LimitReader(r, desc.Size+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", desc.Digest, err)
	}
	if int64(len(body)) != desc.Size {
		return nil, fmt.Errorf("%s has not the %d bytes of its descriptor: %w", desc.Digest, desc.Size, ErrCorrupt)
	}
	if got := digestOf(body); got != desc.Digest.String() {
		return nil, fmt.Errorf("%s has digest %s: %w", desc.Digest, got, ErrCorrupt)
	}
	return body, nil
}

// readBounded reads a whole document that nothing describes.
func readBounded(r io.Reader, what string) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if len(body) > maxDocument {
		return nil, fmt.Errorf("%s has more than %d bytes: %w", what, maxDocument, ErrUnsupported)
	}
	return body, nil
}

// unmarshal reads JSON of an image; what names it in the error. Members that
// we do not know are allowed, as the image specification demands.
func unmarshal(body []byte, v any, what string) error {
	if err := json.Unmarshal(body, v); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return fmt.Errorf("%s is not JSON at byte %d (%s): %w", what, syntax.Offset, oneLine(err.Error()), ErrCorrupt)
		}
		return fmt.Errorf("%s: %s: %w", what, oneLine(err.Error()), ErrCorrupt)
	}
	if bytes.Equal(bytes.TrimSpace(body), []byte("null")) {
		return fmt.Errorf("%s is empty: %w", what, ErrCorrupt)
	}
	return nil
}

// unsupported refuses a media type by name.
func unsupported(what string, t types.MediaType) error {
	if t == "" {
		return fmt.Errorf("%s without media type: %w", what, ErrUnsupported)
	}
	return fmt.Errorf("%s of media type %s: %w", what, strings.TrimSpace(oneLine(string(t))), ErrUnsupported)
}

// digestOf gives "sha256:" and 64 hex digits.
func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
