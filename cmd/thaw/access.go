//go:build cloud

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"thaw/catalog"
	"thaw/functions"
	"thaw/keys"
	"thaw/origin"
	"thaw/text"
)

// maxSample is how many functions a worker looks at to find one whose image is in
// the origin: of most it is.
const maxSample = 16

// access keeps a worker from running where it could start nothing: it would be
// empty, and managers like an empty one best. It is for machines that have
// joined. Where a fleet began, origin and key are made when they are first used.
func (m *joined) access(ctx context.Context, g *Globals) error {
	if g.membership().Cluster == "" {
		return nil
	}
	images, err := m.sample(ctx, g)
	if err != nil {
		return err
	}
	if err = g.access(ctx, images); err != nil && ctx.Err() == nil {
		err = fmt.Errorf("this machine cannot start the fleet's functions: %w: a worker needs --origin and --key as where the fleet began, or a copy of its STATE/keys", err)
	}
	return err
}

// sample gives images of some functions, all of one tenant.
func (m *joined) sample(ctx context.Context, g *Globals) (images []catalog.Reference, err error) {
	records, err := m.conn.Records(ctx, functionRecords)
	if err != nil {
		return nil, err
	}
	some, _, err := functions.NewStore(records).List(ctx, usualAccount, "", maxSample)
	for _, f := range some {
		if p := f.Invoked().Package; p.Image != "" {
			images = append(images, catalog.Reference{Image: p.Image, Root: p.Root})
		}
	}
	return images, err
}

// access opens the first of the tenant's images that is there, and fails if none
// is. While origin or key service are down, a machine that has started images
// before passes: those may start again.
func (g *Globals) access(ctx context.Context, images []catalog.Reference) error {
	key, err := keys.OpenExisting(ctx, g.Key, keyDrivers()...)
	if err != nil {
		return err
	}
	defer key.Close()
	o, err := origin.Open(ctx, g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	before, _ := os.ReadDir(filepath.Join(g.State, "manifests")) // or there was none
	limit := g.OriginDeadline
	if len(before) > 0 {
		limit = min(limit, originPatience)
	}
	asked, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if len(images) == 0 {
		_, err = o.Roots(asked)
	}
	for _, ref := range images {
		if err = g.opens(asked, o, key, ref); !errors.Is(err, origin.ErrNotFound) {
			break
		}
	}
	if err != nil && len(before) > 0 && ctx.Err() == nil && unreachable(err) {
		g.logger().Warn("the origin or its key cannot be reached: only what was started before starts", "cause", text.Line(err.Error()))
		return nil
	}
	return err
}

// opens reads an image's manifest, and tries the key on it.
func (g *Globals) opens(ctx context.Context, o *origin.Origin, key *keys.Tenant, ref catalog.Reference) error {
	data, err := o.Manifests(ref.Root, g.Tenant).Get(ctx, ref.Image)
	if err != nil {
		return err
	}
	sealed, err := parseManifest(data, ref.Image)
	if err != nil {
		return err
	}
	dataKey, err := sealed.DataKey(ctx, key)
	clear(dataKey)
	return err
}
