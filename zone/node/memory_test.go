package node

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/zone"
)

// resident is what the arena takes of the machine's memory, in bytes.
func resident(t *testing.T, a *arena) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(a.fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// read gives what a pinned slot holds, as it would be sent.
func read(t *testing.T, m *memory, f *found) []byte {
	t.Helper()
	b := append(bytes.Clone(f.head[:]), make([]byte, f.size)...)
	if err := m.arena.read(f.slot, b[zone.HeaderSize:], 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// modelled is memory beside a naive model of it.
type modelled struct {
	*memory
	r      *rand.Rand
	now    time.Time
	known  [50][2]stripeOf // by number and version
	latest map[zone.StripeID][]byte
	pins   []pinned
}

type stripeOf struct {
	id zone.StripeID
	b  []byte
}

// pinned is what was pinned, with the bytes it had.
type pinned struct {
	found
	b []byte
}

// A naive model: what is in memory has the bytes that were last put, what is
// pinned keeps those it had, and nothing takes more than it may.
func TestMemoryModel(t *testing.T) {
	for seed := range uint64(4) {
		mem, err := newMemory(MinMemory)
		if err != nil {
			t.Fatal(err)
		}
		m := &modelled{memory: mem, r: rand.New(rand.NewPCG(seed, 0)), now: time.Unix(0, 0), latest: map[zone.StripeID][]byte{}}
		for i := range m.known {
			for v := range 2 {
				id, b := stripe(uint64(i), code{1, 2, 0}, 1+i*i*i*5, v)
				m.known[i][v] = stripeOf{id, b}
			}
		}
		for step := range 3000 {
			if m.step(t); t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
		for _, p := range m.pins {
			m.unpin(p.slot)
		}
		for _, id := range slices.Collect(maps.Keys(m.index)) {
			m.remove(id)
		}
		if used, n, evicted := m.usage(); used != 0 || n != 0 || evicted == 0 || resident(t, m.arena) != 0 || m.failed != nil {
			t.Errorf("left: %d bytes, %d stripes; %d evicted; %d resident", used, n, evicted, resident(t, m.arena))
		}
		if err := m.close(); err != nil {
			t.Error(err)
		}
	}
}

// step does something, and looks whether it came out right.
func (m *modelled) step(t *testing.T) {
	m.now = m.now.Add(time.Duration(m.r.IntN(4)) * time.Second)
	s := m.known[m.r.IntN(len(m.known))][m.r.IntN(2)]
	switch m.r.IntN(6) {
	case 0, 1:
		m.put(t, s)
	case 2, 3:
		var f found
		if !m.pin(s.id, m.now, &f) {
			break
		}
		if len(m.pins) < 3 {
			m.pins = append(m.pins, pinned{f, m.latest[s.id]})
			break
		}
		if !bytes.Equal(read(t, m.memory, &f), m.latest[s.id]) {
			t.Error("other bytes than were put")
		}
		m.unpin(f.slot)
	case 4:
		if len(m.pins) == 0 {
			break
		}
		i := m.r.IntN(len(m.pins))
		if !bytes.Equal(read(t, m.memory, &m.pins[i].found), m.pins[i].b) {
			t.Error("what is pinned has changed")
		}
		m.unpin(m.pins[i].slot)
		m.pins = slices.Delete(m.pins, i, i+1)
	case 5:
		if m.r.IntN(10) == 0 {
			m.remove(s.id)
		}
	}
	if used, n, _ := m.usage(); used > m.limit || resident(t, m.arena) > used || n != len(m.index) {
		t.Errorf("%d of %d bytes, %d resident, %d stripes, %d in the index", used, m.limit, resident(t, m.arena), n, len(m.index))
	}
}

// put adds a stripe, as new or in the place of the one that is there.
func (m *modelled) put(t *testing.T, s stripeOf) {
	was, evicted := m.tag(s.id), m.evicts
	old := []string{"", was}[m.r.IntN(2)]
	ok, err := m.add(s.id, s.b, old, m.now)
	if err != nil && !errors.Is(err, errBusy) {
		t.Error(err)
	}
	// What was in the way may have made room itself.
	if want := was == "" || was == zone.ETag(s.b) || was == old; err == nil && ok != want && (want || m.evicts == evicted) {
		t.Errorf("added: %v, want %v", ok, want)
	}
	if ok {
		m.latest[s.id] = s.b
	}
}

// While all memory is being sent, nothing can be put; what is sent stays.
func TestMemoryThatIsBeingSent(t *testing.T) {
	n := open(t, Options{Memory: MinMemory})
	var all []found
	for i := range uint64(100) {
		id, b := usualStripe(i)
		out, err := n.put(id, b, "")
		if out == tooBusy {
			break
		}
		var f found
		if err != nil || !n.mem.pin(id, time.Now(), &f) {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	if used, _, _ := n.mem.usage(); len(all) < 30 || used > MinMemory || resident(t, n.mem.arena) > MinMemory {
		t.Fatalf("%d stripes, %d bytes", len(all), used)
	}
	for i := range all {
		_, b := usualStripe(uint64(i))
		if !bytes.Equal(read(t, n.mem, &all[i]), b) {
			t.Fatalf("stripe %d has changed", i)
		}
		n.release(&all[i])
	}
	id, b := usualStripe(1000)
	if out, err := n.put(id, b, ""); out != stored {
		t.Fatal(err)
	}
}

func TestSmallPages(t *testing.T) {
	dir := t.TempDir()
	set := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if !smallPages(dir) {
		t.Error("a kernel without huge pages has some")
	}
	set("shmem_enabled", "always within_size advise [never] deny force\n")
	set("hugepages-64kB/shmem_enabled", "always [inherit] within_size advise never\n")
	if !smallPages(dir) {
		t.Error("never")
	}
	set("hugepages-64kB/shmem_enabled", "[always] inherit within_size advise never\n")
	if smallPages(dir) {
		t.Error("always")
	}
	set("hugepages-64kB/shmem_enabled", "always inherit within_size [advise] never\n")
	set("shmem_enabled", "always [within_size] advise never deny force\n")
	if smallPages(dir) {
		t.Error("within_size")
	}
}

// takeBuffer takes the one buffer, once whoever was answered has given it back.
func takeBuffer(t *testing.T, n *Node) (b *buffer) {
	t.Helper()
	waitFor(t, "the one buffer", func() (ok bool) {
		var err error
		b, err = n.buffers.get()
		return err == nil
	})
	return b
}

func TestBuffers(t *testing.T) {
	p := newBuffers(2)
	a, err := p.get()
	b, berr := p.get()
	if err != nil || berr != nil || len(a.b) <= zone.MaxStripe {
		t.Fatal(err, berr)
	}
	if _, err := p.get(); !errors.Is(err, errBusy) {
		t.Fatalf("a third: %v", err)
	}
	for i := range b.b {
		b.b[i] = 1
	}
	b.used = len(b.b)
	p.put(a)
	p.put(b)
	if c, err := p.get(); err != nil || c != b || c.b[usual] != 0 || c.b[0] != 1 {
		t.Fatalf("%v: memory beyond the usual is not given back", err)
	}
	p.put(b)
	p.put(nil)
	if err := p.close(); err != nil {
		t.Error(err)
	}
}
