package node

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/zone"
)

// usual is how much of a buffer keeps its memory between uses: a stripe of 1 of
// 2 of a 512 KiB chunk or smaller. The rest is given back, so that 64 buffers
// come to 17 MiB.
const usual = 256<<10 + page

// buffers are a bounded number of places for bodies, outside of the heap.
type buffers struct {
	room chan struct{} // one for each in use

	mu   sync.Mutex // guards what follows
	free []*buffer  // the last used one last: it is in the processor's cache
}

// buffer has room for any stripe.
type buffer struct {
	b    []byte
	used int // bytes that have been written to, if more than usual
}

func newBuffers(n int) *buffers { return &buffers{room: make(chan struct{}, n)} }

// get gives a buffer, if there is one within bufferWait, or errBusy.
func (p *buffers) get() (*buffer, error) {
	select {
	case p.room <- struct{}{}:
	default:
		t := time.NewTimer(bufferWait)
		defer t.Stop()
		select {
		case p.room <- struct{}{}:
		case <-t.C:
			return nil, fmt.Errorf("%w: %d bodies are on their way", errBusy, cap(p.room))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.free) - 1; last >= 0 {
		b := p.free[last]
		p.free = p.free[:last]
		return b, nil
	}
	m, err := unix.Mmap(-1, 0, (zone.MaxStripe+page-1)&^(page-1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		<-p.room
		return nil, fmt.Errorf("node: memory: %w", os.NewSyscallError("mmap", err))
	}
	return &buffer{b: m}, nil
}

// put takes a buffer back; nil is none.
func (p *buffers) put(b *buffer) {
	if b == nil {
		return
	}
	if b.used > usual {
		_ = unix.Madvise(b.b[usual:], unix.MADV_DONTNEED) // at worst it keeps its memory
		b.used = 0
	}
	p.mu.Lock()
	p.free = append(p.free, b)
	p.mu.Unlock()
	<-p.room
}

// close gives the memory back. None may be in use.
func (p *buffers) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.free {
		if err := unix.Munmap(b.b); err != nil {
			return fmt.Errorf("node: memory: %w", os.NewSyscallError("munmap", err))
		}
	}
	p.free = nil
	return nil
}
