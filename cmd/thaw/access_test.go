//go:build cloud

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/catalog"
	"thaw/keys"
	"thaw/origin"
)

// A worker's machine has to have the key and the origin of the fleet's images,
// unless it has started some before, and either is down.
func TestAccess(t *testing.T) {
	k, _ := newKept(t)
	res := k.convert(t, usualAccount, "a", 1)
	image := catalog.Reference{Image: res.Image, Root: res.Root}
	gone := catalog.Reference{Image: strings.Repeat("0", len(res.Image)), Root: res.Root}
	noKey := func(g *Globals) { g.Key = fileURL(g.State, "keys", "default") }
	otherKey := func(g *Globals) {
		noKey(g)
		key, err := keys.Open(t.Context(), g.Key)
		if err == nil {
			err = key.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	noOrigin := func(g *Globals) { g.Origin = fileURL(g.State, "origin") }
	for _, c := range []struct {
		name   string
		before bool
		change func(*Globals)
		images []catalog.Reference
		want   error
		warns  bool
	}{
		{name: "all there", images: []catalog.Reference{image}},
		{name: "nothing deployed yet"},
		{name: "nothing deployed yet, in a folder to come", change: noOrigin},
		{name: "one image is gone", images: []catalog.Reference{gone, image}},
		{name: "another origin", images: []catalog.Reference{gone, gone}, want: origin.ErrNotFound},
		{name: "no key", change: noKey, want: fs.ErrNotExist},
		{name: "no key any more", change: noKey, before: true, images: []catalog.Reference{image}, want: fs.ErrNotExist},
		{name: "another key", change: otherKey, before: true, images: []catalog.Reference{image}, want: keys.ErrRefused},
		{name: "no origin", change: noOrigin, images: []catalog.Reference{image}, want: origin.ErrAbsent},
		{name: "the origin is away", change: noOrigin, before: true, images: []catalog.Reference{image}, warns: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var warned bytes.Buffer
			g := *k.g
			g.State, g.OriginDeadline, g.stderr = t.TempDir(), 3*time.Minute, &warned
			if c.before {
				if err := os.MkdirAll(filepath.Join(g.State, "manifests", "r1"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if c.change != nil {
				c.change(&g)
			}
			err := g.access(t.Context(), c.images)
			if !errors.Is(err, c.want) || (warned.Len() > 0) != c.warns {
				t.Errorf("got %v, want %v; it warned: %s", err, c.want, warned.String())
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("not one line: %v", err)
			}
		})
	}
}
