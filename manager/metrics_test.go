package manager

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"thaw/invokewire"
)

// Each answer is counted once, and a throttle by its reason.
func TestCounted(t *testing.T) {
	c := newCounted()
	c.acquired(&invokewire.Lease{Fresh: true}, nil)
	c.acquired(&invokewire.Lease{}, nil)
	c.acquired(nil, &invokewire.Throttle{Reason: invokewire.ReasonRate})
	c.acquired(nil, &misdirected{})
	c.acquired(nil, errors.New("no"))
	for _, answer := range []string{answeredReused, answeredStarted, answeredThrottled, answeredElsewhere, answeredFailed} {
		if n := testutil.ToFloat64(c.acquires.WithLabelValues(answer)); n != 1 {
			t.Errorf("%s: %v", answer, n)
		}
	}
	if n := testutil.ToFloat64(c.throttles.WithLabelValues(invokewire.ReasonRate)); n != 1 || testutil.CollectAndCount(c.throttles) != 3 {
		t.Errorf("%v throttles", n)
	}
}
