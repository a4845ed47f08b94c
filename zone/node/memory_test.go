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

// A naive model: what is in memory has the bytes that were last put, what is
// pinned keeps those it had, and nothing takes more than it may.
func TestMemoryModel(t *testing.T) {
	for seed := range uint64(5) {
		m, err := newMemory(6 << 20)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(seed, 0))
		latest := map[zone.StripeID][]byte{}
		type pin struct {
			found
			b []byte
		}
		var pins []pin
		now := time.Unix(0, 0)
		pick := func() (uint64, int) { i := r.Uint64N(200); return i, 1 + int(i*i*i%(600<<10)) }
		for step := range 4000 {
			now = now.Add(time.Duration(r.IntN(4)) * time.Second)
			seed, size := pick()
			id, b := stripe(seed, code{1, 2, 0}, size, r.IntN(2))
			switch r.IntN(6) {
			case 0, 1:
				old := []string{"", m.tag(id)}[r.IntN(2)]
				was, evicted := m.tag(id), m.evicts
				ok, err := m.add(id, b, old, now)
				if err != nil && !errors.Is(err, errBusy) {
					t.Fatal(err)
				}
				// What was in the way may have made room itself.
				if want := was == "" || was == zone.ETag(b) || was == old; err == nil && ok != want && (want || m.evicts == evicted) {
					t.Fatalf("step %d: added %v, want %v", step, ok, want)
				}
				if ok {
					latest[id] = b
				}
			case 2, 3:
				var f found
				if m.pin(id, now, &f) {
					if len(pins) < 3 {
						pins = append(pins, pin{f, latest[id]})
						break
					}
					if !bytes.Equal(read(t, m, &f), latest[id]) {
						t.Fatalf("step %d: other bytes than were put", step)
					}
					m.unpin(f.slot)
				}
			case 4:
				if len(pins) > 0 {
					i := r.IntN(len(pins))
					if !bytes.Equal(read(t, m, &pins[i].found), pins[i].b) {
						t.Fatalf("step %d: what is pinned has changed", step)
					}
					m.unpin(pins[i].slot)
					pins = slices.Delete(pins, i, i+1)
				}
			case 5:
				if r.IntN(10) == 0 {
					m.remove(id)
				}
			}
			if used, n, _ := m.usage(); used > m.limit || resident(t, m.arena) > used || n != len(m.index) {
				t.Fatalf("step %d: %d of %d bytes, %d resident, %d stripes, %d in the index", step, used, m.limit, resident(t, m.arena), n, len(m.index))
			}
		}
		for _, p := range pins {
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
