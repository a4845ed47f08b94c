package builder

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"thaw/functions"
)

// The account that has brought many is not the only one that is served.
func TestWaitingTakesTurns(t *testing.T) {
	b := New(Options{Parallel: 2})
	began := time.Now()
	for n, name := range []string{"a/1", "a/2", "a/3", "b/1", "b/2", "c/1"} {
		id := functions.ID{Account: name[:1], Name: name[2:]}
		b.pending[id] = &Job{ID: id, Version: functions.Version{LastModified: began.Add(time.Duration(n) * time.Second)}}
	}
	order := func() (all []string) {
		for _, j := range b.waiting() {
			all = append(all, fmt.Sprintf("%s/%s", j.Account, j.Name))
		}
		return all
	}
	if got, want := order(), []string{"a/1", "b/1", "c/1", "a/2", "b/2", "a/3"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	b.running[functions.ID{Account: "a", Name: "1"}] = &attempt{}
	if got, want := order(), []string{"b/1", "c/1", "a/2", "b/2", "a/3"}; !slices.Equal(got, want) {
		t.Errorf("while one of a is built: %q, want %q", got, want)
	}
	b.running[functions.ID{Account: "b", Name: "1"}] = &attempt{}
	if got := order(); got != nil {
		t.Errorf("there is no room for %q", got)
	}
}
