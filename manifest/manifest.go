// Package manifest writes and reads the table that turns chunks back into a
// device, or into the data of one layer (a recipe; Kind tells which).
//
// A manifest is three parts, one behind the other, with nothing between them
// and nothing after. Integers are big-endian; offsets and lengths are bytes.
//
// Readable part, for anyone who may read the store:
//
//	offset  length
//	     0       8  magic, "thaw mf\n"
//	     8       2  version of this format: 1
//	    10       1  kind: 1 image, 2 layer
//	    11       1  binary logarithm of the chunk size: 16 … 21
//	    12       2  layout version of the device
//	    14       2  T, length of the tenant: 1 … 64
//	    16       8  size of the device, or of the layer's data
//	    24       8  S, length of the sealed part
//	    32       4  N, number of chunks
//	    36      32  commit = HMAC-SHA-256(salt, "thaw commit v1\x00" ‖ secret)
//	    68       T  tenant
//	  68+T     40N  chunks, ascending by index: index 4, length of the sealed
//	                chunk 4, name 32
//
// Sealed part, for the tenant: AES-256-GCM of the secret under the data key,
// nonce zero, with the readable part as additional data, the 16-byte tag at
// the end. A data key is random and seals once, so its nonce never repeats.
// The secret is
//
//	    0     32N  keys, in the order of the chunks
//	  32N       1  L, length of the source
//	32N+1       L  source: a digest
//	    …       …  config, up to the end
//
// Envelope, which a rotation of the tenant's key rewrites alone:
//
//	  0       2  U, length of the key's URL: 1 … 4096
//	  2       U  key's URL: says whose key wraps; printable ASCII
//	2+U       2  W, length of the wrapped value: at least 1
//	4+U       W  wrap(data key 32 ‖ id 32 ‖ SHA-256(key's URL) 32)
//
// The id is SHA-256(readable part). It depends on what was sealed and the salt
// only, since commit binds it to the secret, while the data key is new at each
// sealing. The hash in commit has a word in front, so that no commit can be a
// chunk's key, which is an HMAC under the same salt. The id inside the wrapped
// value keeps an envelope from serving another manifest.
//
// That is 72 bytes a chunk: 2.4 MB for 16 GiB in full chunks of 512 KiB.
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"thaw/chunk"
)

var (
	// ErrCorrupt says that the bytes are not a manifest as it was sealed. A key
	// that does not open it is the Wrapper's own error, never this one.
	ErrCorrupt = errors.New("manifest corrupt")
	// ErrVersion says that a newer version of this format was met.
	ErrVersion = errors.New("manifest is of a newer version")
)

const (
	// maxSource holds any digest in use (sha512: 135 bytes) and has its length
	// in one byte.
	maxSource = 255
	// maxImageConfig is the bound of an image's config where it is pulled.
	maxImageConfig = 4 << 20
	// maxLayerConfig is a recipe's entry table: some 100 bytes for each of ten
	// million files.
	maxLayerConfig = 1 << 30
	// maxKeyURL holds the longest vault path with room to spare.
	maxKeyURL = 4096
	// maxWrapped is what the length field holds; key services wrap 96 bytes in
	// less than 1 KiB.
	maxWrapped = 1<<16 - 1
)

const (
	lower     = "abcdefghijklmnopqrstuvwxyz0123456789"
	maxTenant = 64 // bytes
)

// isTenant allows what can be a path component of the origin.
func isTenant(s string) bool {
	return s != "" && len(s) <= maxTenant && strings.Contains(lower, s[:1]) && strings.Trim(s, lower+"._-") == ""
}

// Kind says what a manifest describes.
type Kind uint8

const (
	// Image is a device: Source is the digest of the image's config, Config the
	// config's JSON of at most 4 MiB.
	Image Kind = iota + 1
	// Layer is the data of one flattened layer: Source is its diff id, Config
	// the recipe's entry table of at most 1 GiB.
	Layer
)

// Manifest is all that a manifest says. It prints as one line without keys,
// source and config: environment variables and labels hold secrets.
type Manifest struct {
	Kind      Kind
	Tenant    string
	Layout    uint16  // version of the device layout, also part of the salt
	Size      int64   // bytes of the device, or of the layer's data
	ChunkSize int     // bytes of device a chunk stands for
	Chunks    []Entry // ascending by Index; all-zero chunks are not listed
	Source    string  // sealed; at most 255 bytes
	Config    []byte  // sealed
}

// Entry is one chunk that is not all zeros. It covers the device from
// Index × ChunkSize on for Size bytes, a multiple of 64 KiB or up to the
// device's end; zeros follow up to the next chunk.
type Entry struct {
	Index uint32
	Size  uint32 // bytes, sealed or opened
	Name  chunk.Name
	Key   chunk.Key
}

// ID is the SHA-256 of a manifest's readable part.
type ID [sha256.Size]byte

// String gives the id as 64 lower-case hex digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID reads what String wrote, and nothing else.
func ParseID(s string) (ID, error) {
	n, err := chunk.ParseName(s) // the same form
	if err != nil {
		return ID{}, fmt.Errorf("manifest: %q is not an id of 64 lower-case hex digits", s)
	}
	return ID(n), nil
}

// String gives a line without secrets.
func (m Manifest) String() string {
	return fmt.Sprintf("manifest{tenant %s, %d bytes, %d chunks}", m.Tenant, m.Size, len(m.Chunks))
}

// Format gives that line for every verb.
func (m Manifest) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(m.String())) }

// MarshalText gives that line to encoding/json and log/slog.
func (m Manifest) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// check tells what is wrong with m, its chunks and secrets left aside.
func (m *Manifest) check() error {
	switch {
	case m.Kind != Image && m.Kind != Layer:
		return fmt.Errorf("unknown kind %d", m.Kind)
	case !isTenant(m.Tenant):
		return fmt.Errorf("tenant %.70q is not 1 to %d of a-z, 0-9 and ._-, starting with a letter or digit", m.Tenant, maxTenant)
	case !chunk.ValidSize(m.ChunkSize):
		return fmt.Errorf("chunk size %d is no power of two between %d and %d", m.ChunkSize, chunk.MinSize, chunk.MaxSize)
	case m.Size < 0 || m.Size == 0 && m.Kind == Image:
		return fmt.Errorf("size of %d bytes", m.Size)
	case (m.Size-1)>>m.shift() > 1<<32-1:
		return fmt.Errorf("size of %d bytes is more than 2^32 chunks", m.Size)
	}
	return nil
}

// checkEntry tells what is wrong with e as the chunk after that of index
// before, which is -1 for the first. m has passed check.
func (m *Manifest) checkEntry(before int64, e Entry) error {
	start := int64(e.Index) << m.shift()
	end := start + int64(e.Size)
	switch {
	case int64(e.Index) <= before:
		return fmt.Errorf("chunk %d follows chunk %d", e.Index, before)
	case start >= m.Size:
		return fmt.Errorf("chunk %d lies behind the end at %d", e.Index, m.Size)
	case e.Size == 0 || int64(e.Size) > int64(m.ChunkSize) || end > m.Size:
		return fmt.Errorf("chunk %d has %d bytes", e.Index, e.Size)
	case e.Size%chunk.Grain != 0 && end != m.Size:
		return fmt.Errorf("chunk %d has %d bytes: neither whole grains nor up to the end", e.Index, e.Size)
	case e.Name == chunk.Name{}:
		return fmt.Errorf("chunk %d has no name", e.Index)
	}
	return nil
}

// checkSecret tells what is wrong with the sealed fields.
func (m *Manifest) checkSecret() error {
	if len(m.Source) > maxSource {
		return fmt.Errorf("source of %d bytes: at most %d fit", len(m.Source), maxSource)
	}
	if len(m.Config) > m.Kind.maxConfig() {
		return fmt.Errorf("config of %d bytes: at most %d fit", len(m.Config), m.Kind.maxConfig())
	}
	return nil
}

// shift is the binary logarithm of the chunk size.
func (m *Manifest) shift() int { return bits.TrailingZeros(uint(m.ChunkSize)) }

func (k Kind) maxConfig() int {
	if k == Layer {
		return maxLayerConfig
	}
	return maxImageConfig
}

// corrupt wraps ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
