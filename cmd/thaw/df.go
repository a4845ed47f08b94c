package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"

	"thaw/chunk"
	"thaw/origin"
	"thaw/text"
)

type dfCmd struct {
	JSON bool `name:"json" help:"One JSON object a line: images, then tenants, then each root."`
}

// Help teaches by example.
func (dfCmd) Help() string {
	return `Counts stored bytes of chunks, for all tenants of the origin. ALONE is what no other image has, so
what removing the image would make reclaimable; SHARED is what others have too. Reclaimable
chunks are in no image; a layer's recipe may still name them. Nothing removes them yet.

  thaw df
  thaw df --json | jq 'select(.kind == "root").reclaimable_bytes'`
}

// usage is one row: an image, a tenant or a root.
type usage struct {
	Kind        string `json:"kind"`
	Root        string `json:"root"`
	Tenant      string `json:"tenant,omitempty"`
	Image       string `json:"image,omitempty"`
	Bytes       int64  `json:"bytes"`        // of different chunks
	Shared      int64  `json:"shared_bytes"` // of those, in other images (of a tenant: other tenants') too
	Alone       int64  `json:"alone_bytes"`
	Stored      int64  `json:"stored_bytes,omitempty"` // of a root: all its chunks
	Reclaimable int64  `json:"reclaimable_bytes"`      // of a root: in no image
	Error       string `json:"error,omitempty"`
}

// users counts who has a chunk.
type users struct {
	images  int32
	tenants int32
	last    int32 // number of the tenant counted last
}

// Run counts.
func (c *dfCmd) Run(ctx context.Context, g *Globals) error {
	o, err := origin.Open(ctx, g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	roots, err := o.Roots(ctx)
	if err != nil {
		return err
	}
	var rows []usage
	for _, root := range roots {
		r, err := countRoot(ctx, o, root.Name)
		if err != nil {
			return err
		}
		rows = append(rows, r...)
	}
	if c.JSON {
		for _, r := range rows {
			if err := json.NewEncoder(g.stdout).Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	return g.printUsage(rows)
}

func (g *Globals) printUsage(rows []usage) error {
	w := tabwriter.NewWriter(g.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "ROOT\tTENANT\tIMAGE\tBYTES\tSHARED\tALONE")
	for _, r := range rows {
		if r.Kind == "root" {
			continue
		}
		image := fmt.Sprintf("%.12s", r.Image)
		if r.Kind == "tenant" {
			image = "(all)"
		}
		if r.Error != "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Root, r.Tenant, image, r.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Root, r.Tenant, image, text.Bytes(r.Bytes), text.Bytes(r.Shared), text.Bytes(r.Alone))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Kind == "root" {
			if _, err := fmt.Fprintf(g.stdout, "\nroot %s: %s stored, %s in images, %s reclaimable\n", r.Root, text.Bytes(r.Stored), text.Bytes(r.Bytes), text.Bytes(r.Reclaimable)); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachImage calls f for the images of a root, by tenant; m is nil for one whose
// manifest cannot be read.
func eachImage(ctx context.Context, o *origin.Origin, root string, f func(tenant int32, row usage, chunks map[chunk.Name]int64) error) error {
	n := int32(0)
	for tenant, err := range o.Tenants(ctx, root) {
		if err != nil {
			return err
		}
		n++
		for info, err := range o.Manifests(root, tenant).List(ctx, "") {
			if err != nil {
				return err
			}
			row := usage{Kind: "image", Root: root, Tenant: tenant, Image: info.Name}
			m, err := readable(ctx, o, root, tenant, info.Name)
			if errors.Is(err, origin.ErrNotFound) {
				continue // removed meanwhile
			}
			var chunks map[chunk.Name]int64
			if err != nil {
				row.Error = text.Line(err.Error())
			} else {
				chunks = make(map[chunk.Name]int64, len(m.Chunks))
				for _, e := range m.Chunks {
					chunks[e.Name] = int64(e.Size)
				}
			}
			if err := f(n, row, chunks); err != nil {
				return err
			}
		}
	}
	return nil
}

// countRoot reads every manifest twice: who has a chunk, then what each has
// alone. Memory is that of the different chunks.
func countRoot(ctx context.Context, o *origin.Origin, root string) ([]usage, error) {
	all := map[chunk.Name]users{}
	err := eachImage(ctx, o, root, func(tenant int32, _ usage, chunks map[chunk.Name]int64) error {
		for name := range chunks {
			u := all[name]
			u.images++
			if u.last != tenant {
				u.last, u.tenants = tenant, u.tenants+1
			}
			all[name] = u
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var rows []usage
	var sum usage
	counted := map[chunk.Name]int32{} // the last tenant that a chunk was counted for
	err = eachImage(ctx, o, root, func(tenant int32, row usage, chunks map[chunk.Name]int64) error {
		if sum.Tenant != row.Tenant {
			if sum.Tenant != "" {
				rows = append(rows, sum)
			}
			sum = usage{Kind: "tenant", Root: root, Tenant: row.Tenant}
		}
		for name, size := range chunks {
			row.add(size, all[name].images > 1)
			if counted[name] != tenant {
				counted[name] = tenant
				sum.add(size, all[name].tenants > 1)
			}
		}
		rows = append(rows, row)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if sum.Tenant != "" {
		rows = append(rows, sum)
	}
	total, err := countStored(ctx, o, root, all)
	return append(rows, total), err
}

func (u *usage) add(size int64, shared bool) {
	u.Bytes += size
	if shared {
		u.Shared += size
	} else {
		u.Alone += size
	}
}

// countStored counts the chunks that are there.
func countStored(ctx context.Context, o *origin.Origin, root string, used map[chunk.Name]users) (usage, error) {
	total := usage{Kind: "root", Root: root}
	for info, err := range o.Chunks(root).List(ctx) {
		if err != nil {
			return total, err
		}
		total.Stored += info.Size
		name, err := chunk.ParseName(info.Name)
		if _, ok := used[name]; ok && err == nil {
			total.Bytes += info.Size
		} else {
			total.Reclaimable += info.Size
		}
	}
	return total, nil
}
