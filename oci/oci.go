// Package oci reads a container image from where it lies: a registry, a layout
// folder, or an archive, and gives its config and its layers in order, every
// byte checked against the digests that name it.
//
// Sources are named as skopeo names them:
//
//	docker://REF               a registry; REF as docker pull takes it, also alone
//	oci:DIR[:TAG]              an OCI image layout folder
//	oci-archive:FILE[:TAG]     a tar of such a folder
//	docker-archive:FILE[:TAG]  what docker save writes, old form and new
//
// The path of the last three ends at the first colon, as in skopeo. Where
// nothing exists under that path, the next colon is tried, and so on to the end
// of the source, so that a file name with colons needs no quoting; the text
// after the path is the tag. TAG is a layout entry's
// org.opencontainers.image.ref.name, an archive's repository tag ("debian:12"),
// or @N for the Nth image, counted from 0. Archives are read in place and never
// unpacked, so one that is compressed as a whole is refused; its layers may be.
//
// What names a thing by digest is checked by digest: index, manifest and config
// before they are parsed, layers while they stream. Nothing is believed by
// position: a manifest must have as many layers as its config has diff ids.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

const (
	// maxDocument bounds an index, manifest or config in bytes, as registries
	// do when they take one.
	maxDocument = 4 << 20
	// maxLayers is far above the 127 that the overlay file system lets docker
	// build, and bounds what a hostile manifest makes us keep.
	maxLayers = 1000
)

var (
	// ErrCorrupt says that bytes were found and are not what they should be:
	// another digest, another length, or no legal form.
	ErrCorrupt = errors.New("image corrupt")
	// ErrUnsupported says that the image is of a kind that this package does
	// not read; the message names the media type, algorithm or form.
	ErrUnsupported = errors.New("image not supported")
	// ErrNotFound says that the source, or a piece that it promises, is not
	// there, or is not there for the platform asked for.
	ErrNotFound = errors.New("image not found")
	// ErrPlatform is the ErrNotFound of an image that is there for other
	// platforms than the one asked for.
	ErrPlatform = fmt.Errorf("%w for this platform", ErrNotFound)
	// ErrUnauthorized says that the registry refuses these credentials, or
	// wants some and the docker config has none.
	ErrUnauthorized = errors.New("registry access refused")
)

// Options say how to read a source. The zero value is right for most.
type Options struct {
	// Platform is the image wanted of several, "os/architecture[/variant]".
	// "" stands for Linux on this program's own architecture, and then a source
	// that holds one image only is taken whatever its config says.
	Platform string
	// PlainHTTP talks to the registry without TLS; nothing else ever does.
	PlainHTTP bool
	// Login, if set, gives the credentials for a registry, host or host:port, in
	// place of the docker config, which is then not read: its owner's are not for
	// everybody. Without a user the registry is asked as anybody may ask. Its
	// errors are of one line and hold no secret.
	Login func(ctx context.Context, registry string) (user, password string, err error)

	// retryDelay replaces firstDelay in tests.
	retryDelay time.Duration
}

// Layer describes one layer of an image as its manifest does.
type Layer struct {
	// DiffID is the digest of the uncompressed tar, "sha256:" and 64 hex digits.
	DiffID string
	// Digest is that of the stored bytes. It is "" for the compressed layers of
	// a docker archive, which does not tell; they are checked by DiffID alone.
	Digest string
	// MediaType is the manifest's, or for a docker archive what the first bytes
	// of the layer show it to be.
	MediaType string
	// Size is the number of bytes as stored, -1 if unknown.
	Size int64
}

// Image is one platform's image. Its methods are safe for concurrent use; Close
// comes last, after all layers are closed.
type Image struct {
	name   string
	config []byte
	digest string
	top    string // digest of what the source names
	layers []Layer
	pieces pieces
}

// pieces gives the stored bytes of an image's layers, unverified. The bytes of
// open's reader belong to ctx: when it ends, so may they.
type pieces interface {
	open(ctx context.Context, i int) (io.ReadCloser, error)
	Close() error
}

// Open finds an image, chooses the platform, and reads and checks everything
// but the layers. It takes a bounded number of requests and bytes. The caller
// closes the image.
func Open(ctx context.Context, source string, opt Options) (*Image, error) {
	want, err := parsePlatform(opt.Platform)
	if err != nil {
		return nil, err
	}
	src, err := parseSource(source)
	if err != nil {
		return nil, err
	}
	var img *Image
	switch src.via {
	case viaRegistry:
		img, err = openRegistry(ctx, src.path, want, opt)
	case viaLayout, viaLayoutArchive:
		img, err = openLayout(ctx, src, want)
	case viaDockerArchive:
		img, err = openDockerArchive(ctx, src, want)
	}
	if err != nil {
		return nil, fmt.Errorf("oci: %s: %w", oneLine(source), err)
	}
	img.name = src.name()
	return img, nil
}

// Config gives the image's config as its author wrote it: JSON, at most 4 MiB,
// whose digest was checked wherever the source states one. The caller does not
// modify it.
func (m *Image) Config() []byte { return m.config }

// ConfigDigest gives "sha256:" and 64 hex digits of Config.
func (m *Image) ConfigDigest() string { return m.digest }

// Digest gives "sha256:" and 64 hex digits of what the source names, manifest or
// index: what its tag means now. A docker archive has none, and gives "".
func (m *Image) Digest() string { return m.top }

// DefaultName gives what to call the image if nobody says otherwise: the
// reference of a registry's image as it was typed; "layout:v1" for tag v1 of a
// layout or archive at any/layout, and "layout" if no tag was given, with "-"
// for what is in no image's name; the tag alone if it is a whole reference, as
// all of a docker archive are.
func (m *Image) DefaultName() string { return m.name }

// Layers gives the layers, base first. An image may have none, and the same
// layer may stand in it twice.
func (m *Image) Layers() []Layer { return slices.Clone(m.layers) }

// Close releases connections and files.
func (m *Image) Close() error { return m.pieces.Close() }

// OpenLayer gives the uncompressed tar of layer i. Reading it to io.EOF
// verifies it: in place of io.EOF comes an error wrapping ErrCorrupt if stored
// bytes or tar differ in length or digest from what the image says, or if
// anything follows the compressed stream. Until then all bytes are tentative,
// and a reader of the tar must go on past the tar's own end mark.
//
// progress, if not nil, is told of every n stored bytes read since the last
// call, from the goroutine that decompresses; it must be quick. ctx covers the
// whole reading, also a Read that waits. The reader and its Close are for one
// goroutine at a time; Close may come early and twice, and returns when the
// decompressor has ended.
func (m *Image) OpenLayer(ctx context.Context, i int, progress func(n int64)) (io.ReadCloser, error) {
	if i < 0 || i >= len(m.layers) {
		return nil, fmt.Errorf("oci: layer %d of an image with %d", i, len(m.layers))
	}
	ctx, cancel := context.WithCancel(ctx)
	stored, err := m.pieces.open(ctx, i)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("oci: layer %s: %w", m.layers[i].label(), err)
	}
	return newLayerReader(ctx, cancel, m.layers[i], stored, progress), nil
}

// label names a layer in an error, by what the user can find in the manifest.
func (l Layer) label() string {
	if l.Digest == "" {
		return l.DiffID
	}
	return l.Digest
}

// oneLine makes text from outside fit for an error message: what a terminal
// would act upon becomes a space, and the text ends at 300 bytes, which holds
// any URL or reference worth reading.
func oneLine(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(s, "?"), func(r rune) bool {
		return r == ' ' || r < ' ' || r >= 0x7f && r < 0xa0
	}), " ")
}
