package ext4

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// hashSeed makes directory hashes differ from those of an unseeded file
// system in nothing but value. It is a constant, as two devices with equal
// trees must be equal.
var hashSeed = [4]uint32{0x7468_6177, 0x6469_7268, 0x6173_6873, 0x6565_6431}

// uuid names every file system of this writer: equal trees, equal bytes.
const uuid = "thaw-d\x45v\x8ce-lay-1"

// nameHash is the half-MD4 directory hash over unsigned chars (fs/ext4/hash.c:
// ext4fs_dirhash with DX_HASH_HALF_MD4_UNSIGNED). The low bit is always 0: the
// index uses it to say that a hash continues from the block before.
func nameHash(name string) uint32 {
	state := hashSeed
	for rest := name; len(rest) > 0; rest = rest[min(32, len(rest)):] {
		in := hashWords(rest)
		halfMD4(&state, &in)
	}
	h := state[1] &^ 1
	const eof = 1<<32 - 2 // the kernel's end-of-directory mark
	if h == eof {
		h = eof - 2
	}
	return h
}

// hashWords packs up to 32 bytes big-endian into words, the rest filled with a
// pattern of the remaining length.
func hashWords(s string) (w [8]uint32) {
	pad := uint32(byte(len(s))) * 0x01010101
	s = s[:min(32, len(s))]
	for i := range w {
		v := pad
		for j := 4 * i; j < min(4*i+4, len(s)); j++ {
			v = v<<8 + uint32(s[j])
		}
		w[i] = v
	}
	return w
}

// halfMD4 is MD4 (RFC 1320) with half of each round, as fs/ext4/hash.c has it.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5A827999, 0x6ED9EBA1 // RFC 1320 §3.4
	order := [3][8]int{{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}}
	shift := [3][4]int{{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}}
	v := *state
	for round := range 3 {
		for i, word := range order[round] {
			// The registers rotate: step i changes a, d, c, b in turn.
			a, b, c, d := &v[(8-i)%4], v[(9-i)%4], v[(10-i)%4], v[(11-i)%4]
			switch round {
			case 0:
				*a += d ^ b&(c^d) + in[word]
			case 1:
				*a += b&c + (b^c)&d + in[word] + k2
			case 2:
				*a += b ^ c ^ d + in[word] + k3
			}
			*a = bits.RotateLeft32(*a, shift[round][i%4])
		}
	}
	for i := range state {
		state[i] += v[i]
	}
}

// valueHash is the hash of an attribute's value that an EA inode carries:
// CRC-32C without final inversion, seeded with that of the UUID
// (fs/ext4/xattr.c: ext4_xattr_inode_hash).
func valueHash(value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	raw := func(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, table, b) }
	return raw(raw(^uint32(0), []byte(uuid)), value)
}

// descChecksum is the CRC-16 (ANSI, reflected) of UUID, group number and
// descriptor up to the checksum (fs/ext4/super.c: ext4_group_desc_csum).
func descChecksum(group uint32, desc []byte) uint16 {
	crc := crc16(0xFFFF, []byte(uuid))
	crc = crc16(crc, binary.LittleEndian.AppendUint32(nil, group))
	return crc16(crc, desc[:descSize-2])
}

func crc16(crc uint16, b []byte) uint16 {
	for _, c := range b {
		crc ^= uint16(c)
		for range 8 {
			crc = crc>>1 ^ 0xA001*(crc&1)
		}
	}
	return crc
}
