package chunk

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
)

// Stream decrypts any part of one sealed chunk, so that a read of a page need
// not decrypt the chunk. It verifies nothing: the bytes must come from a chunk
// whose name has been checked. It holds the key; it is safe for concurrent use.
type Stream struct {
	block cipher.Block
}

// NewStream expands the chunk's key once, for all parts.
func NewStream(k Key) Stream {
	block, err := aes.NewCipher(k[:])
	if err != nil {
		panic("chunk: " + err.Error()) // a 32-byte key is always accepted
	}
	return Stream{block}
}

// XORKeyStreamAt decrypts b in place, whose first byte lies at offset off of
// the sealed chunk.
func (s Stream) XORKeyStreamAt(b []byte, off int64) {
	var iv [aes.BlockSize]byte
	binary.BigEndian.PutUint64(iv[8:], uint64(off)/aes.BlockSize) // the counter starts at zero
	ctr := cipher.NewCTR(s.block, iv[:])
	if skip := off % aes.BlockSize; skip > 0 {
		var head [aes.BlockSize]byte
		ctr.XORKeyStream(head[:skip], head[:skip])
	}
	ctr.XORKeyStream(b, b)
}

// Verified is a sealed chunk whose hash has been checked against its name, for
// reading at any offset. Its bytes are still encrypted. It is safe for
// concurrent reads; Close releases it, after the last of them.
type Verified interface {
	io.ReaderAt
	io.Closer
}

// Finder finds a chunk where it is nearest.
//
// Find has checked the chunk's hash when it returns. size is its sealed length
// in bytes as the manifest has it; a chunk of another length is ErrCorrupt. It
// waits until ctx ends; errors name the tier and the cause. The caller closes
// what it got. Implementations are safe for concurrent use.
type Finder interface {
	Find(ctx context.Context, name Name, size int) (Verified, error)
}
