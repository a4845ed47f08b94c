package builder

import (
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A build that is settled counts by its result, and one that is not as left.
func TestBuildsAreCounted(t *testing.T) {
	c := newCounts()
	c.settled("")
	c.worked(time.Second, nil)
	c.settled(InvalidImage)
	c.worked(time.Second, nil)
	c.worked(time.Second, errors.New("lost"))
	for result, want := range map[string]float64{resultBuilt: 1, InvalidImage: 1, resultLeft: 1, AccessDenied: 0} {
		if n := testutil.ToFloat64(c.results.WithLabelValues(result)); n != want {
			t.Errorf("%s: %v, want %v", result, n, want)
		}
	}
}
