package origin

import (
	"path/filepath"
	"sync"
)

// group lets one writer sync for all that came while the last sync ran: the
// way not taken, kept for BenchmarkPut.
type group struct {
	sync    func(dirs map[string]struct{}) error
	mu      sync.Mutex // guards the rest
	next    *batch
	running bool
}

type batch struct {
	dirs map[string]struct{}
	done chan struct{}
	lead chan struct{} // holds a token for the one that is to sync
	err  error
}

func (g *group) wait(dir string) error {
	g.mu.Lock()
	if g.next == nil {
		g.next = &batch{dirs: map[string]struct{}{}, done: make(chan struct{}), lead: make(chan struct{}, 1)}
	}
	b := g.next
	b.dirs[dir] = struct{}{}
	if !g.running {
		g.running = true
		b.lead <- struct{}{}
	}
	g.mu.Unlock()
	select {
	case <-b.done:
		return b.err
	case <-b.lead:
	}
	g.mu.Lock()
	g.next = nil
	g.mu.Unlock()
	b.err = g.sync(b.dirs)
	close(b.done)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next != nil {
		g.next.lead <- struct{}{}
	} else {
		g.running = false
	}
	return b.err
}

// grouped gives a put whose folder syncs are sync's; nil means none.
func grouped(f *folder, sync func(dirs map[string]struct{}) error) func(key string, data []byte) error {
	g := &group{sync: sync}
	return func(key string, data []byte) error {
		path, err := f.path(key)
		if err == nil {
			err = f.ensure(filepath.Dir(path))
		}
		if err == nil {
			err = createUnnamed(path, data)
		}
		if err != nil || sync == nil {
			return err
		}
		return g.wait(filepath.Dir(path))
	}
}
