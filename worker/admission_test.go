package worker

import (
	"errors"
	"slices"
	"testing"
)

// Few starts run at once, the others wait in their order, and of those only so many.
func TestAdmission(t *testing.T) {
	var ran []string
	a := &admission{most: 2, limit: 3, run: func(i *instance) { ran = append(ran, i.id) }}
	waiting := map[string]*instance{}
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		waiting[id] = &instance{id: id}
		if err := a.add(waiting[id]); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.add(&instance{id: "f"}); !errors.Is(err, errFull) {
		t.Errorf("one too many: %v", err)
	}
	if running, queued := a.counts(); running != 2 || queued != 3 {
		t.Errorf("%d run, %d wait", running, queued)
	}
	if !a.remove(waiting["d"]) || a.remove(waiting["d"]) || a.remove(waiting["a"]) {
		t.Error("only what waits can be taken back, once")
	}
	for range 4 {
		a.done()
	}
	if running, queued := a.counts(); running != 0 || queued != 0 || !slices.Equal(ran, []string{"a", "b", "c", "e"}) {
		t.Errorf("%d run, %d wait, %q ran", running, queued, ran)
	}
}
