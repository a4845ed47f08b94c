package cache

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"thaw/chunk"
)

// TestPin fills a folder many times over: what is pinned stays, and the rest has
// the room that is left, also after another process has opened the folder.
func TestPin(t *testing.T) {
	f := newFolder(t, 8*small)
	var pinned []chunk.Sealed
	var names []chunk.Name
	for i := range 3 {
		pinned = append(pinned, sample(i, small))
		names = append(names, pinned[i].Name)
	}
	if err := f.Pin("base", names); err != nil {
		t.Fatal(err)
	}
	for _, c := range pinned {
		filled(t, f, c)
	}
	other := open(t, f.dir, 8*small)
	for i := range 40 {
		filled(t, []*Folder{f, other}[i%2], sample(100+i, small))
	}
	for i, c := range pinned {
		if !f.Has(c.Name, small) {
			t.Errorf("pinned chunk %d is gone", i)
		}
	}
	if f.Has(pinned[0].Name, small-1) {
		t.Error("a chunk of another length is taken for it")
	}
	if !f.Has(sample(139, small).Name, small) {
		t.Error("the newest chunk is not kept")
	}
	if s := f.Stats(); s.Failures != 0 || s.Evicted == 0 || s.Used > 8*small {
		t.Errorf("%+v", s)
	}
	if err := f.Unpin("base"); err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		filled(t, f, sample(200+i, small))
	}
	if f.has(pinned[0].Name) {
		t.Error("a chunk that is pinned no more stays")
	}
	if err := f.Unpin("base"); err != nil {
		t.Errorf("unpinning again: %v", err)
	}
}

// A folder that is pinned whole gives chunks and keeps none.
func TestPinnedWhole(t *testing.T) {
	f := newFolder(t, 2*small)
	a, b, c := sample(1, small), sample(2, small), sample(3, small)
	if err := f.Pin("all", []chunk.Name{a.Name, b.Name}); err != nil {
		t.Fatal(err)
	}
	for _, s := range []chunk.Sealed{a, b, c} {
		filled(t, f, s)
	}
	if !f.has(a.Name) || !f.has(b.Name) || f.has(c.Name) || f.Stats().Failures != 1 {
		t.Errorf("%+v", f.Stats())
	}
}

func TestPinLists(t *testing.T) {
	f := newFolder(t, 1<<20)
	if lists, err := f.Pins(); err != nil || len(lists) != 0 {
		t.Errorf("%q, %v", lists, err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a.new", "ä", string(make([]byte, 200))} {
		if f.Pin(bad, nil) == nil || f.Unpin(bad) == nil {
			t.Errorf("%q is taken for a list", bad)
		}
	}
	a := sample(1, small)
	for _, list := range []string{"one", "two"} {
		if err := f.Pin(list, []chunk.Name{a.Name}); err != nil {
			t.Fatal(err)
		}
	}
	if lists, err := f.Pins(); err != nil || !slices.Equal(lists, []string{"one", "two"}) {
		t.Errorf("%q, %v", lists, err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, pinsDir, "two"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if p := f.pinned(); len(p) != 1 || !p[a.Name] { // of the one that is whole
		t.Errorf("%v", p)
	}
	if f.Pin("huge", make([]chunk.Name, maxPins+1)) == nil {
		t.Error("a list without bound is taken")
	}
}

func TestEmpty(t *testing.T) {
	f := newFolder(t, 1<<20)
	a, b := sample(1, small), sample(2, small)
	if err := f.Pin("a", []chunk.Name{a.Name}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		pinned bool
		left   int64
	}{{false, small}, {true, 0}} {
		filled(t, f, a)
		filled(t, f, b)
		left, err := f.Empty(t.Context(), want.pinned)
		if err != nil || left != want.left || f.Stats().Used != left || f.has(b.Name) || f.has(a.Name) == want.pinned {
			t.Errorf("pinned %v: %d left, %v, %+v", want.pinned, left, err, f.Stats())
		}
	}
	filled(t, f, a) // it works on
	if !f.has(a.Name) {
		t.Error("an emptied folder keeps nothing")
	}
}
