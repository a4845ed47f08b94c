// Package chunk seals and opens the pieces of a device, and says what a store
// of them promises.
//
// A chunk is a fixed-size piece of a device (512 KiB by default; its size is a
// property of the manifest). It is cut to its last non-zero grain of 64 KiB,
// and digest, key, ciphertext and name cover exactly the bytes that are left:
//
//	digest = SHA-256(plaintext)
//	key    = HMAC-SHA-256(salt, digest)
//	sealed = AES-256-CTR(key, IV = 0, plaintext)
//	name   = SHA-256(sealed)
//
// Equal plaintexts under one salt give equal names, so chunks deduplicate
// across images and tenants that do not trust each other (convergent
// encryption: Brooker et al., "On-demand Container Loading in AWS Lambda",
// USENIX ATC 2023, §3.1). The fixed IV is safe because a key is used for one
// plaintext only. Trimming is by the grain and not by the byte, since a finer
// end would tell how long the data is.
//
// The package starts no goroutines and keeps no state; everything in it is
// safe for concurrent use.
package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
)

const (
	// DefaultSize is the chunk size in bytes that the paper settled on (§2):
	// small enough to share, large enough to be its own read-ahead.
	DefaultSize = 512 << 10
	// MinSize is the smallest chunk size in bytes: one grain.
	MinSize = Grain
	// MaxSize is the largest chunk size in bytes. Runs of file data start on a
	// multiple of 2 MiB, so a larger chunk would hold pieces of two runs.
	MaxSize = 2 << 20
	// Grain is the unit in bytes to which a chunk's zero tail is cut.
	Grain = 64 << 10
)

var (
	// ErrNotFound says that a store has no chunk of that name.
	ErrNotFound = errors.New("chunk not found")
	// ErrCorrupt says that bytes were found and are not those of the name.
	ErrCorrupt = errors.New("chunk corrupt")
)

// ValidSize reports whether n can be a manifest's chunk size: a power of two
// of bytes between MinSize and MaxSize.
func ValidSize(n int) bool {
	return n >= MinSize && n <= MaxSize && bits.OnesCount(uint(n)) == 1
}

// Name is the SHA-256 of a sealed chunk. Anyone can check it without a key.
type Name [sha256.Size]byte

// String gives the name as 64 lower-case hex digits.
func (n Name) String() string { return hex.EncodeToString(n[:]) }

// ParseName reads what String wrote, and nothing else.
func ParseName(s string) (Name, error) {
	var n Name
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(n) || hex.EncodeToString(b) != s {
		return n, fmt.Errorf("chunk: %q is not a name of 64 lower-case hex digits", s)
	}
	copy(n[:], b)
	return n, nil
}

// Key is the AES-256 key of one chunk. It prints as a placeholder, so that no
// log or error can carry it.
type Key [32]byte

// String hides the key.
func (Key) String() string { return "[key]" }

// GoString hides the key from %#v.
func (Key) GoString() string { return "[key]" }

// Format hides the key from every verb, %x among them.
func (Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[key]")) }

// MarshalText hides the key from encoding/json and log/slog.
func (Key) MarshalText() ([]byte, error) { return []byte("[key]"), nil }

// Sealed is a chunk ready to be stored. Data is empty for an all-zero chunk,
// which has no name and is not stored.
type Sealed struct {
	Name Name
	Key  Key
	Data []byte
}

// Trim cuts plain to its last non-zero grain of 64 KiB; the last grain may be
// shorter where plain ends. It gives an empty slice for all zeros.
func Trim(plain []byte) []byte {
	for len(plain) > 0 {
		start := (len(plain) - 1) / Grain * Grain
		if !zero(plain[start:]) {
			break
		}
		plain = plain[:start]
	}
	return plain
}

// zero reports whether b holds only zero bytes.
func zero(b []byte) bool {
	var block [4096]byte
	for len(b) > len(block) {
		if [4096]byte(b) != block {
			return false
		}
		b = b[len(block):]
	}
	return string(b) == string(block[:len(b)])
}

// Seal trims, encrypts and names one chunk. It works in place: Data is a part
// of plain, whose former bytes are gone. It panics if plain is longer than
// MaxSize.
func Seal(salt Salt, plain []byte) Sealed {
	if len(plain) > MaxSize {
		panic("chunk: Seal of more than MaxSize bytes")
	}
	data := Trim(plain)
	if len(data) == 0 {
		return Sealed{}
	}
	digest := sha256.Sum256(data)
	mac := hmac.New(sha256.New, salt[:])
	mac.Write(digest[:])
	var s Sealed
	mac.Sum(s.Key[:0])
	crypt(data, s.Key)
	s.Name, s.Data = sha256.Sum256(data), data
	return s
}

// Open verifies a sealed chunk against its name and decrypts it in place,
// giving the trimmed plaintext: what follows up to the chunk's size is zeros.
// Bytes that are not the name's give ErrCorrupt and are left as they are.
func Open(sealed []byte, name Name, key Key) ([]byte, error) {
	if err := Check(sealed, name); err != nil {
		return nil, err
	}
	crypt(sealed, key)
	return sealed, nil
}

// Check verifies sealed bytes against their name, without a key.
func Check(sealed []byte, name Name) error {
	if sha256.Sum256(sealed) != name {
		return fmt.Errorf("%w: %d bytes do not hash to %s", ErrCorrupt, len(sealed), name)
	}
	return nil
}

// crypt applies AES-256-CTR with a zero IV, which is its own inverse.
func crypt(b []byte, key Key) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic("chunk: " + err.Error()) // a 32-byte key is always accepted
	}
	var iv [aes.BlockSize]byte
	cipher.NewCTR(block, iv[:]).XORKeyStream(b, b)
}
