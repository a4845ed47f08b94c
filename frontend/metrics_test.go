package frontend

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"thaw/invokewire"
	"thaw/lambdaapi"
)

// Each invoke is counted once, by who waits and how it ends.
func TestInvokesAreCounted(t *testing.T) {
	c, now := newCounts(), time.Now()
	answered := func(head, trailer http.Header) *answer {
		return &answer{Response: &http.Response{Header: head, Trailer: trailer}}
	}
	failed := http.Header{http.CanonicalHeaderKey(invokewire.HeaderFunctionError): {"Unhandled"}}
	c.running.Add(7)
	c.ended(&invocation{}, now, answered(nil, nil), true)
	c.ended(&invocation{}, now, answered(failed, nil), true)
	c.ended(&invocation{streaming: true}, now, answered(nil, failed), true)
	c.ended(&invocation{queued: true}, now, answered(nil, nil), false)
	c.refused(&invocation{}, now, throttled(&invokewire.Throttle{Reason: invokewire.ReasonReserved}))
	c.refused(&invocation{queued: true}, now, errors.New("no"))
	c.refused(&invocation{queued: true}, now, lambdaapi.ServiceException.Errorf("no"))
	for labels, want := range map[[2]string]float64{
		{countedSync, countedSuccess}: 1, {countedSync, countedError}: 1, {countedStream, countedError}: 1, {countedSync, countedThrottled}: 1,
		{countedEvent, countedInPlatform}: 3, {countedEvent, countedSuccess}: 0,
	} {
		if n := testutil.ToFloat64(c.invokes.WithLabelValues(labels[0], labels[1])); n != want {
			t.Errorf("%v: %v, want %v", labels, n, want)
		}
	}
	if n := testutil.ToFloat64(c.throttles.WithLabelValues(invokewire.ReasonReserved)); n != 1 {
		t.Errorf("%v throttles", n)
	}
	if n := testutil.ToFloat64(c.running); n != 0 {
		t.Errorf("%v are under way", n)
	}
}
