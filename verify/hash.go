package verify

import "math/bits"

// Hash versions as an htree's root names them. The superblock's flag decides
// whether chars count as signed or unsigned.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTEA
)

// nameHash computes the hash by which an htree orders names, of 32 bits with
// the lowest one clear. The three versions are ext4's: "legacy" is its own,
// the others are MD4 (RFC 1320) cut to three rounds of eight steps and the Tiny
// Encryption Algorithm (Wheeler and Needham, 1994) used as a compression
// function.
type nameHash struct {
	version  byte
	unsigned bool
	seed     [4]uint32 // all zero: MD4's initial state
}

// sum gives the hash of a name.
func (h nameHash) sum(name string) uint32 {
	state := [4]uint32{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476}
	if h.seed != [4]uint32{} {
		state = h.seed
	}
	var sum uint32
	switch h.version {
	case hashLegacy:
		sum = h.legacy(name)
	case hashHalfMD4:
		for ; name != ""; name = name[min(32, len(name)):] {
			var in [8]uint32
			h.words(name, in[:])
			halfMD4(&state, &in)
		}
		sum = state[1]
	default:
		for ; name != ""; name = name[min(16, len(name)):] {
			var in [4]uint32
			h.words(name, in[:])
			tea(&state, &in)
		}
		sum = state[0]
	}
	if sum &^= 1; sum == 0xFFFFFFFE { // that one marks a directory's end
		return 0xFFFFFFFC
	}
	return sum
}

// char widens one byte of a name.
func (h nameHash) char(c byte) uint32 {
	if h.unsigned {
		return uint32(c)
	}
	return uint32(int32(int8(c)))
}

// words fills out from the head of name, four chars a word, the first one
// highest, each added to the word shifted by eight bits; unused room is filled
// with the length of what is left of the name.
func (h nameHash) words(name string, out []uint32) {
	pad := uint32(len(name))
	pad |= pad << 8
	pad |= pad << 16
	for w := range out {
		word := pad
		for i := range 4 {
			if at := 4*w + i; at < len(name) {
				word = h.char(name[at]) + word<<8
			}
		}
		out[w] = word
	}
}

// legacy is the version of the first htrees.
func (h nameHash) legacy(name string) uint32 {
	older, old := uint32(0x37ABE8F9), uint32(0x12A3FE2D)
	for i := range len(name) {
		next := older + (old ^ h.char(name[i])*7152373)
		if next&0x80000000 != 0 {
			next -= 0x7FFFFFFF
		}
		older, old = old, next
	}
	return old << 1
}

// halfMD4 mixes eight words into the state. The rounds use MD4's functions and
// constants, and half of its words in an order of their own.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	rounds := [3]struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		turn  [4]int
	}{
		{func(x, y, z uint32) uint32 { return x&y | ^x&z }, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{func(x, y, z uint32) uint32 { return x&y | x&z | y&z }, 0x5A827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ED9EBA1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	s := *state
	for _, r := range rounds {
		for step, word := range r.order {
			at := -step & 3 // the word that changes: a, d, c, b, a …
			a, b, c, d := s[at], s[(at+1)&3], s[(at+2)&3], s[(at+3)&3]
			s[at] = bits.RotateLeft32(a+r.mix(b, c, d)+in[word]+r.add, r.turn[step&3])
		}
	}
	for i := range state {
		state[i] += s[i]
	}
}

// tea encrypts the state's first two words with the input as key, 16 cycles,
// and adds the result.
func tea(state *[4]uint32, key *[4]uint32) {
	x, y, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		x += (y<<4 + key[0]) ^ (y + sum) ^ (y>>5 + key[1])
		y += (x<<4 + key[2]) ^ (x + sum) ^ (x>>5 + key[3])
	}
	state[0] += x
	state[1] += y
}
