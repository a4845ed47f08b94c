package zone

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"thaw/chunk"
	"thaw/erasure"
)

const (
	// HeaderSize is the length in bytes of a stripe's header.
	HeaderSize = 64
	// MaxStripe is the length in bytes of the longest stripe: 1 of 1.
	MaxStripe = HeaderSize + chunk.MaxSize

	magic   = "thaw-S1\n"
	covered = 12 // the CRC is of what follows from here on
)

// castagnoli is the CRC's table; processors have an instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// StripeID says which stripe of which code of which chunk. It is comparable.
type StripeID struct {
	Name        chunk.Name
	K, N, Index uint8
}

// Stripe is one of the n pieces of a sealed chunk. Payload has
// ceil(ChunkSize/K) bytes.
type Stripe struct {
	Name        chunk.Name
	K, N, Index uint8
	ChunkSize   uint32 // bytes of the sealed chunk
	Payload     []byte
}

// ID says which stripe it is.
func (s *Stripe) ID() StripeID { return StripeID{s.Name, s.K, s.N, s.Index} }

// Append appends the stripe as it is stored and sent. It panics if the stripe
// is none: k, n, index or a length out of range.
func (s *Stripe) Append(b []byte) []byte {
	if err := s.check(); err != nil {
		panic("zone: " + err.Error())
	}
	front := s.header()
	return append(append(b, front[:]...), s.Payload...)
}

// header gives what stands before the payload.
func (s *Stripe) header() (h [HeaderSize]byte) {
	copy(h[:], magic)
	h[12], h[13], h[14] = s.K, s.N, s.Index
	binary.BigEndian.PutUint32(h[16:], s.ChunkSize)
	binary.BigEndian.PutUint32(h[20:], uint32(len(s.Payload)))
	copy(h[32:], s.Name[:])
	sum := crc32.Update(crc32.Checksum(h[covered:], castagnoli), castagnoli, s.Payload)
	binary.BigEndian.PutUint32(h[8:], sum)
	return h
}

// check says what is out of range.
func (s *Stripe) check() error {
	if err := s.ID().Check(); err != nil {
		return err
	}
	if s.ChunkSize == 0 || s.ChunkSize > chunk.MaxSize {
		return fmt.Errorf("stripe of a chunk of %d bytes, want 1 to %d", s.ChunkSize, chunk.MaxSize)
	}
	if want := (int(s.ChunkSize) + int(s.K) - 1) / int(s.K); len(s.Payload) != want {
		return fmt.Errorf("payload of %d bytes for a chunk of %d in %d parts, want %d", len(s.Payload), s.ChunkSize, s.K, want)
	}
	return nil
}

// ParseStripe reads a stripe that fills all of b and checks all that can be
// checked without the chunk: every field, every reserved byte, the CRC. What
// is none gives an error that wraps chunk.ErrCorrupt. The payload is part of b.
// The caller compares the stripe's ID with the one it wants.
func ParseStripe(b []byte) (Stripe, error) {
	if len(b) < HeaderSize || string(b[:8]) != magic {
		return Stripe{}, fmt.Errorf("zone: %w: %d bytes that do not begin like a stripe", chunk.ErrCorrupt, len(b))
	}
	s := Stripe{
		Name: chunk.Name(b[32:64]), K: b[12], N: b[13], Index: b[14],
		ChunkSize: binary.BigEndian.Uint32(b[16:]), Payload: b[HeaderSize:],
	}
	switch {
	case b[15] != 0 || binary.BigEndian.Uint64(b[24:]) != 0:
		return Stripe{}, fmt.Errorf("zone: %w: reserved bytes of a stripe are not zero", chunk.ErrCorrupt)
	case uint64(binary.BigEndian.Uint32(b[20:])) != uint64(len(s.Payload)):
		return Stripe{}, fmt.Errorf("zone: %w: stripe cut or too long: payload of %d bytes", chunk.ErrCorrupt, len(s.Payload))
	}
	if err := s.check(); err != nil {
		return Stripe{}, fmt.Errorf("zone: %w: %w", chunk.ErrCorrupt, err)
	}
	if binary.BigEndian.Uint32(b[8:]) != crc32.Checksum(b[covered:], castagnoli) {
		return Stripe{}, fmt.Errorf("zone: %w: stripe %s does not have its checksum", chunk.ErrCorrupt, s.ID())
	}
	return s, nil
}

// ETag gives the CRC that an encoded stripe says it has, as it stands in the
// headers ETag and If-Match. It panics if b is shorter than 12 bytes.
func ETag(b []byte) string { return `"` + hex.EncodeToString(b[8:12]) + `"` }

// Check says what is out of range: 1 ≤ k ≤ n ≤ 32, index < n.
func (id StripeID) Check() error {
	if id.K < 1 || id.K > id.N || id.N > erasure.Max || id.Index >= id.N {
		return fmt.Errorf("stripe %d of %d-of-%d does not exist", id.Index, id.K, id.N)
	}
	return nil
}

// String gives the ID as it stands in a path after StripesPath.
func (id StripeID) String() string {
	b := make([]byte, 0, 2*len(id.Name)+len("/32-32-31"))
	b = append(hex.AppendEncode(b, id.Name[:]), '/')
	b = append(strconv.AppendUint(b, uint64(id.K), 10), '-')
	b = append(strconv.AppendUint(b, uint64(id.N), 10), '-')
	return string(strconv.AppendUint(b, uint64(id.Index), 10))
}

// Path gives the stripe's path on its node.
func (id StripeID) Path() string { return StripesPath + id.String() }

// ParsePath reads what Path wrote, and nothing else.
func ParsePath(path string) (StripeID, error) {
	rest, ok := strings.CutPrefix(path, StripesPath)
	name, numbers, cut := strings.Cut(rest, "/")
	parts := strings.Split(numbers, "-")
	var id StripeID
	if !ok || !cut || len(parts) != 3 {
		return id, fmt.Errorf("zone: %.120q is not %s<name>/<k>-<n>-<index>", path, StripesPath)
	}
	var err error
	if id.Name, err = chunk.ParseName(name); err != nil {
		return StripeID{}, fmt.Errorf("zone: path of a stripe: %w", err)
	}
	for i, field := range []*uint8{&id.K, &id.N, &id.Index} {
		v, err := strconv.ParseUint(parts[i], 10, 8)
		if err != nil || strconv.FormatUint(v, 10) != parts[i] {
			return StripeID{}, fmt.Errorf("zone: %.20q in the path of a stripe is not a number from 0 to 255", parts[i])
		}
		*field = uint8(v)
	}
	if err := id.Check(); err != nil {
		return StripeID{}, fmt.Errorf("zone: %w", err)
	}
	return id, nil
}

// Append appends the IDSize bytes that stand for the stripe in a question to
// HavePath.
func (id StripeID) Append(b []byte) []byte {
	return append(append(b, id.Name[:]...), id.K, id.N, id.Index)
}

// ParseID reads what Append wrote: IDSize bytes.
func ParseID(b []byte) (StripeID, error) {
	if len(b) != IDSize {
		return StripeID{}, fmt.Errorf("zone: stripe's ID of %d bytes, want %d", len(b), IDSize)
	}
	id := StripeID{chunk.Name(b[:32]), b[32], b[33], b[34]}
	if err := id.Check(); err != nil {
		return StripeID{}, fmt.Errorf("zone: %w", err)
	}
	return id, nil
}
