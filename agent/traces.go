package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"thaw/cache"
	"thaw/manifest"
	"thaw/trace"
)

const (
	// aheadAtOnce is how many chunks are fetched ahead at a time: at a
	// millisecond each, 8 GB/s in chunks of 512 KiB, more than one agent reads.
	aheadAtOnce = 16
	// aheadFailures is how many chunks may fail before the rest is left to the
	// reads: whoever is down does not need more requests.
	aheadFailures = 4
	// aheadTime bounds the fetching ahead: a start that is not over by then is
	// not helped any more.
	aheadTime = time.Minute
)

// traces is what an agent does with its image's trace: it has the chunks of the
// old one fetched ahead, and records a new run.
type traces struct {
	key  trace.Key
	old  *trace.Trace // if recording; of no run, if there is none or it is of no use
	plan []manifest.Entry
	warn string // why the old one is of no use

	mu        sync.Mutex // guards what follows
	recording bool
	order     []uint32 // indexes of chunks, as they were touched first
}

// newTraces takes what the setup says of traces. A trace that does not open is
// as good as none.
func newTraces(s *Setup, m *manifest.Manifest, key trace.Key) *traces {
	t := &traces{key: key, old: new(trace.Trace), recording: s.Record}
	if len(s.Trace) > 0 {
		old, err := key.Open(s.Trace)
		if err != nil {
			t.warn = err.Error()
			return t
		}
		t.old = old
	}
	left := s.Prefetch
	for _, index := range t.old.Plan() {
		i, ok := slices.BinarySearchFunc(m.Chunks, index, func(e manifest.Entry, i uint32) int { return int(int64(e.Index) - int64(i)) })
		if !ok { // no such chunk: whoever sealed it knew another device
			continue
		}
		if left -= int64(m.Chunks[i].Size); left < 0 {
			break
		}
		t.plan = append(t.plan, m.Chunks[i])
	}
	if !t.recording { // it is not merged with anything
		t.old = nil
	}
	return t
}

// replay has prefetch bring the planned chunks, in order, until all are there,
// too many fail, or ctx ends.
func (t *traces) replay(ctx context.Context, prefetch func(context.Context, manifest.Entry) error) {
	ctx, cancel := context.WithTimeout(ctx, aheadTime)
	defer cancel()
	next := make(chan manifest.Entry)
	failed := make(chan struct{}, aheadFailures)
	var work sync.WaitGroup
	for range min(aheadAtOnce, len(t.plan)) {
		work.Go(func() {
			for e := range next {
				if prefetch(ctx, e) == nil {
					continue
				}
				select {
				case failed <- struct{}{}:
				default:
					cancel()
				}
			}
		})
	}
	for _, e := range t.plan {
		select {
		case next <- e:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(next)
	work.Wait()
}

// touch records a first touch.
func (t *traces) touch(index uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.recording && len(t.order) < trace.MaxChunks {
		t.order = append(t.order, index)
	}
}

// finish ends the recording, and writes the trace with this run, sealed.
func (t *traces) finish(w io.Writer) error {
	t.mu.Lock()
	recording, order := t.recording, t.order
	t.recording, t.order = false, nil
	t.mu.Unlock()
	switch {
	case !recording:
		return errors.New("nothing is recorded")
	case len(order) == 0:
		return errors.New("nothing was read")
	}
	if _, err := w.Write(t.key.Seal(t.old.Merge(order))); err != nil {
		return fmt.Errorf("writing the trace: %w", err)
	}
	return nil
}

// begin has the client fetch ahead, until the function it gives is called, which
// waits for the end.
func (t *traces) begin(chunks *cache.Client) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		defer func() { t.plan = nil }()
		t.replay(ctx, func(ctx context.Context, e manifest.Entry) error { return chunks.Prefetch(ctx, e.Name, int(e.Size)) })
	})
	return func() { cancel(); work.Wait() }
}
