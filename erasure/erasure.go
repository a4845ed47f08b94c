// Package erasure cuts data into k stripes and computes n-k more, so that any
// k of the n give the data back.
//
// Stripe i < k is bytes i·s to (i+1)·s of the data, s = ceil(size ÷ k); zeros
// fill what lies beyond the end. The others are a Reed-Solomon code over
// GF(2^8) (github.com/klauspost/reedsolomon, its default matrix); one parity
// stripe is the exclusive or of the k. testdata pins the bytes: stripes outlive
// the version that wrote them.
//
// It does no I/O, starts no goroutines and does not check that stripes belong
// together or are whole: who joins them checks the data.
package erasure

import (
	"errors"
	"fmt"

	"github.com/klauspost/reedsolomon"
)

// Max is the most stripes. The zone's nodes are tens, and a stripe is of no use
// below a few KiB.
const Max = 32

// maxInversions is the most inverted matrices that a Code may remember, of a
// few KiB each: one for every set of missing stripes it has met.
const maxInversions = 512

var (
	// ErrTooFew says that fewer than k stripes were given.
	ErrTooFew = errors.New("too few stripes")
	// ErrLength says that a stripe has another length than the data's size asks for.
	ErrLength = errors.New("stripe of a wrong length")
)

// Code is a code of k of n. It is safe for concurrent use.
type Code struct {
	k, n int
	rs   reedsolomon.Encoder // nil for k = n: there is nothing to compute
}

// New makes a code: 1 ≤ k ≤ n ≤ Max. 1 of 1 is the data itself.
func New(k, n int) (*Code, error) {
	if k < 1 || k > n || n > Max {
		return nil, fmt.Errorf("erasure: %d of %d: want 1 ≤ k ≤ n ≤ %d", k, n, Max)
	}
	c := &Code{k: k, n: n}
	if k == n {
		return c, nil
	}
	// One goroutine: splitting 512 KiB over several costs more than it gains.
	options := []reedsolomon.Option{reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(subsets(n, n-k) <= maxInversions)}
	if n-k == 1 {
		options = append(options, reedsolomon.WithFastOneParityMatrix())
	}
	var err error
	if c.rs, err = reedsolomon.New(k, n-k, options...); err != nil {
		return nil, fmt.Errorf("erasure: %d of %d: %w", k, n, err)
	}
	return c, nil
}

// subsets counts the sets of 1 to m of n things.
func subsets(n, m int) (count int) {
	of := 1
	for i := 1; i <= m; i++ {
		of = of * (n - i + 1) / i
		count += of
	}
	return count
}

// StripeSize is the length in bytes of each stripe of data of size bytes.
func (c *Code) StripeSize(size int) int { return (size + c.k - 1) / c.k }

// Split gives the n stripes. Of the first k, those that data fills share its
// memory: who changes one changes the other. data is not modified.
func (c *Code) Split(data []byte) [][]byte {
	s := c.StripeSize(len(data))
	whole := c.k // stripes that lie in data
	if s > 0 {
		whole = len(data) / s
	}
	stripes := make([][]byte, c.n)
	for i := range whole {
		stripes[i] = data[i*s : (i+1)*s : (i+1)*s]
	}
	more := make([]byte, (c.n-whole)*s)
	for i := whole; i < c.n; i++ {
		stripes[i], more = more[:s:s], more[s:]
	}
	if whole < c.k {
		copy(stripes[whole], data[whole*s:])
	}
	if c.rs != nil && s > 0 {
		if err := c.rs.Encode(stripes); err != nil {
			panic("erasure: " + err.Error()) // n stripes of one length above 0 always encode
		}
	}
	return stripes
}

// Join gives the data of size bytes back, in memory of its own. stripes has n
// elements, nil for those that are missing; it takes any k, and does not read
// more than it needs. Stripes that are of one length but not of one Split, or
// damaged, give wrong data without an error.
func (c *Code) Join(size int, stripes [][]byte) ([]byte, error) {
	s, have := c.StripeSize(size), 0
	if len(stripes) != c.n {
		return nil, fmt.Errorf("erasure: %w: %d places for stripes of %d-of-%d", ErrLength, len(stripes), c.k, c.n)
	}
	for i, stripe := range stripes {
		if stripe == nil {
			continue
		}
		if have++; len(stripe) != s {
			return nil, fmt.Errorf("erasure: %w: stripe %d has %d bytes, want %d", ErrLength, i, len(stripe), s)
		}
	}
	if have < c.k {
		return nil, fmt.Errorf("erasure: %w: %d of %d", ErrTooFew, have, c.k)
	}
	out := make([]byte, c.k*s)
	if s > 0 {
		if err := c.join(out, stripes); err != nil {
			return nil, err
		}
	}
	return out[:size:size], nil
}

// join fills out, k stripes long: what is there is copied, what is missing is
// computed in its place.
func (c *Code) join(out []byte, stripes [][]byte) error {
	s, missing := len(out)/c.k, 0
	for i := range c.k {
		if stripes[i] == nil {
			missing++
		} else {
			copy(out[i*s:], stripes[i])
		}
	}
	if missing == 0 {
		return nil
	}
	work := make([][]byte, c.n)
	copy(work, stripes)
	for i := range c.k {
		if stripes[i] == nil {
			work[i] = out[i*s : i*s : (i+1)*s]
		}
	}
	if err := c.rs.ReconstructData(work); err != nil {
		return fmt.Errorf("erasure: %w", err)
	}
	return nil
}
