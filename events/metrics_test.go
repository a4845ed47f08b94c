package events

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// Each outcome has a name of its own.
func TestTriesAreCounted(t *testing.T) {
	c := newCounts()
	for k := Untried; k <= Refused; k++ {
		c.tried(k)
	}
	if n := testutil.CollectAndCount(c.tries); n != len(outcomes()) || n != int(Refused)+1 {
		t.Errorf("%d series of %d outcomes", n, len(outcomes()))
	}
	for _, outcome := range outcomes() {
		if n := testutil.ToFloat64(c.tries.WithLabelValues(outcome)); n != 1 {
			t.Errorf("%s: %v", outcome, n)
		}
	}
}
