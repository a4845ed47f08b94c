package chunk_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"thaw/chunk"
)

// TestStream reads parts of a sealed chunk at any offset.
func TestStream(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	plain := make([]byte, 3*chunk.Grain)
	for i := range plain {
		plain[i] = byte(rng.Uint32() | 1)
	}
	s := chunk.Seal(chunk.Salt{7}, bytes.Clone(plain))
	stream := chunk.NewStream(s.Key)
	for range 1000 {
		from := rng.IntN(len(plain))
		n := min(rng.IntN(5000), len(plain)-from)
		got := bytes.Clone(s.Data[from : from+n])
		stream.XORKeyStreamAt(got, int64(from))
		if !bytes.Equal(got, plain[from:from+n]) {
			t.Fatalf("%d bytes from %d differ from the plaintext", n, from)
		}
	}
}
