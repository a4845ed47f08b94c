package zone

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"thaw/chunk"
)

// nodes makes a list of n equal nodes, one with a number for each change.
func nodes(n int) []Member {
	var list []Member
	for i := range n {
		list = append(list, Member{Addr: fmt.Sprintf("10.0.0.%d:7000", i), Weight: 1})
	}
	return list
}

func members(t testing.TB, list []Member) *Members {
	t.Helper()
	m, err := newMembers(0, list)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// loads counts the slots of each node.
func loads(m *Members, n int) []int {
	count := make([]int, len(m.list))
	for _, node := range m.table(n) {
		if node != nobody {
			count[node]++
		}
	}
	return count
}

// moved is the share of stripes that have another node in b than in a.
func moved(a, b *Members, n int) float64 {
	count := 0
	x, y := a.table(n), b.table(n)
	for i := range x {
		if (x[i] == nobody) != (y[i] == nobody) || x[i] != nobody && a.list[x[i]].Addr != b.list[y[i]].Addr {
			count++
		}
	}
	return float64(count) / float64(len(x))
}

// TestMoves: a node that comes or goes moves its part, 1/N of the stripes, and
// of the others no more than half as much again; less the more nodes there are.
func TestMoves(t *testing.T) {
	for _, size := range []int{6, 10, 50, 100} {
		all := nodes(size)
		with, least := members(t, all), 1/float64(size)
		for _, gone := range []int{0, size - 1} {
			without := members(t, slices.Delete(slices.Clone(all), gone, gone+1))
			got := moved(with, without, 5)
			t.Logf("one of %d: %.2f %% of stripes move, its part is %.2f %%", size, 100*got, 100*least)
			if got < 0.8*least || got > 1.5*least {
				t.Errorf("one of %d nodes moves %.4f of the stripes, want 1 to 1.5 × %.4f", size, got, least)
			}
		}
	}
}

// TestNameIsTakenOver: a node that takes another's name gets all its stripes,
// and the other nodes keep theirs.
func TestNameIsTakenOver(t *testing.T) {
	list := nodes(5)
	for i := range list {
		list[i].Name = fmt.Sprint("n", i)
	}
	before := members(t, list)
	list[2].Addr = "10.9.9.9:7000"
	after := members(t, list)
	if !slices.Equal(before.table(5), after.table(5)) || after.list[2].Addr != "10.9.9.9:7000" {
		t.Error("another address under the same name, another placement")
	}
}

// TestBelowN: with fewer nodes than stripes each gets one, and an index without.
func TestBelowN(t *testing.T) {
	five, four := members(t, nodes(5)), members(t, nodes(4))
	for i, load := range loads(four, 5) {
		if load != slots {
			t.Errorf("node %d of 4 has %d of %d slots", i, load, slots)
		}
	}
	if got := moved(five, four, 5); got < 0.19 || got > 0.35 {
		t.Errorf("one of five gone: %.3f of the stripes move, want 0.2 to 0.35", got)
	}
	lone := members(t, nodes(1))
	if got := lone.Place(chunk.Name{1}, 1); len(got) != 1 || got[0].Addr != "10.0.0.0:7000" {
		t.Errorf("1 of 1 is at %v", got)
	}
	for _, node := range members(t, nil).Place(chunk.Name{1}, 5) {
		if node != (Member{}) {
			t.Errorf("of no nodes %v is taken", node)
		}
	}
}

// TestBalance: equal nodes get equal parts within the bound, and unequal ones
// what their weight says.
func TestBalance(t *testing.T) {
	for _, size := range []int{5, 6, 12, 40} {
		for _, n := range []int{1, 5, 12} {
			if size < n {
				continue
			}
			share := float64(slots*n) / float64(size)
			for i, load := range loads(members(t, nodes(size)), n) {
				if load := float64(load); load > share*9/8+1 || load < share*3/4 {
					t.Errorf("%d stripes on %d nodes: node %d has %.0f slots, its share is %.0f", n, size, i, load, share)
				}
			}
		}
	}
	list := nodes(12)
	for i := range list {
		list[i].Weight = 10 * (1 + i%3) // 10, 20, 30
	}
	m := members(t, list)
	for i, load := range loads(m, 5) {
		share := float64(slots*5*m.list[i].Weight) / 240
		if r := float64(load) / share; math.Abs(r-1) > 0.13 {
			t.Errorf("weight %d: %.3f of its share", m.list[i].Weight, r)
		}
	}
}

// TestWeightChange: a heavier node takes from the others, in proportion.
func TestWeightChange(t *testing.T) {
	list := nodes(20)
	for i := range list {
		list[i].Weight = 10
	}
	before := members(t, list)
	list[3].Weight = 11 // 1/20 of the stripes grows by a tenth
	if got := moved(before, members(t, list), 5); got < 0.002 || got > 0.02 {
		t.Errorf("%.4f of the stripes move, want about 0.005", got)
	}
}

// TestRacks: as many racks as stripes, and each has one; a small rack's only
// node is not drowned.
func TestRacks(t *testing.T) {
	list := nodes(15)
	for i := range list {
		list[i].Rack = fmt.Sprint(i % 5)
	}
	spread := func(list []Member) (same int) {
		m := members(t, list)
		table := m.table(5)
		for slot := range slots {
			racks := map[string]bool{}
			for _, node := range table[slot*5 : slot*5+5] {
				racks[m.list[node].Rack] = true
			}
			same += 5 - len(racks)
		}
		return same
	}
	if same := spread(list); same > 0 {
		t.Errorf("%d stripes share a rack with another of their chunk", same)
	}
	list = nodes(13)
	for i := range list {
		list[i].Rack = fmt.Sprint(min(i, 4)) // racks of 1, 1, 1, 1 and 9
	}
	m := members(t, list)
	share := slots*5/13 + 1
	for i, load := range loads(m, 5) {
		if load > share*9/8+1 {
			t.Errorf("node %s of rack %s has %d slots, its share is %d", m.list[i].Addr, m.list[i].Rack, load, share)
		}
	}
}

// TestPlacement holds for any list: n distinct nodes, and no account of the
// order in which the members are named.
func TestPlacement(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		n, list, racks := 1+r.IntN(8), nodes(1+r.IntN(16)), r.IntN(5)
		for i := range list {
			list[i].Weight = 1 + r.IntN(1+racks*5)
			if racks > 0 {
				list[i].Rack = fmt.Sprint(r.IntN(racks + 1)) // 0 is a rack like others
			}
		}
		m := members(t, list)
		table := m.table(n)
		for slot := range slots {
			distinct := map[uint16]bool{}
			for _, node := range table[slot*n : slot*n+n] {
				if node != nobody {
					distinct[node] = true
				}
			}
			if len(distinct) != min(n, len(list)) {
				t.Fatalf("slot %d: %d nodes for %d stripes on %v", slot, len(distinct), n, list)
			}
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		if !slices.Equal(members(t, list).table(n), table) {
			t.Fatalf("another order of members, another placement: %v", list)
		}
	}
}

// TestShortcut: looking at the cheapest few nodes first gives what looking at
// all does.
func TestShortcut(t *testing.T) {
	list := nodes(30)
	for i := range list {
		list[i].Weight, list[i].Rack = 1+i%4, fmt.Sprint(i%7)
	}
	m := members(t, list)
	whole := &placer{m: m, n: 5, room: make([]int, 30), racks: make([]int, 30), inRack: make([]int, 1), taken: make([]uint16, 5)}
	few := &placer{m: m, n: 5}
	for slot := range 200 {
		whole.consider(slot, 30)
		few.consider(slot, 9)
		for index := range uint8(5) {
			of := func(pairs []pair) (of []pair) {
				for _, c := range pairs {
					if c.index == index {
						of = append(of, c)
					}
				}
				return of
			}
			if a, b := of(whole.pairs), of(few.pairs); len(a) != 30 || !slices.Equal(a[:9], b) {
				t.Fatalf("slot %d, index %d: cheapest\n%v, or\n%v", slot, index, a[:9], b)
			}
		}
	}
}

// TestCost compares whole numbers with the library's logarithm.
func TestCost(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 10_000 {
		h := r.Uint64() >> r.IntN(60)
		want := -math.Log2(float64(h|1) / math.Exp2(64))
		if got := float64(cost(h)) / (1 << 40); math.Abs(got-want) > 1e-8 {
			t.Fatalf("cost of %x: %v, want %v", h, got, want)
		}
	}
}

// TestPlacementGolden pins where stripes lie: clients of two versions that
// disagree would each fill the zone for itself.
func TestPlacementGolden(t *testing.T) {
	type vector struct {
		List   string   `json:"list"`
		N      int      `json:"n"`
		First  []string `json:"first"`  // nodes of the chunk whose name is all 0x5a
		SHA256 string   `json:"sha256"` // of all slots' nodes, two bytes each
	}
	var got []vector
	for _, v := range []vector{
		{List: "a:1", N: 1},
		{List: "a:1\nb:1\nc:1", N: 1},
		{List: "10.0.0.1:7000\n10.0.0.2:7000\n10.0.0.3:7000\n10.0.0.4:7000\n10.0.0.5:7000", N: 5},
		{List: "a:1\nb:1\nc:1\nd:1", N: 5},
		{List: "a:1 weight=3\nb:1\nc:1\nd:1 weight=2\ne:1\nf:1 weight=7\ng:1", N: 5},
		{List: "a:1 rack=x\nb:1 rack=x\nc:1 rack=y\nd:1 rack=y\ne:1 rack=z\nf:1 rack=z\ng:1 rack=z", N: 5},
	} {
		m, err := parseFile([]byte(v.List))
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range m.Place(chunk.Name(bytes.Repeat([]byte{0x5a}, 32)), v.N) {
			v.First = append(v.First, node.Addr)
		}
		h := sha256.New()
		_ = binary.Write(h, binary.BigEndian, m.table(v.N)) // never fails
		v.SHA256 = fmt.Sprintf("%x", h.Sum(nil))
		got = append(got, v)
	}
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, "testdata/placement.json", append(b, '\n'))
}

func BenchmarkPlace(b *testing.B) {
	for _, size := range []int{5, 10, 100, 1000} {
		m := members(b, nodes(min(size, 256)))
		if size > 256 {
			var list []Member
			for i := range size {
				list = append(list, Member{Addr: fmt.Sprintf("10.0.%d.%d:7000", i>>8, i&255), Weight: 1})
			}
			m = members(b, list)
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			for b.Loop() {
				place(m, 5)
			}
		})
	}
}
