package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/convert"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
	"thaw/text"
	"thaw/verify"
)

// isNotFound reports whether an error is about something that is not there.
func isNotFound(err error) bool {
	return errors.Is(err, origin.ErrNotFound) || errors.Is(err, chunk.ErrNotFound)
}

type verifyCmd struct {
	Image     string `arg:"" help:"Name, id or the start of an id."`
	Against   string `help:"Compare the tree, entry by entry, with this source's layers." placeholder:"SOURCE"`
	Repair    string `help:"Make missing and damaged chunks again from this source." placeholder:"SOURCE"`
	Platform  string `help:"Platform of the source." placeholder:"P"`
	PlainHTTP bool   `help:"Talk to the registry without TLS."`
	JSON      bool   `name:"json" help:"End with one JSON object on one line."`
}

// Help teaches by example.
func (verifyCmd) Help() string {
	return `Every chunk is read, checked against its name and decrypted. With --against the file system is
read too, by code that shares nothing with the code that wrote it.

  thaw verify app
  thaw verify app --against oci:./layout:v1
  thaw verify app --repair oci:./layout:v1

With --zone it is the zone's copy that is read, and the origin's of what the zone does not give.

Exit status 3: something is missing, damaged or different, and was not repaired.`
}

// verified is what verify --json prints.
type verified struct {
	Image  string `json:"image"`
	Chunks struct {
		Checked int      `json:"checked"`
		Bytes   int64    `json:"bytes"`
		Bad     []string `json:"bad,omitempty"`
		Zone    int64    `json:"zone,omitempty"`   // reads that it served, with --zone
		Origin  int64    `json:"origin,omitempty"` // and the origin
	} `json:"chunks"`
	Repaired int `json:"repaired"`
	Tree     *struct {
		Entries     int      `json:"entries"`
		Bytes       int64    `json:"bytes"`
		Total       int      `json:"differences"`
		Differences []string `json:"first,omitempty"`
	} `json:"tree,omitempty"`
}

// isDamage reports whether an error says that what a name leads to is damaged or
// missing, unlike a name that nobody gave.
func isDamage(err error) bool {
	return errors.Is(err, manifest.ErrCorrupt) || errors.Is(err, catalog.ErrCorrupt) || errors.Is(err, origin.ErrCorrupt) || errors.Is(err, origin.ErrNotFound)
}

// Run verifies.
func (c *verifyCmd) Run(ctx context.Context, g *Globals) error {
	s, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	img, err := g.load(ctx, s, c.Image)
	if isDamage(err) {
		fmt.Fprintf(g.stderr, "thaw: %s\n", text.Line(err.Error()))
		return errDamaged
	}
	if err != nil {
		return err
	}
	out := verified{Image: img.id.String()}
	if c.Repair != "" {
		if out.Repaired, err = c.repair(ctx, g, s, img); err != nil {
			return err
		}
	}
	if err := c.read(ctx, g, img, s.Chunks(img.Root), &out); err != nil {
		return err
	}
	return c.print(g, &out)
}

// read checks the chunks and the tree, through the zone if there is one.
func (c *verifyCmd) read(ctx context.Context, g *Globals, img *image, chunks chunk.Source, out *verified) error {
	near, err := g.zoneClient("")
	if err != nil {
		return err
	}
	if near != nil {
		defer near.Close()
		both := &zoneFirst{zone: near, origin: chunks}
		defer func() { out.Chunks.Zone, out.Chunks.Origin = both.fromZone.Load(), both.fromOrigin.Load() }()
		chunks = both
	}
	if err := c.chunks(ctx, g, img.Manifest, chunks, out); err != nil {
		return err
	}
	if c.Against != "" && len(out.Chunks.Bad) == 0 {
		return c.against(ctx, g, img, chunks, out)
	}
	return nil
}

// chunks reads and checks every chunk.
func (c *verifyCmd) chunks(ctx context.Context, g *Globals, m *manifest.Manifest, src chunk.Source, out *verified) error {
	p := &checking{w: g.stderr}
	for _, e := range m.Chunks {
		p.total += int64(e.Size)
	}
	stop := animate(g.stderr, p.draw)
	report, err := verify.Chunks(ctx, m, src, p.add)
	stop()
	if err != nil {
		return err
	}
	out.Chunks.Checked, out.Chunks.Bytes = report.Chunks, report.Bytes
	for _, b := range report.Bad {
		out.Chunks.Bad = append(out.Chunks.Bad, fmt.Sprintf("chunk %d: %v", b.Index, b.Err))
	}
	return nil
}

func (c *verifyCmd) ociOptions() oci.Options {
	return oci.Options{Platform: c.Platform, PlainHTTP: c.PlainHTTP}
}

// repair makes the image's chunks again.
func (c *verifyCmd) repair(ctx context.Context, g *Globals, s *store, img *image) (int, error) {
	secret, err := g.secret()
	if err != nil {
		return 0, err
	}
	conv := convert.Converter{Origin: s.Origin, Tenant: g.Tenant, Keeper: s.key, KeyURL: s.key.URL(), Secret: secret}
	p := newProgress(g.stderr)
	defer p.close()
	return conv.Repair(ctx, img.Manifest, img.id, img.root, convert.Options{Source: c.Repair, Image: c.ociOptions(), Progress: p})
}

// layersOf gives a source's layers to verify.Tree, and tells of them.
type layersOf struct {
	*oci.Image
	p *progress
}

func (l layersOf) Len() int { return len(l.Layers()) }

func (l layersOf) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	r, err := l.OpenLayer(ctx, i, func(n int64) { l.p.Read(i, n) })
	return layerReader{r, func() { l.p.Done(i, false) }}, err
}

// layerReader tells of its end.
type layerReader struct {
	io.ReadCloser
	done func()
}

// Close closes the layer.
func (r layerReader) Close() error {
	r.done()
	return r.ReadCloser.Close()
}

// against compares the tree.
func (c *verifyCmd) against(ctx context.Context, g *Globals, img *image, chunks chunk.Source, out *verified) error {
	src, err := oci.Open(ctx, c.Against, c.ociOptions())
	if err != nil {
		return err
	}
	defer src.Close()
	p := newProgress(g.stderr)
	p.Layers(src.Layers())
	tree, err := verify.Tree(ctx, verify.Device(img.Manifest, chunks), img.Size, layersOf{src, p})
	p.close()
	if err != nil {
		return err
	}
	out.Tree = &struct {
		Entries     int      `json:"entries"`
		Bytes       int64    `json:"bytes"`
		Total       int      `json:"differences"`
		Differences []string `json:"first,omitempty"`
	}{Entries: tree.Entries, Bytes: tree.Bytes, Total: tree.Total}
	for _, d := range tree.Differences {
		out.Tree.Differences = append(out.Tree.Differences, d.String())
	}
	return nil
}

// print reports, and gives errDamaged if something is wrong.
func (c *verifyCmd) print(g *Globals, out *verified) error {
	bad := len(out.Chunks.Bad) > 0 || out.Tree != nil && out.Tree.Total > 0
	if c.JSON {
		if err := json.NewEncoder(g.stdout).Encode(out); err != nil {
			return err
		}
	} else {
		c.printText(g, out)
	}
	if bad {
		return errDamaged
	}
	return nil
}

func (c *verifyCmd) printText(g *Globals, out *verified) {
	for _, b := range out.Chunks.Bad {
		fmt.Fprintln(g.stdout, b)
	}
	if c.Repair != "" {
		fmt.Fprintf(g.stdout, "%d chunks repaired\n", out.Repaired)
	}
	fmt.Fprintf(g.stdout, "%d chunks read and checked, %s; %d bad\n", out.Chunks.Checked, text.Bytes(out.Chunks.Bytes), len(out.Chunks.Bad))
	if g.Zone != "" {
		fmt.Fprintf(g.stdout, "%d reads from the zone, %d from the origin\n", out.Chunks.Zone, out.Chunks.Origin)
	}
	if out.Tree == nil {
		if c.Against != "" {
			fmt.Fprintln(g.stdout, "the tree was not compared: chunks are bad")
		}
		return
	}
	for _, d := range out.Tree.Differences {
		fmt.Fprintln(g.stdout, d)
	}
	fmt.Fprintf(g.stdout, "%d entries compared with the source, %s of contents; %d differences\n", out.Tree.Entries, text.Bytes(out.Tree.Bytes), out.Tree.Total)
}
