package convert

import (
	"context"
	"errors"
	"fmt"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/manifest"
	"thaw/origin"
)

const (
	// spareBytes stays free beside what is to be stored: recipes, the manifest,
	// the device's metadata, and whatever else uses the disk meanwhile.
	spareBytes = 64 << 20
	// publishTries bounds how often a manifest is put again that others remove.
	// One try for each removal of this very image at this very moment.
	publishTries = 5
)

// checkName refuses what cannot be a name, and one whose record the tenant's
// key does not open. A damaged record keeps nobody from setting the name anew.
func (c *Converter) checkName(ctx context.Context, name string) error {
	_, err := c.names().Get(ctx, name)
	if err == nil || errors.Is(err, catalog.ErrNotFound) || errors.Is(err, catalog.ErrCorrupt) {
		return nil
	}
	return err
}

func (c *Converter) names() *catalog.Catalog { return catalog.New(c.Origin, c.Tenant, c.Keeper) }

// checkSpace compares the disk's free space with the layers that have no
// recipe, as compressed. Chunks take more, but some may be there already.
func (r *run) checkSpace(ctx context.Context) error {
	free, known, err := r.c.Origin.Free()
	if err != nil || !known || r.opt.IgnoreSpace {
		return err
	}
	need := int64(0)
	seen := map[string]bool{}
	for _, l := range r.img.Layers() {
		if seen[l.DiffID] || l.Size <= 0 {
			continue
		}
		seen[l.DiffID] = true
		_, err := r.recipes().Stat(ctx, r.recipeName(l.DiffID))
		if errors.Is(err, origin.ErrNotFound) || errors.Is(err, origin.ErrCorrupt) {
			need += l.Size
		} else if err != nil {
			return fmt.Errorf("layer %s: looking for its recipe: %w", l.DiffID, err)
		}
	}
	if need == 0 || need+spareBytes <= free {
		return nil
	}
	return fmt.Errorf("%w: %.1f MiB are needed at least (layers of %.1f MiB, compressed, and %d MiB to spare) and %.1f MiB are free: make room, or use --ignore-space if most is stored already",
		origin.ErrFull, mib(need+spareBytes), mib(need), spareBytes>>20, mib(free))
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// publish stores the manifest and names the image, and counts what is new.
func (r *run) publish(ctx context.Context, m *manifest.Manifest, res *Result) error {
	data, id, err := r.seal(ctx, m)
	if err != nil {
		return err
	}
	res.Image = id.String()
	if err := r.count(ctx, m, res); err != nil {
		return err
	}
	if err := r.storeManifest(ctx, id, data); err != nil {
		return err
	}
	if err := r.refer(ctx, res); err != nil {
		return fmt.Errorf("image %s is stored, but not named %q: %w", id, res.Name, err)
	}
	// Whoever removes the image at the same time removes the manifest first and
	// looks for names after; here it is the other way round. So one of the two
	// sees what the other did, and puts the manifest back.
	if _, err = r.manifests().Stat(ctx, id.String()); errors.Is(err, origin.ErrNotFound) {
		err = r.storeManifest(ctx, id, data)
	}
	return err
}

func (r *run) seal(ctx context.Context, m *manifest.Manifest) ([]byte, manifest.ID, error) {
	return manifest.Seal(ctx, m, r.salt, r.c.KeyURL, r.c.Keeper)
}

// refer makes the reference, unless it says so already.
func (r *run) refer(ctx context.Context, res *Result) error {
	names := r.c.names()
	old, gone := names.Get(ctx, res.Name)
	if gone == nil && old.Image == res.Image && old.Root == r.root.Name {
		return nil
	}
	_, err := names.Set(ctx, res.Name, res.Image, r.root.Name)
	if err == nil && gone == nil && old.Image != res.Image {
		r.c.warn("the name %s meant image %.12s until now", res.Name, old.Image)
	}
	return err
}

// storeManifest stores the manifest. One that is there is the same image's,
// sealed with another data key, and stays, unless it is damaged.
func (r *run) storeManifest(ctx context.Context, id manifest.ID, data []byte) error {
	for range publishTries {
		added, err := r.manifests().Put(ctx, id.String(), data)
		if err != nil {
			return fmt.Errorf("storing the manifest: %w", err)
		}
		if added {
			return nil
		}
		old, err := r.manifests().Get(ctx, id.String())
		if errors.Is(err, origin.ErrNotFound) {
			continue // removed since
		}
		if err == nil {
			err = r.checkManifest(ctx, id, old)
		}
		if !errors.Is(err, origin.ErrCorrupt) && !errors.Is(err, manifest.ErrCorrupt) {
			return err
		}
		r.c.warn("manifest %s was damaged and is replaced", id)
		return r.manifests().Replace(ctx, id.String(), data)
	}
	return fmt.Errorf("manifest %s: others keep removing it: convert again", id)
}

// checkManifest checks that data is the image's manifest, whole, and that the
// tenant's key opens it.
func (r *run) checkManifest(ctx context.Context, id manifest.ID, data []byte) error {
	s, err := manifest.Parse(data)
	if err != nil {
		return err
	}
	if s.ID() != id {
		return fmt.Errorf("%w: it has the id %s", manifest.ErrCorrupt, s.ID())
	}
	if _, err := s.Open(ctx, r.c.Keeper); err != nil {
		return fmt.Errorf("manifest %s: %w", id, err)
	}
	return nil
}

func (r *run) manifests() *origin.Objects {
	return r.c.Origin.Manifests(r.root.Name, r.c.Tenant)
}

// count fills in the chunk counts, by reading the chunk lists of the tenant's
// images of this root one after the other: memory is the image's own list.
func (r *run) count(ctx context.Context, m *manifest.Manifest, res *Result) error {
	missing := make(map[chunk.Name]struct{}, len(m.Chunks))
	for _, e := range m.Chunks {
		missing[e.Name] = struct{}{}
	}
	for o, err := range r.manifests().List(ctx, "") {
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			break
		}
		if err := r.tick(ctx, o.Name, missing); err != nil {
			return err
		}
	}
	res.Chunks.Total = (m.Size + int64(m.ChunkSize) - 1) / int64(m.ChunkSize)
	res.Chunks.Zero = res.Chunks.Total - int64(len(m.Chunks))
	for _, e := range m.Chunks {
		if _, ok := missing[e.Name]; ok {
			res.Chunks.New++
			res.Bytes.New += int64(e.Size)
			delete(missing, e.Name) // a second one in the same image shares the first
		} else {
			res.Chunks.Stored++
			res.Bytes.Stored += int64(e.Size)
		}
	}
	return nil
}

// tick takes the chunks of another image off the missing ones.
func (r *run) tick(ctx context.Context, image string, missing map[chunk.Name]struct{}) error {
	data, err := r.manifests().Get(ctx, image)
	if errors.Is(err, origin.ErrNotFound) {
		return nil // removed meanwhile
	}
	if err != nil {
		return err
	}
	s, err := manifest.Parse(data)
	if err != nil || s.ID().String() != image {
		r.c.warn("manifest %s is damaged and was not counted", image)
		return nil
	}
	for _, e := range s.Readable().Chunks {
		delete(missing, e.Name)
	}
	return nil
}
