package manifest

import (
	"bytes"
	"context"
	"crypto/sha256"
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

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := drawManifest(rt)
		data, id, err := Seal(t.Context(), m, chunk.Salt{1}, testURL, acme())
		if err != nil {
			rt.Fatal(err)
		}
		s, err := Parse(data)
		if err != nil {
			rt.Fatal(err)
		}
		if want := ID(sha256.Sum256(data[:m.readableSize()])); s.ID() != id || id != want || s.KeyURL() != testURL {
			rt.Fatalf("id %s and %s, want %s; key URL %s", s.ID(), id, want, s.KeyURL())
		}
		checkReadable(rt, s.Readable(), *m)
		got, err := s.Open(t.Context(), acme())
		if err != nil {
			rt.Fatal(err)
		}
		if !equal(got, m) {
			rt.Fatalf("opened to %#v, sealed %#v", got, m)
		}
	})
}

// equal takes nil for empty.
func equal(a, b *Manifest) bool {
	x, y := *a, *b
	x.Chunks, y.Chunks = append([]Entry{}, x.Chunks...), append([]Entry{}, y.Chunks...)
	x.Config, y.Config = append([]byte{}, x.Config...), append([]byte{}, y.Config...)
	return reflect.DeepEqual(x, y)
}

// checkReadable wants all of full but what is sealed.
func checkReadable(t rapid.TB, got, full Manifest) {
	full.Source, full.Config = "", nil
	full.Chunks = append([]Entry{}, full.Chunks...)
	for i := range full.Chunks {
		full.Chunks[i].Key = chunk.Key{}
	}
	if !equal(&got, &full) {
		t.Fatalf("readable part says %#v, want %#v", got, full)
	}
}

func drawManifest(t *rapid.T) *Manifest {
	m := &Manifest{
		Kind:      rapid.SampledFrom([]Kind{Image, Layer}).Draw(t, "kind"),
		Tenant:    rapid.StringMatching(`[a-z0-9][a-z0-9._-]{0,63}`).Draw(t, "tenant"),
		Layout:    rapid.Uint16().Draw(t, "layout"),
		ChunkSize: 1 << rapid.IntRange(16, 21).Draw(t, "shift"),
		Source:    rapid.StringN(0, 60, maxSource).Draw(t, "source"),
		Config:    rapid.SliceOf(rapid.Byte()).Draw(t, "config"),
	}
	most := min(int64(1)<<62, int64(m.ChunkSize)<<32)
	m.Size = rapid.OneOf(rapid.Int64Range(1, 1<<24), rapid.Int64Range(1, most)).Draw(t, "size")
	last := (m.Size - 1) >> m.shift()
	next := int64(0)
	for range rapid.IntRange(0, 5).Draw(t, "chunks") {
		if next > last {
			break
		}
		i := rapid.OneOf(rapid.Int64Range(next, min(last, next+2)), rapid.Int64Range(next, last)).Draw(t, "index")
		m.Chunks = append(m.Chunks, drawEntry(t, m, i))
		next = i + 1
	}
	return m
}

func drawEntry(t *rapid.T, m *Manifest, index int64) Entry {
	room := min(int64(m.ChunkSize), m.Size-index<<m.shift())
	sizes := []int64{room} // up to the end, or a full chunk
	for n := int64(chunk.Grain); n < room; n += chunk.Grain {
		sizes = append(sizes, n)
	}
	b := rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "noise")
	return Entry{
		Index: uint32(index), Size: uint32(rapid.SampledFrom(sizes).Draw(t, "bytes")),
		Name: sha256.Sum256(b), Key: sha256.Sum256(append(b, 'k')),
	}
}

// TestSealRefuses breaks one thing in a legal manifest at a time.
func TestSealRefuses(t *testing.T) {
	for about, change := range map[string]func(*Manifest){
		"no kind":             func(m *Manifest) { m.Kind = 0 },
		"unknown kind":        func(m *Manifest) { m.Kind = 3 },
		"no tenant":           func(m *Manifest) { m.Tenant = "" },
		"tenant with a slash": func(m *Manifest) { m.Tenant = "a/b" },
		"tenant too long":     func(m *Manifest) { m.Tenant = strings.Repeat("a", 65) },
		"tenant with newline": func(m *Manifest) { m.Tenant = "a\n" },
		"chunk size":          func(m *Manifest) { m.ChunkSize = 3 << 16 },
		"chunk size zero":     func(m *Manifest) { m.ChunkSize = 0 },
		"negative size":       func(m *Manifest) { m.Size = -1 },
		"image without bytes": func(m *Manifest) { m.Size, m.Chunks = 0, nil },
		"size beyond indices": func(m *Manifest) { m.Size = int64(chunk.DefaultSize)<<32 + 1 },
		"equal indices":       func(m *Manifest) { m.Chunks[1].Index = m.Chunks[0].Index },
		"descending":          func(m *Manifest) { m.Chunks[0], m.Chunks[1] = m.Chunks[1], m.Chunks[0] },
		"behind the end":      func(m *Manifest) { m.Chunks[2].Index = 7 },
		"index wraps":         func(m *Manifest) { m.Chunks[2].Index = 1<<32 - 1 },
		"empty chunk":         func(m *Manifest) { m.Chunks[0].Size = 0 },
		"longer than a chunk": func(m *Manifest) { m.Chunks[0].Size += chunk.Grain },
		"no whole grain":      func(m *Manifest) { m.Chunks[0].Size-- },
		"over the end":        func(m *Manifest) { m.Size = 4*chunk.DefaultSize + 1 },
		"no grain at the end": func(m *Manifest) { m.Size, m.Chunks[2].Size = 4*chunk.DefaultSize+1000, 999 },
		"no name":             func(m *Manifest) { m.Chunks[1].Name = chunk.Name{} },
		"source too long":     func(m *Manifest) { m.Source = strings.Repeat("a", 256) },
		"config too long":     func(m *Manifest) { m.Config = make([]byte, maxImageConfig+1) },
	} {
		m := sample(3)
		change(m)
		if _, _, err := Seal(t.Context(), m, chunk.Salt{}, testURL, acme()); err == nil {
			t.Errorf("%s: sealed", about)
		} else if errors.Is(err, ErrCorrupt) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q: want one line, and not ErrCorrupt: nothing was read", about, err)
		}
	}
	for _, u := range []string{"", "file:///a b", "file:///a\n", "file:///ä", strings.Repeat("a", maxKeyURL+1)} {
		if _, _, err := Seal(t.Context(), sample(1), chunk.Salt{}, u, acme()); err == nil {
			t.Errorf("key URL %.20q: sealed", u)
		}
	}
}

// TestEveryBit flips each bit of a small manifest: Parse, the caller's look at
// the id, or Open must notice.
func TestEveryBit(t *testing.T) {
	m := sample(2)
	data, id := mustSeal(t, m)
	caught := map[string]int{}
	for bit := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[bit/8] ^= 1 << (bit % 8)
		s, err := Parse(bad)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("bit %d: Parse: %v, want ErrCorrupt or ErrVersion", bit, err)
			}
			caught["Parse"]++
			continue
		}
		if s.ID() != id {
			caught["id"]++
		}
		if _, err := s.Open(t.Context(), acme()); !errors.Is(err, ErrCorrupt) && !errors.Is(err, errRefused) {
			t.Fatalf("bit %d (byte %d of %d): Open: %v, want a refusal", bit, bit/8, len(data), err)
		}
		caught["Open"]++
	}
	for _, stage := range []string{"Parse", "id", "Open"} {
		if caught[stage] == 0 {
			t.Errorf("%s caught none of %d flipped bits", stage, len(data)*8)
		}
	}
}

func TestEveryCut(t *testing.T) {
	data, _ := mustSeal(t, sample(2))
	for n := range len(data) {
		if _, err := Parse(data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d of %d bytes: %v, want ErrCorrupt", n, len(data), err)
		}
	}
	if _, err := Parse(append(bytes.Clone(data), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("one byte more: %v, want ErrCorrupt", err)
	}
}

// TestHugeLengths claims sizes that a reader must not believe before it has
// seen as many bytes.
func TestHugeLengths(t *testing.T) {
	data, _ := mustSeal(t, sample(2))
	for _, field := range [][2]int{{14, 16}, {16, 24}, {24, 32}, {32, 36}} {
		bad := bytes.Clone(data)
		for i := field[0]; i < field[1]; i++ {
			bad[i] = 0xff
		}
		allocs := testing.AllocsPerRun(1, func() {
			if _, err := Parse(bad); !errors.Is(err, ErrCorrupt) {
				t.Errorf("bytes %v all ones: %v, want ErrCorrupt", field, err)
			}
		})
		if allocs > 20 {
			t.Errorf("bytes %v all ones: %v allocations", field, allocs)
		}
	}
}

// TestDeterminism: the id depends on content and salt only, the bytes never
// repeat beyond the readable part.
func TestDeterminism(t *testing.T) {
	m := sample(3)
	a, idA := mustSeal(t, m)
	b, idB := mustSeal(t, m)
	r := m.readableSize()
	if idA != idB || !bytes.Equal(a[:r], b[:r]) {
		t.Error("one content has two ids")
	}
	if bytes.Equal(a[r:], b[r:]) || bytes.Equal(a[r:r+m.sealedSize()], b[r:r+m.sealedSize()]) {
		t.Error("two sealings used one data key")
	}
	for about, change := range map[string]func(*Manifest){
		"key": func(m *Manifest) { m.Chunks[1].Key[0] ^= 1 }, "source": func(m *Manifest) { m.Source += "0" },
		"config": func(m *Manifest) { m.Config[0] ^= 1 }, "layout": func(m *Manifest) { m.Layout++ },
		"moved": func(m *Manifest) { m.Source, m.Config = m.Source+"{", m.Config[1:] },
	} {
		changed := sample(3)
		change(changed)
		if _, id := mustSeal(t, changed); id == idA {
			t.Errorf("%s changed and the id did not", about)
		}
	}
	if _, id, _ := Seal(t.Context(), m, chunk.Salt{8}, testURL, acme()); id == idA {
		t.Error("the salt changed and the id did not")
	}
	if _, id, _ := Seal(t.Context(), m, chunk.Salt{9}, "file:///elsewhere", other()); id != idA {
		t.Error("the tenant's key changed the id")
	}
}

// TestSizePromise: at most 96 bytes a chunk, below 3 MiB for 16 GiB.
func TestSizePromise(t *testing.T) {
	const chunks = 16 << 30 / chunk.DefaultSize
	small, _ := mustSeal(t, sample(1))
	data, _ := mustSeal(t, sample(chunks))
	if each := (len(data) - len(small)) / (chunks - 1); each > 96 || len(data) >= 3<<20 {
		t.Errorf("%d bytes, %d a chunk", len(data), each)
	}
	if m, err := mustParse(t, data).Open(t.Context(), acme()); err != nil || len(m.Chunks) != chunks {
		t.Errorf("%v, %v", m, err)
	}
}

func TestKeysAreKeptApart(t *testing.T) {
	data, id := mustSeal(t, sample(1))
	_, err := mustParse(t, data).Open(t.Context(), other())
	if !errors.Is(err, errRefused) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), id.String()) {
		t.Errorf("other tenant's key: %v, want the keeper's own error and the id", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	if _, err := mustParse(t, data).Open(ctx, ctxKeeper{}); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// ctxKeeper does nothing but look at its context.
type ctxKeeper struct{}

func (ctxKeeper) Wrap(ctx context.Context, _ []byte) ([]byte, error)   { return nil, ctx.Err() }
func (ctxKeeper) Unwrap(ctx context.Context, _ []byte) ([]byte, error) { return nil, ctx.Err() }

// TestTransplant puts one manifest's envelope, wrapped by the right key, and
// one's sealed part under another's readable part.
func TestTransplant(t *testing.T) {
	m, n := sample(2), sample(2)
	n.Chunks[0].Name[0] ^= 1
	a, _ := mustSeal(t, m)
	b, _ := mustSeal(t, n)
	r, s := m.readableSize(), m.sealedSize()
	for about, data := range map[string][]byte{
		"envelope":             join(a[:r+s], b[r+s:]),
		"sealed":               join(a[:r], b[r:r+s], a[r+s:]),
		"sealed and envelope":  join(a[:r], b[r:]),
		"readable":             join(b[:r], a[r:]),
		"envelope, same image": join(a[:r+s], second(mustSeal(t, m))[r+s:]),
	} {
		if _, err := mustParse(t, data).Open(t.Context(), acme()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s transplanted: %v, want ErrCorrupt", about, err)
		}
	}
}

func join(parts ...[]byte) []byte         { return bytes.Join(parts, nil) }
func second(data []byte, _ ID) []byte     { return data }
func give(b []byte, err error) keeperFunc { return func([]byte) ([]byte, error) { return b, err } }

func TestWrapperAnswers(t *testing.T) {
	data, _ := mustSeal(t, sample(1))
	for _, n := range []int{0, 32, wrappedSize - 1, wrappedSize, wrappedSize + 1} {
		if _, err := mustParse(t, data).DataKey(t.Context(), give(make([]byte, n), nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("unwrapped to %d wrong bytes: %v, want ErrCorrupt", n, err)
		}
	}
	for about, k := range map[string]keeperFunc{
		"nothing": give(nil, nil), "too much": give(make([]byte, maxWrapped+1), nil), "an error": give(nil, errRefused),
	} {
		if _, _, err := Seal(t.Context(), sample(1), chunk.Salt{}, testURL, k); err == nil {
			t.Errorf("sealed with a keeper that gave %s", about)
		}
	}
}

func TestTwoSteps(t *testing.T) {
	m := sample(2)
	data, _ := mustSeal(t, m)
	key, err := mustParse(t, data).DataKey(t.Context(), acme())
	if err != nil || len(key) != 32 {
		t.Fatalf("data key of %d bytes, %v", len(key), err)
	}
	s := mustParse(t, data)
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := s.OpenWith(make([]byte, n)); err == nil || errors.Is(err, ErrCorrupt) {
			t.Errorf("data key of %d bytes: %v, want an error that is not ErrCorrupt", n, err)
		}
	}
	got, err := s.OpenWith(key)
	if err != nil || !equal(got, m) {
		t.Fatalf("%v, %v", got, err)
	}
	if _, err := s.OpenWith(key); !errors.Is(err, errOpened) {
		t.Errorf("second OpenWith: %v", err)
	}
	if _, err := s.Rewrap(t.Context(), acme(), other(), testURL); !errors.Is(err, errOpened) {
		t.Errorf("Rewrap of what is opened: %v", err)
	}
	checkReadable(t, s.Readable(), *m) // is still there
	wrong := bytes.Clone(key)
	wrong[0] ^= 1
	if m, err := mustParse(t, data).OpenWith(wrong); m != nil || !errors.Is(err, ErrCorrupt) {
		t.Errorf("wrong data key: %v, %v", m, err)
	}
}

func TestRewrap(t *testing.T) {
	m, calls := sample(2), 0
	data, id := mustSeal(t, m)
	from := acme()
	from.calls = &calls
	const url = "awskms:///alias/acme?region=eu-central-1"
	moved, err := mustParse(t, data).Rewrap(t.Context(), from, other(), url)
	if err != nil {
		t.Fatal(err)
	}
	front := m.readableSize() + m.sealedSize()
	if !bytes.Equal(moved[:front], data[:front]) || calls != 1 {
		t.Errorf("rotation changed more than the envelope, or unwrapped %d times", calls)
	}
	s := mustParse(t, moved)
	if s.ID() != id || s.KeyURL() != url {
		t.Errorf("id %s, key URL %s", s.ID(), s.KeyURL())
	}
	if _, err := s.DataKey(t.Context(), acme()); !errors.Is(err, errRefused) {
		t.Errorf("the old key: %v, want a refusal", err)
	}
	if got, err := s.Open(t.Context(), other()); err != nil || !equal(got, m) {
		t.Errorf("the new key: %v, %v", got, err)
	}
	if _, err := mustParse(t, data).Rewrap(t.Context(), other(), acme(), url); !errors.Is(err, errRefused) {
		t.Errorf("rotation without the old key: %v, want a refusal", err)
	}
	if _, err := mustParse(t, data).Rewrap(t.Context(), acme(), other(), ""); err == nil {
		t.Error("rotation to no URL")
	}
}

func TestNewerVersion(t *testing.T) {
	data, _ := mustSeal(t, sample(1))
	data[9] = version + 1
	for _, d := range [][]byte{data, data[:fixedSize]} { // a later format may be cut otherwise
		_, err := Parse(d)
		if !errors.Is(err, ErrVersion) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "update thaw") {
			t.Errorf("%v, want ErrVersion with what to do", err)
		}
	}
	data[9] = 0
	if _, err := Parse(data); !errors.Is(err, ErrCorrupt) {
		t.Errorf("version 0: %v, want ErrCorrupt", err)
	}
}

// TestMemory: sealing a large recipe makes one copy of it, opening none.
func TestMemory(t *testing.T) {
	m := sample(4)
	m.Kind, m.Config = Layer, bytes.Repeat([]byte("recipe"), 4<<20)
	size := int64(len(m.Config))
	var data []byte
	sealing := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			data, _ = mustSeal(b, m)
		}
	})
	s, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Open(t.Context(), acme())
	if err != nil || !equal(got, m) {
		t.Fatalf("%v, %v", got, err)
	}
	if n := sealing.AllocedBytesPerOp(); n > size+size/10 {
		t.Errorf("sealing a config of %d bytes allocates %d", size, n)
	}
	if at := bytes.Index(data, m.Config); at < 0 || &got.Config[0] != &data[at] {
		t.Error("opening copied the config")
	}
}

func TestNothingPrints(t *testing.T) {
	m := sample(2)
	for i := range m.Chunks {
		m.Chunks[i].Key = chunk.Key(bytes.Repeat([]byte{0xA7}, 32))
	}
	data, _ := mustSeal(t, m)
	opened := mustParse(t, data)
	if _, err := opened.Open(t.Context(), acme()); err != nil {
		t.Fatal(err)
	}
	var logged bytes.Buffer
	for i, v := range []any{m, *m, []Manifest{*m}, m.Chunks, opened, *opened} {
		slog.New(slog.NewJSONHandler(&logged, nil)).Info("m", "v", v)
		slog.New(slog.NewTextHandler(&logged, nil)).Info("m", "v", v)
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out := logged.String() + string(b)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o"} {
			out += fmt.Sprintf(verb, v)
		}
		for _, secret := range []string{"a7a7a7a7", "A7A7A7A7", "167 167 167 167", "0xa7, 0xa7, 0xa7", "247 247 247 247", "hunter2", "68756e74", "104 117 110", "aHVudGVy", "p6enp6en"} {
			// Each is too long to come about in what is random.
			if strings.Contains(out, secret) {
				t.Errorf("value %d prints its secrets: %s in %.300s", i, secret, out)
			}
		}
	}
	if s := m.String(); !strings.Contains(s, "acme") || !strings.Contains(s, "2 chunks") {
		t.Errorf("prints as %s", s)
	}
}

func TestParseID(t *testing.T) {
	_, id := mustSeal(t, sample(1))
	if got, err := ParseID(id.String()); err != nil || got != id {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", id.String()[1:], strings.ToUpper(id.String()), id.String() + "0"} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
