package zone_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/zone"
	"thaw/zone/node"
)

// realZone starts nodes of package node, each by its own server or by
// net/http's, and gives their --zone value.
func realZone(t testing.TB, count int, own bool) (string, []*node.Node) {
	t.Helper()
	var addrs []string
	var nodes []*node.Node
	for range count {
		n, err := node.Open(node.Options{Memory: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var serving sync.WaitGroup
		server := &http.Server{Handler: n.Handler()}
		serving.Go(func() {
			if own {
				_ = n.Serve(ctx, l)
			} else {
				_ = server.Serve(l)
			}
		})
		t.Cleanup(func() {
			cancel()
			_ = server.Close()
			serving.Wait()
			_ = n.Close()
		})
		addrs, nodes = append(addrs, l.Addr().String()), append(nodes, n)
	}
	return strings.Join(addrs, ","), nodes
}

func client(t testing.TB, o zone.Options) *zone.Client {
	t.Helper()
	if o.Deadline == 0 {
		o.Deadline = time.Minute
	}
	c, err := zone.NewClient(o)
	if err != nil {
		t.Fatal(err)
	}
	zone.HearAll(c)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestWithNodes holds client and nodes to one understanding of the wire.
func TestWithNodes(t *testing.T) {
	for name, own := range map[string]bool{"net/http": false, "own server": true} {
		t.Run(name, func(t *testing.T) {
			t.Run("lengths", func(t *testing.T) { withLengths(t, own) })
			t.Run("lease", func(t *testing.T) { withLease(t, own) })
			t.Run("repair", func(t *testing.T) { withRepair(t, own) })
			t.Run("drain", func(t *testing.T) { withDrain(t, own) })
		})
	}
}

func withLengths(t *testing.T, own bool) {
	list, _ := realZone(t, 5, own)
	for _, kn := range [][2]int{{4, 5}, {1, 1}, {2, 4}} {
		c := client(t, zone.Options{Zone: list, K: kn[0], N: kn[1]})
		for i, size := range []int{1, 5, 1000, 64 << 10, 512 << 10, 2 << 20} {
			s := chunktest.Sample(byte(i), size)
			if _, err := c.Get(t.Context(), s.Name); !errors.Is(err, chunk.ErrNotFound) {
				t.Fatalf("not there: %v", err)
			}
			for range 2 { // the second finds it there
				if err := c.Put(t.Context(), s.Name, s.Data); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := c.Get(t.Context(), s.Name); err != nil || !bytes.Equal(got, s.Data) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		}
		if s := c.Stats(); s.Hits != 6 || s.Misses != 6 || s.Fills != 12 || s.Bad+s.Failed+s.Refused+s.Mismatched > 0 {
			t.Errorf("%+v", s)
		}
	}
}

// withLease: of three workers one fills, and the two others get it from the
// zone.
func withLease(t *testing.T, own bool) {
	list, _ := realZone(t, 5, own)
	one := client(t, zone.Options{Zone: list, Worker: "one"})
	s := chunktest.Sample(1, 100_000)
	if _, err := one.Get(t.Context(), s.Name); !errors.Is(err, chunk.ErrNotFound) || one.Stats().Granted != 1 {
		t.Fatalf("%v, %+v", err, one.Stats())
	}
	var wg sync.WaitGroup
	var others []*zone.Client
	for _, worker := range []string{"two", "three"} {
		c := client(t, zone.Options{Zone: list, Worker: worker})
		others = append(others, c)
		wg.Go(func() {
			// A lease ends: then this worker has it, and fills.
			if got, err := c.Get(t.Context(), s.Name); err == nil && !bytes.Equal(got, s.Data) || err != nil && !errors.Is(err, chunk.ErrNotFound) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	one.Fill(s.Name, s.Data)
	wg.Wait()
	for _, c := range others {
		if st := c.Stats(); st.Hits != 1 && st.Granted != 1 && st.Waited != 1 {
			t.Errorf("neither waited nor got it: %+v", st)
		}
	}
}

// withRepair: chunks of which one node lost a stripe are whole again.
func withRepair(t *testing.T, own bool) {
	list, _ := realZone(t, 5, own)
	spare, _ := realZone(t, 1, own)
	before := client(t, zone.Options{Zone: list, K: 4, N: 5})
	// A node is replaced by an empty one. That moves another stripe of some
	// chunks too, which are misses then.
	after := client(t, zone.Options{Zone: list[strings.Index(list, ",")+1:] + "," + spare, K: 4, N: 5, Repairs: 1000})
	var hits []chunk.Name
	for i := range byte(20) {
		s := chunktest.Sample(i, 1000)
		if err := before.Put(t.Context(), s.Name, s.Data); err != nil {
			t.Fatal(err)
		}
		got, err := after.Get(t.Context(), s.Name)
		if err == nil && !bytes.Equal(got, s.Data) || err != nil && !errors.Is(err, chunk.ErrNotFound) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if err == nil {
			hits = append(hits, s.Name)
		}
	}
	if len(hits) == 0 {
		t.Fatal("all chunks are lost with one node")
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for after.Stats().Repaired < uint64(len(hits)) { // each lost one stripe: the replaced node's
		for _, name := range hits { // a chunk that is there before that node was asked is not known to lack it
			if _, err := after.Get(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		<-tick.C
	}
}

// withDrain: a node that is drained gives what it has and takes nothing.
func withDrain(t *testing.T, own bool) {
	list, nodes := realZone(t, 5, own)
	c := client(t, zone.Options{Zone: list, K: 4, N: 5})
	a, b := chunktest.Sample(1, 1000), chunktest.Sample(2, 1000)
	if err := c.Put(t.Context(), a.Name, a.Data); err != nil {
		t.Fatal(err)
	}
	nodes[0].Drain()
	if err := c.Put(t.Context(), b.Name, b.Data); err != nil || c.Stats().Refused != 1 {
		t.Errorf("one drained: %v, %d stripes refused", err, c.Stats().Refused)
	}
	nodes[1].Drain()
	if err := c.Put(t.Context(), chunktest.Sample(3, 1000).Name, chunktest.Sample(3, 1000).Data); err == nil {
		t.Error("two drained, and a chunk of 4 of 5 is said to be put")
	}
	for _, s := range []chunk.Sealed{a, b} {
		if got, err := c.Get(t.Context(), s.Name); err != nil || !bytes.Equal(got, s.Data) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}

// BenchmarkGet reads a chunk of 512 KiB from five nodes in this process: their
// processor time is in it.
func BenchmarkGet(b *testing.B) {
	list, _ := realZone(b, 5, true)
	c := client(b, zone.Options{Zone: list, K: 4, N: 5})
	s := chunktest.Sample(1, chunk.DefaultSize)
	if err := c.Put(b.Context(), s.Name, s.Data); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(chunk.DefaultSize)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Get(b.Context(), s.Name); err != nil {
			b.Fatal(err)
		}
	}
	st := c.Stats()
	b.ReportMetric(float64(st.Network.Quantile(.5).Microseconds()), "network-µs")
	b.ReportMetric(float64(st.FirstK.Quantile(.5).Microseconds()), "first-k-µs")
	b.ReportMetric(float64(st.Rebuild.Quantile(.5).Microseconds()), "rebuild-µs")
	b.ReportMetric(float64(st.Hash.Quantile(.5).Microseconds()), "hash-µs")
}
