package worker

import (
	"runtime"
	"testing"
)

// Options without what a worker cannot do without are refused.
func TestMissingOptions(t *testing.T) {
	if _, err := New(Options{ID: "w"}); err == nil {
		t.Error("made a worker of nothing")
	}
}

// Zero values mean defaults.
func TestDefaults(t *testing.T) {
	o := Options{}.withDefaults()
	if o.MaxStarts != 2*runtime.NumCPU() || o.Queue != 1000 || o.Slots != o.MaxStarts || o.Memory < 1<<28 || o.Logger == nil {
		t.Errorf("%d starts, queue of %d", o.MaxStarts, o.Queue)
	}
}
