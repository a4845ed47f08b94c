package chunk

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Salt is mixed into every key of a root, so that chunks deduplicate within a
// root and epoch only: it bounds what one lost chunk can hurt (paper §3.3). A
// deployment's secret in it keeps one who can list names from confirming a
// guessed content. It prints as a placeholder.
type Salt [sha256.Size]byte

// String hides the salt.
func (Salt) String() string { return "[salt]" }

// GoString hides the salt from %#v.
func (Salt) GoString() string { return "[salt]" }

// Format hides the salt from every verb.
func (Salt) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[salt]")) }

// MarshalText hides the salt from encoding/json and log/slog.
func (Salt) MarshalText() ([]byte, error) { return []byte("[salt]"), nil }

// SaltParams are what a salt depends on. Two conversions share chunks exactly
// if all of it is equal.
type SaltParams struct {
	Secret    []byte // the deployment's secret; empty unless one was given
	Root      string // the root the chunks are written to
	Epoch     uint32 // moves with time, to cut sharing
	Placement string // infrastructure, such as a zone
	Class     string // popularity class
	Layout    uint16 // version of the device layout
	Tenant    string // set for a private image only: shared with nobody else
}

// NewSalt derives the salt: HMAC-SHA-256 under the secret of a domain word and
// the fields in the order above, each string with its length in front (uint32,
// big-endian), so that no two different sets of fields give one message.
func NewSalt(p SaltParams) Salt {
	msg := []byte("thaw salt v1\x00")
	field := func(s string) {
		msg = binary.BigEndian.AppendUint32(msg, uint32(len(s)))
		msg = append(msg, s...)
	}
	field(p.Root)
	msg = binary.BigEndian.AppendUint32(msg, p.Epoch)
	field(p.Placement)
	field(p.Class)
	msg = binary.BigEndian.AppendUint16(msg, p.Layout)
	field(p.Tenant)
	mac := hmac.New(sha256.New, p.Secret)
	mac.Write(msg)
	return Salt(mac.Sum(nil))
}

// Derive gives 32 bytes that stand for text under this salt and tell nothing
// of it: HMAC-SHA-256 with a domain word, so never a chunk's key.
func (s Salt) Derive(text string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, s[:])
	mac.Write([]byte("thaw derive v1\x00" + text))
	return [sha256.Size]byte(mac.Sum(nil))
}
