package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"thaw/chunk/chunktest"
	"thaw/zone"
	"thaw/zone/node"
)

// fig9 is the time in µs of four parallel requests of which all are needed, by
// the share that took no longer: the "4 of 4" of the paper's figure 9. The
// first point is a guess; behind the last one the tail goes on as it does
// before it.
func fig9() [][2]float64 {
	return [][2]float64{{0, 1100}, {.10, 1226}, {.50, 1434}, {.75, 1687}, {.90, 2346}, {.95, 3023}, {.97, 3599}, {.98, 3969}}
}

// fourOfFour gives the time that a share of 4-of-4 reads stay below. Between
// the points it is that of an exponential tail.
func fourOfFour(share float64) time.Duration {
	points, x := fig9(), -math.Log1p(-share)
	i := 1
	for i < len(points)-1 && share > points[i][0] {
		i++
	}
	a, b := -math.Log1p(-points[i-1][0]), -math.Log1p(-points[i][0])
	us := points[i-1][1] + (points[i][1]-points[i-1][1])*(x-a)/(b-a)
	return time.Duration(us * float64(time.Microsecond))
}

// draws gives delays of five nodes, independent, each with the CDF
// (4-of-4's)^¼, so that the slowest of the first four is spread as figure 9
// says. They are spread evenly over that distribution and not by chance (a
// lattice in the three dimensions that count: the slowest of four, the next,
// and the fifth), so that thousands of samples are enough.
func draws(count int) [][5]time.Duration {
	r := rand.New(rand.NewPCG(9, 5))
	all := make([][5]time.Duration, count)
	for i, at := range r.Perm(count) {
		_, second := math.Modf(float64(i) * 0.7548776662466927) // 1/ρ and 1/ρ², ρ the plastic number: as even as two can be
		_, fifth := math.Modf(float64(i) * 0.5698402909980532)
		slowest := math.Pow((float64(i)+.5)/float64(count), 1./4)
		next := slowest * math.Pow(second, 1./3)
		u := [5]float64{slowest, next, next * r.Float64(), next * r.Float64(), fifth}
		r.Shuffle(4, func(a, b int) { u[a], u[b] = u[b], u[a] })
		for j := range u {
			all[at][j] = fourOfFour(math.Pow(u[j], 4))
		}
	}
	return all
}

// pipes is a network of listeners in memory, so that it can lie in a bubble of
// fake time.
type pipes struct {
	ctx       context.Context
	listeners map[string]chan net.Conn
}

func (p *pipes) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.listeners[addr] <- theirs:
		return ours, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pipeListener is one of them.
type pipeListener struct {
	*pipes
	addr string
}

func (l pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.listeners[l.addr]:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}
func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: l.addr, Net: "pipe"} }

// turns makes each GET of the stripe of index i wait for the next of i's delays.
type turns struct {
	delays [][5]time.Duration
	mu     sync.Mutex
	served [5]int // guarded by mu: by index
}

func (d *turns) wait(r *http.Request) {
	id, err := zone.ParsePath(r.URL.Path)
	if err != nil || r.Method != http.MethodGet {
		return
	}
	d.mu.Lock()
	delay := d.delays[d.served[id.Index]][id.Index]
	d.served[id.Index]++
	d.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
	}
}

// readTimes reads a chunk of k-of-n from n nodes once for each draw, and gives
// the times that it took, ascending.
func readTimes(t *testing.T, k, n int, delays [][5]time.Duration) (times []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		network := &pipes{ctx, map[string]chan net.Conn{}}
		var serving sync.WaitGroup
		var addrs []string
		var closers []func() error
		turns := &turns{delays: delays}
		for i := range n {
			addrs = append(addrs, fmt.Sprintf("10.0.0.%d:7000", i))
			network.listeners[addrs[i]] = make(chan net.Conn)
		}
		for _, addr := range addrs {
			store, err := node.Open(node.Options{Memory: 64 << 20})
			if err != nil {
				t.Fatal(err)
			}
			stripes := store.Handler()
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				turns.wait(r)
				stripes.ServeHTTP(w, r)
			})}
			serving.Go(func() { _ = server.Serve(pipeListener{network, addr}) })
			closers = append(closers, server.Close, store.Close)
		}
		c, err := zone.NewClient(zone.Options{Zone: strings.Join(addrs, ","), K: k, N: n, Dial: network.dial, Repairs: -1})
		if err != nil {
			t.Fatal(err)
		}
		s := chunktest.Sample(1, 4<<10)
		if err := c.Put(t.Context(), s.Name, s.Data); err != nil {
			t.Fatal(err)
		}
		for range delays {
			began := time.Now()
			if _, err := c.Get(t.Context(), s.Name); err != nil {
				t.Fatal(err)
			}
			times = append(times, time.Since(began))
		}
		_ = c.Close()
		cancel()
		for _, end := range closers {
			_ = end()
		}
		serving.Wait()
	})
	slices.Sort(times)
	return times
}

// TestErasureTail holds the zone's client, its nodes and their HTTP between
// them to what the code is for: with nodes that are slow now and then, each for
// itself, 4 of 5 cuts the tail of 4 of 4 and costs the median nothing. Time is
// fake, so that only the delays count, and the same on every machine.
func TestErasureTail(t *testing.T) {
	delays := draws(4000)
	five, four := readTimes(t, 4, 5, delays), readTimes(t, 4, 4, delays)
	for _, q := range []struct{ share, atMost float64 }{{.10, 1}, {.50, 1}, {.90, 1}, {.95, .55}, {.99, .55}} {
		i := int(q.share * float64(len(delays)))
		ratio := float64(five[i]) / float64(four[i])
		say("4 of 5 beside 4 of 4, delays of figure 9, p%.0f: %v beside %v, %.1f %% lower", 100*q.share, five[i], four[i], 100*(1-ratio))
		if ratio > q.atMost {
			t.Errorf("p%.0f: %.3f of 4 of 4's, want %.2f at most", 100*q.share, ratio, q.atMost)
		}
	}
}

// BenchmarkErasureTail runs TestErasureTail, which needs a testing.T for its
// fake time, and lets it say what it found.
func BenchmarkErasureTail(b *testing.B) {
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		cmd := exec.CommandContext(b.Context(), self, "-test.run=^TestErasureTail$")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
	}
}
