package convert

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"thaw/chunk"
	"thaw/flatten"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
)

// minLayers is how many layers are read at once where there are fewer cores: a
// registry gives several streams more than one.
const minLayers = 4

// statWorkers is how many chunks of a recipe are looked for at once.
const statWorkers = 16

// trimmed is what chunks are cut to multiples of, in bytes (docs/formats.md).
const trimmed = 64 << 10

// run is one conversion.
type run struct {
	c     *Converter
	img   *oci.Image
	root  origin.Root
	opt   Options
	salt  chunk.Salt
	store interface {
		chunk.Store
		chunk.Statter
	}
	up       *uploader
	read     atomic.Int64 // stored bytes of layers
	reused   atomic.Int64 // layers
	expanded atomic.Int64 // bytes of large files
	unpacked atomic.Int64 // bytes of layers, uncompressed
}

func (c *Converter) newRun(img *oci.Image, root origin.Root, opt Options) *run {
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	return &run{c: c, img: img, root: root, opt: opt, salt: c.salt(root, opt.Private), store: c.Origin.Chunks(root.Name)}
}

// salt is that of a root, for all tenants or for this one alone.
func (c *Converter) salt(root origin.Root, private bool) chunk.Salt {
	p := chunk.SaltParams{
		Secret: c.Secret, Root: root.Name, Epoch: root.Epoch, Placement: root.Placement,
		Class: root.Class, Layout: flatten.LayoutVersion,
	}
	if private {
		p.Tenant = c.Tenant
	}
	return chunk.NewSalt(p)
}

// silent is the Progress of one who does not ask.
type silent struct{}

func (silent) Layers([]oci.Layer) {}
func (silent) Read(int, int64)    {}
func (silent) Done(int, bool)     {}

// packed is a layer and the chunks of its data, by index from its region on.
type packed struct {
	layer  *flatten.Layer
	chunks []manifest.Entry
}

// packing is the layers of an image while they are packed.
type packing struct {
	ctx    context.Context
	done   []chan struct{} // closed when the result is there
	result []*packed
	all    sync.WaitGroup
}

// get waits for layer i. A layer is given once: its memory is the caller's.
func (p *packing) get(i int) (*packed, error) {
	select {
	case <-p.done[i]:
		res := p.result[i]
		p.result[i] = nil
		if res == nil {
			return nil, context.Cause(p.ctx)
		}
		return res, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// wait returns when no layer is worked on any more.
func (p *packing) wait() { p.all.Wait() }

// packAll starts to pack all layers, the largest first, since the time of the
// whole is at least that of the longest. A failure fails the uploader.
func (r *run) packAll(ctx context.Context) *packing {
	layers := r.img.Layers()
	p := &packing{ctx: ctx, result: make([]*packed, len(layers)), done: make([]chan struct{}, len(layers))}
	first := map[string]int{} // a layer may stand in an image twice
	var order []int
	for i, l := range layers {
		p.done[i] = make(chan struct{})
		if _, ok := first[l.DiffID]; !ok {
			first[l.DiffID] = i
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(layers[b].Size>>10) - int(layers[a].Size>>10) })
	p.all.Go(func() {
		var g errgroup.Group
		g.SetLimit(max(minLayers, runtime.GOMAXPROCS(0)))
		for _, i := range order {
			g.Go(func() error {
				res, err := r.pack(ctx, i)
				if err != nil {
					r.up.fail(fmt.Errorf("layer %s: %w", layers[i].DiffID, err))
				}
				for j, l := range layers {
					if l.DiffID == layers[i].DiffID {
						p.result[j] = res
						close(p.done[j])
					}
				}
				return nil
			})
		}
		_ = g.Wait() // failures go to the uploader
	})
	return p
}

// pack gives layer i from its recipe, or reads it and leaves a recipe.
func (r *run) pack(ctx context.Context, i int) (*packed, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	diffID := r.img.Layers()[i].DiffID
	replace := false
	if r.opt.repair == nil {
		p, err := r.recipe(ctx, diffID)
		if err != nil && !errors.Is(err, errDamaged) {
			return nil, err
		}
		if p != nil {
			stored := 0 // at least: what was taken once is not refused the next time
			for _, e := range p.chunks {
				stored += max(int(e.Size)-trimmed, 0)
			}
			if err := r.unpack(stored); err != nil {
				return nil, err
			}
			r.reused.Add(1)
			r.opt.Progress.Done(i, true)
			return p, nil
		}
		replace = err != nil
	}
	p, err := r.readLayer(ctx, i)
	if err != nil {
		return nil, err
	}
	if r.opt.repair == nil {
		err = r.storeRecipe(ctx, diffID, p, replace)
	}
	r.opt.Progress.Done(i, false)
	return p, err
}

// readLayer packs a layer from its tar.
func (r *run) readLayer(ctx context.Context, i int) (*packed, error) {
	in, err := r.img.OpenLayer(ctx, i, func(n int64) {
		r.read.Add(n)
		r.opt.Progress.Read(i, n)
	})
	if err != nil {
		return nil, err
	}
	defer in.Close()
	t := &table{}
	w := &chunker{u: r.up, into: t}
	l, err := flatten.Pack(metered{in, r.unpack}, w, r.spend)
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		t.pending.Wait()
		return nil, err
	}
	if n := l.Dropped(); n > 0 {
		r.c.warn("layer %s: %d extended attributes left out: Linux has no namespace of their names", r.img.Layers()[i].DiffID, n)
	}
	chunks, err := t.finish(r.up)
	return &packed{l, chunks}, err
}

// metered tells of the bytes that are read, and fails if it is told to.
type metered struct {
	io.Reader
	read func(n int) error
}

// Read implements io.Reader.
func (m metered) Read(p []byte) (n int, err error) {
	n, err = m.Reader.Read(p)
	if failed := m.read(n); failed != nil {
		return n, failed
	}
	return n, err
}

// unpack counts the bytes of layers.
func (r *run) unpack(n int) error {
	if sum := r.unpacked.Add(int64(n)); r.opt.MaxBytes > 0 && sum > r.opt.MaxBytes {
		return fmt.Errorf("%w: the image's layers have more than %d bytes uncompressed", ErrTooLarge, r.opt.MaxBytes)
	}
	return nil
}

// maxExpanded is how many bytes the large files of one image may have, holes
// included. Zeros that no tar has are read at some 5 GB/s: a few minutes.
const maxExpanded = 1 << 40

// spend counts the bytes of large files, and ends a layer whose conversion has
// ended: within a hole it reads and writes nothing that would tell it.
func (r *run) spend(n int64) error {
	if r.expanded.Add(n) > maxExpanded {
		return fmt.Errorf("%w: with it the image's large files pass 1 TiB, holes included", flatten.ErrLayer)
	}
	if r.up.ctx.Err() != nil {
		return context.Cause(r.up.ctx)
	}
	return nil
}

// errDamaged says that a recipe is there and of no use.
var errDamaged = errors.New("recipe damaged")

// recipe gives what a former conversion left of a layer, or nil if there is
// nothing or if one of its chunks is gone. It has checked that every chunk is
// stored in full length.
func (r *run) recipe(ctx context.Context, diffID string) (*packed, error) {
	name := r.recipeName(diffID)
	data, err := r.recipes().Get(ctx, name)
	if errors.Is(err, origin.ErrNotFound) {
		return nil, nil
	}
	var p *packed
	if err == nil {
		p, err = r.openRecipe(ctx, data, diffID)
	}
	if errors.Is(err, origin.ErrCorrupt) || errors.Is(err, manifest.ErrCorrupt) || errors.Is(err, flatten.ErrRecipe) {
		r.c.warn("layer %s: its recipe is damaged and is made again: %v", diffID, err)
		return nil, errDamaged
	}
	if err != nil {
		return nil, fmt.Errorf("opening its recipe %s: %w", name, err)
	}
	whole, err := r.stored(ctx, p.chunks)
	if err != nil || !whole {
		return nil, err
	}
	return p, nil
}

func (r *run) openRecipe(ctx context.Context, data []byte, diffID string) (*packed, error) {
	s, err := manifest.Parse(data)
	if err != nil {
		return nil, err
	}
	m, err := s.Open(ctx, r.c.Keeper)
	if err != nil {
		return nil, err
	}
	if m.Kind != manifest.Layer || m.Source != diffID || m.Tenant != r.c.Tenant || m.ChunkSize != r.opt.ChunkSize || m.Layout != flatten.LayoutVersion {
		return nil, fmt.Errorf("%w: the recipe of another layer", manifest.ErrCorrupt)
	}
	l, err := flatten.DecodeLayer(m.Config)
	if err != nil {
		return nil, err
	}
	if l.DataSize() != m.Size {
		return nil, fmt.Errorf("%w: its data has another size", flatten.ErrRecipe)
	}
	return &packed{l, m.Chunks}, nil
}

// stored reports whether every chunk is there in full length.
func (r *run) stored(ctx context.Context, chunks []manifest.Entry) (bool, error) {
	var missing atomic.Bool
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(statWorkers)
	for _, e := range chunks {
		if missing.Load() || gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			size, err := r.store.Stat(gctx, e.Name)
			if errors.Is(err, chunk.ErrNotFound) || err == nil && size != int64(e.Size) {
				missing.Store(true)
				return nil
			}
			return err
		})
	}
	err := cmp.Or(g.Wait(), ctx.Err()) // cancelled, the loop has left chunks out
	return err == nil && !missing.Load(), err
}

// storeRecipe keeps what was packed; replace puts it in the place of a damaged one.
func (r *run) storeRecipe(ctx context.Context, diffID string, p *packed, replace bool) error {
	name := r.recipeName(diffID)
	data, _, err := manifest.Seal(ctx, &manifest.Manifest{
		Kind: manifest.Layer, Tenant: r.c.Tenant, Layout: flatten.LayoutVersion, Size: p.layer.DataSize(),
		ChunkSize: r.opt.ChunkSize, Chunks: p.chunks, Source: diffID, Config: p.layer.Encode(),
	}, r.salt, r.c.KeyURL, r.c.Keeper)
	if err != nil {
		return fmt.Errorf("sealing its recipe: %w", err)
	}
	if replace {
		err = r.recipes().Replace(ctx, name, data)
	} else {
		_, err = r.recipes().Put(ctx, name, data)
	}
	if err != nil {
		return fmt.Errorf("storing its recipe: %w", err)
	}
	return nil
}

func (r *run) recipes() *origin.Objects {
	return r.c.Origin.Recipes(r.root.Name, r.c.Tenant)
}
