package zone

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"thaw/chunk"
)

// Placement is computed alike by all clients from the member list alone, in
// whole numbers only, since processors round fractions differently:
//
//   - A chunk belongs to one of 8192 slots, by the first 13 bits of its name.
//     Slots, and not chunks, are placed: that makes the load of a node something
//     that can be known, and bounded, without knowing any chunk.
//   - The cost of (slot, index, node) is -log2(hash) ÷ weight: the lower the
//     better (weighted rendezvous; of equal weights the hash alone decides). In each slot the cheapest pairs of index and
//     node are taken first. So a node that comes or goes moves the stripes it
//     gets or had, and few more: most others keep their index. With hardly more
//     nodes than stripes it is more: of five, one that another address replaces
//     moves two stripes or more of 67 % of the chunks, and those are lost once.
//     So a member may have a name, which its successor takes over: then
//     one stripe of each moves, and no chunk is lost.
//   - A node is passed over in a slot where it has a stripe already, where its
//     rack has its part (n ÷ racks, rounded up), and where it has been given all
//     slots that it may have: 9/8 of its share by weight. Slots are filled in
//     order, so all clients pass over the same. If indexes are left without a
//     node, racks are given up first, then the bound.
//
// The bound is what keeps the only node of a small rack from getting a stripe of
// every chunk, and light nodes from getting more than their weight's part.
const (
	slots = 8192 // enough that one node of 100 gets its share within 5 %; a table of five takes 80 KiB

	// A node may get boundParts ÷ boundOf of its share. 1/8 more is past two
	// deviations of the hash's own unevenness with 100 nodes, so that the bound
	// hardly moves anything where neither racks nor weights ask for it.
	boundParts, boundOf = 9, 8

	nobody = 0xffff // in a table: fewer nodes than stripes
)

// slotOf gives a chunk's slot. Names are hashes: their first bits are even.
func slotOf(name chunk.Name) int { return int(binary.BigEndian.Uint16(name[:])) * slots >> 16 }

// mix spreads every bit of x over all bits (the finalizer of MurmurHash3,
// constants of its variant 13 by D. Stafford).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// cost is -log2(h ÷ 2^64) in units of 2^-40, by repeated squaring.
func cost(h uint64) uint64 {
	h |= 1
	zeros := bits.LeadingZeros64(h)
	m, log := h<<zeros, uint64(0)
	for range 32 {
		hi, lo := bits.Mul64(m, m)
		log <<= 1
		if hi>>63 == 1 {
			log, m = log|1, hi
		} else {
			m = hi<<1 | lo>>63
		}
	}
	return uint64(zeros+1)<<40 - log<<8
}

// weigh gives the cost for a weight from 1 to MaxWeight.
func weigh(cost uint64, weight int) uint64 { return cost << 10 / uint64(weight) }

// pair is a node that could take an index, and what that costs.
type pair struct {
	cost  uint64
	node  uint16
	index uint8
}

func comparePairs(a, b pair) int {
	if a.cost != b.cost {
		return cmp.Compare(a.cost, b.cost)
	}
	return cmp.Or(cmp.Compare(a.node, b.node), cmp.Compare(a.index, b.index))
}

// placer fills a table. It works for one table and is then thrown away.
type placer struct {
	m     *Members
	n     int
	alike bool  // all weights are one
	racks []int // of each node: its rack's number
	parts int   // stripes that a rack may have of a slot
	room  []int // of each node: slots that it may still be given
	pairs []pair

	// of the slot at hand
	taken  []uint16 // by index
	inRack []int
}

// place gives, for slot s and index i, at s·n+i the node, or nobody.
func place(m *Members, n int) []uint16 {
	p := &placer{m: m, n: n, room: rooms(m.list, n), taken: make([]uint16, n)}
	p.alike = !slices.ContainsFunc(m.list, func(node Member) bool { return node.Weight != m.list[0].Weight })
	numbers := map[string]int{}
	for _, node := range m.list {
		rack := cmp.Or(node.Rack, "\x00"+node.Addr) // without a label: a rack of its own
		if _, ok := numbers[rack]; !ok {
			numbers[rack] = len(numbers)
		}
		p.racks = append(p.racks, numbers[rack])
	}
	p.inRack = make([]int, len(numbers))
	p.parts = (n + len(numbers) - 1) / max(len(numbers), 1)
	table := make([]uint16, 0, slots*n)
	for slot := range slots {
		table = append(table, p.slot(slot)...)
	}
	return table
}

// rooms bounds the slots of each node: its share by weight, no more than all
// slots, and the bound's part on top.
func rooms(list []Member, n int) []int {
	room := make([]int, len(list))
	want, weight := slots*min(n, len(list)), 0
	for _, node := range list {
		weight += node.Weight
	}
	heaviest := make([]int, len(list))
	for i := range heaviest {
		heaviest[i] = i
	}
	slices.SortStableFunc(heaviest, func(a, b int) int { return cmp.Compare(list[b].Weight, list[a].Weight) })
	for _, i := range heaviest { // what a heavy node can't take is the lighter ones'
		w := list[i].Weight
		if share := want * w / weight; share >= slots {
			room[i] = slots
			want, weight = want-slots, weight-w
			continue
		}
		room[i] = min(slots, (want*w*boundParts+weight*boundOf-1)/(weight*boundOf))
	}
	return room
}

// slot gives the nodes of one slot by index.
func (p *placer) slot(slot int) []uint16 {
	for i := range p.taken {
		p.taken[i] = nobody
	}
	clear(p.inRack)
	// The few cheapest of each index nearly always do, and if they do, others
	// would not have been taken.
	few := min(len(p.m.list), p.n+4)
	if p.consider(slot, few); p.take(p.parts, true) || few == len(p.m.list) && p.relax() {
		return p.taken
	}
	for _, node := range p.taken {
		if node != nobody {
			p.room[node]++ // begin again
		}
	}
	for i := range p.taken {
		p.taken[i] = nobody
	}
	clear(p.inRack)
	if p.consider(slot, len(p.m.list)); !p.take(p.parts, true) {
		p.relax()
	}
	return p.taken
}

// relax places what is left: racks first, then the bound. It gives true.
func (p *placer) relax() bool {
	for parts := p.parts + 1; parts <= p.n; parts++ {
		if p.take(parts, true) {
			return true
		}
	}
	p.take(p.n, false)
	return true
}

// consider lists the few cheapest nodes for each index, cheapest first.
func (p *placer) consider(slot, few int) {
	p.pairs = p.pairs[:0]
	for index := range p.n {
		key, best := mix(uint64(slot)<<8|uint64(index)), len(p.pairs)
		for i, node := range p.m.list {
			h := mix(p.m.seeds[i] ^ key)
			full := len(p.pairs)-best == few
			last := len(p.pairs) - 1
			// -log2(x) > 1-x: most need no logarithm to be seen to be dear
			if full && !p.alike && weigh(^h>>24, node.Weight) > p.pairs[last].cost {
				continue
			}
			c := pair{^h, uint16(i), uint8(index)} // of one weight: it orders them as the logarithm does
			if !p.alike {
				c.cost = weigh(cost(h), node.Weight)
			}
			switch {
			case few == len(p.m.list):
				p.pairs = append(p.pairs, c)
				continue
			case full && comparePairs(c, p.pairs[last]) > 0:
				continue
			case full:
				p.pairs = p.pairs[:last]
			}
			at, _ := slices.BinarySearchFunc(p.pairs[best:], c, comparePairs)
			p.pairs = slices.Insert(p.pairs, best+at, c)
		}
	}
	slices.SortFunc(p.pairs, comparePairs)
}

// take gives indexes that have no node yet the cheapest that may be had, and
// reports whether none is left.
func (p *placer) take(parts int, bound bool) bool {
	left := 0
	for _, node := range p.taken {
		if node == nobody {
			left++
		}
	}
	for _, c := range p.pairs {
		rack := p.racks[c.node]
		if left == 0 {
			break
		}
		if p.taken[c.index] != nobody || p.inRack[rack] >= parts || bound && p.room[c.node] <= 0 || slices.Contains(p.taken, c.node) {
			continue
		}
		p.taken[c.index] = c.node
		p.room[c.node]--
		p.inRack[rack]++
		left--
	}
	return left == 0
}
