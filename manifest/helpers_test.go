package manifest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"thaw/chunk"
)

// errRefused stands for the keeper's refusal.
var errRefused = errors.New("refused")

const testURL = "file:///keys/acme"

// testKeeper wraps as the file driver of package keys does: 12 bytes of nonce,
// then AES-256-GCM with a word as additional data.
type testKeeper struct {
	key   [32]byte
	nonce []byte // random if nil
	calls *int   // counts Unwrap, if not nil
}

var keeperWord = []byte("thaw key file v1\x00")

func (k testKeeper) Wrap(_ context.Context, plain []byte) ([]byte, error) {
	nonce := bytes.Clone(k.nonce)
	if nonce == nil {
		nonce = make([]byte, nonceSize)
		_, _ = rand.Read(nonce)
	}
	return newGCM(k.key[:]).Seal(nonce, nonce, plain, keeperWord), nil
}

func (k testKeeper) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	if k.calls != nil {
		*k.calls++
	}
	if len(wrapped) < nonceSize {
		return nil, errRefused
	}
	plain, err := newGCM(k.key[:]).Open(nil, wrapped[:nonceSize], wrapped[nonceSize:], keeperWord)
	if err != nil {
		return nil, errRefused
	}
	return plain, nil
}

// keeperFunc is a Wrapper made of one function for both ways.
type keeperFunc func(b []byte) ([]byte, error)

func (f keeperFunc) Wrap(_ context.Context, b []byte) ([]byte, error)   { return f(b) }
func (f keeperFunc) Unwrap(_ context.Context, b []byte) ([]byte, error) { return f(b) }

func acme() testKeeper  { return testKeeper{key: [32]byte{1, 2, 3}} }
func other() testKeeper { return testKeeper{key: [32]byte{4, 5, 6}} }

// sample gives a legal manifest of n full chunks with gaps between them.
func sample(n int) *Manifest {
	m := &Manifest{
		Kind: Image, Tenant: "acme", Layout: 1, Size: int64(2*n+1) * chunk.DefaultSize, ChunkSize: chunk.DefaultSize,
		Source: "sha256:0123456789abcdef", Config: []byte(`{"config":{"Env":["TOKEN=hunter2"]}}`),
	}
	for i := range n {
		b := binary.BigEndian.AppendUint32(nil, uint32(i))
		m.Chunks = append(m.Chunks, Entry{
			Index: uint32(2 * i), Size: chunk.DefaultSize,
			Name: sha256.Sum256(b), Key: sha256.Sum256(append(b, 'k')),
		})
	}
	return m
}

func mustSeal(t testing.TB, m *Manifest) ([]byte, ID) {
	t.Helper()
	data, id, err := Seal(t.Context(), m, chunk.Salt{9}, testURL, acme())
	if err != nil {
		t.Fatal(err)
	}
	return data, id
}

func mustParse(t testing.TB, data []byte) *Sealed {
	t.Helper()
	s, err := Parse(bytes.Clone(data))
	if err != nil {
		t.Fatal(err)
	}
	return s
}
