package flash

import (
	"encoding/binary"
	"hash/crc32"
	"time"
)

const (
	// page is what slots are aligned to: what disks and the page cache read and
	// write at once.
	page = 4096

	segmentMagic  = "thaw-F1\n"
	segmentHeader = 64
	slotMagic     = "tfS1"
	slotHeader    = 96

	// maxSequence leaves a damaged number no way to reach the end of counting.
	maxSequence = 1 << 62
)

// kind is what a slot's header says of it.
type kind uint8

const (
	live kind = 1
	dead kind = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C of a value, which Replace compares.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// header is that of a slot, apart from its segment's salt.
type header struct {
	key          Key
	kind         kind
	sequence     uint64
	size         uint32 // bytes of the value
	crc          uint32 // of the value
	last, before uint32 // uses, seconds since 1970
}

// slotSize is how many bytes of a segment a value takes.
func slotSize(size uint32) int64 {
	return (slotHeader + int64(size) + page - 1) &^ (page - 1)
}

// encode gives the header's bytes.
func (h *header) encode(salt uint64) []byte {
	b := make([]byte, slotHeader)
	copy(b, slotMagic)
	binary.BigEndian.PutUint64(b[8:], salt)
	binary.BigEndian.PutUint64(b[16:], h.sequence)
	copy(b[24:], h.key[:])
	b[59] = byte(h.kind)
	binary.BigEndian.PutUint32(b[60:], h.size)
	binary.BigEndian.PutUint32(b[64:], h.crc)
	binary.BigEndian.PutUint32(b[72:], h.last)
	binary.BigEndian.PutUint32(b[76:], h.before)
	binary.BigEndian.PutUint32(b[4:], Checksum(b[8:]))
	return b
}

// decode reads a header that room bytes of the segment are left for; false if
// it is none of the segment with this salt.
func (h *header) decode(b []byte, salt uint64, room int64) bool {
	if string(b[:4]) != slotMagic || binary.BigEndian.Uint64(b[8:]) != salt ||
		binary.BigEndian.Uint32(b[4:]) != Checksum(b[8:slotHeader]) {
		return false
	}
	*h = header{
		key:      Key(b[24:59]),
		kind:     kind(b[59]),
		sequence: binary.BigEndian.Uint64(b[16:]),
		size:     binary.BigEndian.Uint32(b[60:]),
		crc:      binary.BigEndian.Uint32(b[64:]),
		last:     binary.BigEndian.Uint32(b[72:]),
		before:   binary.BigEndian.Uint32(b[76:]),
	}
	return (h.kind == live || h.kind == dead) && h.size > 0 && h.size <= MaxValue &&
		slotSize(h.size) <= room && h.sequence < maxSequence
}

// encodeSegment gives the first page of a segment.
func encodeSegment(salt uint64, length int64) []byte {
	b := make([]byte, page)
	copy(b, segmentMagic)
	binary.BigEndian.PutUint64(b[16:], salt)
	binary.BigEndian.PutUint64(b[24:], uint64(length))
	binary.BigEndian.PutUint32(b[8:], Checksum(b[12:segmentHeader]))
	return b
}

// decodeSegment reads the salt of a segment of this length.
func decodeSegment(b []byte, length int64) (salt uint64, ok bool) {
	ok = string(b[:8]) == segmentMagic && binary.BigEndian.Uint32(b[8:]) == Checksum(b[12:segmentHeader]) &&
		binary.BigEndian.Uint64(b[24:]) == uint64(length)
	return binary.BigEndian.Uint64(b[16:]), ok
}

// seconds cuts a time to what headers hold, 1970 to 2106.
func seconds(t time.Time) uint32 { return uint32(min(max(t.Unix(), 0), 1<<32-1)) }
