package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/chunk"
)

var update = flag.Bool("update", false, "rewrite testdata")

// golden is the JSON beside a file of testdata: what a reader in any language
// must find in it, and the keys to do so. All bytes are hex. Files of
// testdata/bad have About, Stage, Error and TenantKey only.
type golden struct {
	About     string `json:"about"`
	Stage     string `json:"stage,omitempty"` // what must refuse it: "parse" (no key) or "open"
	Error     string `json:"error,omitempty"` // "corrupt", "version", or "refused": by the tenant's key
	TenantKey string `json:"tenant_key"`      // AES-256-GCM; the wrapped value is nonce 12 ‖ ciphertext ‖ tag 16
	KeyWord   string `json:"key_word"`        // additional data of that GCM

	ID        string        `json:"id,omitempty"`
	Salt      string        `json:"salt,omitempty"`
	DataKey   string        `json:"data_key,omitempty"`
	KeyURL    string        `json:"key_url,omitempty"`
	Kind      Kind          `json:"kind,omitempty"`
	Tenant    string        `json:"tenant,omitempty"`
	Layout    uint16        `json:"layout,omitempty"`
	Size      int64         `json:"size"`
	ChunkSize int           `json:"chunk_size,omitempty"`
	Chunks    []goldenEntry `json:"chunks,omitempty"`
	Source    string        `json:"source,omitempty"`
	Config    string        `json:"config,omitempty"`
}

type goldenEntry struct {
	Index uint32 `json:"index"`
	Size  uint32 `json:"size"`
	Name  string `json:"name"`
	Key   string `json:"key"`
}

var (
	goldenSalt    = chunk.Salt(bytes.Repeat([]byte{0x51}, 32))
	goldenDataKey = bytes.Repeat([]byte{0xd0}, keySize)
)

// goldenKeeper uses one nonce for ever, so that the files come out the same.
func goldenKeeper() testKeeper {
	return testKeeper{key: [32]byte(bytes.Repeat([]byte{0x7e}, 32)), nonce: []byte("golden nonce")}
}

// goldenManifests are the contents of testdata/good.
func goldenManifests() map[string]*Manifest {
	one, many := sample(1), sample(3)
	many.Tenant, many.Layout = "a"+strings.Repeat("z.-_", 15)+"012", 0xffff
	many.Chunks[0].Size = chunk.Grain
	many.Size = 4*chunk.DefaultSize + 100_000 // no whole grains at the end
	many.Chunks[2].Size = 100_000
	large := sample(2)
	large.ChunkSize, large.Size = chunk.MaxSize, 1<<53
	large.Chunks[0].Size, large.Chunks[1].Size, large.Chunks[1].Index = chunk.MaxSize, 7*chunk.Grain, 1<<32-1
	return map[string]*Manifest{
		"one-chunk": one, "unaligned-end": many, "largest-device": large,
		"all-zero":    {Kind: Image, Tenant: "0", Size: 1 << 27, ChunkSize: chunk.DefaultSize, Source: "sha256:00", Config: []byte("{}")},
		"empty-layer": {Kind: Layer, Tenant: "acme", Layout: 1, ChunkSize: chunk.MinSize},
		"recipe": {Kind: Layer, Tenant: "acme", Layout: 1, Size: 70_000, ChunkSize: chunk.MinSize, Chunks: []Entry{
			{Index: 0, Size: chunk.Grain, Name: many.Chunks[0].Name, Key: many.Chunks[0].Key},
			{Index: 1, Size: 70_000 - chunk.Grain, Name: many.Chunks[1].Name, Key: many.Chunks[1].Key},
		}, Source: strings.Repeat("s", maxSource), Config: bytes.Repeat([]byte{0, 0xff}, 50)},
	}
}

// badFile is a file of testdata/bad: the one-chunk manifest with one thing
// changed by a forger who knows the format.
type badFile struct {
	stage, err string
	change     func(b []byte) []byte
}

// put changes a number of width bytes, set one byte, flip one bit.
func put(at, width int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte {
		copy(b[at:at+width], binary.BigEndian.AppendUint64(nil, v)[8-width:])
		return b
	}
}

func set(at int, v byte) func([]byte) []byte { return put(at, 1, uint64(v)) }

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1; return b }
}

func goldenBad() map[string]badFile {
	r, s := sample(1).readableSize(), sample(1).sealedSize()
	entry := r - entrySize
	return map[string]badFile{
		"empty":                {"parse", "corrupt", func([]byte) []byte { return nil }},
		"magic":                {"parse", "corrupt", flip(0)},
		"version-newer":        {"parse", "version", put(8, 2, 2)},
		"version-zero":         {"parse", "corrupt", put(8, 2, 0)},
		"kind-zero":            {"parse", "corrupt", set(10, 0)},
		"kind-unknown":         {"parse", "corrupt", set(10, 3)},
		"chunk-size-15":        {"parse", "corrupt", set(11, 15)},
		"chunk-size-22":        {"parse", "corrupt", set(11, 22)},
		"chunk-size-255":       {"parse", "corrupt", set(11, 255)},
		"tenant-length-zero":   {"parse", "corrupt", put(14, 2, 0)},
		"tenant-length-huge":   {"parse", "corrupt", put(14, 2, 0xffff)},
		"tenant-upper-case":    {"parse", "corrupt", set(fixedSize, 'A')},
		"size-zero":            {"parse", "corrupt", put(16, 8, 0)},
		"size-negative":        {"parse", "corrupt", put(16, 8, 1<<63)},
		"size-beyond-indices":  {"parse", "corrupt", put(16, 8, chunk.DefaultSize<<32+1)},
		"sealed-length-zero":   {"parse", "corrupt", put(24, 8, 0)},
		"sealed-length-short":  {"parse", "corrupt", put(24, 8, keySize+tagSize)},
		"sealed-length-huge":   {"parse", "corrupt", put(24, 8, 1<<64-1)},
		"count-less":           {"parse", "corrupt", put(32, 4, 0)},
		"count-huge":           {"parse", "corrupt", put(32, 4, 1<<32-1)},
		"index-behind-end":     {"parse", "corrupt", put(entry, 4, 3)},
		"entry-empty":          {"parse", "corrupt", put(entry+4, 4, 0)},
		"entry-no-grain":       {"parse", "corrupt", put(entry+4, 4, chunk.Grain+1)},
		"entry-too-long":       {"parse", "corrupt", put(entry+4, 4, chunk.DefaultSize+chunk.Grain)},
		"entry-no-name":        {"parse", "corrupt", func(b []byte) []byte { clear(b[entry+8 : r]); return b }},
		"url-empty":            {"parse", "corrupt", func(b []byte) []byte { return join(b[:r+s], []byte{0, 0}, b[r+s+2+len(testURL):]) }},
		"url-length-long":      {"parse", "corrupt", put(r+s, 2, 0xffff)},
		"url-newline":          {"parse", "corrupt", set(r+s+2, '\n')},
		"wrapped-empty":        {"parse", "corrupt", func(b []byte) []byte { return append(b[:r+s+2+len(testURL)], 0, 0) }},
		"wrapped-length-short": {"parse", "corrupt", put(r+s+2+len(testURL), 2, 1)},
		"cut":                  {"parse", "corrupt", func(b []byte) []byte { return b[:len(b)-1] }},
		"trailing-byte":        {"parse", "corrupt", func(b []byte) []byte { return append(b, 0) }},
		"layout-changed":       {"open", "corrupt", flip(13)},
		"commit-changed":       {"open", "corrupt", flip(36)},
		"name-changed":         {"open", "corrupt", flip(entry + 8)},
		"sealed-changed":       {"open", "corrupt", flip(r)},
		"tag-changed":          {"open", "corrupt", flip(r + s - 1)},
		"url-changed":          {"open", "corrupt", flip(r + s + 2 + len(testURL) - 1)},
		"wrapped-changed":      {"open", "refused", flip(r + s + 4 + len(testURL) + nonceSize)},
		"envelope-of-other": {"open", "corrupt", func(b []byte) []byte {
			other := sample(1)
			other.Layout++
			return join(b[:r+s], goldenSeal(other)[r+s:])
		}},
	}
}

func goldenSeal(m *Manifest) []byte {
	data, _, err := seal(context.Background(), m, goldenSalt, envelopeKey{goldenDataKey, testURL, goldenKeeper()})
	if err != nil {
		panic(err)
	}
	return data
}

// describe gives the JSON of a good manifest.
func describe(name string, data []byte, m *Manifest) golden {
	key := goldenKeeper().key
	g := golden{
		About: name, TenantKey: hex.EncodeToString(key[:]), KeyWord: hex.EncodeToString(keeperWord),
		ID: ID(sha256.Sum256(data[:m.readableSize()])).String(), Salt: hex.EncodeToString(goldenSalt[:]),
		DataKey: hex.EncodeToString(goldenDataKey), KeyURL: testURL, Kind: m.Kind, Tenant: m.Tenant,
		Layout: m.Layout, Size: m.Size, ChunkSize: m.ChunkSize, Source: hex.EncodeToString([]byte(m.Source)),
		Config: hex.EncodeToString(m.Config),
	}
	for _, e := range m.Chunks {
		g.Chunks = append(g.Chunks, goldenEntry{e.Index, e.Size, e.Name.String(), hex.EncodeToString(e.Key[:])})
	}
	return g
}

// checkFile holds a file of testdata against want, or writes it.
func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs from what is written now (%v): a new format needs a new version", path, err)
	}
}

func checkGolden(t *testing.T, dir, name string, data []byte, g golden) {
	t.Helper()
	b, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", dir, name)
	checkFile(t, path+".manifest", data)
	checkFile(t, path+".json", append(b, '\n'))
}

func TestGoldenGood(t *testing.T) {
	all := goldenManifests()
	for name, m := range all {
		data := goldenSeal(m)
		g := describe(name, data, m)
		checkGolden(t, "good", name, data, g)
		s := mustParse(t, data)
		got, err := s.Open(t.Context(), goldenKeeper())
		if err != nil || !equal(got, m) || s.ID().String() != g.ID || s.KeyURL() != g.KeyURL {
			t.Errorf("%s: opened to %#v, %v", name, got, err)
		}
	}
	checkNothingElse(t, "good", len(all))
}

func TestGoldenBad(t *testing.T) {
	all := goldenBad()
	key := goldenKeeper().key
	sentinels := map[string]error{"corrupt": ErrCorrupt, "version": ErrVersion, "refused": errRefused}
	for name, bad := range all {
		data := bad.change(goldenSeal(sample(1)))
		checkGolden(t, "bad", name, data, golden{
			About: name, Stage: bad.stage, Error: bad.err, TenantKey: hex.EncodeToString(key[:]), KeyWord: hex.EncodeToString(keeperWord),
		})
		stage := "parse"
		s, err := Parse(data)
		if err == nil {
			stage = "open"
			_, err = s.Open(t.Context(), goldenKeeper())
		}
		if stage != bad.stage || !errors.Is(err, sentinels[bad.err]) {
			t.Errorf("%s: at %s %v, want %s at %s", name, stage, err, bad.err, bad.stage)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than a line: %q", name, err)
		}
	}
	checkNothingElse(t, "bad", len(all))
}

// checkNothingElse finds files that no test reads any more.
func checkNothingElse(t *testing.T, dir string, want int) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join("testdata", dir))
	if err != nil || len(files) != 2*want {
		t.Errorf("testdata/%s: %d files, %v, want %d", dir, len(files), err, 2*want)
	}
}
