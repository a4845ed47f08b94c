package zone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// fault is a way for one node to go wrong with a stripe.
type fault struct {
	serve func(n *testNode, id StripeID) http.HandlerFunc // nil: plants
	plant func(n *testNode, id StripeID, b []byte)
}

// behaves answers all GETs.
func behaves(f http.HandlerFunc) fault {
	return fault{serve: func(*testNode, StripeID) http.HandlerFunc { return f }}
}

// changes plants a stripe that is other than it was, with its checksum or not.
func changes(f func(s *Stripe) []byte) fault {
	return fault{plant: func(n *testNode, id StripeID, b []byte) {
		s, err := ParseStripe(bytes.Clone(b))
		if err != nil {
			panic(err)
		}
		n.plant(id, f(&s))
	}}
}

// bytesOf answers with these, whatever is asked.
func bytesOf(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { send(w, b) }
}

// faults are those of a node that answers in time; others hang.
func faults() map[string]fault {
	noise := make([]byte, 5000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	return map[string]fault{
		"dead":      {serve: func(n *testNode, _ StripeID) http.HandlerFunc { n.Close(); return nil }},
		"500":       behaves(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }),
		"redirect":  behaves(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }),
		"empty":     behaves(func(http.ResponseWriter, *http.Request) {}),
		"noise":     behaves(bytesOf(noise)),
		"resets":    behaves(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }),
		"lost":      {plant: func(n *testNode, id StripeID, _ []byte) { n.plant(id, nil) }},
		"bit":       changes(func(s *Stripe) []byte { b := s.Append(nil); b[HeaderSize+len(s.Payload)/2] ^= 4; return b }),
		"forged":    changes(func(s *Stripe) []byte { s.Payload[0] ^= 1; return s.Append(nil) }),
		"other":     changes(func(s *Stripe) []byte { s.Index = (s.Index + 1) % s.N; return s.Append(nil) }),
		"stale k/n": changes(func(s *Stripe) []byte { s.N++; return s.Append(nil) }),
		"other name": changes(func(s *Stripe) []byte {
			s.Name[0] ^= 1
			return s.Append(nil)
		}),
		"other size": changes(func(s *Stripe) []byte { s.ChunkSize--; return s.Append(nil) }),
		"cut": {serve: func(n *testNode, id StripeID) http.HandlerFunc {
			b := n.holds(id)
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				_, _ = w.Write(b[:len(b)/2])
			}
		}},
		"endless": behaves(func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				if _, err := w.Write(noise); err != nil {
					return
				}
			}
		}),
		"huge": behaves(func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000000000000") }),
		"long header": behaves(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", maxAnswerHeader+1))
			send(w, noise)
		}),
		"hangs": behaves(hang),
		"trickles": {serve: func(n *testNode, id StripeID) http.HandlerFunc {
			b := n.holds(id)
			return func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				_, _ = w.Write(b[:100])
				w.(http.Flusher).Flush()
				hang(w, r)
			}
		}},
	}
}

// inflict makes the node of one stripe go wrong.
func (z *testZone) inflict(name chunk.Name, index int, f fault) {
	n, id := z.at(name)[index], z.id(name, index)
	if f.plant != nil {
		f.plant(n, id, n.holds(id))
		return
	}
	n.behave(f.serve(n, id))
}

// TestOneFault: each fault on each node, and no read fails or gives a wrong
// byte.
func TestOneFault(t *testing.T) {
	for what, f := range faults() {
		t.Run(what, func(t *testing.T) {
			for index := range 5 {
				z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1})
				s := z.fill(1, 1027)
				z.inflict(s.Name, index, f)
				z.wants(s)
				z.wants(s)
				if st := z.Stats(); st.Hits != 2 || st.Misses+st.Failed > 0 {
					t.Errorf("%+v", st)
				}
				_ = z.Close()
			}
		})
	}
}

// TestTwoFaults: what 4-of-6 bears in every pair; 4-of-5 gives the right bytes
// or none.
func TestTwoFaults(t *testing.T) {
	all := faults()
	r := rand.New(rand.NewPCG(1, 2))
	names := sorted(all)
	for i, one := range names {
		other := names[r.IntN(len(names))]
		n := 5 + i%2
		t.Run(fmt.Sprintf("%s, %s, 4 of %d", one, other, n), func(t *testing.T) {
			z := newZone(t, n, Options{K: 4, N: n, Repairs: -1})
			s := z.fill(2, 70_000)
			if n == 5 { // of six, enough answer
				z.o.Deadline = 300 * time.Millisecond // for nodes that hang
			}
			at := r.Perm(n)
			z.inflict(s.Name, at[0], all[one])
			z.inflict(s.Name, at[1], all[other])
			got, err := z.Get(t.Context(), s.Name)
			if err == nil && !bytes.Equal(got, s.Data) {
				t.Fatal("wrong bytes")
			}
			if err != nil && n == 6 {
				t.Errorf("two of six: %v", err)
			}
			if err == nil && n == 5 && one != other {
				t.Logf("two of five borne")
			}
		})
	}
}

// TestAllFault: a clean error, the right one, by the deadline.
func TestAllFault(t *testing.T) {
	for what, f := range faults() {
		t.Run(what, func(t *testing.T) {
			z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1})
			s := z.fill(3, 70_000)
			if what == "hangs" || what == "trickles" {
				z.o.Deadline = 200 * time.Millisecond
			}
			for index := range 5 {
				z.inflict(s.Name, index, f)
			}
			got, err := z.Get(t.Context(), s.Name)
			want := error(nil)
			switch what {
			case "lost":
				want = chunk.ErrNotFound
			case "empty", "bit", "forged", "other", "stale k/n", "other name", "noise", "endless", "huge", "other size":
				want = chunk.ErrCorrupt
			}
			switch {
			case err == nil:
				t.Fatalf("%d bytes from nowhere", len(got))
			case want != nil && !errors.Is(err, want):
				t.Errorf("%v, want %v", err, want)
			case want == nil && (errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrCorrupt)):
				t.Errorf("%v: says something of the chunk", err)
			}
		})
	}
}

// TestForgedIsFound: a stripe that has its checksum and is wrong is found by
// leaving it out, and put right.
func TestForgedIsFound(t *testing.T) {
	for index := range 5 {
		z := newZone(t, 5, Options{K: 4, N: 5, Repairs: 1000})
		s := z.fill(4, 1000)
		n, id := z.at(s.Name)[index], z.id(s.Name, index)
		right := n.holds(id)
		z.inflict(s.Name, index, faults()["forged"])
		until(t, "the forged stripe is repaired", func() bool {
			z.wants(s)
			return bytes.Equal(n.holds(id), right) && z.Stats().Repaired > 0
		})
		if st := z.Stats(); st.Failed+st.Misses > 0 || st.Repaired != 1 || st.RepairsFailed > 0 {
			t.Errorf("index %d: %+v", index, st)
		}
		_ = z.Close()
	}
}

// TestRepair: a stripe that is lost or rotten is put again; others are left.
func TestRepair(t *testing.T) {
	for _, what := range []string{"lost", "bit", "other", "other size"} {
		t.Run(what, func(t *testing.T) {
			z := newZone(t, 5, Options{K: 4, N: 5, Repairs: 1000})
			s := z.fill(5, 1000)
			n, id := z.at(s.Name)[2], z.id(s.Name, 2)
			right := n.holds(id)
			z.inflict(s.Name, 2, faults()[what])
			until(t, "it is repaired", func() bool {
				z.wants(s)
				return bytes.Equal(n.holds(id), right)
			})
			until(t, "it is counted", func() bool { return z.Stats().Repaired == 1 })
			puts := int64(0)
			for _, n := range z.nodes {
				puts += n.puts.Load()
			}
			if puts != 6 {
				t.Errorf("%d uploads for 5 stripes and a repair", puts)
			}
		})
	}
}

// TestRepairIsBounded: many chunks on a new node wait their turn, and those
// that don't fit are counted.
func TestRepairIsBounded(t *testing.T) {
	z := newZone(t, 1, Options{Repairs: 1})
	for i := range maxRepairs + 10 {
		z.repair(chunk.Name{1, byte(i), byte(i >> 8)})
		z.repair(chunk.Name{1, byte(i), byte(i >> 8)})
	}
	if left := z.Stats().RepairsLeft; left < 8 || left > 20 {
		t.Errorf("%d left out of the queue, want 8 to 20 (each of 10 was noted twice)", left)
	}
}

// TestSoak reads under changing faults of one node at a time: the source is
// compared with every read, and none fails.
func TestSoak(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 7, Options{K: 4, N: 5, Repairs: 100})
	var chunks []chunk.Sealed
	for i := range byte(8) {
		chunks = append(chunks, z.fill(i, 1000+int(i)*10_000))
	}
	var behaviours []http.HandlerFunc
	for _, what := range []string{"500", "empty", "noise", "resets", "endless", "huge", "hangs"} {
		behaviours = append(behaviours, faults()[what].serve(nil, StripeID{}))
	}
	var wg sync.WaitGroup
	var reads [3]atomic.Int64 // that are over, of each reader
	for r := range reads {
		wg.Go(func() {
			for i := range 150 {
				s := chunks[i%len(chunks)]
				if got, err := z.Get(t.Context(), s.Name); err != nil || !bytes.Equal(got, s.Data) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				reads[r].Add(1)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for i, addrs := 0, sorted(z.nodes); ; i++ {
		n := z.nodes[addrs[i%len(addrs)]]
		faulty, mend := context.WithCancel(t.Context())
		n.behave(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(faulty, cancel)() // who hangs takes no places from the next fault's reads
			behaviours[i%len(behaviours)](w, r.WithContext(ctx))
		})
		before := n.gets.Load()
		until(t, "the fault has been met", func() bool {
			select {
			case <-done:
				return true
			default:
				return n.gets.Load() > before+5
			}
		})
		n.behave(nil)
		mend()
		select {
		case <-done:
			return
		default:
		}
		// reads that may have met this fault must be over before the next begins
		for r := range reads {
			over := reads[r].Load()
			until(t, "a read is over", func() bool { return reads[r].Load() > over || over == 150 })
		}
	}
}

// sample chunks that no zone has.
func absent(seed byte) chunk.Name { return chunktest.Sample(200+seed, 100).Name }
