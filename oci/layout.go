package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	// refName is where a layout's index keeps an image's tag (OCI image
	// specification, annotations).
	refName = "org.opencontainers.image.ref.name"
	// containerdName is where containerd and docker save keep the whole reference.
	containerdName = "io.containerd.image.name"
)

// openLayout opens an image of a layout folder or archive:
//
//	oci-layout               the version of the form
//	index.json               an index; its entries carry the tags
//	blobs/sha256/<hex>       manifests, configs, layers
func openLayout(ctx context.Context, src source, want platform) (*Image, error) {
	files, err := openLayoutTree(ctx, src)
	if err != nil {
		return nil, err
	}
	img, err := imageOfLayout(ctx, layoutStore{files}, src.tag, want)
	if err != nil {
		files.Close()
	}
	return img, err
}

// openLayoutTree opens the folder or archive itself.
func openLayoutTree(ctx context.Context, src source) (tree, error) {
	if src.via == viaLayoutArchive {
		a, err := openArchive(ctx, src.path)
		if err != nil {
			return nil, err
		}
		return a, nil
	}
	st, err := os.Stat(src.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no such folder: %w", ErrNotFound)
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("is no folder (oci-archive: or docker-archive: read files): %w", ErrUnsupported)
	}
	return folder(src.path), nil
}

// imageOfLayout resolves a tag. A lone entry is taken as what it is, image or
// index, and its own config or index answers for the platform. Several entries
// under one tag, or in a layout without tags, are chosen from as if they stood
// in an index: library and builder tools write multi-platform images so.
func imageOfLayout(ctx context.Context, l layoutStore, tag string, want platform) (*Image, error) {
	if err := l.checkVersion(); err != nil {
		return nil, err
	}
	body, err := readFile(l.tree, "index.json")
	if err != nil {
		return nil, fmt.Errorf("layout: %w", err)
	}
	var index v1.IndexManifest
	if err := unmarshal(body, &index, "index.json"); err != nil {
		return nil, err
	}
	entries, err := tagged(index.Manifests, tag)
	if err != nil {
		return nil, err
	}
	r := &resolver{store: l, want: want}
	entry, several := &entries[0], len(entries) > 1
	if several { // images for several platforms under one tag
		if entry, err = r.pick(ctx, entries, 0); err != nil {
			return nil, err
		}
		if entry == nil {
			return nil, r.noneFits()
		}
	}
	doc, err := r.load(ctx, *entry)
	if err != nil {
		return nil, err
	}
	return r.image(ctx, doc, several && entry.Platform != nil)
}

// tagged gives the entries that tag means, at least one: those of that name,
// the Nth for @N, and without a tag all, if they go by one name.
func tagged(entries []v1.Descriptor, tag string) ([]v1.Descriptor, error) {
	entries = slices.DeleteFunc(slices.Clone(entries), attestation)
	var names []string
	for _, e := range entries {
		if n := e.Annotations[refName]; !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	there := listNames(names)
	switch {
	case len(entries) == 0:
		return nil, fmt.Errorf("no image in it: %w", ErrNotFound)
	case strings.HasPrefix(tag, "@"):
		n, err := strconv.ParseUint(tag[1:], 10, 31)
		if err != nil || n >= uint64(len(entries)) {
			return nil, fmt.Errorf("no image %s of %d: %w", oneLine(tag), len(entries), ErrNotFound)
		}
		return entries[n : n+1], nil
	case tag == "" && len(names) > 1:
		return nil, fmt.Errorf("several images, choose one by its tag: %s: %w", there, ErrNotFound)
	case tag == "":
		return entries, nil
	}
	entries = slices.DeleteFunc(entries, func(e v1.Descriptor) bool {
		return e.Annotations[refName] != tag && e.Annotations[containerdName] != tag
	})
	if len(entries) == 0 {
		return nil, fmt.Errorf("no tag %s, there is %s: %w", oneLine(tag), there, ErrNotFound)
	}
	return entries, nil
}

// listNames lists tags for an error, bounded.
func listNames(names []string) string {
	var list []string
	for _, n := range names {
		if len(list) == maxListed {
			list = append(list, "…")
			break
		}
		if n == "" {
			n = "one without tag"
		}
		list = append(list, oneLine(n))
	}
	return strings.Join(list, ", ")
}

// layoutStore is a store over an OCI image layout's files, in a folder or in an
// archive. It is safe for concurrent use, as trees are.
type layoutStore struct{ tree }

// checkVersion refuses a layout of another version. Some tools leave the file
// out; the index then speaks for itself.
func (l layoutStore) checkVersion() error {
	body, err := readFile(l.tree, "oci-layout")
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var v struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := unmarshal(body, &v, "oci-layout"); err != nil {
		return err
	}
	if !strings.HasPrefix(v.Version, "1.") {
		return fmt.Errorf("layout of version %q: %w", oneLine(v.Version), ErrUnsupported)
	}
	return nil
}

// manifest is store.manifest: a layout keeps all things as blobs.
func (l layoutStore) manifest(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return l.blob(ctx, d)
}

// blob is store.blob. The digest was parsed, so it leads nowhere else.
func (l layoutStore) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	rc, size, err := l.open("blobs/" + d.Digest.Algorithm + "/" + d.Digest.Hex)
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		rc.Close()
		return nil, fmt.Errorf("%s has %d bytes, not %d: %w", d.Digest, size, d.Size, ErrCorrupt)
	}
	return rc, nil
}
