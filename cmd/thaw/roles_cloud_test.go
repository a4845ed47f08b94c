//go:build cloud

package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"thaw/internal/testoci"
	"thaw/worker"
)

// An image that is not in the origin, or damaged there, no worker can have; what is
// wrong with a worker's own copy, or its origin, says nothing of it.
func TestNoImage(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	layout := testoci.Layout(t, t.TempDir(), []string{"FROM=image"}, testoci.Tar(t, testoci.File("a", testoci.Noise(1, 1000))))
	id := imageOf(t, must(t, "--state", state, "convert", layout, "--name", "app", "--json"))
	at := filepath.Join(state, "origin", "roots", "r1", "manifests", "default", id)
	whole, err := os.ReadFile(at)
	try(t, err)
	for _, c := range []struct {
		what         string
		there, local []byte // manifests; nil: none
		away         bool   // the origin
		found, none  bool
	}{
		{what: "gone", none: true},
		{what: "cut", there: whole[:len(whole)/2], none: true},
		{what: "empty", there: []byte{}, none: true},
		{what: "its origin is not mounted", there: whole, away: true},
		{what: "the copy is damaged", there: whole, local: whole[:len(whole)/2]},
		{what: "whole", there: whole, found: true},
		{what: "gone, and started before", local: whole, found: true},
	} {
		fresh := filepath.Join(t.TempDir(), "state") // of a worker
		g := &Globals{State: fresh, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), OriginDeadline: patience, LogFormat: "text", stderr: io.Discard}
		if c.away {
			g.Origin = fileURL(fresh, "origin")
		}
		for name, data := range map[string][]byte{at: c.there, g.local().manifest("r1", id): c.local} {
			try(t, os.RemoveAll(name))
			if data != nil {
				try(t, errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, data, 0o600)))
			}
		}
		if _, err := g.findImage(t.Context(), id, "r1"); (err == nil) != c.found || errors.Is(err, worker.ErrNoImage) != c.none {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
