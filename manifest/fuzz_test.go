package manifest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// corpus gives the golden files, and fails when there are none.
func corpus(f *testing.F) [][]byte {
	f.Helper()
	paths, err := filepath.Glob("testdata/*/*.manifest")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no golden manifests to start from: %v", err)
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

// FuzzParse holds that whatever parses is the encoding of what it says, and
// that nothing but the golden manifests opens.
func FuzzParse(f *testing.F) {
	opens := map[ID]bool{}
	for _, b := range corpus(f) {
		f.Add(b)
		if s, err := Parse(b); err == nil {
			if _, err := s.DataKey(f.Context(), goldenKeeper()); err == nil {
				opens[s.ID()] = true
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse(bytes.Clone(data))
		if err != nil {
			if s != nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("%v, %v: want ErrCorrupt or ErrVersion", s, err)
			}
			return
		}
		if !bytes.Equal(encode(t, s), data) {
			t.Fatal("decode and encode do not give the same bytes")
		}
		if _, err := s.Open(t.Context(), goldenKeeper()); (err == nil) && !opens[s.ID()] {
			t.Fatal("a forged manifest opened")
		}
	})
}

// encode writes s again from what its methods tell.
func encode(t *testing.T, s *Sealed) []byte {
	m := s.Readable()
	if err := m.check(); err != nil {
		t.Fatal(err)
	}
	readable := m.appendReadable(nil, [32]byte(s.readable[36:]))
	// sealedSize of what is readable lacks source and config
	copy(readable[24:32], s.readable[24:32])
	if len(s.sealed) < m.sealedSize() {
		t.Fatalf("sealed part of %d bytes for %d chunks", len(s.sealed), len(m.Chunks))
	}
	same := keeperFunc(func([]byte) ([]byte, error) { return s.wrapped, nil })
	envelope, err := newEnvelope(t.Context(), s.ID(), envelopeKey{goldenDataKey, s.KeyURL(), same})
	if err != nil {
		t.Fatal(err)
	}
	return join(readable, s.sealed, envelope)
}

// FuzzSecret holds the same for the sealed part, which only who has the data
// key can write, for every number of chunks.
func FuzzSecret(f *testing.F) {
	all := goldenManifests()
	if len(all) == 0 {
		f.Fatal("no golden manifests to start from")
	}
	for _, m := range all {
		var b appender
		m.writeSecret(&b)
		f.Add(b.b, len(m.Chunks), m.Kind == Image)
	}
	f.Fuzz(func(t *testing.T, secret []byte, chunks int, image bool) {
		if chunks < 0 || chunks > 100 {
			return
		}
		m := Manifest{Kind: Layer, Chunks: make([]Entry, chunks)}
		if image {
			m.Kind = Image
		}
		if err := m.readSecret(bytes.Clone(secret)); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v: want ErrCorrupt", err)
			}
			return
		}
		var b appender
		if m.writeSecret(&b); !bytes.Equal(b.b, secret) {
			t.Fatal("decode and encode do not give the same bytes")
		}
	})
}
