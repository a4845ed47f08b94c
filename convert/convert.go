// Package convert joins the create path: an image from any source becomes a
// device of sealed chunks, a manifest, and a reference to it.
//
//	oci ──tar──▶ flatten.Pack ──runs──▶ chunker ──▶ seal, store   (layers in parallel)
//	                  └─▶ recipe ──▶ flatten.Tree ──metadata──▶ chunker ──▶ seal, store
//	                                      └─▶ manifest ──▶ reference
//
// Order makes it safe to kill at any point: chunks are stored before the recipe
// or manifest that names them, the manifest before the reference. What a killed
// conversion stored is found by the next one, which stores only what is
// missing.
//
// A recipe is what is left of a packed layer: its entries and the names and
// keys of its chunks, sealed for the tenant. A layer that this tenant has a
// recipe for in this root is not read again, once every chunk that the recipe
// names is found in the store. Recipes are never shared between tenants: to
// know a layer's digest is no proof of having its content.
package convert

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"thaw/chunk"
	"thaw/flatten"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
)

// Defaults of a device's room for writes: what a function's /tmp had before
// images (512 MiB), and an inode for every 32 KiB of it. Zeros cost nothing.
const (
	DefaultFree       = 512 << 20
	DefaultFreeInodes = 16384
)

// ErrDiffers says that a repair's source is not what the image was made from.
var ErrDiffers = errors.New("source is not what the image was made from")

// ErrTooLarge says that an image passes Options.MaxBytes.
var ErrTooLarge = errors.New("too large")

// Converter writes images of one tenant to one origin. It is safe for
// concurrent use.
type Converter struct {
	Origin *origin.Origin
	Tenant string
	Keeper manifest.Wrapper // the tenant's key
	KeyURL string           // its URL, for the manifest
	Secret []byte           // of the deployment; may be empty
	// Zone, if set, puts a chunk into the cache that workers share, and waits for
	// that; of conversions with Options.Prime. The zone may fail as it likes.
	Zone func(ctx context.Context, name chunk.Name, sealed []byte) error
	// Warn is told what the user should know and what stops nothing, from many
	// goroutines.
	Warn func(format string, args ...any)
}

// Options say what to convert and how.
type Options struct {
	Source string // as oci.Open takes it
	// Opened is the image itself, in place of Source and Image; the caller closes
	// it. What it was opened for and what is converted cannot differ then.
	Opened    *oci.Image
	Name      string // of the reference; "" for the source's own
	Image     oci.Options
	ChunkSize int   // bytes; 0 for chunk.DefaultSize
	Free      int64 // bytes for writes; 0 for DefaultFree
	MaxBytes  int64 // of all layers together, uncompressed (of those that are not read again, of their chunks); 0: any
	Private   bool  // share no chunk with other tenants
	Prime     bool  // put what is sealed into Converter.Zone too
	// IgnoreSpace tries even where the disk seems too small.
	IgnoreSpace bool
	Progress    Progress

	repair *manifest.Manifest // the image to write again
}

// Progress is told how far the layers are. It is called from many goroutines.
type Progress interface {
	// Layers comes first, once.
	Layers(layers []oci.Layer)
	// Read tells of n more stored bytes read of layer i.
	Read(i int, n int64)
	// Done tells that layer i is packed, or was not read at all.
	Done(i int, reused bool)
}

// Result tells what a conversion did.
type Result struct {
	Image       string      `json:"image"`
	Root        string      `json:"-"` // of the origin, that holds it
	Name        string      `json:"name"`
	DeviceBytes int64       `json:"device_bytes"`
	Chunks      ChunkCounts `json:"chunks"`
	Bytes       ByteCounts  `json:"bytes"`
	Layers      LayerCounts `json:"layers"`
	Zone        *ZoneCounts `json:"zone,omitempty"` // of Options.Prime
	Seconds     float64     `json:"seconds"`
}

// ChunkCounts counts a device's chunks: Total = Zero + New + Stored. New are
// those that the tenant had in no image of this root, whatever others have.
type ChunkCounts struct {
	Total  int64 `json:"total"`
	Zero   int64 `json:"zero"`
	New    int64 `json:"new"`
	Stored int64 `json:"stored"`
}

// ByteCounts are stored bytes: read of the source's layers, and of the new
// and the other sealed chunks.
type ByteCounts struct {
	Read   int64 `json:"read"`
	New    int64 `json:"new"`
	Stored int64 `json:"stored"`
}

// LayerCounts count layers; reused ones were not read.
type LayerCounts struct {
	Total  int `json:"total"`
	Reused int `json:"reused"`
}

// ZoneCounts count the chunks of layers that were read and of metadata.
type ZoneCounts struct {
	Put    int64 `json:"put"`
	Failed int64 `json:"failed"` // the next read of one asks the origin
}

// Convert reads an image and stores it. On any error no reference is made or
// changed and no manifest stored; chunks that were stored stay for the next
// try. What can be known beforehand is checked first: the name, that the key
// opens what it meant before, and the disk's space (origin.ErrFull).
func (c *Converter) Convert(ctx context.Context, opt Options) (*Result, error) {
	begin := time.Now()
	if opt.ChunkSize == 0 {
		opt.ChunkSize = chunk.DefaultSize
	}
	if !chunk.ValidSize(opt.ChunkSize) {
		return nil, fmt.Errorf("chunk size of %d bytes: want a power of two from %d to %d", opt.ChunkSize, chunk.MinSize, chunk.MaxSize)
	}
	img := opt.Opened
	if img == nil {
		var err error
		if img, err = oci.Open(ctx, opt.Source, opt.Image); err != nil {
			return nil, err
		}
		defer img.Close()
	}
	res := &Result{Name: opt.Name}
	if res.Name == "" {
		res.Name = img.DefaultName()
	}
	if err := c.checkName(ctx, res.Name); err != nil {
		return nil, err
	}
	root, err := c.Origin.Active(ctx)
	if err != nil {
		return nil, err
	}
	r := c.newRun(img, root, opt)
	if err := r.checkSpace(ctx); err != nil {
		return nil, err
	}
	m, err := r.device(ctx)
	if err != nil {
		return nil, err
	}
	res.Root, res.DeviceBytes, res.Bytes.Read = root.Name, m.Size, r.read.Load()
	res.Zone = r.up.prime.counts()
	res.Layers = LayerCounts{Total: len(img.Layers()), Reused: int(r.reused.Load())}
	if err := r.publish(ctx, m, res); err != nil {
		return nil, err
	}
	res.Seconds = math.Round(time.Since(begin).Seconds()*1000) / 1000
	return res, nil
}

// device packs what has no recipe, and writes the metadata of all layers.
func (r *run) device(ctx context.Context) (m *manifest.Manifest, err error) {
	r.up = newUploader(ctx, r.store, r.salt, r.opt.ChunkSize)
	if r.opt.Prime && r.c.Zone != nil {
		r.up.prime = &primer{put: r.c.Zone, warn: r.c.Warn}
	}
	defer func() {
		if failed := r.up.close(); failed != nil {
			m, err = nil, failed
		}
	}()
	layers := r.img.Layers()
	r.opt.Progress.Layers(layers)
	packed := r.packAll(r.up.ctx)
	defer func() { // before the uploader is closed: who packs learns of a failure and ends
		if err != nil {
			r.up.fail(err)
		}
		packed.wait()
	}()
	meta := &table{}
	w := &chunker{u: r.up, into: meta}
	tree := flatten.NewTree(w)
	var chunks []manifest.Entry
	for i := range layers {
		p, err := packed.get(i)
		if err != nil {
			return nil, err
		}
		region, err := tree.Apply(p.layer)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", layers[i].DiffID, err)
		}
		for _, e := range p.chunks {
			e.Index += uint32(region / int64(r.opt.ChunkSize))
			chunks = append(chunks, e)
		}
	}
	sum, err := tree.Finish(r.free())
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return nil, err
	}
	rest, err := meta.finish(r.up)
	if err != nil {
		return nil, err
	}
	chunks = append(chunks, rest...)
	slices.SortFunc(chunks, byIndex)
	return &manifest.Manifest{
		Kind: manifest.Image, Tenant: r.c.Tenant, Layout: flatten.LayoutVersion, Size: sum.Size,
		ChunkSize: r.opt.ChunkSize, Chunks: chunks, Source: r.img.ConfigDigest(), Config: r.img.Config(),
	}, nil
}

// free is the room to leave; a repair makes the device as large as it was.
func (r *run) free() flatten.Free {
	if r.opt.repair != nil {
		return flatten.Free{Size: r.opt.repair.Size}
	}
	f := flatten.Free{Bytes: r.opt.Free, Inodes: DefaultFreeInodes}
	if f.Bytes == 0 {
		f.Bytes = DefaultFree
	}
	return f
}

func (c *Converter) warn(format string, args ...any) {
	if c.Warn != nil {
		c.Warn(format, args...)
	}
}

func byIndex(a, b manifest.Entry) int { return int(a.Index) - int(b.Index) }

// recipeName names a layer's recipe: what the layer is, and all that its chunks
// depend on, hashed with the salt so that a lister learns no digest.
func (r *run) recipeName(diffID string) string {
	name := r.salt.Derive(fmt.Sprintf("recipe %s %d %s", r.c.Tenant, r.opt.ChunkSize, diffID))
	return hex.EncodeToString(name[:])
}
