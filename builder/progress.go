package builder

import (
	"fmt"
	"sync"

	"thaw/oci"
)

// progress makes sentences of how far a conversion is.
type progress struct {
	report func(sentence string)

	mu     sync.Mutex // guards all below
	sizes  []int64
	got    []int64 // of each layer
	done   []bool
	shown  int // percent
	finish int // layers done
}

// Layers is convert.Progress's.
func (p *progress) Layers(layers []oci.Layer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range layers {
		p.sizes = append(p.sizes, max(l.Size, 0))
	}
	p.got, p.done, p.shown = make([]int64, len(layers)), make([]bool, len(layers)), -1
	p.tell()
}

// Read is convert.Progress's.
func (p *progress) Read(i int, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got[i] += n
	p.tell()
}

// Done is convert.Progress's.
func (p *progress) Done(i int, _ bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.got[i] = p.sizes[i]
	if !p.done[i] {
		p.done[i] = true
		p.finish++
		p.shown = -1
	}
	p.tell()
}

// tell reports what has changed. The last step is not the layers': a device is
// done once its metadata and manifest are stored.
func (p *progress) tell() {
	var sum, got int64
	for i, size := range p.sizes {
		sum += size
		got += min(p.got[i], size)
	}
	percent := 0
	if sum > 0 {
		percent = int(100 * float64(got) / float64(sum))
	}
	if percent == p.shown {
		return
	}
	p.shown = percent
	p.report(fmt.Sprintf("Converting the image: %d %%, layer %d of %d.", percent, min(p.finish+1, len(p.sizes)), len(p.sizes)))
}
