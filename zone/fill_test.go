package zone

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// TestFill puts chunks in the background, stripe 0 last, and keeps no hold of
// the caller's bytes.
func TestFill(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 5, Options{})
	s := chunktest.Sample(1, 100_000)
	given := bytes.Clone(s.Data)
	z.Fill(s.Name, given)
	clear(given)
	until(t, "the chunk is put", func() bool { return z.Stats().Fills == 1 })
	z.wants(s)
	for i, n := range z.at(s.Name) {
		if n.holds(z.id(s.Name, i)) == nil {
			t.Errorf("stripe %d is nowhere", i)
		}
	}
	z.Fill(s.Name, nil)
	z.Fill(s.Name, make([]byte, chunk.MaxSize+1))
	if st := z.Stats(); st.Dropped != 2 || st.Fills != 1 {
		t.Errorf("%+v", st)
	}
}

// TestStripe0IsLast: while the others are on their way, nobody finds it.
func TestStripe0IsLast(t *testing.T) {
	z := newZone(t, 5, Options{})
	z.settle = time.Minute // it waits for slow ones, but not for ever
	for i := range byte(5) {
		s := z.fill(i, 1000)
		at := z.at(s.Name)
		last := at[0].putAt(z.id(s.Name, 0))
		for index := 1; index < 5; index++ {
			if when := at[index].putAt(z.id(s.Name, index)); when.After(last) {
				t.Errorf("stripe %d came %v after stripe 0", index, when.Sub(last))
			}
		}
	}
}

// blockPuts makes nodes hold uploads until release is called.
func blockPuts(t *testing.T, z *testZone, which func(i int) bool) (release func(), held *atomic.Int64) {
	gate, held := make(chan struct{}), new(atomic.Int64)
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	for i, addr := range sorted(z.nodes) {
		n := z.nodes[addr]
		if which(i) {
			wait := func(r *http.Request) {
				held.Add(1)
				select {
				case <-gate:
				case <-r.Context().Done():
					panic(http.ErrAbortHandler)
				}
			}
			n.before.Store(&wait)
		}
	}
	return release, held
}

// TestFillIsBounded: more than fits is dropped at once and counted, and what
// waits twice is put once.
func TestFillIsBounded(t *testing.T) {
	z := newZone(t, 1, Options{FillBytes: 2500})
	release, _ := blockPuts(t, z, func(int) bool { return true })
	var chunks []chunk.Sealed
	for i := range byte(5) {
		chunks = append(chunks, chunktest.Sample(i, 1000))
	}
	for range 2 {
		for _, s := range chunks[:2] {
			z.Fill(s.Name, s.Data)
		}
	}
	for _, s := range chunks[2:] {
		z.Fill(s.Name, s.Data)
	}
	if d := z.Stats().Dropped; d != 3 {
		t.Errorf("%d dropped, want 3 of 5: 2,500 bytes may wait", d)
	}
	release()
	until(t, "two are put", func() bool { return z.Stats().Fills == 2 })
	until(t, "there is room again", func() bool {
		z.Fill(chunks[4].Name, chunks[4].Data)
		return z.Stats().Fills >= 3
	})
}

// TestFillBesideHangingNode: a node that takes no upload does not hold up the
// others' for longer than its turn.
func TestFillBesideHangingNode(t *testing.T) {
	z := newZone(t, 5, Options{FillBytes: 1 << 30})
	blockPuts(t, z, func(i int) bool { return i == 0 })
	const many = 3 * maxPuts
	held := z.nodes[sorted(z.nodes)[0]]
	for i, first := range []bool{true, false} { // as many as there are fills at once have stripe 0 there
		seed := byte(i * 128)
		for range []int{maxFills, many - maxFills}[i] {
			s := chunktest.Sample(seed, 1000)
			for ; (z.at(s.Name)[0] == held) != first; s = chunktest.Sample(seed, 1000) {
				seed++
			}
			seed++
			z.Fill(s.Name, s.Data)
		}
	}
	until(t, "what fits waits for the node, the rest goes on without it", func() bool {
		return z.Stats().Fills >= many-maxPuts && z.Stats().Refused >= many-maxPuts
	})
	if held.puts.Load() > 0 {
		t.Error("the node took one")
	}
	if err := z.Close(); err != nil {
		t.Error(err)
	}
}

// TestPut tells what came of it.
func TestPut(t *testing.T) {
	z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1})
	s := chunktest.Sample(1, 1000)
	if err := z.Put(t.Context(), s.Name, s.Data[1:]); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("bytes that are not the name's: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := z.Put(ended, s.Name, s.Data); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
	z.at(s.Name)[1].Close()
	if err := z.Put(t.Context(), s.Name, s.Data); err != nil {
		t.Errorf("one node dead: %v", err)
	}
	if err := z.Put(t.Context(), s.Name, s.Data); err != nil {
		t.Errorf("again: %v", err)
	}
	z.at(s.Name)[0].Close()
	if err := z.Put(t.Context(), s.Name, s.Data); err == nil {
		t.Error("two nodes dead, and it is said to be put")
	}
}

// TestPutReplaces what other bytes a node has under the ID.
func TestPutReplaces(t *testing.T) {
	z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1})
	s := z.fill(1, 1000)
	for index := range 5 {
		z.inflict(s.Name, index, faults()["forged"])
	}
	if _, err := z.Get(t.Context(), s.Name); !errors.Is(err, chunk.ErrCorrupt) {
		t.Errorf("all forged: %v", err)
	}
	if err := z.Put(t.Context(), s.Name, s.Data); err != nil {
		t.Error(err)
	}
	z.wants(s)
}

// TestLease: of two workers that miss a chunk one is to fill it, and the other
// waits for that and asks the zone again, once.
func TestLeaseOfAnother(t *testing.T) {
	z := newZone(t, 5, Options{K: 4, N: 5, Worker: "one"})
	other, err := NewClient(Options{Zone: z.o.Zone, K: 4, N: 5, Worker: "two", Deadline: time.Minute, LeaseWait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	HearAll(other)
	s := chunktest.Sample(1, 1000)
	if _, err := z.Get(t.Context(), s.Name); !errors.Is(err, chunk.ErrNotFound) || z.Stats().Granted != 1 {
		t.Fatalf("%v, %d leases", err, z.Stats().Granted)
	}
	for _, n := range z.nodes { // as long as the test takes: 1 s is for workers that die
		n.leaseFor.Store(int64(MaxWait))
		n.patient.Store(true)
	}
	got := make(chan []byte)
	go func() {
		data, err := other.Get(t.Context(), s.Name)
		if err != nil {
			t.Error(err)
		}
		got <- data
	}()
	until(t, "the other waits", func() bool { return other.Stats().Waited == 1 })
	z.Fill(s.Name, s.Data)
	if data := <-got; !bytes.Equal(data, s.Data) {
		t.Errorf("%d other bytes", len(data))
	}
	if st := other.Stats(); st.Hits != 1 || st.WaitedFor != 1 || st.Misses > 0 || st.Granted > 0 {
		t.Errorf("%+v", st)
	}
}

// TestLeaseEnds: a worker that does not fill holds up nobody for long.
func TestLeaseEnds(t *testing.T) {
	z := newZone(t, 5, Options{K: 4, N: 5, Worker: "one", LeaseWait: 20 * time.Millisecond})
	if _, err := z.Get(t.Context(), absent(1)); !errors.Is(err, chunk.ErrNotFound) {
		t.Error(err)
	}
	if _, err := z.Get(t.Context(), absent(1)); !errors.Is(err, chunk.ErrNotFound) {
		t.Error(err)
	}
	if st := z.Stats(); st.Misses != 2 || st.Granted != 1 || st.Waited != 1 || st.WaitedFor != 0 {
		t.Errorf("%+v", st)
	}
}

// TestDeadFirstNode: no lease, and a miss all the same.
func TestDeadFirstNode(t *testing.T) {
	for _, what := range []string{"dead", "500", "noise"} { // one that hangs may be waited for longer than others answer
		z := newZone(t, 5, Options{K: 4, N: 5, Worker: "one"})
		z.inflict(absent(2), 0, faults()[what])
		if _, err := z.Get(t.Context(), absent(2)); !errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("%s: %v", what, err)
		}
		_ = z.Close()
	}
}

// TestConnectionsAreKept: a straggler in every chunk costs no connections. With
// requests cancelled once the first k are there, it would be one each.
func TestConnectionsAreKept(t *testing.T) {
	z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1})
	s := z.fill(1, 1000)
	slow := z.at(s.Name)[1]
	arrived, step := make(chan struct{}), make(chan struct{})
	slow.behave(func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-step
		send(w, slow.holds(z.id(s.Name, 1)))
	})
	other := z.at(s.Name)[2]
	other.behave(func(w http.ResponseWriter, r *http.Request) {
		<-arrived // or the chunk could be there before the straggler is asked
		send(w, other.holds(z.id(s.Name, 2)))
	})
	for n := range 100 {
		z.wants(s)
		step <- struct{}{} // it answers when the chunk is there already
		until(t, "it is heard", func() bool { return z.Stats().Stragglers > uint64(n) })
	}
	if st := z.Stats(); st.Cancelled > 0 {
		t.Errorf("%d cancelled", st.Cancelled)
	}
	t.Logf("%d connections", slow.conns.Load())
	if got := slow.conns.Load(); got > 10 { // one may be heard before its connection is free
		t.Errorf("%d connections for 100 chunks", got)
	}
}

// TestHangingNodeIsBounded: chunks are read on while a node hangs, and no more
// requests wait for it than Conns; those never sent end with their chunk.
func TestHangingNodeIsBounded(t *testing.T) {
	noLeaks(t)
	z := newZone(t, 5, Options{K: 4, N: 5, Repairs: -1, Conns: 8})
	s := z.fill(1, 1000)
	z.inflict(s.Name, 3, faults()["hangs"])
	for range 100 {
		z.wants(s)
	}
	hung := z.at(s.Name)[3]
	until(t, "those not sent have ended", func() bool { return z.Stats().Cancelled >= 92 })
	if gets := hung.gets.Load(); gets > 8 {
		t.Errorf("%d requests, want 8 at most", gets)
	}
}
