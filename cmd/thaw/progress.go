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
	"thaw/text"
)

// animate calls draw five times a second while w is a terminal, and once more
// when the function that it gives is called, which is to be called once.
func animate(w io.Writer, draw func()) (stop func()) {
	if !isTerminal(w) {
		return func() {}
	}
	return repeat(draw)
}

// isTerminal tells whether somebody looks at what is written.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func repeat(draw func()) (stop func()) {
	end := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond) // quick to the eye, little to the machine
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				draw()
			case <-end:
				draw()
				return
			}
		}
	})
	return func() {
		close(end)
		ended.Wait()
	}
}

// up gives what clears the last n lines of a terminal.
func up(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\x1b[J", n)
}

// progress shows a line for each layer that is being read.
//
//	sha256:0a1b2c3d4e5f  112.0 MiB of 180.3 MiB  85.1 MiB/s  ETA 1 s
type progress struct {
	w    io.Writer
	stop func()

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

// newProgress draws on w if that is a terminal, and is quiet elsewhere. The
// caller closes it.
func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	p.stop = animate(w, p.draw)
	return p
}

// close draws the end.
func (p *progress) close() { p.stop() }

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
	b.WriteString(up(p.drawn))
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
	left := l.Size
	if l.done {
		left = 0 // what was read is all, whatever the source had said
	}
	return id + "  " + pace(l.read, left, time.Since(l.since))
}

// pace tells how far and how fast it went: read of size bytes, which is 0 or
// less if unknown, in elapsed.
func pace(read, size int64, elapsed time.Duration) string {
	rate := int64(float64(read) / max(elapsed.Seconds(), 0.001))
	s := fmt.Sprintf("%9s", text.Bytes(read))
	if size > 0 {
		s += " of " + text.Bytes(size)
	}
	s += fmt.Sprintf("  %s/s", text.Bytes(rate))
	if left := size - read; left > 0 && rate > 0 {
		s += fmt.Sprintf("  ETA %d s", left/rate+1)
	}
	return s
}

// checking shows how many bytes of an image's chunks are checked, in one line.
//
//	checked  112.0 MiB of 180.3 MiB  85.1 MiB/s  ETA 1 s
type checking struct {
	w     io.Writer
	total int64 // bytes

	mu    sync.Mutex // guards what follows
	done  int64
	since time.Time
	drawn int // lines on the screen
}

// add notes n more bytes.
func (c *checking) add(n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.since.IsZero() {
		c.since = time.Now()
	}
	c.done += n
}

func (c *checking) draw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == 0 {
		return
	}
	_, _ = fmt.Fprintf(c.w, "%schecked  %s\n", up(c.drawn), pace(c.done, c.total, time.Since(c.since)))
	c.drawn = 1
}
