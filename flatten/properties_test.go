package flatten

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"hash/maphash"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// files makes a layer of n files like those of packages: directories of some
// 20, sizes around 6 KB with a long tail.
func files(prefix string, n int) []item {
	rng := rand.New(rand.NewPCG(7, uint64(len(prefix))))
	items := make([]item, 0, n+n/20)
	for i := range n {
		if i%20 == 0 {
			items = append(items, item{Header: tar.Header{Name: fmt.Sprintf("%s/dir%d/", prefix, i/20), Typeflag: tar.TypeDir}})
		}
		size := 1 << (6 + rng.IntN(12))
		size += rng.IntN(size)
		if rng.IntN(400) == 0 {
			size += 700_000
		}
		items = append(items, item{Header: tar.Header{Name: fmt.Sprintf("%s/dir%d/file%d", prefix, i/20, i)}, content: patterned(i*31+len(prefix), size)})
	}
	return items
}

// digest is the SHA-256 of the chunks that are not zero, each behind its number.
func digest(m image) string {
	h, zero := sha256.New(), make([]byte, chunkSize)
	for _, i := range slices.Sorted(maps.Keys(m)) {
		if !bytes.Equal(m[i], zero) {
			fmt.Fprintf(h, "%d\n", i)
			h.Write(m[i])
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// richTars are the layers of richLayers and a large one.
func richTars(t *testing.T) (all tars) {
	for _, items := range richLayers() {
		all = append(all, tarball(t, items...))
	}
	return append(all, tarball(t, files("usr", 1500)...))
}

// Property: the same layers give the same bytes, however many goroutines pack
// them in whatever order, in any time zone, by any run of a map's order.
func TestDeterminism(t *testing.T) {
	sources := richTars(t)
	want := ""
	defer func(n int, zone *time.Location) { runtime.GOMAXPROCS(n); time.Local = zone }(runtime.GOMAXPROCS(0), time.Local)
	for i, procs := range []int{1, 2, 8, 8} {
		runtime.GOMAXPROCS(procs)
		time.Local = time.FixedZone("test", i*3600)
		all := make([]packed, len(sources))
		var group sync.WaitGroup
		for k := range sources {
			k = (k*(2*i+1) + i) % len(sources) // another order each time: 4 layers, odd steps
			group.Go(func() { all[k], _ = pack(sources[k]) })
		}
		group.Wait()
		m, _, _ := mustBuild(t, all...)
		if got := digest(m); want == "" {
			want = got
		} else if got != want {
			t.Errorf("GOMAXPROCS %d: other bytes", procs)
		}
	}
	const goldenFile = "testdata/golden.sha256"
	if *update {
		if err := os.WriteFile(goldenFile, []byte(want+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if want+"\n" != string(golden) {
		t.Errorf("the layout's bytes changed: %s, not %sA new layout needs a new LayoutVersion; then run with -update", want, golden)
	}
}

// Property: layers on top keep the chunks of those below where they are, but
// for the front: superblock, descriptors, bitmaps, inodes.
func TestAppendOnly(t *testing.T) {
	const front = 9 * groupSize / chunkSize
	for name, base := range bases(t) {
		before, _, _ := mustBuild(t, base...)
		upper := mustPack(t, tarball(t, append(files("opt/app", 100), parse("usr/new=1 etc/.wh.passwd usr/dir3/.wh.file60 usr/dir4/.wh..wh..opq usr/dir5/file100=2")...)...))
		after, _, _ := mustBuild(t, slices.Concat(base, []packed{upper})...)
		changed := 0
		for i, c := range before {
			if bytes.Equal(c, after[i]) {
				continue
			}
			if changed++; i >= front {
				t.Errorf("%s: chunk %d behind the front changed", name, i)
			}
		}
		t.Logf("%s: %d of %d chunks changed in place", name, changed, len(before))
		if changed > 8 {
			t.Errorf("%s: %d chunks of the front changed", name, changed)
		}
	}
}

// Property: a layer's data is the same in every stack that has the layer.
func TestPositionFree(t *testing.T) {
	layer := mustPack(t, tarball(t, files("app", 300)...))
	a, _, _ := mustBuild(t, layer)
	b, _, _ := mustBuild(t, mustPack(t, tarball(t, files("usr", 500)...)), mustPack(t, tarball(t, parse("a=1")...)), layer)
	seed := maphash.MakeSeed()
	inA, inB := a.chunks(seed), b.chunks(seed)
	for c := range layer.data.chunks(seed) {
		if !inA[c] || !inB[c] {
			t.Fatal("a chunk of the layer's data is not on both devices")
		}
	}
}

// bases are layers to build on: one made here, and a real one if there is.
func bases(t *testing.T) map[string][]packed {
	all := map[string][]packed{"synthetic": {mustPack(t, tarball(t, files("usr", 2000)...))}}
	t.Run("corpus", func(t *testing.T) { all["corpus base"] = corpusPacked(t, "base") })
	if all["corpus base"] == nil {
		delete(all, "corpus base")
	}
	return all
}

// Property: a change of one small file in an upper layer makes at most 6 new
// chunks, and two layers that change places at most 8.
func TestSmallChangesMakeFewChunks(t *testing.T) {
	small := files("opt/app", 60)
	changed := slices.Clone(small)
	changed[33].content = "changed"
	site := files("srv/site", 80)
	for name, base := range bases(t) {
		stack := func(upper ...[]item) image {
			all := slices.Clone(base)
			for _, items := range upper {
				all = append(all, mustPack(t, tarball(t, items...)))
			}
			m, _, _ := mustBuild(t, all...)
			return m
		}
		for _, c := range []struct {
			about         string
			before, after image
			limit         int
		}{
			{"one small file changed in an upper layer", stack(small), stack(changed), 6},
			{"one small file changed, a layer above it", stack(small, site), stack(changed, site), 6},
			{"one small file added by a layer", stack(), stack(parse("etc/new=1")), 6},
			{"one file of the base hidden by a layer", stack(), stack(parse("usr/dir7/.wh.file150 etc/.wh.passwd")), 6},
			{"two layers swapped", stack(small, site), stack(site, small), 8},
		} {
			n := newChunks(c.before, c.after)
			t.Logf("%s: %s: %d new chunks", name, c.about, n)
			if n > c.limit {
				t.Errorf("%s: %s: %d new chunks, %d are promised", name, c.about, n, c.limit)
			}
		}
	}
}

// Property: one of 2,000 files that grows by a few KB, or one more in front of
// it, does not cut the rest of its layer anew.
func TestShiftResilience(t *testing.T) {
	items := files("usr", 2000)
	before, _, _ := mustBuild(t, mustPack(t, tarball(t, items...)))
	rng := rand.New(rand.NewPCG(1, 2))
	const trials = 8 // each builds three devices
	worst := map[string]int{}
	for i := range trials {
		at := rng.IntN(len(items)-40) * i / trials // more of them near the front
		for at == 0 || items[at].Typeflag == tar.TypeDir || len(items[at].content) > 400_000 {
			at++
		}
		grown := slices.Clone(items)
		grown[at].content += patterned(1, 1000+rng.IntN(7000))
		inserted := slices.Insert(slices.Clone(items), at, item{Header: tar.Header{Name: fmt.Sprintf("usr/dir0/inserted%d", i)}, content: patterned(2, 100+rng.IntN(20_000))})
		removed := slices.Delete(slices.Clone(items), at, at+1)
		for about, changed := range map[string][]item{"grown": grown, "inserted": inserted, "removed": removed} {
			after, _, _ := mustBuild(t, mustPack(t, tarball(t, changed...)))
			n := newChunks(before, after)
			worst[about] = max(worst[about], n)
			if n > 8 {
				t.Errorf("file %d %s: %d new chunks", at, about, n)
			}
		}
	}
	t.Logf("of %d trials, worst numbers of new chunks: %v; %d chunks in all", trials, worst, len(before))
}

// grains notes which 64 KiB of a layer's data are not zero, in no memory to
// speak of.
type grains map[int64]uint8

const grain = 64 << 10

func (g grains) WriteAt(p []byte, off int64) (int, error) {
	for at := 0; at < len(p); at += blockSize { // runs begin on blocks
		if block := p[at:min(len(p), at+blockSize)]; !bytes.Equal(block, zeroBlock[:len(block)]) {
			o := off + int64(at)
			g[o/chunkSize] |= 1 << (o % chunkSize / grain)
		}
	}
	return len(p), nil
}

// fill is the mean share of the chunks that are not zero, up to their last
// grain that is not.
func (g grains) fill() (chunks int, mean float64) {
	total := 0
	for _, mask := range g {
		for n := 8; n > 0; n-- {
			if mask>>(n-1) != 0 {
				chunks, total = chunks+1, total+n
				break
			}
		}
	}
	return chunks, float64(total) / float64(max(1, chunks)) / 8
}

// Property: chunks are at least 75 % full, on average over real layers; and
// over a whole image of them.
func TestFill(t *testing.T) {
	for _, name := range []string{"base", "python", "node", "jre"} {
		t.Run(name, func(t *testing.T) {
			chunks, filled := 0, 0.0
			for i, path := range corpusLayers(t, name) {
				if i == 0 && name != "base" {
					continue // the base again
				}
				g := grains{}
				if _, err := Pack(unzip(t, path), g, nil); err != nil {
					t.Fatal(err)
				}
				n, mean := g.fill()
				t.Logf("layer %d: %d chunks, %.1f %% full", i, n, 100*mean)
				chunks, filled = chunks+n, filled+mean*float64(n)
			}
			if mean := filled / float64(chunks); mean < 0.75 {
				t.Errorf("chunks are %.1f %% full, 75 %% are promised", 100*mean)
			}
		})
	}
	g := grains{}
	if _, err := Pack(bytes.NewReader(tarball(t, files("usr", 2000)...)), g, nil); err != nil {
		t.Fatal(err)
	}
	if n, mean := g.fill(); mean < 0.75 {
		t.Errorf("%d chunks of a synthetic layer are %.1f %% full", n, 100*mean)
	}
}
