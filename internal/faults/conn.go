package faults

import (
	"context"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// segmentSize is read at once, and written at once under a bandwidth limit.
	segmentSize = 16 << 10
	// queued bounds the segments that wait for their time in one direction of
	// one connection; then the sender waits.
	queued = 64
)

// conn is a client's connection and its twin to the target.
type conn struct {
	p      *Proxy
	number uint64
	client *net.TCPConn
	ctx    context.Context // over once end was called
	cancel context.CancelFunc
	ended  sync.Once

	mu     sync.Mutex   // guards target
	target *net.TCPConn // nil before it is reached
}

// serve passes bytes until both ways are over.
func (c *conn) serve(target string) {
	defer c.end(false)
	var d net.Dialer
	up, err := d.DialContext(c.ctx, "tcp", target)
	if err != nil {
		c.p.counts.unreached.Add(1)
		c.end(true)
		return
	}
	c.mu.Lock()
	c.target = up.(*net.TCPConn)
	c.mu.Unlock()
	if c.ctx.Err() != nil { // end may not have seen the target
		_ = up.Close()
		return
	}
	replies := newPipe(c, toClient, c.target, c.client)
	requests := newPipe(c, toTarget, c.client, c.target)
	replies.other, requests.other = requests, replies
	var wg sync.WaitGroup
	for _, f := range []func(){replies.read, replies.write, requests.read, requests.write} {
		wg.Go(f)
	}
	wg.Wait()
}

// end closes both connections, by reset if so wanted.
func (c *conn) end(reset bool) {
	c.ended.Do(func() {
		c.cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, side := range []*net.TCPConn{c.client, c.target} {
			if side == nil {
				continue
			}
			if reset {
				_ = side.SetLinger(0)
			}
			_ = side.Close()
		}
	})
}

// segment is what was read at once.
type segment struct {
	data []byte
	due  time.Time
	from *setting // that made it due then
	turn bool     // the first after bytes of the other direction
	last bool     // the sender has ended
	torn bool     // and not in order
}

// pipe is one direction of a conn. One goroutine reads and says when a segment
// is due; another breaks and writes it.
type pipe struct {
	c        *conn
	to       direction
	src, dst *net.TCPConn
	other    *pipe
	queue    chan segment
	turned   atomic.Bool // the other direction had bytes since this one had
	drop     atomic.Bool // bytes go nowhere any more

	// of the writing goroutine
	draw    *rand.Rand
	setting *setting
	link    Link
	limit   int64 // bytes until the connection is ended; less than 0: never
	flip    int64 // bytes that may be flipped until one is; less than 0: never
	header  header
	paced   time.Time // when the bandwidth allows the next byte
}

func newPipe(c *conn, to direction, src, dst *net.TCPConn) *pipe {
	w := &pipe{c: c, to: to, src: src, dst: dst, queue: make(chan segment, queued)}
	w.draw = stream(c.p.seed, c.number, to, forBytes)
	w.turned.Store(true)
	return w
}

func (w *pipe) read() {
	defer close(w.queue)
	draw := stream(w.c.p.seed, w.c.number, w.to, forDelay)
	var in *setting
	var delay time.Duration
	for {
		buf := make([]byte, segmentSize)
		n, err := w.src.Read(buf)
		seg := segment{data: buf[:n], last: err != nil, torn: err != nil && !errors.Is(err, io.EOF)}
		if n > 0 {
			w.other.turned.Store(true)
			seg.turn = w.turned.Swap(false)
		}
		if now := w.c.p.setting(w.to); n > 0 && (seg.turn || now != in) {
			in = now
			delay = in.delay(in.on(w.c.p.seed, w.c.number, w.to), draw)
			if delay > 0 {
				w.c.p.counts.delays.Add(1)
			}
		}
		seg.from, seg.due = in, time.Now().Add(delay)
		select {
		case w.queue <- seg:
		case <-w.c.ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

func (w *pipe) write() {
	for seg := range w.queue {
		if w.drop.Load() {
			continue
		}
		if !w.hold(seg) {
			w.c.end(false)
			return
		}
		if seg.turn {
			w.header = header{}
		}
		switch {
		case !w.pass(seg.data): // whatever more comes is dropped
			w.drop.Store(true)
		case seg.torn:
			w.c.end(true)
		case seg.last:
			_ = w.dst.CloseWrite()
		}
	}
}

// hold waits until a segment is due and nothing is stalled. A new setting ends
// the wait for what an old one delayed. False: the connection has ended.
func (w *pipe) hold(seg segment) bool {
	for {
		now := w.c.p.setting(w.to)
		w.obey(now)
		var due <-chan time.Time
		switch left := time.Until(seg.due); {
		case w.link.Stall:
		case left <= 0 || seg.from != now:
			return true
		default:
			timer := time.NewTimer(left)
			defer timer.Stop() // few: one for each change of the setting
			due = timer.C
		}
		select {
		case <-due:
			return true
		case <-now.changed:
		case <-w.c.ctx.Done():
			return false
		}
	}
}

// obey puts a setting in force.
func (w *pipe) obey(s *setting) {
	if s == w.setting {
		return
	}
	w.setting, w.link = s, s.on(w.c.p.seed, w.c.number, w.to)
	w.limit, w.flip, w.paced = -1, -1, time.Time{}
	switch l := w.link; {
	case l.ResetAfter > 0 && (l.CutAfter <= 0 || l.ResetAfter <= l.CutAfter):
		w.limit = l.ResetAfter
	case l.CutAfter > 0:
		w.limit = l.CutAfter
	}
	if w.limit > 0 && w.link.Anywhere {
		w.limit = 1 + w.draw.Int64N(w.limit)
	}
	w.nextFlip()
}

// nextFlip draws how many bytes stay whole: geometric, as if each were drawn.
func (w *pipe) nextFlip() {
	switch p := w.link.Flip; {
	case p <= 0:
		w.flip = -1
	case p >= 1:
		w.flip = 0
	default:
		n := math.Log(1-w.draw.Float64()) / math.Log1p(-p)
		w.flip = int64(min(n, math.MaxInt64/2))
	}
}

// pass breaks and writes bytes. False: the connection is to be left.
func (w *pipe) pass(data []byte) bool {
	over := w.limit >= 0 && int64(len(data)) >= w.limit
	if over {
		data = data[:w.limit]
	}
	w.corrupt(data)
	for len(data) > 0 {
		part := data
		if w.link.Bandwidth > 0 {
			part = data[:min(len(data), segmentSize)]
			if !w.pace(len(part)) {
				return false
			}
		}
		n, err := w.dst.Write(part)
		w.c.p.counts.bytes[w.to].Add(int64(n))
		if w.limit >= 0 {
			w.limit -= int64(n)
		}
		if err != nil {
			if !w.drop.Load() {
				w.c.end(true)
			}
			return false
		}
		data = data[n:]
	}
	if over {
		w.breakOff()
	}
	return !over
}

// breakOff ends the connection as ResetAfter or CutAfter want it. A receiver
// whose bytes are cut is let speak on, unheard, until it hangs up: closing its
// connection with bytes unread would make a reset of it.
func (w *pipe) breakOff() {
	if w.link.CutAfter <= 0 || (w.link.ResetAfter > 0 && w.link.ResetAfter <= w.link.CutAfter) {
		w.c.p.counts.resets.Add(1)
		w.c.end(true)
		return
	}
	w.c.p.counts.cuts.Add(1)
	w.drop.Store(true)
	w.other.drop.Store(true)
	_ = w.dst.CloseWrite()
	_ = w.src.Close()
}

// pace waits until the bandwidth allows n bytes more.
func (w *pipe) pace(n int) bool {
	now := time.Now()
	if w.paced.Before(now) {
		w.paced = now
	}
	w.paced = w.paced.Add(time.Duration(float64(n) / float64(w.link.Bandwidth) * float64(time.Second)))
	timer := time.NewTimer(w.paced.Sub(now))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-w.setting.changed:
		return true
	case <-w.c.ctx.Done():
		return false
	}
}

// corrupt flips bits in place.
func (w *pipe) corrupt(data []byte) {
	if w.link.Body {
		data = data[w.header.skip(data):]
	}
	for w.flip >= 0 && w.flip < int64(len(data)) {
		data[w.flip] ^= 1 << w.draw.IntN(8)
		w.c.p.counts.flips.Add(1)
		data = data[w.flip+1:]
		w.nextFlip()
	}
	if w.flip >= 0 {
		w.flip -= int64(len(data))
	}
}

// header finds the end of an HTTP/1.1 message's header.
type header struct{ seen int } // bytes of the empty line; all of them: it is over

const emptyLine = "\r\n\r\n"

// skip gives how many bytes of data belong to the header.
func (h *header) skip(data []byte) int {
	for i, b := range data {
		if h.seen == len(emptyLine) {
			return i
		}
		switch {
		case b == emptyLine[h.seen]:
			h.seen++
		case b == '\r':
			h.seen = 1
		default:
			h.seen = 0
		}
	}
	return len(data)
}
