//go:build cloud

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"slices"
	"testing"

	"thaw/builder"
	"thaw/convert"
	"thaw/functions"
	"thaw/internal/testoci"
	"thaw/origin"
)

// newKept is the origin of a platform, with the flags that its builder has.
func newKept(t *testing.T) (kept, *store) {
	t.Helper()
	state := t.TempDir()
	g := &Globals{State: state, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), LogFormat: "text", stdout: io.Discard, stderr: os.Stderr}
	s, err := g.open(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return kept{g}, s
}

// convert makes the image of n under a name.
func (k kept) convert(t *testing.T, account, name string, n uint64) *convert.Result {
	t.Helper()
	layout := testoci.Layout(t, t.TempDir(), nil, testoci.Tar(t, testoci.File("f", testoci.Noise(n, 300_000))))
	res, err := k.g.forTenant(k.g.tenantOf(account)).convertQuietly(t.Context(), convert.Options{Source: layout, Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// things lists what is kept.
func (k kept) things(t *testing.T) (all []builder.Thing) {
	t.Helper()
	if err := k.Each(t.Context(), func(thing builder.Thing) error { all = append(all, thing); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

const other = "111111111111"

// What functions have in the origin is found, and goes: packages, names, and the
// images that have no other. What is not the platform's stays.
func TestKept(t *testing.T) {
	k, s := newKept(t)
	ctx := t.Context()
	id := func(account, name string) functions.ID { return functions.ID{Account: account, Name: name} }
	refer := func(id functions.ID, build string) builder.Thing {
		return builder.Thing{ID: id, Key: id.Reference(build)}
	}
	a, b := refer(id(usualAccount, "a"), "0000000000000001"), refer(id(usualAccount, "b"), "0000000000000002")
	c, d := refer(id(usualAccount, "a"), "0000000000000003"), refer(id(other, "d"), "0000000000000004")
	shared := k.convert(t, a.Account, a.Key, 1)
	k.convert(t, b.Account, b.Key, 1)
	alone := k.convert(t, c.Account, c.Key, 2)
	theirs := k.convert(t, d.Account, d.Key, 1)
	mine := k.convert(t, usualAccount, "function/a:latest", 3) // not a build's
	data := make([]byte, pieceSize+1)                          // of two pieces, one thing
	sum := sha256.Sum256(data)
	zip, err := packages{k.g}.Put(ctx, a.ID, hex.EncodeToString(sum[:]), section(data))
	if err != nil {
		t.Fatal(err)
	}
	pack := builder.Thing{ID: a.ID, Key: zip}
	if _, err := s.Packages("r1", "default").Put(ctx, "something-else", data); err != nil {
		t.Fatal(err)
	}
	if got, want := k.things(t), []builder.Thing{pack, d, a, c, b}; !slices.Equal(got, want) {
		t.Fatalf("kept are %v, want %v", got, want)
	}
	has := func(tenant string, r *convert.Result) bool {
		_, err := s.Manifests(r.Root, tenant).Stat(ctx, r.Image)
		if err != nil && !errors.Is(err, origin.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	for range 2 {
		if err := k.Remove(ctx, []builder.Thing{a, c, pack}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := k.things(t), []builder.Thing{d, b}; !slices.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
	if !has("default", shared) || has("default", alone) || !has(other, theirs) || !has("default", mine) {
		t.Error("the wrong images are left")
	}
	if err := k.Remove(ctx, []builder.Thing{b, d}); err != nil {
		t.Fatal(err)
	}
	if left := k.things(t); len(left) != 0 || has("default", shared) || has(other, theirs) || !has("default", mine) {
		t.Errorf("left are %v", left)
	}
	var left []string
	for info, err := range s.Packages("r1", "default").List(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, info.Name)
	}
	if !slices.Equal(left, []string{"something-else"}) {
		t.Errorf("left of packages are %v", left)
	}
}

// A manifest that a process was killed over is put back; its name takes it away
// again. As long as a name cannot be read, no image goes.
func TestKeptMends(t *testing.T) {
	k, s := newKept(t)
	ctx := t.Context()
	f := functions.ID{Account: usualAccount, Name: "f"}
	thing := builder.Thing{ID: f, Key: f.Reference("0000000000000001")}
	res := k.convert(t, f.Account, thing.Key, 1)
	place := place{res.Root, res.Image}
	if err := s.condemn(ctx, "default", place); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Manifests(res.Root, "default").Stat(ctx, res.Image); !errors.Is(err, origin.ErrNotFound) {
		t.Fatalf("condemned: %v", err)
	}
	if got := k.things(t); !slices.Equal(got, []builder.Thing{thing}) {
		t.Errorf("kept are %v", got)
	}
	if _, err := s.Manifests(res.Root, "default").Stat(ctx, res.Image); err != nil {
		t.Errorf("not put back: %v", err)
	}
	for info, err := range s.Condemned(res.Root, "default").List(ctx, "") {
		t.Errorf("%v is left condemned, %v", info, err)
	}
	bad := func(uint64) ([]byte, error) { return []byte("{"), nil }
	if _, err := s.PutNext(ctx, "names/default/odd", bad); err != nil {
		t.Fatal(err)
	}
	if err := k.Remove(ctx, []builder.Thing{thing}); err == nil {
		t.Error("removed beside a name that may be the image's")
	}
	if err := s.names.Remove(ctx, "odd"); err != nil {
		t.Fatal(err)
	}
	if err := k.Remove(ctx, []builder.Thing{thing}); err != nil {
		t.Error(err)
	}
	if _, err := s.Manifests(res.Root, "default").Stat(ctx, res.Image); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}
