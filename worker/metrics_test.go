package worker

import (
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"thaw/invokewire"
)

// Starts count by kind and stage unless they failed, invokes by the start before
// them; and what is told has no fault.
func TestMetrics(t *testing.T) {
	r := newRig(t, nil)
	for n, id := range []string{"i1", "i1", "i2"} {
		if force := []string{invokewire.StartFull, "", invokewire.StartPartial}[n]; force != "" {
			r.start(id, force, spec(nil)) // one after the other: a full one finds nothing, and takes what is there
		}
		if got := r.invoke(id, "r", "1"); got.body != "1" {
			t.Fatalf("%+v", got)
		}
	}
	r.w.counts.started(&startRecord{failed: errors.New("no")})
	c := r.w.counts
	for what, got := range map[string][2]float64{
		"full starts":     {testutil.ToFloat64(c.starts.WithLabelValues(invokewire.StartFull)), 1},
		"partial starts":  {testutil.ToFloat64(c.starts.WithLabelValues(invokewire.StartPartial)), 1},
		"failed starts":   {testutil.ToFloat64(c.failed), 1},
		"full invokes":    {testutil.ToFloat64(c.invokes.WithLabelValues(invokewire.StartFull, statusSuccess)), 1},
		"partial invokes": {testutil.ToFloat64(c.invokes.WithLabelValues(invokewire.StartPartial, statusSuccess)), 1},
		"warm invokes":    {testutil.ToFloat64(c.invokes.WithLabelValues(invokewire.StartWarm, statusSuccess)), 1},
	} {
		if got[0] != got[1] {
			t.Errorf("%s: %v, want %v", what, got[0], got[1])
		}
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(r.w.Metrics()...)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	n, err := testutil.GatherAndCount(registry, "thaw_worker_instances")
	if err != nil || n != 5 {
		t.Errorf("%d phases, %v", n, err)
	}
}
