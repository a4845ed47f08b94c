package chunk_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"thaw/chunk"
)

func TestTrim(t *testing.T) {
	const grain = chunk.Grain
	for _, c := range []struct {
		about        string
		length, last int // last is the offset of the last byte set, -1 for none
		want         int
	}{
		{"nothing", 0, -1, 0},
		{"one zero", 1, -1, 0},
		{"one byte", 1, 0, 1},
		{"zero grain", grain, -1, 0},
		{"first byte of a grain", grain, 0, grain},
		{"last byte of a grain", grain, grain - 1, grain},
		{"last byte of the first of two", 2 * grain, grain - 1, grain},
		{"first byte of the second", 2 * grain, grain, 2 * grain},
		{"short last grain, zero", grain + 1, 0, grain},
		{"short last grain, set", grain + 1, grain, grain + 1},
		{"shorter than a grain", grain - 1, 0, grain - 1},
		{"default, zero", chunk.DefaultSize, -1, 0},
		{"default, full", chunk.DefaultSize, chunk.DefaultSize - 1, chunk.DefaultSize},
		{"largest", chunk.MaxSize, chunk.MaxSize - grain, chunk.MaxSize},
		{"largest, last grain zero", chunk.MaxSize, chunk.MaxSize - grain - 1, chunk.MaxSize - grain},
		{"one less than a block of zeros", 4095, -1, 0},
		{"one more than a block of zeros", 4097, -1, 0},
	} {
		b := make([]byte, c.length)
		if c.last >= 0 {
			b[c.last] = 1
		}
		if got := len(chunk.Trim(b)); got != c.want {
			t.Errorf("%s: cut to %d bytes, want %d", c.about, got, c.want)
		}
	}
}

func TestSealOfTooMuchPanics(t *testing.T) {
	defer func() {
		if r := recover(); r == nil || !strings.HasPrefix(fmt.Sprint(r), "chunk: ") {
			t.Errorf("recovered %v, want a panic that names the package", r)
		}
	}()
	chunk.Seal(chunk.Salt{}, make([]byte, chunk.MaxSize+1))
}

func TestOpenRefusesOtherBytes(t *testing.T) {
	s := chunk.Seal(chunk.Salt{1}, []byte("some plaintext"))
	for bit := range len(s.Data) * 8 {
		bad := bytes.Clone(s.Data)
		bad[bit/8] ^= 1 << (bit % 8)
		before := bytes.Clone(bad)
		if _, err := chunk.Open(bad, s.Name, s.Key); !errors.Is(err, chunk.ErrCorrupt) {
			t.Fatalf("bit %d flipped: error %v, want ErrCorrupt", bit, err)
		}
		if !bytes.Equal(bad, before) {
			t.Fatalf("bit %d flipped: the refused bytes were changed", bit)
		}
	}
	for _, bad := range [][]byte{nil, s.Data[:len(s.Data)-1], append(bytes.Clone(s.Data), 0)} {
		if err := chunk.Check(bad, s.Name); !errors.Is(err, chunk.ErrCorrupt) || errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("%d bytes: error %v, want ErrCorrupt", len(bad), err)
		}
	}
}

func TestValidSize(t *testing.T) {
	valid := 0
	for n := -1; n <= 4<<20; n++ {
		if chunk.ValidSize(n) {
			valid++
		}
	}
	if valid != 6 { // 64, 128, 256, 512 KiB, 1, 2 MiB
		t.Errorf("%d sizes are valid, want 6", valid)
	}
	for _, n := range []int{chunk.MinSize, chunk.DefaultSize, chunk.MaxSize} {
		if !chunk.ValidSize(n) {
			t.Errorf("%d is not valid", n)
		}
	}
}

func TestParseName(t *testing.T) {
	good := strings.Repeat("0123456789abcdef", 4)
	if n, err := chunk.ParseName(good); err != nil || n.String() != good {
		t.Errorf("got %s, %v", n, err)
	}
	for _, bad := range []string{"", good[1:], good + "0", good + "00", strings.ToUpper(good), "g" + good[1:], " " + good[1:], good[:63] + "\n"} {
		if _, err := chunk.ParseName(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// TestSecretsDoNotPrint tries every way by which a key or a salt could reach a
// log: all verbs, bare, by pointer and inside structs, slices and maps.
func TestSecretsDoNotPrint(t *testing.T) {
	secret := bytes.Repeat([]byte{0xA7}, 32)
	key, salt := chunk.Key(secret), chunk.Salt(secret)
	forms := []string{"a7a7", "a7 a7", "0xa7", "167", "247", "10100111", "p6en", "\xa7"} // hex, decimal, octal, binary, base64, raw
	type nested struct {
		K  chunk.Key
		P  *chunk.Key
		S  chunk.Salt
		L  []chunk.Key
		M  map[string]chunk.Salt
		MK map[chunk.Key]int
		E  chunk.Sealed
	}
	values := []any{
		key, &key, salt, &salt, []chunk.Key{key}, []chunk.Salt{salt}, chunk.Sealed{Key: key}, &chunk.Sealed{Key: key},
		nested{key, &key, salt, []chunk.Key{key}, map[string]chunk.Salt{"a": salt}, map[chunk.Key]int{key: 1}, chunk.Sealed{Key: key}},
	}
	for i, v := range values {
		for _, out := range renderings(t, v) {
			for _, form := range forms {
				if strings.Contains(strings.ToLower(out), form) {
					t.Errorf("value %d prints its secret: %.200q", i, out)
				}
			}
		}
	}
}

// renderings gives v in every form that fmt, encoding/json and log/slog have.
// %w of what is no error is left out: fmt dumps the raw bytes there, and go vet
// refuses it.
func renderings(t *testing.T, v any) []string {
	var out []string
	for _, verb := range "vTtbcdoOqxXUeEfFgGs" {
		for _, flags := range []string{"", "+", "#", " ", "0", "80.70"} {
			out = append(out, fmt.Sprintf("%"+flags+string(verb), v))
		}
	}
	out = append(out, fmt.Sprint(v), fmt.Sprintln(v), fmt.Errorf("x: %v", v).Error())
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out = append(out, string(b))
	var buf bytes.Buffer
	slog.New(slog.NewTextHandler(&buf, nil)).Info("m", "v", v)
	slog.New(slog.NewJSONHandler(&buf, nil)).Info("m", "v", v)
	for line := range strings.Lines(buf.String()) {
		_, line, _ = strings.Cut(line, "msg") // without the time
		out = append(out, line)
	}
	return out
}

// drawPlain gives chunks that are mostly zeros, as devices are.
func drawPlain(t *rapid.T) []byte {
	grains := rapid.IntRange(0, 4).Draw(t, "grains")
	plain := make([]byte, grains*chunk.Grain+rapid.SampledFrom([]int{0, 0, 1, 4096, chunk.Grain - 1}).Draw(t, "rest"))
	if len(plain) > 0 {
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, len(plain)-1), 0, 4).Draw(t, "set") {
			plain[at] = rapid.Byte().Draw(t, "byte")
		}
	}
	return plain
}

func TestSealProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plain, salt := drawPlain(t), chunk.Salt{rapid.Byte().Draw(t, "salt")}
		checkSeal(t, salt, plain)

		s := chunk.Seal(salt, bytes.Clone(plain))
		longer := append(bytes.Clone(plain), make([]byte, chunk.Grain)...)
		if len(plain)%chunk.Grain == 0 && chunk.Seal(salt, longer).Name != s.Name {
			t.Fatal("a zero tail of a whole grain changed the name")
		}
		other := chunk.Seal(chunk.Salt{salt[0], 1}, bytes.Clone(plain))
		if len(s.Data) > 0 && other.Key == s.Key {
			t.Fatal("two salts gave one key")
		}
		if len(s.Data) >= 16 && other.Name == s.Name { // one sealed byte is the same under every 256th key
			t.Fatal("two salts gave one name")
		}
	})
}

// checkSeal checks everything that must hold for any plaintext.
func checkSeal(t rapid.TB, salt chunk.Salt, plain []byte) {
	trimmed := chunk.Trim(plain)
	if n := len(trimmed); n%chunk.Grain != 0 && n != len(plain) {
		t.Fatalf("cut to %d of %d bytes: not at a grain", n, len(plain))
	}
	if !bytes.Equal(trimmed, plain[:len(trimmed)]) || len(bytes.Trim(plain[len(trimmed):], "\x00")) > 0 {
		t.Fatal("trimming lost a byte that is not zero")
	}
	if n := len(trimmed); n > 0 && len(bytes.Trim(trimmed[(n-1)/chunk.Grain*chunk.Grain:], "\x00")) == 0 {
		t.Fatal("the last grain that is left is zero")
	}
	s, again := chunk.Seal(salt, bytes.Clone(plain)), chunk.Seal(salt, bytes.Clone(trimmed))
	if s.Name != again.Name || s.Key != again.Key || !bytes.Equal(s.Data, again.Data) {
		t.Fatal("one plaintext sealed to two chunks")
	}
	if len(trimmed) == 0 {
		if len(s.Data) > 0 || s.Name != (chunk.Name{}) || s.Key != (chunk.Key{}) {
			t.Fatal("an all-zero chunk has a name")
		}
		return
	}
	if len(trimmed) >= 16 && bytes.Equal(s.Data, trimmed) {
		t.Fatal("sealed bytes are the plaintext")
	}
	opened, err := chunk.Open(s.Data, s.Name, s.Key)
	if err != nil || !bytes.Equal(opened, trimmed) {
		t.Fatalf("did not open to what was sealed: %v", err)
	}
}

func TestNameProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := chunk.Name(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "name"))
		if got, err := chunk.ParseName(n.String()); err != nil || got != n {
			t.Fatalf("%s parsed to %s, %v", n, got, err)
		}
		s := rapid.StringMatching("[0-9a-fA-Fg]{62,66}").Draw(t, "text")
		if got, err := chunk.ParseName(s); err == nil && got.String() != s {
			t.Fatalf("%q was taken as %s", s, got)
		}
	})
}

// TestSaltSeparates draws fields from few short strings, so that some pairs
// are equal when joined and differ only in where one field ends.
func TestSaltSeparates(t *testing.T) {
	word := rapid.SampledFrom([]string{"", "a", "aa", "ab", "b"})
	params := rapid.Custom(func(t *rapid.T) chunk.SaltParams {
		return chunk.SaltParams{
			Secret: []byte(word.Draw(t, "secret")), Root: word.Draw(t, "root"),
			Epoch: rapid.Uint32Range(0, 2).Draw(t, "epoch"), Placement: word.Draw(t, "placement"),
			Class: word.Draw(t, "class"), Layout: rapid.Uint16Range(0, 2).Draw(t, "layout"), Tenant: word.Draw(t, "tenant"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := params.Draw(t, "a"), params.Draw(t, "b")
		equal, want := chunk.NewSalt(a) == chunk.NewSalt(b), reflect.DeepEqual(a, b)
		if equal != want {
			t.Fatalf("salts equal: %v, fields equal: %v", equal, want)
		}
	})
}

func FuzzSeal(f *testing.F) {
	for _, c := range readGolden(f).Chunks {
		if c.Length <= chunk.DefaultSize {
			f.Add(c.plain(f), byte(1))
		}
	}
	f.Fuzz(func(t *testing.T, plain []byte, salt byte) {
		if len(plain) <= chunk.MaxSize {
			checkSeal(t, chunk.Salt{salt}, plain)
		}
	})
}
