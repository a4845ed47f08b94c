package flatten

import (
	"archive/tar"
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"thaw/ext4"
)

// recipe encodes entries as a layer of 100 inodes and 1,000 blocks of data.
func recipe(entries ...entry) *Layer {
	l := &Layer{data: 1000 * blockSize, slots: 100, count: uint32(len(entries))}
	before := ""
	for _, e := range entries {
		l.table = appendEntry(l.table, before, &e)
		before = e.path
	}
	return l
}

func decoded(t *testing.T, l *Layer) (all []entry) {
	t.Helper()
	err := l.each(func(e *entry) error { all = append(all, *e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A recipe read back is the layer, and applied it makes the same device.
func TestRecipeRoundTrip(t *testing.T) {
	var straight, again []packed
	for _, source := range append(richTars(t), sparseTar(t, "--format=posix", 30<<20, 0, 5<<20, 12<<20, 20<<20, 29<<20, 9<<20)) {
		l := mustPack(t, source)
		straight = append(straight, l)
		b := l.Encode()
		back, err := DecodeLayer(slices.Clone(b))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(back.Encode(), b) || back.DataSize() != l.DataSize() || back.Entries() != l.Entries() || back.Dropped() != l.Dropped() {
			t.Error("a recipe changes when it is read")
		}
		again = append(again, packed{back, l.data})
	}
	a, _, sa := mustBuild(t, straight...)
	b, _, sb := mustBuild(t, again...)
	if digest(a) != digest(b) || sa != sb {
		t.Error("recipes make another device than the layers they are of")
	}
}

// Entries of all kinds come back from the table as they went in.
func TestEntriesComeBack(t *testing.T) {
	path := rapid.StringMatching(`[a-c]{1,3}(/[a-d]{1,3}){0,3}`)
	u32 := rapid.Uint32Max(maxID)
	rapid.Check(t, func(rt *rapid.T) {
		var want []entry
		for range rapid.IntRange(0, 8).Draw(rt, "count") {
			e := entry{kind: kind(rapid.IntRange(0, int(kindEnd)-1).Draw(rt, "kind")), path: path.Draw(rt, "path")}
			if e.kind == kindLink || e.kind == kindSymlink {
				e.target = path.Draw(rt, "target")
			}
			if e.kind < kindWhiteout && e.kind != kindLink {
				e.mode, e.uid, e.gid = rapid.Uint16Max(0o7777).Draw(rt, "mode"), u32.Draw(rt, "uid"), u32.Draw(rt, "gid")
				e.mtime = ext4.Time{Sec: rapid.Int64Range((-1<<31), (3<<32+1<<31-1)).Draw(rt, "sec"), Nsec: rapid.Uint32Max(1e9-1).Draw(rt, "nsec")}
				e.slot = rapid.Uint32Max(99).Draw(rt, "slot")
				if n := rapid.IntRange(0, 70).Draw(rt, "value"); n > 0 {
					e.xattrs = []xattr{{Xattr: ext4.Xattr{Index: 1, Name: "n", Value: bytes.Repeat([]byte{7}, n), Size: uint32(n)}}, {Xattr: ext4.Xattr{Index: 6, Name: "m", Value: []byte{}, Size: 9, Inode: 3, Hash: u32.Draw(rt, "hash")}, start: 5}}
				}
			}
			switch e.kind {
			case kindFile:
				e.size = rapid.Int64Range(0, maxFile).Draw(rt, "size")
				if whole := uint64(e.size) / blockSize; whole > 0 {
					n := min(uint32(whole), 7)
					e.extents = []ext4.Extent{{Logical: uint32(whole) - n, Physical: 3, Count: n}}
				}
			case kindSymlink:
				e.size = int64(len(e.target)) // what sane says
			case kindChar, kindBlock:
				e.dev = [2]uint32{rapid.Uint32Max(maxMajor).Draw(rt, "major"), rapid.Uint32Max(maxMinor).Draw(rt, "minor")}
			}
			want = append(want, e)
		}
		got := decoded(t, recipe(want...))
		if len(got) != len(want) {
			rt.Fatalf("%d entries of %d", len(got), len(want))
		}
		for i := range want {
			if a, b := appendEntry(nil, "", &got[i]), appendEntry(nil, "", &want[i]); !bytes.Equal(a, b) || got[i].path != want[i].path {
				rt.Fatalf("%+v comes back as %+v", want[i], got[i])
			}
		}
	})
}

// A recipe that Pack cannot have written is ErrRecipe: when it is read, when it
// is applied, but never a panic.
func TestHostileRecipes(t *testing.T) {
	file := func(path string, slot uint32, extents ...ext4.Extent) entry {
		return entry{path: path, slot: slot, size: 100 * blockSize, extents: extents}
	}
	at := func(logical, physical, count uint32) ext4.Extent {
		return ext4.Extent{Logical: logical, Physical: physical, Count: count}
	}
	attr := func(x ext4.Xattr, start uint32) entry {
		return entry{kind: kindDir, path: "d", xattrs: []xattr{{x, start}}}
	}
	link := func(target string, extents ...ext4.Extent) entry {
		return entry{kind: kindSymlink, path: "l", target: target, extents: extents}
	}
	big := ext4.Xattr{Index: 1, Name: "v", Size: 5000, Inode: 7}
	for about, l := range map[string]*Layer{
		"a kind that is none":          recipe(entry{kind: kindEnd, path: "a"}),
		"a file in place of the root":  recipe(entry{kind: kindFile}),
		"a link in place of the root":  recipe(entry{kind: kindLink, target: "a"}),
		"a whiteout of the root":       recipe(entry{kind: kindWhiteout}),
		"a path with ..":               recipe(file("a/../b", 0)),
		"a path with .":                recipe(file("./b", 0)),
		"a path with //":               recipe(file("a//b", 0)),
		"a path with / behind":         recipe(file("a/", 0)),
		"a path with a NUL":            recipe(file("a\x00b", 0)),
		"a name of 256 bytes":          recipe(file(strings.Repeat("n", 256), 0)),
		"a path of 4,096 bytes":        recipe(file(strings.Repeat("n/", 2047)+"nn", 0)),
		"a target out of the tree":     recipe(entry{kind: kindLink, path: "a", target: "../b"}),
		"an inode past the layer's":    recipe(file("a", 100)),
		"an inode given twice":         recipe(file("a", 7), file("b", 7)),
		"blocks past the layer's":      recipe(file("a", 0, at(0, 999, 2))),
		"blocks past all numbers":      recipe(file("a", 0, at(0, math.MaxUint32, math.MaxUint32))),
		"blocks given twice":           recipe(file("a", 0, at(0, 5, 10)), file("b", 1, at(0, 14, 1))),
		"blocks given to one twice":    recipe(file("a", 0, at(0, 5, 10), at(10, 5, 10))),
		"an extent of no blocks":       recipe(file("a", 0, at(0, 5, 0))),
		"extents out of order":         recipe(file("a", 0, at(10, 5, 1), at(0, 6, 1))),
		"extents over one another":     recipe(file("a", 0, at(0, 5, 5), at(4, 20, 1))),
		"an extent past the file":      recipe(file("a", 0, at(99, 5, 2))),
		"an extent of a FIFO":          recipe(entry{kind: kindFIFO, path: "p", extents: []ext4.Extent{at(0, 1, 1)}}),
		"a long target without blocks": recipe(link(strings.Repeat("t", 60))),
		"a short target with blocks":   recipe(link("t", at(0, 1, 1))),
		"a target of no bytes":         recipe(link("")),
		"a target with a NUL":          recipe(link("a\x00b")),
		"an owner of no one":           recipe(entry{kind: kindDir, path: "d", uid: math.MaxUint32}),
		"a device of no driver":        recipe(entry{kind: kindChar, path: "c", dev: [2]uint32{4096, 0}}),
		"a value of another size":      recipe(attr(ext4.Xattr{Index: 1, Name: "v", Value: []byte("1"), Size: 2}, 0)),
		"a value here and there":       recipe(attr(ext4.Xattr{Index: 1, Name: "v", Value: []byte("1"), Size: 1, Inode: 1}, 0)),
		"a value past the data":        recipe(attr(big, 999)),
		"a value past all numbers":     recipe(attr(big, math.MaxUint32)),
		"a value of 4 GiB":             recipe(attr(ext4.Xattr{Index: 1, Name: "v", Size: math.MaxUint32, Inode: 1}, 0)),
		"a value's inode given twice":  recipe(file("a", 6), attr(big, 0)),
		"a value's blocks given twice": recipe(file("a", 0, at(0, 1, 1)), attr(big, 0)),
		"attributes past a block":      recipe(entry{kind: kindDir, path: "d", xattrs: slices.Repeat([]xattr{{Xattr: ext4.Xattr{Index: 1, Name: strings.Repeat("n", 200)}}}, 30)}),
		"more entries than there are":  {count: 2, slots: 100, table: recipe(entry{kind: kindDir, path: "d"}).table},
		"fewer entries than there are": {slots: 100, table: recipe(entry{kind: kindDir, path: "d"}).table},
		"bytes that are no entry":      {count: 1, table: bytes.Repeat([]byte{0xff}, 20)},
	} {
		back, err := DecodeLayer(l.Encode())
		if err == nil {
			_, _, _, err = build(packed{back, image{}})
		}
		if !errors.Is(err, ErrRecipe) {
			t.Errorf("%s: %v", about, err)
		}
	}
	for _, b := range [][]byte{nil, {0xff}, bytes.Repeat([]byte{0xff}, 100), {1, 0, 0, 0}, (&Layer{data: ext4.MaxGroups*groupSize + blockSize}).Encode(), (&Layer{slots: maxEntries + 1}).Encode(), (&Layer{count: maxEntries + 1}).Encode()} {
		if _, err := DecodeLayer(b); !errors.Is(err, ErrRecipe) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// Every prefix of a recipe, and every byte of it changed, gives an error or a
// device, and no panic.
func TestDamagedRecipes(t *testing.T) {
	whole := mustPack(t, tarball(t, append(parse("d/ d/f=1 l->x h=>d/f p| c% .wh.w e/.wh..wh..opq"), item{Header: tar.Header{Name: "x", PAXRecords: attrs("user.a", "1", "user.b", strings.Repeat("b", 5000))}, content: "content"})...))
	b := whole.Encode()
	try := func(b []byte) {
		l, err := DecodeLayer(b)
		if err == nil && l.data <= 1<<30 {
			_, _, _, err = build(packed{l, image{}})
		}
		if err != nil && !errors.Is(err, ErrRecipe) && !errors.Is(err, ErrLayer) && !errors.Is(err, ext4.ErrTooLarge) {
			t.Errorf("%v", err)
		}
	}
	for i := range b {
		try(b[:i])
		for _, bit := range []byte{1, 0x80, 0xff} {
			damaged := slices.Clone(b)
			damaged[i] ^= bit
			try(damaged)
		}
	}
}
