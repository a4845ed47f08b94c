package zone

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/chunk"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// goldenStripes are pinned for ever: any version reads and writes these bytes.
func goldenStripes() map[string]Stripe {
	var name chunk.Name
	for i := range name {
		name[i] = byte(i * 7)
	}
	return map[string]Stripe{
		"4-5-1":  {Name: name, K: 4, N: 5, Index: 1, ChunkSize: 150, Payload: bytes.Repeat([]byte{1, 2}, 19)},
		"1-1-0":  {Name: name, K: 1, N: 1, Index: 0, ChunkSize: 3, Payload: []byte("abc")},
		"8-12-9": {Name: name, K: 8, N: 12, Index: 9, ChunkSize: 9, Payload: []byte{0, 255}},
	}
}

// check compares got with a golden file, or writes it.
func checkGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", path, got, want)
	}
}

func TestStripeGolden(t *testing.T) {
	for id, s := range goldenStripes() {
		encoded := s.Append(nil)
		checkGolden(t, filepath.Join("testdata", id+".stripe"), encoded)
		got, err := ParseStripe(encoded)
		if err != nil {
			t.Fatal(err)
		}
		if got.ID() != s.ID() || got.ChunkSize != s.ChunkSize || !bytes.Equal(got.Payload, s.Payload) {
			t.Errorf("%s: reads as %+v, want %+v", id, got, s)
		}
		if want := `"` + hex.EncodeToString(encoded[8:12]) + `"`; ETag(encoded) != want {
			t.Errorf("ETag %s, want %s", ETag(encoded), want)
		}
		if want := "/stripes/" + s.Name.String() + "/" + id; s.ID().Path() != want {
			t.Errorf("path %s, want %s", s.ID().Path(), want)
		}
	}
}

// TestStripeEveryBit flips each bit of a stripe and cuts it everywhere: none of
// it is a stripe.
func TestStripeEveryBit(t *testing.T) {
	s := goldenStripes()["4-5-1"]
	encoded := s.Append([]byte("front"))[5:]
	for bit := range len(encoded) * 8 {
		bad := bytes.Clone(encoded)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := ParseStripe(bad); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("bit %d flipped: %v, want ErrCorrupt", bit, err)
		}
	}
	for n := range len(encoded) {
		if _, err := ParseStripe(encoded[:n]); !errors.Is(err, chunk.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := ParseStripe(append(encoded, 0)); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("one byte more: %v, want ErrCorrupt", err)
	}
}

func TestAppendRefuses(t *testing.T) {
	for _, change := range []func(*Stripe){
		func(s *Stripe) { s.K = 0 }, func(s *Stripe) { s.K = 6 }, func(s *Stripe) { s.N = 33 }, func(s *Stripe) { s.Index = 5 },
		func(s *Stripe) { s.ChunkSize = 0 }, func(s *Stripe) { s.ChunkSize = chunk.MaxSize + 1 }, func(s *Stripe) { s.Payload = s.Payload[1:] },
	} {
		s := goldenStripes()["4-5-1"]
		change(&s)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%+v is written", s)
				}
			}()
			s.Append(nil)
		}()
	}
}

func TestParsePath(t *testing.T) {
	name := goldenStripes()["1-1-0"].Name.String()
	good := StripesPath + name + "/4-5-4"
	id, err := ParsePath(good)
	if err != nil || id.Path() != good {
		t.Fatalf("%s, %v; want %s", id.Path(), err, good)
	}
	for _, bad := range []string{
		"", "/stripes/", "/stripes/have", name + "/4-5-4", good + "/", good + "-1", good[:len(good)-2], good[:len(good)-5] + "04-5-4",
		good[:len(good)-5] + "+4-5-4", good[:len(good)-5] + "4-5-5", good[:len(good)-5] + "0-5-4", good[:len(good)-5] + "4-33-4",
		good[:len(good)-5] + "4-261-4", StripesPath + strings.ToUpper(name) + "/4-5-4", StripesPath + name[1:] + "/4-5-4",
	} {
		if id, err := ParsePath(bad); err == nil {
			t.Errorf("%q is taken for %s", bad, id)
		}
	}
}

func TestParseID(t *testing.T) {
	id := StripeID{goldenStripes()["1-1-0"].Name, 4, 5, 2}
	b := id.Append(nil)
	if got, err := ParseID(b); err != nil || got != id || len(b) != IDSize {
		t.Fatalf("%v, %v from %d bytes; want %v", got, err, len(b), id)
	}
	b[34] = 5
	for _, bad := range [][]byte{b, b[:34], append(b, 0), nil} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%x is taken", bad)
		}
	}
}

func TestLease(t *testing.T) {
	for s, want := range map[string]Lease{
		"granted 1000": {true, time.Second}, "held 0": {false, 0}, "held 999999": {false, MaxWait},
	} {
		if got, err := ParseLease(s); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
		if want.For < MaxWait && want.String() != s {
			t.Errorf("%v is written %q", want, want.String())
		}
	}
	for _, bad := range []string{"", "granted", "granted ", "granted -1", "granted 1s", "Held 1", "held 1 2", "held 99999999999"} {
		if got, err := ParseLease(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, got)
		}
	}
}

// seeds gives the golden stripes, and fails when there are none.
func seeds(f *testing.F) [][]byte {
	paths, err := filepath.Glob("testdata/*.stripe")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no golden stripes to start from: %v", err)
	}
	var all [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// FuzzParseStripe holds that whatever parses is the encoding of what it says.
func FuzzParseStripe(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseStripe(data)
		if err != nil {
			if !errors.Is(err, chunk.ErrCorrupt) {
				t.Fatalf("%v: want ErrCorrupt", err)
			}
			return
		}
		if again := s.Append(nil); !bytes.Equal(again, data) {
			t.Fatal("decode and encode do not give the same bytes")
		}
	})
}

// FuzzParsePath holds that there is one way to write a path.
func FuzzParsePath(f *testing.F) {
	for _, s := range goldenStripes() {
		f.Add(s.ID().Path())
	}
	f.Add(fmt.Sprintf("/stripes/%064d/4-5-1", 7))
	f.Fuzz(func(t *testing.T, path string) {
		if id, err := ParsePath(path); err == nil && id.Path() != path {
			t.Fatalf("%q and %q are one stripe's", path, id.Path())
		}
	})
}
