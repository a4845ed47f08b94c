package frontend

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

const (
	// maxSync is the longest request and maxAnswer the longest answer of an
	// invoke, maxAsync the longest event, maxControl the longest request that
	// changes functions: 50 MB of a zip package in base64. All are Lambda's.
	maxSync    = 6 << 20
	maxAnswer  = 6<<20 + 100
	maxAsync   = 1 << 20
	maxControl = 70167211

	// smallBuffer serves most payloads.
	smallBuffer = 32 << 10
	// largeBuffer is one byte more than the longest answer, so that a longer one
	// is noticed.
	largeBuffer = maxAnswer + 1
	// maxLarge bounds the large buffers in use: 64 take 400 MB. Others wait.
	maxLarge = 64
	// bodyTime is for a client to send a body: the longest at 1 Mbit/s.
	bodyTime = time.Minute
	// shrinkTick is how often a large buffer that is not used is given back.
	shrinkTick = 5 * time.Second
)

// buffer holds one payload.
type buffer struct {
	b     []byte // what is in it
	large bool
}

// buffers lends memory to requests and to answers. Large ones are kept apart:
// left to the garbage collector, they would take several times their size.
type buffers struct {
	small sync.Pool
	slots chan struct{} // one token for each large buffer in use
	long  chan struct{} // one for each long body of control that is being read

	mu   sync.Mutex
	free [][]byte
	low  int // the fewest that were free since the last look
}

func newBuffers() *buffers {
	return &buffers{
		small: sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, smallBuffer)} }},
		slots: make(chan struct{}, maxLarge),
		long:  make(chan struct{}, longBodies),
	}
}

func (p *buffers) get() *buffer { return p.small.Get().(*buffer) }

// grow makes room for a long payload, and waits for its turn.
func (p *buffers) grow(ctx context.Context, b *buffer) error {
	if b.large {
		return nil
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	p.mu.Lock()
	var mem []byte
	if n := len(p.free); n > 0 {
		mem, p.free = p.free[n-1], p.free[:n-1]
		p.low = min(p.low, n-1)
	}
	p.mu.Unlock()
	if mem == nil {
		mem = make([]byte, 0, largeBuffer)
	}
	old := b.b
	b.b, b.large = append(mem[:0], old...), true
	p.small.Put(&buffer{b: old[:0]})
	return nil
}

// put takes a buffer back. Nobody may use it any more.
func (p *buffers) put(b *buffer) {
	if !b.large {
		b.b = b.b[:0]
		p.small.Put(b)
		return
	}
	p.mu.Lock()
	p.free = append(p.free, b.b[:0])
	p.mu.Unlock()
	b.b = nil
	<-p.slots
}

// run gives memory back that has not been needed for a while.
func (p *buffers) run(ctx context.Context) {
	for {
		select {
		case <-time.After(shrinkTick):
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		if p.low > 0 {
			p.free = append([][]byte(nil), p.free[:len(p.free)-p.low]...)
		}
		p.low = len(p.free)
		p.mu.Unlock()
	}
}

// errTooLong says that a body has more bytes than its limit.
var errTooLong = errors.New("body too long")

// fill reads all of r, of which at most limit bytes may come; hint is how many
// are expected, or -1. On errTooLong, the buffer holds the first limit bytes.
func (p *buffers) fill(ctx context.Context, b *buffer, r io.Reader, hint int64, limit int) error {
	if hint > int64(limit) {
		return errTooLong
	}
	if hint >= smallBuffer {
		if err := p.grow(ctx, b); err != nil {
			return err
		}
	}
	for {
		if len(b.b) > limit {
			b.b = b.b[:limit]
			return errTooLong
		}
		if len(b.b) == cap(b.b) {
			if err := p.grow(ctx, b); err != nil {
				return err
			}
		}
		n, err := r.Read(b.b[len(b.b):min(cap(b.b), limit+1)])
		b.b = b.b[:len(b.b)+n]
		if err == io.EOF && len(b.b) <= limit {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
}

// readBody reads the body of an invoke into a buffer, in the time that a client has for it.
func (p *buffers) readBody(w http.ResponseWriter, r *http.Request, limit int) (*buffer, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyTime)) // servers of tests cannot
	b := p.get()
	err := p.fill(r.Context(), b, r.Body, r.ContentLength, limit)
	_ = c.SetReadDeadline(time.Time{})
	if err != nil {
		p.put(b)
		return nil, err
	}
	return b, nil
}

// longBodies bounds the bodies of control that are read at a time and are
// longer than modest: zip packages, of up to 67 MiB.
const (
	longBodies = 4
	modest     = 1 << 20
)

// readAtMost reads the body of a request that is not an invoke.
func (p *buffers) readAtMost(r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, errTooLong
	}
	if r.ContentLength < 0 || r.ContentLength > modest {
		select {
		case p.long <- struct{}{}:
			defer func() { <-p.long }()
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errTooLong
	}
	return b, err
}
