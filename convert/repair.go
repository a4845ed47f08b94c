package convert

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"thaw/chunk"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
)

// Repair makes the chunks of an image again from its source, and replaces
// those in the store that are missing or damaged; it gives how many. The
// source must be the image's own: anything else gives ErrDiffers and changes
// nothing but, if its layers are not what its config says, whole chunks that no
// image names. opt's Source and Image options are used.
func (c *Converter) Repair(ctx context.Context, m *manifest.Manifest, id manifest.ID, root origin.Root, opt Options) (int, error) {
	img, err := oci.Open(ctx, opt.Source, opt.Image)
	if err != nil {
		return 0, err
	}
	defer img.Close()
	if img.ConfigDigest() != m.Source {
		return 0, fmt.Errorf("%w: config %s, image from %s", ErrDiffers, img.ConfigDigest(), m.Source)
	}
	opt.ChunkSize, opt.repair = m.ChunkSize, m
	chunks := c.Origin.Chunks(root.Name)
	if opt.Private, err = c.isPrivate(ctx, m, root, chunks); err != nil {
		return 0, err
	}
	r := c.newRun(img, root, opt)
	mender := &mendingStore{Chunks: chunks}
	r.store = mender
	made, err := r.device(ctx)
	if err != nil {
		return 0, err
	}
	_, again, err := r.seal(ctx, made)
	if err != nil {
		return 0, err
	}
	if again != id {
		return int(mender.mended.Load()), fmt.Errorf("%w: it gives image %s", ErrDiffers, again)
	}
	return int(mender.mended.Load()), nil
}

// isPrivate finds out whether an image was converted with the tenant's own
// salt, by sealing one of its chunks again.
func (c *Converter) isPrivate(ctx context.Context, m *manifest.Manifest, root origin.Root, chunks chunk.Source) (bool, error) {
	for _, e := range m.Chunks {
		sealed, err := chunks.Get(ctx, e.Name)
		if err != nil && !errors.Is(err, chunk.ErrNotFound) && !errors.Is(err, chunk.ErrCorrupt) {
			return false, err
		}
		if err != nil {
			continue
		}
		plain, err := chunk.Open(sealed, e.Name, e.Key)
		if err != nil {
			continue
		}
		for _, private := range []bool{false, true} {
			if chunk.Seal(c.salt(root, private), append([]byte(nil), plain...)).Name == e.Name {
				return private, nil
			}
		}
		return false, errors.New("the image was sealed under another deployment secret or epoch, and cannot be made again here")
	}
	return false, nil
}

// mendingStore reads what it already has, and replaces what is wrong.
type mendingStore struct {
	*origin.Chunks
	mended atomic.Int64
}

// Put replaces a damaged chunk, stores a missing one, and leaves a good one.
func (s *mendingStore) Put(ctx context.Context, name chunk.Name, sealed []byte) (bool, error) {
	old, err := s.Chunks.Get(ctx, name)
	switch {
	case err == nil && chunk.Check(old, name) == nil:
		return false, nil
	case err == nil, errors.Is(err, chunk.ErrCorrupt):
		err = s.Chunks.Repair(ctx, name, sealed)
	case errors.Is(err, chunk.ErrNotFound):
		_, err = s.Chunks.Put(ctx, name, sealed)
	}
	if err == nil {
		s.mended.Add(1)
	}
	return err == nil, err
}
