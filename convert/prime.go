package convert

import (
	"context"
	"sync/atomic"

	"thaw/chunk"
)

// givenUp is how many chunks in a row a zone may not take before it is asked no
// more: each may have taken as long as its deadline.
const givenUp = 64

// primer puts stored chunks into the zone. A nil primer does nothing.
type primer struct {
	put  func(ctx context.Context, name chunk.Name, sealed []byte) error
	warn func(format string, args ...any)

	done, failed atomic.Int64
	row          atomic.Int64 // of failures
}

// one puts a chunk. A failure stops nothing: the zone is a cache.
func (p *primer) one(ctx context.Context, s chunk.Sealed) {
	if p == nil || ctx.Err() != nil {
		return
	}
	if p.row.Load() >= givenUp {
		p.failed.Add(1)
		return
	}
	err := p.put(ctx, s.Name, s.Data)
	if err == nil {
		p.row.Store(0)
		p.done.Add(1)
		return
	}
	switch failed, row := p.failed.Add(1), p.row.Add(1); {
	case p.warn == nil:
	case row == givenUp:
		p.warn("the zone takes no chunks, and is given no more: %v", err)
	case failed == 1:
		p.warn("chunk %s is not in the zone: %v", s.Name, err)
	}
}

// counts is nil if there is nothing to prime.
func (p *primer) counts() *ZoneCounts {
	if p == nil {
		return nil
	}
	return &ZoneCounts{Put: p.done.Load(), Failed: p.failed.Load()}
}
