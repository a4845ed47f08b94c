package convert

import (
	"context"
	"errors"
	"sync"
	"testing"

	"thaw/chunk"
)

// TestPrime puts what is sealed into the zone, whose failures stop nothing and
// end its being asked.
func TestPrime(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	var mu sync.Mutex
	got := map[chunk.Name]bool{}
	w.Zone = func(_ context.Context, name chunk.Name, sealed []byte) error {
		if err := chunk.Check(sealed, name); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		got[name] = true
		return nil
	}
	if res := w.convert(Options{Source: src}); res.Zone != nil || len(got) > 0 {
		t.Errorf("primed without being asked: %+v", res.Zone)
	}
	other := newWorld(t, t.TempDir(), "a")
	other.Zone = w.Zone
	res := other.convert(Options{Source: src, Prime: true})
	m, _ := other.manifest(res.Image)
	for _, e := range m.Chunks {
		if !got[e.Name] {
			t.Errorf("chunk %s is not in the zone", e.Name)
		}
	}
	if res.Zone == nil || res.Zone.Failed != 0 || res.Zone.Put < int64(len(got)) {
		t.Errorf("counted %+v of %d chunks", res.Zone, len(got))
	}
	broken := newWorld(t, t.TempDir(), "a")
	asked := 0
	broken.Zone = func(context.Context, chunk.Name, []byte) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return errors.New("on fire")
	}
	res = broken.convert(Options{Source: src, Prime: true})
	if res.Zone.Put != 0 || res.Zone.Failed < int64(len(got)) || asked > givenUp+uploadWorkers {
		t.Errorf("counted %+v, asked %d times", res.Zone, asked)
	}
	if n := len(broken.warned); n < 1 || n > 2 {
		t.Errorf("warned %q", broken.warned)
	}
	broken.check(res.Image, src)
}

// TestPrimerGivesUp after enough failures in a row, and not before.
func TestPrimerGivesUp(t *testing.T) {
	asked, fails := 0, true
	p := &primer{put: func(context.Context, chunk.Name, []byte) error {
		if asked++; fails {
			return errors.New("no")
		}
		return nil
	}}
	put := func(n int) {
		for range n {
			p.one(t.Context(), chunk.Sealed{})
		}
	}
	put(givenUp - 1)
	fails = false
	put(1)
	fails = true
	put(givenUp)
	fails = false
	put(5)
	if c := *p.counts(); c != (ZoneCounts{1, 2*givenUp + 4}) || asked != 2*givenUp {
		t.Errorf("counted %+v, asked %d times", c, asked)
	}
	p = nil
	put(1)
	if p.counts() != nil {
		t.Error("none counted")
	}
}
