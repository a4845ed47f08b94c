package trace

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"thaw/manifest"
)

var update = flag.Bool("update", false, "write the golden files")

var (
	testData  = bytes.Repeat([]byte{0xd0}, 32)
	testImage = manifest.ID(bytes.Repeat([]byte{0x1d}, 32))
	testNonce = []byte("a nonce of12")
)

func testKey() Key { return NewKey(testData, testImage) }

func samples() map[string]*Trace {
	many := make([]uint32, 1000)
	for i := range many {
		many[i] = uint32(i*i) % 65521
	}
	return map[string]*Trace{
		"one-chunk":   merged([]uint32{0}),
		"three-runs":  merged([]uint32{5, 6, 7}, []uint32{6, 5, 1<<32 - 1}, []uint32{5, 8}),
		"eight-runs":  merged(slices.Repeat([][]uint32{{3, 1, 2}}, maxRuns+3)...),
		"thousand":    merged(many, many[100:]),
		"not-in-last": merged([]uint32{1, 2}, []uint32{2}),
	}
}

func equal(a, b *Trace) bool { return a.runs == b.runs && slices.Equal(a.chunks, b.chunks) }

func TestSeal(t *testing.T) {
	for name, tr := range samples() {
		k := testKey()
		sealed, again := k.Seal(tr), k.Seal(tr)
		if bytes.Equal(sealed, again) {
			t.Errorf("%s: sealed twice it is the same", name)
		}
		got, err := k.Open(sealed)
		if err != nil || !equal(got, tr) || Check(sealed) != nil {
			t.Errorf("%s: opened to %v, %v", name, got, err)
		}
		for what, other := range map[string]Key{"data key": NewKey(bytes.Repeat([]byte{1}, 32), testImage), "image": NewKey(testData, manifest.ID{1})} {
			if _, err := other.Open(sealed); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: with another %s: %v", name, what, err)
			}
		}
	}
	var largest []uint32
	for i := range uint32(MaxChunks) {
		largest = append(largest, i)
	}
	if sealed := testKey().Seal(merged(largest)); len(sealed) != MaxSize || MaxSize > 256<<10 {
		t.Errorf("the largest has %d bytes, want %d", len(sealed), MaxSize)
	}
}

// Whatever is changed of a small trace, it does not open.
func TestOpenChanged(t *testing.T) {
	k := testKey()
	sealed := k.Seal(merged([]uint32{1, 2}))
	for i := range sealed {
		for bit := range 8 {
			b := bytes.Clone(sealed)
			b[i] ^= 1 << bit
			if got, err := k.Open(b); err == nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("byte %d, bit %d: %v, %v", i, bit, got, err)
			}
		}
		if _, err := k.Open(sealed[:i]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d: %v", i, err)
		}
	}
	if _, err := k.Open(append(sealed, 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with a byte more: %v", err)
	}
}

func TestSealNothing(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a trace of no run was sealed")
		}
	}()
	testKey().Seal(new(Trace))
}

func TestKeyPrintsNothing(t *testing.T) {
	k := testKey()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		for _, v := range []any{k, &k} {
			if got := fmt.Sprintf(verb, v); got != "trace key" {
				t.Errorf("%s: %q", verb, got)
			}
		}
	}
	if got := merged([]uint32{77}).String(); got != "trace{1 runs, 1 chunks}" {
		t.Error(got)
	}
}

// raw writes tables that encode does not.
func raw(runs, zero byte, n uint32, chunks ...Chunk) []byte {
	b := []byte{runs, zero, 0, 0, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
	for _, c := range chunks {
		b = append(b, byte(c.Index>>24), byte(c.Index>>16), byte(c.Index>>8), byte(c.Index), c.Runs)
	}
	return b
}

// badTables are such as only the key's owner can seal.
func badTables() map[string][]byte {
	one := Chunk{4, 1}
	return map[string][]byte{
		"no-runs":       raw(0, 0, 1, one),
		"nine-runs":     raw(9, 0, 1, one),
		"reserved":      raw(1, 1, 1, one),
		"count-less":    raw(1, 0, 1, one, Chunk{5, 1}),
		"count-more":    raw(1, 0, 2, one),
		"count-huge":    raw(1, 0, 1<<32-1, one),
		"index-twice":   raw(1, 0, 2, one, one),
		"of-no-run":     raw(1, 0, 1, Chunk{4, 0}),
		"of-run-beyond": raw(2, 0, 1, Chunk{4, 4}),
	}
}

// golden is what testdata says of a file.
type golden struct {
	About   string   `json:"about"`
	DataKey string   `json:"data_key"`
	Image   string   `json:"image"`
	Key     string   `json:"trace_key"`
	Error   string   `json:"error,omitempty"`
	Runs    int      `json:"runs,omitempty"`
	Chunks  []Chunk  `json:"chunks,omitempty"`
	Plan    []uint32 `json:"plan,omitempty"`
}

// TestGolden pins the format: a change of these bytes needs a new version.
func TestGolden(t *testing.T) {
	k := testKey()
	files := map[string][]byte{}
	add := func(name string, sealed []byte, g golden) {
		g.About, g.DataKey, g.Image, g.Key = name, hex.EncodeToString(testData), testImage.String(), hex.EncodeToString(k.key[:])
		text, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		files[name+".trace"], files[name+".json"] = sealed, append(text, '\n')
	}
	for name, tr := range samples() {
		add(name, k.seal(tr.encode(), testNonce), golden{Runs: tr.runs, Chunks: tr.chunks, Plan: tr.Plan()})
	}
	for name, table := range badTables() {
		add("bad-"+name, k.seal(table, testNonce), golden{Error: "corrupt"})
	}
	newer := k.seal(samples()["one-chunk"].encode(), testNonce)
	newer[9]++
	add("bad-newer", newer, golden{Error: "newer"})
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, files[name], 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, files[name]) {
			t.Errorf("%s differs from what is written now (%v)", path, err)
		}
	}
	for name, sealed := range files {
		bad := strings.HasPrefix(name, "bad-")
		want := ErrCorrupt
		if name == "bad-newer.trace" {
			want = ErrVersion
		}
		if _, err := k.Open(sealed); strings.HasSuffix(name, ".trace") && (bad != errors.Is(err, want) || !bad && err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if found, err := filepath.Glob("testdata/*.*"); err != nil || len(found) != len(files) {
		t.Errorf("testdata has %d files, want %d: %v", len(found), len(files), err)
	}
}

// corpus gives the golden traces, and fails when there are none.
func corpus(f *testing.F) (all [][]byte) {
	f.Helper()
	paths, err := filepath.Glob("testdata/*.trace")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no golden traces to start from: %v", err)
	}
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// FuzzOpen holds that nothing opens that was not sealed.
func FuzzOpen(f *testing.F) {
	good := map[string]bool{}
	for _, b := range corpus(f) {
		f.Add(b)
		if _, err := testKey().Open(b); err == nil {
			good[string(b)] = true
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		_, err := testKey().Open(b)
		if !bytes.Equal(b, was) {
			t.Fatal("opening changed the bytes")
		}
		if err == nil && !good[string(b)] {
			t.Fatal("a forged trace opened")
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Fatalf("%v: want ErrCorrupt or ErrVersion", err)
		}
	})
}

// FuzzTable holds that a table has one form, and that what it says can be
// planned and merged.
func FuzzTable(f *testing.F) {
	k := testKey()
	for _, b := range corpus(f) {
		table, err := k.gcm().Open(nil, testNonce, b[headSize+nonceSize:], append(append([]byte{}, b[:headSize]...), testImage[:]...))
		if err != nil { // the one whose head was changed
			continue
		}
		f.Add(table)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tr, err := decode(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v: want ErrCorrupt", err)
			}
			return
		}
		if !bytes.Equal(tr.encode(), b) {
			t.Fatal("decode and encode do not give the same bytes")
		}
		plan := tr.Plan()
		if len(plan) > tr.Len() || expected(tr, plan)*wasteShare > len(plan)*tr.runs {
			t.Fatalf("%v: plan %v", tr.chunks, plan)
		}
		next := tr.Merge(plan)
		if again, err := decode(next.encode()); err != nil || !equal(next, again) {
			t.Fatalf("merged to %v, %v", next, err)
		}
	})
}
