package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"thaw/catalog"
	"thaw/origin"
	"thaw/text"
)

type rmCmd struct {
	Image string `arg:"" help:"Name, id or the start of an id."`
	JSON  bool   `name:"json" help:"End with one JSON object on one line."`
}

// Help teaches by example.
func (rmCmd) Help() string {
	return `A name is removed; the image goes with its last name. An image given by its id goes if it has
one name at most. Chunks stay in the origin: others may share them, and nothing collects them yet.

  thaw rm app
  thaw rm 3f2a91`
}

// removed is what rm --json prints.
type removed struct {
	Name  string `json:"name,omitempty"`
	Image string `json:"image,omitempty"`
}

// Run removes. The name goes first: killed in between, the image is left
// without a name, and the next rm of its id takes it away.
func (c *rmCmd) Run(ctx context.Context, g *Globals) error {
	s, err := g.open(ctx, false)
	if err != nil {
		return err
	}
	defer s.Close()
	ref, err := s.names.Resolve(ctx, c.Image)
	if errors.Is(err, catalog.ErrCorrupt) {
		return c.removeDamaged(ctx, g, s)
	}
	if err != nil {
		return err
	}
	all, err := s.namesOf(ctx, ref)
	if err != nil {
		return err
	}
	if ref.Name == "" && len(all) > 1 {
		return fmt.Errorf("image %.12s has %d names: remove them one by one, %q and %q first", ref.Image, len(all), all[0].Name, all[1].Name)
	}
	var out removed
	for _, r := range all {
		if ref.Name != "" && r.Name != ref.Name {
			continue
		}
		if err := s.names.Remove(ctx, r.Name); err != nil {
			return err
		}
		out.Name = r.Name
	}
	if len(all) <= 1 {
		gone, err := g.removeImage(ctx, s, ref)
		if err != nil {
			return err
		}
		if gone {
			out.Image = ref.Image
		}
	}
	return c.print(g, out)
}

// removeDamaged removes a name that nobody can tell the image of, which stays.
func (c *rmCmd) removeDamaged(ctx context.Context, g *Globals, s *store) error {
	if err := s.names.Remove(ctx, c.Image); err != nil {
		return err
	}
	g.logger().Warn("the name's record was damaged: if an image has lost its last name, thaw images lists it with \"-\"")
	return c.print(g, removed{Name: c.Image})
}

func (c *rmCmd) print(g *Globals, out removed) (err error) {
	switch {
	case out == (removed{}):
		err = fmt.Errorf("image %s was named by others meanwhile, and stays", c.Image)
	case c.JSON:
		return json.NewEncoder(g.stdout).Encode(out)
	case out.Image != "":
		_, err = fmt.Fprintf(g.stdout, "removed %s\n", out.Image)
	default:
		_, err = fmt.Fprintf(g.stdout, "removed the name %s; the image stays\n", out.Name)
	}
	return err
}

// namesOf gives the names of an image. As long as a name cannot be read it may
// be the image's: an error.
func (s *store) namesOf(ctx context.Context, ref catalog.Reference) ([]catalog.Reference, error) {
	all, err := s.names.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("it may name the image too, so remove it first: %w", err)
	}
	return slices.DeleteFunc(all, func(r catalog.Reference) bool { return r.Image != ref.Image || r.Root != ref.Root }), nil
}

// removeImage takes the manifest away, unless the image has got a name by now,
// and tells whether it did. A conversion that names the image looks for the
// manifest afterwards; this looks for names afterwards: one of the two sees
// what the other did, and puts the manifest back.
func (g *Globals) removeImage(ctx context.Context, s *store, ref catalog.Reference) (bool, error) {
	manifests := s.Manifests(ref.Root, g.Tenant)
	data, err := manifests.Get(ctx, ref.Image)
	if err != nil && !errors.Is(err, origin.ErrCorrupt) && !isNotFound(err) {
		return false, err
	}
	names, err := s.namesOf(ctx, ref)
	if err != nil || len(names) > 0 {
		return false, err
	}
	if err := manifests.Remove(ctx, ref.Image); err != nil && !isNotFound(err) {
		return false, err
	}
	ctx = context.WithoutCancel(ctx) // half of this would lose an image
	names, err = s.namesOf(ctx, ref)
	if err == nil && len(names) == 0 {
		if terr := s.RemoveTraces(ctx, ref.Root, g.Tenant, ref.Image); terr != nil { // it opens with that manifest only
			g.logger().Warn("the image's trace stays in the origin: nothing can use it", "cause", text.Line(terr.Error()))
		}
		_ = os.Remove(g.local().trace(ref.Root, ref.Image))
		return true, nil
	}
	if data != nil { // nil was missing or damaged, and is nothing to put back
		_, perr := manifests.Put(ctx, ref.Image, data)
		err = errors.Join(err, perr)
	}
	return false, err
}
