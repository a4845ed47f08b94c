package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"thaw/oci"
)

// progress shows a line for each layer that is being read, on a terminal, and
// is quiet elsewhere.
//
//	sha256:0a1b2c3d4e5f  112.0 MiB of 180.3 MiB   85.1 MiB/s  ETA 1 s
type progress struct {
	w     io.Writer
	stop  chan struct{}
	ended sync.WaitGroup

	mu     sync.Mutex // guards what follows
	layers []layerProgress
	drawn  int // lines on the screen
}

type layerProgress struct {
	oci.Layer
	read  int64
	since time.Time // of the first byte
	done  bool
	shown bool // its last line is drawn
	note  string
}

// newProgress draws on w if that is a terminal. The caller closes it.
func newProgress(w io.Writer) *progress {
	p := &progress{w: w, stop: make(chan struct{})}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.ended.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond) // quick to the eye, little to the machine
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.draw()
			case <-p.stop:
				p.draw()
				return
			}
		}
	})
	return p
}

// close draws the end.
func (p *progress) close() {
	close(p.stop)
	p.ended.Wait()
}

// Layers notes what will be read.
func (p *progress) Layers(layers []oci.Layer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range layers {
		p.layers = append(p.layers, layerProgress{Layer: l})
	}
}

// Read notes n more bytes of layer i.
func (p *progress) Read(i int, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.layers[i].read == 0 {
		p.layers[i].since = time.Now()
	}
	p.layers[i].read += n
}

// Done notes that layer i is there.
func (p *progress) Done(i int, reused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[i].done = true
	if reused {
		p.layers[i].note = "converted before, not read"
	}
}

// draw replaces the lines of running layers; those of ended ones stay above.
func (p *progress) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn) // up, and clear to the end
	}
	p.drawn = 0
	for i := range p.layers {
		if l := &p.layers[i]; l.done && !l.shown {
			l.shown = true
			fmt.Fprintln(&b, l.line())
		}
	}
	for i := range p.layers {
		if l := &p.layers[i]; !l.done && l.read > 0 {
			fmt.Fprintln(&b, l.line())
			p.drawn++
		}
	}
	_, _ = io.WriteString(p.w, b.String())
}

func (l *layerProgress) line() string {
	id := l.DiffID[:min(19, len(l.DiffID))]
	if l.note != "" {
		return fmt.Sprintf("%s  %s", id, l.note)
	}
	elapsed := time.Since(l.since).Seconds()
	rate := int64(float64(l.read) / max(elapsed, 0.001))
	s := fmt.Sprintf("%s  %9s", id, human(l.read))
	if l.Size > 0 {
		s += " of " + human(l.Size)
	}
	s += fmt.Sprintf("  %s/s", human(rate))
	if left := l.Size - l.read; l.Size > 0 && left > 0 && rate > 0 && !l.done {
		s += fmt.Sprintf("  ETA %d s", left/rate+1)
	}
	return s
}
