package chunk_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"thaw/chunk"
)

var update = flag.Bool("update", false, "rewrite the expected values in testdata")

const goldenFile = "testdata/golden.json"

// golden is testdata/golden.json: inputs with the outputs they must give for
// ever, in a form that a reader in any language can check. All bytes are hex.
type golden struct {
	Chunks []goldenChunk `json:"chunks"`
	Salts  []goldenSalt  `json:"salts"`
}

// goldenChunk is a plaintext of Length bytes, zero but for Parts, sealed under
// the salt called Salt.
type goldenChunk struct {
	About  string `json:"about"`
	Salt   string `json:"salt"`
	Length int    `json:"length"`
	Parts  []part `json:"parts"`

	SealedLength int    `json:"sealed_length"`
	SealedFront  string `json:"sealed_front"` // at most 32 bytes
	Key          string `json:"key"`
	Name         string `json:"name"` // pins all of the sealed bytes
}

// part is hex repeated count times from offset at on.
type part struct {
	At    int    `json:"at"`
	Hex   string `json:"hex"`
	Count int    `json:"count"`
}

type goldenSalt struct {
	About     string `json:"about"`
	Secret    string `json:"secret"`
	Root      string `json:"root"`
	Epoch     uint32 `json:"epoch"`
	Placement string `json:"placement"`
	Class     string `json:"class"`
	Layout    uint16 `json:"layout"`
	Tenant    string `json:"tenant"`

	Salt string `json:"salt"`
}

func (g goldenChunk) plain(t testing.TB) []byte {
	b := make([]byte, g.Length)
	for _, p := range g.Parts {
		copy(b[p.At:], bytes.Repeat(unhex(t, p.Hex), p.Count))
	}
	return b
}

func (g goldenSalt) compute(t testing.TB) chunk.Salt {
	return chunk.NewSalt(chunk.SaltParams{
		Secret: unhex(t, g.Secret), Root: g.Root, Epoch: g.Epoch, Placement: g.Placement,
		Class: g.Class, Layout: g.Layout, Tenant: g.Tenant,
	})
}

func unhex(t testing.TB, s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readGolden fails when there is nothing to check.
func readGolden(t testing.TB) golden {
	t.Helper()
	b, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&g); err != nil {
		t.Fatal(err)
	}
	if len(g.Chunks) == 0 || len(g.Salts) == 0 {
		t.Fatalf("%s holds no vectors", goldenFile)
	}
	return g
}

func TestGolden(t *testing.T) {
	g := readGolden(t)
	salts := map[string]chunk.Salt{}
	for i, want := range g.Salts {
		salt := want.compute(t)
		salts[want.About] = salt
		g.Salts[i].Salt = hex.EncodeToString(salt[:])
		if !*update && g.Salts[i] != want {
			t.Errorf("salt %q: got %s, want %s", want.About, g.Salts[i].Salt, want.Salt)
		}
	}
	for i := range g.Chunks {
		want, got := g.Chunks[i], &g.Chunks[i]
		salt, ok := salts[want.Salt]
		if !ok {
			t.Fatalf("chunk %q names no salt of the file: %q", want.About, want.Salt)
		}
		s := chunk.Seal(salt, want.plain(t))
		got.SealedLength, got.SealedFront = len(s.Data), hex.EncodeToString(s.Data[:min(32, len(s.Data))])
		got.Key, got.Name = hex.EncodeToString(s.Key[:]), s.Name.String()
		if !*update && (got.SealedLength != want.SealedLength || got.SealedFront != want.SealedFront ||
			got.Key != want.Key || got.Name != want.Name) {
			t.Errorf("chunk %q:\n got %+v\nwant %+v", want.About, *got, want)
		}
	}
	if *update {
		writeGolden(t, g)
	}
}

func writeGolden(t *testing.T, g golden) {
	b, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenFile, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestGoldenOpens goes the other way, from the file's own key and name.
func TestGoldenOpens(t *testing.T) {
	g := readGolden(t)
	salts := map[string]chunk.Salt{}
	for _, s := range g.Salts {
		salts[s.About] = s.compute(t)
	}
	for _, c := range g.Chunks {
		if c.SealedLength == 0 {
			continue
		}
		name, err := chunk.ParseName(c.Name)
		if err != nil {
			t.Fatal(err)
		}
		sealed := chunk.Seal(salts[c.Salt], c.plain(t))
		plain, err := chunk.Open(sealed.Data, name, chunk.Key(unhex(t, c.Key)))
		if err != nil {
			t.Errorf("chunk %q: %v", c.About, err)
		}
		if !bytes.Equal(plain, c.plain(t)[:c.SealedLength]) {
			t.Errorf("chunk %q: opened to other bytes", c.About)
		}
	}
}
