package flatten

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/ext4"
	"thaw/verify"
)

// sampled reports whether e2fsck is to look at what came of an input: always
// with THAW_FUZZ_E2FSCK=1 and when the seeds run as tests, else at one input in
// 32, as it takes longer than all the rest.
func sampled(input []byte, seed maphash.Seed) bool {
	fuzzing := false
	for _, arg := range os.Args {
		fuzzing = fuzzing || strings.HasPrefix(arg, "-test.fuzz=")
	}
	return !fuzzing || os.Getenv("THAW_FUZZ_E2FSCK") == "1" || maphash.Bytes(seed, input)%32 == 0
}

// expected fails the test for an error that no input may cause.
func expected(t *testing.T, err error) {
	if !errors.Is(err, ErrLayer) && !errors.Is(err, ErrRecipe) && !errors.Is(err, ext4.ErrTooLarge) {
		t.Fatal(err)
	}
}

// declared adds up the sizes that a tar's headers state.
func declared(tarball []byte) (total int64) {
	tr := tar.NewReader(bytes.NewReader(tarball))
	for {
		hdr, err := tr.Next()
		if err != nil {
			return total
		}
		total += hdr.Size
	}
}

// FuzzPack has any bytes taken for a tar. What packs makes a device that e2fsck
// finds nothing wrong with.
func FuzzPack(f *testing.F) {
	seeds := 0
	add := func(b []byte) { f.Add(b); seeds++ }
	for _, b := range hostile() {
		if len(b) < 1<<20 {
			add(b)
		}
	}
	for _, c := range semantics {
		for _, text := range c.layers {
			add(tarball(f, parse(text)...))
		}
	}
	add(tarball(f, richLayers()[1]...))
	fronts, _ := filepath.Glob("testdata/layers/*.tar.gz")
	for _, path := range fronts {
		b, err := io.ReadAll(unzip(f, path))
		if err != nil {
			f.Fatal(err)
		}
		add(b)
	}
	if seeds < 100 || len(fronts) == 0 {
		f.Fatalf("%d seeds, %d of them from real layers", seeds, len(fronts))
	}
	seed := maphash.MakeSeed()
	f.Fuzz(func(t *testing.T, b []byte) {
		if declared(b) > 64<<20 {
			return // more zeros than a fuzz test has time for
		}
		l, err := pack(b)
		if err != nil {
			expected(t, err)
			return
		}
		recipe, err := DecodeLayer(l.Encode())
		if err != nil {
			t.Fatal(err)
		}
		m, _, s, err := build(l)
		if err != nil {
			expected(t, err)
			return
		}
		again, _, _, err := build(packed{recipe, l.data})
		if err != nil || digest(again) != digest(m) {
			t.Fatalf("the recipe makes another device: %v", err)
		}
		if sampled(b, seed) {
			fsck(t, m.file(t, s.Size))
		}
	})
}

// program decodes bytes into the items of layers. Names are few, parents and
// link targets mostly of those that are there, so that entries meet and most
// programs are no error.
type program struct {
	rest  []byte
	dirs  []string // and symlinks, as parents
	names []string // as targets
}

func (p *program) next() byte {
	if len(p.rest) == 0 {
		return 0
	}
	c := p.rest[0]
	p.rest = p.rest[1:]
	return c
}

// path gives the name of a directory or, as a rule another, of anything else.
func (p *program) path(dir bool) string {
	names := [...]string{"a", "b", "c", "d", "e", "\xff\xfe", "..x", "lib.so"}
	c := p.next()
	name := names[c&7]
	switch {
	case c>>3 == 31: // a parent that is anything
		return names[p.next()&7] + "/" + name
	case c>>3 != 30 && !dir:
		name = "f" + name
	}
	return joinPath(p.dirs[int(c>>3)%len(p.dirs)], name)
}

// attribute fills in what the operation adds to a file, or makes of it.
func (p *program) attribute(it *item, op byte) {
	switch op % 16 {
	case 0, 1, 2:
		it.Typeflag = tar.TypeDir
		p.dirs = append(p.dirs, it.Name)
	case 3, 4:
		it.Typeflag, it.Linkname = tar.TypeLink, p.names[int(p.next())%len(p.names)]
	case 5:
		targets := [...]string{"/", "..", ".", "../a", "/b/c", "a", "c/d", "missing/x"}
		c := p.next()
		it.Typeflag, it.Linkname = tar.TypeSymlink, targets[c&7]
		if c>>3 < 8 && c&7 != 5 && c&7 != 3 { // a parent, but not one that may point at itself
			p.dirs = append(p.dirs, it.Name)
		}
	case 6:
		dir, base := splitPath(it.Name)
		it.Name = joinPath(dir, ".wh."+base)
	case 7:
		dir, _ := splitPath(it.Name)
		it.Name = joinPath(dir, opaqueName)
	case 8:
		it.Typeflag, it.Devmajor, it.Devminor = tar.TypeBlock, int64(p.next())<<2, int64(p.next())<<8
	case 9:
		it.PAXRecords = attrs("user.x", patterned(int(op), int(p.next())<<5), "trusted.y", patterned(1, int(p.next())))
	case 10:
		it.Typeflag, it.Linkname = tar.TypeSymlink, patterned(7, 1)+strings.Repeat("t", int(p.next()))
		it.Linkname = strings.ReplaceAll(it.Linkname, "\x00", "x")
	default:
		it.content = patterned(int(op), int(p.next())<<(p.next()%10))
		if op > 230 {
			it.content = strings.Repeat(it.content, 1+2*largeFile/(len(it.content)+1))
		}
		p.names = append(p.names, it.Name)
	}
}

// operations gives up to four layers.
func operations(b []byte) (layers [][]item) {
	p := &program{rest: b, dirs: []string{""}, names: []string{"a"}}
	layers = [][]item{{{Header: tar.Header{Name: "a"}, content: "first"}}}
	for len(p.rest) > 0 {
		op := p.next()
		if op > 240 && len(layers) < 4 {
			layers = append(layers, nil)
			continue
		}
		var it item
		it.Name, it.Mode, it.Uid = p.path(op%16 < 3 || op%16 == 6), int64(op)<<4|0o400, int(op)<<12
		p.attribute(&it, op)
		layers[len(layers)-1] = append(layers[len(layers)-1], it)
	}
	return layers
}

// summary writes layers as the tables do, without contents.
func summary(layers [][]item) (text string) {
	for _, items := range layers {
		for _, it := range items {
			text += fmt.Sprintf("%q", it.Name)
			switch it.Typeflag {
			case tar.TypeDir:
				text += "/"
			case tar.TypeLink:
				text += fmt.Sprintf("=>%q", it.Linkname)
			case tar.TypeSymlink:
				text += fmt.Sprintf("->%.9q", it.Linkname)
			}
			text += " "
		}
		text += "; "
	}
	return text
}

// FuzzLayout applies layers of any entries. Package verify, which shares no
// code with this one, and e2fsck are the oracles; what one refuses, so does the
// other.
func FuzzLayout(f *testing.F) {
	for i := range 40 {
		f.Add([]byte(patterned(i, 60+i*5)))
	}
	f.Add([]byte{})
	seed := maphash.MakeSeed()
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 600 {
			return // longer than is of use
		}
		var sources tars
		var all []packed
		for _, items := range operations(b) {
			sources = append(sources, tarball(t, items...))
			l, err := pack(sources[len(sources)-1])
			if err != nil {
				expected(t, err)
				return
			}
			all = append(all, l)
		}
		m, _, s, err := build(all...)
		if err != nil {
			expected(t, err)
			empty, _, size, _ := build()
			if report, verr := verify.Tree(t.Context(), empty, size.Size, sources); verr == nil {
				t.Fatalf("%s: refused: %v; package verify takes it: %+v", summary(operations(b)), err, report)
			}
			return
		}
		if err := verified(m, s.Size, sources); err != nil {
			t.Fatalf("%s: %v", summary(operations(b)), err)
		}
		if sampled(b, seed) {
			fsck(t, m.file(t, s.Size))
		}
	})
}

// FuzzDecodeLayer reads any bytes as a recipe, and applies it.
func FuzzDecodeLayer(f *testing.F) {
	seeds := 0
	for _, c := range semantics {
		for _, text := range c.layers {
			if l, err := pack(tarball(f, parse(text)...)); err == nil {
				f.Add(l.Encode())
				seeds++
			}
		}
	}
	for _, items := range richLayers() {
		f.Add(mustPack(f, tarball(f, items...)).Encode())
	}
	if seeds == 0 {
		f.Fatal("no seeds")
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := DecodeLayer(b)
		if err != nil {
			expected(t, err)
			return
		}
		if l.data > 1<<30 || l.slots > 1<<16 {
			return // more inodes than a fuzz test has time for
		}
		if _, _, _, err := build(packed{l, image{}}); err != nil {
			expected(t, err)
		}
	})
}

// TestFuzzOperationsReachMuch keeps FuzzLayout from testing nothing: of its
// seeds a good part must make devices with names in them.
func TestFuzzOperationsReachMuch(t *testing.T) {
	made := 0
	for i := range 40 {
		var all []packed
		for _, items := range operations([]byte(patterned(i, 60+i*5))) {
			if l, err := pack(tarball(t, items...)); err == nil {
				all = append(all, l)
			}
		}
		if _, tree, _, err := build(all...); err == nil && len(tree.root.dir.children) > 2 {
			made++
		}
	}
	if t.Logf("%d of 40 seeds make a tree", made); made < 15 {
		t.Errorf("%d of 40 seeds make a tree", made)
	}
}
