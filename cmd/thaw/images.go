package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"thaw/catalog"
	"thaw/manifest"
	"thaw/origin"
	"thaw/text"
)

type imagesCmd struct {
	JSON bool `name:"json" help:"One JSON object a line."`
}

// Help teaches by example.
func (imagesCmd) Help() string {
	return `Images that have lost their name, or never got one because their conversion was killed, are
listed with "-". STORED is what the image's chunks take in the origin, shared or not.

  thaw images
  thaw images --json | jq -r .image`
}

// listed is one row.
type listed struct {
	Name        string    `json:"name,omitempty"`
	Image       string    `json:"image"`
	Root        string    `json:"root"`
	DeviceBytes int64     `json:"device_bytes"`
	StoredBytes int64     `json:"stored_bytes"`
	Chunks      int       `json:"chunks"`
	Created     time.Time `json:"created"`
	Error       string    `json:"error,omitempty"`
}

// Run lists.
func (c *imagesCmd) Run(ctx context.Context, g *Globals) error {
	s, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	refs, damaged := s.names.List(ctx)
	if damaged != nil && !errors.Is(damaged, catalog.ErrCorrupt) {
		return damaged
	}
	rows, err := g.images(ctx, s, refs)
	if err != nil {
		return err
	}
	if err := c.print(g, rows); err != nil || damaged == nil {
		return err
	}
	return fmt.Errorf("%w (thaw rm removes the name)", damaged)
}

func (c *imagesCmd) print(g *Globals, rows []listed) error {
	if c.JSON {
		for _, r := range rows {
			if err := json.NewEncoder(g.stdout).Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(g.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tIMAGE\tDEVICE\tSTORED\tCREATED")
	for _, r := range rows {
		name := r.Name
		if name == "" {
			name = "-"
		}
		if r.Error != "" {
			fmt.Fprintf(w, "%s\t%.12s\t%s\n", name, r.Image, r.Error)
			continue
		}
		fmt.Fprintf(w, "%s\t%.12s\t%s\t%s\t%s\n", name, r.Image, text.Bytes(r.DeviceBytes), text.Bytes(r.StoredBytes), r.Created.Local().Format("2006-01-02 15:04"))
	}
	return w.Flush()
}

// images gives a row for each name, and one for each image that has none.
func (g *Globals) images(ctx context.Context, s *store, refs []catalog.Reference) ([]listed, error) {
	roots, err := s.Roots(ctx)
	if err != nil {
		return nil, err
	}
	var rows []listed
	seen := map[string]bool{}
	for _, root := range roots {
		for info, err := range s.Manifests(root.Name, g.Tenant).List(ctx, "") {
			if err != nil {
				return nil, err
			}
			row := g.describe(ctx, s, root.Name, info)
			named := false
			for _, r := range refs {
				if r.Image == info.Name && r.Root == root.Name {
					row.Name, named = r.Name, true
					rows = append(rows, row)
				}
			}
			if !named {
				rows = append(rows, row)
			}
			seen[root.Name+"/"+info.Name] = true
		}
	}
	for _, r := range refs {
		if !seen[r.Root+"/"+r.Image] {
			rows = append(rows, listed{Name: r.Name, Image: r.Image, Root: r.Root, Error: "its manifest is missing"})
		}
	}
	slices.SortStableFunc(rows, func(a, b listed) int { return cmpNames(a.Name, b.Name) })
	return rows, nil
}

// cmpNames sorts names, with those that are missing last.
func cmpNames(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == "", b != "" && a > b:
		return 1
	}
	return -1
}

// describe reads what a manifest says without a key.
func (g *Globals) describe(ctx context.Context, s *store, root string, info origin.Info) listed {
	row := listed{Image: info.Name, Root: root, Created: info.Time.UTC()}
	m, err := readable(ctx, s.Origin, root, g.Tenant, info.Name)
	if err != nil {
		row.Error = text.Line(err.Error())
		return row
	}
	row.DeviceBytes, row.Chunks = m.Size, len(m.Chunks)
	for _, e := range m.Chunks {
		row.StoredBytes += int64(e.Size)
	}
	return row
}

// readable gives the part of a manifest that needs no key.
func readable(ctx context.Context, o *origin.Origin, root, tenant, image string) (*manifest.Manifest, error) {
	data, err := o.Manifests(root, tenant).Get(ctx, image)
	if err != nil {
		return nil, err
	}
	sealed, err := manifest.Parse(data)
	if err != nil {
		return nil, err
	}
	if sealed.ID().String() != image {
		return nil, fmt.Errorf("%w: it has the id %s", manifest.ErrCorrupt, sealed.ID())
	}
	m := sealed.Readable()
	return &m, nil
}

type inspectCmd struct {
	Image string `arg:"" help:"Name, id or the start of an id."`
}

// Help teaches by example.
func (inspectCmd) Help() string {
	return `The config may hold secrets in its environment: it is shown to whoever has the tenant's key.

  thaw inspect app
  thaw inspect 3f2a91 | jq .config.config.Env`
}

// inspected is what inspect prints.
type inspected struct {
	Image       string          `json:"image"`
	Name        string          `json:"name,omitempty"`
	Tenant      string          `json:"tenant"`
	Root        string          `json:"root"`
	Layout      uint16          `json:"layout"`
	DeviceBytes int64           `json:"device_bytes"`
	ChunkBytes  int             `json:"chunk_bytes"`
	Chunks      int             `json:"chunks"`
	StoredBytes int64           `json:"stored_bytes"`
	Trace       *inspectedTrace `json:"trace,omitempty"`
	Source      string          `json:"source"` // digest of the config
	Config      json.RawMessage `json:"config"`
}

// inspectedTrace is what recorded starts have touched.
type inspectedTrace struct {
	Runs   int    `json:"runs"`            // that are remembered
	Chunks int    `json:"chunks"`          // that they touched
	Ahead  int    `json:"prefetch_chunks"` // that the next start fetches ahead
	Error  string `json:"error,omitempty"` // why it cannot be used
}

// inspectTrace reads an image's trace; nil if there is none.
func (g *Globals) inspectTrace(ctx context.Context, s *store, img *image) (*inspectedTrace, error) {
	sealed, err := s.Trace(ctx, img.Root, g.Tenant, img.Image)
	if errors.Is(err, origin.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	t, err := img.traceKey.Open(sealed)
	if err != nil {
		return &inspectedTrace{Error: text.Line(err.Error())}, nil
	}
	return &inspectedTrace{Runs: t.Runs(), Chunks: t.Len(), Ahead: len(t.Plan())}, nil
}

// Run shows one image.
func (c *inspectCmd) Run(ctx context.Context, g *Globals) error {
	s, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	img, err := g.load(ctx, s, c.Image)
	if err != nil {
		return err
	}
	out := inspected{
		Image: img.id.String(), Name: img.Name, Tenant: img.Tenant, Root: img.Root, Layout: img.Layout,
		DeviceBytes: img.Size, ChunkBytes: img.ChunkSize, Chunks: len(img.Chunks), Source: img.Source, Config: img.Config,
	}
	for _, e := range img.Chunks {
		out.StoredBytes += int64(e.Size)
	}
	if out.Trace, err = g.inspectTrace(ctx, s, img); err != nil {
		return err
	}
	enc := json.NewEncoder(g.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}
