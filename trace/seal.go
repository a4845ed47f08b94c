package trace

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"thaw/manifest"
)

const (
	magic     = "thaw tr\n"
	version   = 1
	headSize  = 10 // bytes in front of the nonce
	nonceSize = 12
	tagSize   = 16
	tableHead = 8 // bytes of a table in front of its chunks
	entrySize = 5
	minSize   = headSize + nonceSize + tableHead + entrySize + tagSize
)

// MaxSize bounds a sealed trace in bytes.
const MaxSize = minSize + (MaxChunks-1)*entrySize

// Key opens and seals the traces of one image. It prints as nothing.
type Key struct {
	key   [sha256.Size]byte
	image manifest.ID
}

// NewKey derives the key from the data key of the image's manifest. Nobody gets
// the one from the other.
func NewKey(dataKey []byte, image manifest.ID) Key {
	mac := hmac.New(sha256.New, dataKey)
	mac.Write([]byte("thaw trace key v1\x00"))
	mac.Write(image[:])
	return Key{[sha256.Size]byte(mac.Sum(nil)), image}
}

// Format hides the key from every verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "trace key") }

// Seal encodes and encrypts a trace of a run or more; it panics for one of none.
// Equal traces give other bytes each time.
func (k Key) Seal(t *Trace) []byte {
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce) // never fails
	return k.seal(t.encode(), nonce)
}

func (k Key) seal(table, nonce []byte) []byte {
	b := make([]byte, 0, headSize+nonceSize+len(table)+tagSize)
	b = binary.BigEndian.AppendUint16(append(b, magic...), version)
	bound := append(append([]byte{}, b...), k.image[:]...)
	return k.gcm().Seal(append(b, nonce...), nonce, table, bound)
}

// Open gives the trace that Seal took: ErrCorrupt for what was changed, cut, or
// sealed for another image or under another key, ErrVersion for a later format.
func (k Key) Open(sealed []byte) (*Trace, error) {
	if err := Check(sealed); err != nil {
		return nil, err
	}
	bound := append(append([]byte{}, sealed[:headSize]...), k.image[:]...)
	rest := sealed[headSize:]
	table, err := k.gcm().Open(nil, rest[:nonceSize], rest[nonceSize:], bound)
	if err != nil {
		return nil, fmt.Errorf("%w: it was changed, or sealed for another manifest", ErrCorrupt)
	}
	return decode(table)
}

// Check tells without a key whether bytes can be a sealed trace.
func Check(sealed []byte) error {
	if len(sealed) < headSize || string(sealed[:len(magic)]) != magic {
		return fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(sealed[len(magic):]); v != version {
		if v > version {
			return fmt.Errorf("%w: %d", ErrVersion, v)
		}
		return fmt.Errorf("%w: version %d", ErrCorrupt, v)
	}
	if n := len(sealed); n < minSize || n > MaxSize || (n-minSize)%entrySize != 0 {
		return fmt.Errorf("%w: it has %d bytes", ErrCorrupt, n)
	}
	return nil
}

func (k Key) gcm() cipher.AEAD {
	block, err := aes.NewCipher(k.key[:])
	if err != nil {
		panic("trace: " + err.Error()) // 32 bytes are a key
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("trace: " + err.Error()) // AES has GCM's block size
	}
	return gcm
}

// encode gives the table.
func (t *Trace) encode() []byte {
	if t.runs == 0 {
		panic("trace: sealing a trace of no run")
	}
	b := make([]byte, 0, tableHead+entrySize*len(t.chunks))
	b = binary.BigEndian.AppendUint32(append(b, byte(t.runs), 0, 0, 0), uint32(len(t.chunks)))
	for _, c := range t.chunks {
		b = append(binary.BigEndian.AppendUint32(b, c.Index), c.Runs)
	}
	return b
}

// decode reads a table, in no other form than encode writes.
func decode(b []byte) (*Trace, error) {
	if len(b) < tableHead || (len(b)-tableHead)%entrySize != 0 {
		return nil, fmt.Errorf("%w: a table of %d bytes", ErrCorrupt, len(b))
	}
	t := &Trace{runs: int(b[0])}
	n := binary.BigEndian.Uint32(b[4:])
	if t.runs == 0 || t.runs > maxRuns || b[1]|b[2]|b[3] != 0 || n == 0 || n > MaxChunks || int(n) != (len(b)-tableHead)/entrySize {
		return nil, fmt.Errorf("%w: %d runs and %d chunks in %d bytes", ErrCorrupt, t.runs, n, len(b))
	}
	seen := make(map[uint32]bool, n)
	for b = b[tableHead:]; len(b) > 0; b = b[entrySize:] {
		c := Chunk{binary.BigEndian.Uint32(b), b[4]}
		if c.Runs == 0 || int(c.Runs)>>t.runs != 0 || seen[c.Index] {
			return nil, fmt.Errorf("%w: chunk %d, runs %#b of %d", ErrCorrupt, c.Index, c.Runs, t.runs)
		}
		seen[c.Index] = true
		t.chunks = append(t.chunks, c)
	}
	return t, nil
}
