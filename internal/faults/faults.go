// Package faults breaks things on purpose, for tests: HTTP exchanges, byte
// streams, TCP connections and function calls. What breaks, where and how often is said by the
// test, or drawn from a seed, so that a failure can be run again.
//
// A fault is never left to chance alone: a Rule counts the calls it sees from
// 1, and each call has its fault or none whatever the timing is. Everything in
// the package is safe for concurrent use but the readers.
package faults

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrInjected is what a fault fails with that brings no error of its own.
var ErrInjected = errors.New("injected fault")

// Kind says what a fault does.
type Kind int

// Truncate, Flip and Fail work on bytes: a body's or a stream's. The others
// work on HTTP exchanges only; Reader ignores them.
const (
	// Truncate ends the bytes at offset At. An HTTP connection breaks there, so
	// that the receiver misses the announced rest.
	Truncate Kind = iota + 1
	// Flip inverts the lowest bit of the byte at offset At.
	Flip
	// Fail gives Err at offset At of a stream. In place of an HTTP exchange, it
	// is the transport's error, and a handler's reset.
	Fail
	// Delay waits for the duration, or until the request's context is done,
	// and goes on.
	Delay
	// Status answers with the status and an empty body; nothing is forwarded.
	Status
	// Reset breaks the connection before anything is forwarded.
	Reset
	// Lose forwards the request and breaks the connection in place of the
	// reply: it was done, and the caller cannot know.
	Lose
)

// Fault is one thing that goes wrong.
type Fault struct {
	Kind   Kind
	At     int64         // byte offset, of Truncate, Flip and Fail
	Status int           // HTTP status code, of Status
	Delay  time.Duration // of Delay
	Err    error         // of Fail; nil means ErrInjected
}

func (f Fault) err() error {
	if f.Err != nil {
		return f.Err
	}
	return ErrInjected
}

// Rule says which fault the call-th exchange meets, counted from 1; false is
// none. It may be called by several goroutines at once.
type Rule func(call int64, r *http.Request) (Fault, bool)

// OnCalls breaks the calls of these numbers.
func OnCalls(f Fault, calls ...int64) Rule {
	return func(call int64, _ *http.Request) (Fault, bool) { return f, slices.Contains(calls, call) }
}

// OnMethod breaks the first times exchanges of one HTTP method.
func OnMethod(f Fault, method string, times int64) Rule {
	var seen atomic.Int64
	return func(_ int64, r *http.Request) (Fault, bool) {
		return f, r.Method == method && seen.Add(1) <= times
	}
}

// Random breaks calls with probability rate (0 to 1), at most limit of them,
// each with one of the faults. Equal seeds give equal draws in order of
// calling.
func Random(seed uint64, rate float64, limit int, faults ...Fault) Rule {
	var mu sync.Mutex // guards draw and limit
	draw := rand.New(rand.NewPCG(seed, seed))
	return func(int64, *http.Request) (Fault, bool) {
		mu.Lock()
		defer mu.Unlock()
		hit, which := draw.Float64() < rate, draw.IntN(len(faults))
		if !hit || limit <= 0 {
			return Fault{}, false
		}
		limit--
		return faults[which], true
	}
}

// Calls fails the calls of a function: those numbered from to to, counted from
// 1. The zero value fails none and counts.
type Calls struct {
	From, To int64
	Err      error // nil means ErrInjected
	count    atomic.Int64
}

// Next counts a call and gives its error, or nil.
func (c *Calls) Next() error {
	n := c.count.Add(1)
	if n < c.From || n > c.To {
		return nil
	}
	return Fault{Err: c.Err}.err()
}

// Count tells how many calls there have been.
func (c *Calls) Count() int64 { return c.count.Load() }

// Reader gives the bytes of r with the faults in them. It is for one user.
func Reader(r io.Reader, faults ...Fault) io.Reader {
	return &reader{r: r, faults: faults}
}

type reader struct {
	r      io.Reader
	faults []Fault
	off    int64 // of the next byte
}

func (r *reader) Read(p []byte) (int, error) {
	for _, f := range r.faults {
		if f.Kind != Truncate && f.Kind != Fail {
			continue
		}
		left := f.At - r.off
		if left <= 0 && f.Kind == Truncate {
			return 0, io.EOF
		}
		if left <= 0 {
			return 0, f.err()
		}
		p = p[:min(int64(len(p)), left)]
	}
	n, err := r.r.Read(p)
	flip(p[:n], r.off, r.faults)
	r.off += int64(n)
	return n, err
}

// flip applies the Flips to p, which starts at offset off.
func flip(p []byte, off int64, faults []Fault) {
	for _, f := range faults {
		if i := f.At - off; f.Kind == Flip && i >= 0 && i < int64(len(p)) {
			p[i] ^= 1
		}
	}
}
