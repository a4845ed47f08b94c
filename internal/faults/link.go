package faults

import (
	"cmp"
	"maps"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

// Link is what happens to the bytes of a Proxy's connections in one direction.
// The zero value lets all of them pass. Times and positions that are drawn are
// drawn from the proxy's seed, for each connection by its number: equal
// conversations on it meet equal faults, however the bytes are cut into reads.
type Link struct {
	// Delay, plus a time drawn from 0 to Jitter, plus one drawn from Curve, is
	// how much later bytes arrive. It is drawn for each turn: for the first
	// bytes after some went the other way, such as an HTTP/1.1 reply's, and
	// holds for those that follow them.
	Delay, Jitter time.Duration
	Curve         Curve
	// Bandwidth limits one connection, in bytes a second; 0 is no limit.
	Bandwidth int64
	// ResetAfter and CutAfter end a connection after so many bytes, counted
	// from when the Link was set or the connection made: with a TCP reset, or
	// with an ordinary end. 0 is never. What is on its way may be lost.
	ResetAfter, CutAfter int64
	// Anywhere draws, for each connection, a number of bytes from 1 to
	// ResetAfter and CutAfter in their place.
	Anywhere bool
	// Flip is the probability for each byte that one bit of it is inverted.
	Flip float64
	// Body spares the headers of HTTP/1.1 messages from Flip: what comes in a
	// turn up to the first empty line.
	Body bool
	// Stall holds all bytes until another Link is set: the receiver has a
	// connection and no answer. They are not lost.
	Stall bool
	// Refuse lets nobody in: the port is closed. Connections that are open stay
	// so; see Proxy.Cut.
	Refuse bool
	// Share is the share of connections, drawn, that all of this but Refuse
	// applies to. 0 means all of them.
	Share float64
}

// Curve is a distribution of times: for some shares from 0 to 1, the time that
// so many take at most. Between two shares it is a straight line; below the
// first and above the last it is flat.
type Curve map[float64]time.Duration

// LogNormal is the curve with this median and this 99.9th percentile whose
// logarithms are normal, up to its 99.99th percentile.
func LogNormal(median, p999 time.Duration) Curve {
	const steps = 1000 // straight lines this short are as good as the curve
	quantile := func(share float64) float64 { return math.Sqrt2 * math.Erfinv(2*share-1) }
	sigma := math.Log(float64(p999)/float64(median)) / quantile(0.999)
	at := func(share float64) time.Duration {
		return time.Duration(float64(median) * math.Exp(sigma*quantile(share)))
	}
	c := Curve{0.9999: at(0.9999)}
	for i := 1; i < steps; i++ {
		share := float64(i) / steps
		c[share] = at(share)
	}
	return c
}

// At gives the time at a share; 0 of an empty curve.
func (c Curve) At(share float64) time.Duration { return c.points().at(share) }

type point struct {
	share float64
	took  time.Duration
}

// points are a curve's, by share.
type points []point

func (c Curve) points() points {
	shares := slices.Sorted(maps.Keys(c))
	ps := make(points, len(shares))
	for i, s := range shares {
		ps[i] = point{s, c[s]}
	}
	return ps
}

func (ps points) at(share float64) time.Duration {
	if len(ps) == 0 {
		return 0
	}
	i, exact := slices.BinarySearchFunc(ps, share, func(p point, s float64) int { return cmp.Compare(p.share, s) })
	switch {
	case exact, i == 0:
		return ps[i].took
	case i == len(ps):
		return ps[i-1].took
	}
	from, to := ps[i-1], ps[i]
	part := (share - from.share) / (to.share - from.share)
	return from.took + time.Duration(part*float64(to.took-from.took))
}

// Slow delays every exchange by a time drawn from a curve. Equal seeds give the
// call of one number equal times.
func Slow(seed uint64, c Curve) Rule {
	ps := c.points()
	return func(call int64, _ *http.Request) (Fault, bool) {
		draw := rand.New(rand.NewPCG(seed, uint64(call)))
		return Fault{Kind: Delay, Delay: ps.at(draw.Float64())}, true
	}
}

// setting is a Link in force. It does not change; another takes its place.
type setting struct {
	Link
	curve   points
	number  uint64        // of the setting, from 0
	changed chan struct{} // closed when another setting is in force
}

func newSetting(l Link, number uint64) *setting {
	return &setting{Link: l, curve: l.Curve.points(), number: number, changed: make(chan struct{})}
}

// for what rand's second seed is: streams of one connection that must not
// depend on each other.
const (
	forShare = iota
	forDelay
	forBytes
	uses
)

// stream gives the randomness of one connection for one use.
func stream(seed, conn uint64, to direction, use uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, (conn*uint64(directions)+uint64(to))*uses+use))
}

// on gives the Link as one connection meets it.
func (s *setting) on(seed, conn uint64, to direction) Link {
	if s.Share > 0 && stream(seed+s.number, conn, to, forShare).Float64() >= s.Share {
		return Link{}
	}
	return s.Link
}

// delay draws a turn's.
func (s *setting) delay(l Link, draw *rand.Rand) time.Duration {
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(draw.Int64N(int64(l.Jitter) + 1))
	}
	if l.Curve != nil {
		d += s.curve.at(draw.Float64())
	}
	return d
}
