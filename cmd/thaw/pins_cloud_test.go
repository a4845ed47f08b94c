//go:build cloud

package main

import (
	"testing"

	"thaw/chunk"
	"thaw/invokewire"
	"thaw/manifest"
)

// The budget is for all bases: older ones have it first, what they share counts
// once, and a chunk that does not fit leaves its room to smaller ones.
func TestPinBudget(t *testing.T) {
	chunks := func(sizes ...uint32) (list []manifest.Entry) {
		for _, size := range sizes {
			list = append(list, manifest.Entry{Size: size, Name: chunk.Name{byte(size)}})
		}
		return list
	}
	b := &pinBudget{left: 100, chosen: map[chunk.Name]bool{}}
	for i, want := range []struct {
		chunks       []manifest.Entry
		fit          int
		pinned, left int64
	}{
		{chunks(10, 20), 2, 30, 0},
		{chunks(20, 30), 2, 30, 0},
		{chunks(90, 40, 10), 2, 40, 90},
		{chunks(50, 20), 1, 0, 50},
	} {
		var s invokewire.Pin
		if fit := b.choose(want.chunks, &s); len(fit) != want.fit || s.Pinned != want.pinned || s.Left != want.left {
			t.Errorf("base %d: %d chunks, %+v; want %+v", i, len(fit), s, want)
		}
	}
	if b.left != 0 {
		t.Errorf("%d left", b.left)
	}
}
