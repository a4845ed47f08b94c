package frontend

import (
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/time/rate"
)

// A client that asks too often is told so as Lambda tells it, whatever it asks
// for; its invokes go on, and so does another account.
func TestControlIsRated(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	other := d.as(must(d.options.Keys.Create(t.Context(), "111111111111", "")))
	const burst = 5
	d.rates = newRates(rate.Every(time.Hour), burst)
	list := func(c *lambda.Client) error {
		_, err := c.ListFunctions(t.Context(), &lambda.ListFunctionsInput{})
		return err
	}
	for i := range burst {
		if err := list(d.client); err != nil {
			t.Errorf("request %d of %d: %v", i+1, burst, err)
		}
	}
	_, changed := d.client.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("f"), ReservedConcurrentExecutions: aws.Int32(0)})
	for what, err := range map[string]error{"reading": list(d.client), "changing": changed} {
		wantError(t, err, "TooManyRequestsException", "Rate Exceeded.")
		var e *types.TooManyRequestsException
		if !errors.As(err, &e) {
			continue
		}
		after, err := strconv.Atoi(aws.ToString(e.RetryAfterSeconds))
		if e.Reason != types.ThrottleReasonCallerRateLimitExceeded || aws.ToString(e.Type) != "User" || err != nil || after < 3500 || after > 3600 {
			t.Errorf("%s: reason %s, type %s, again after %s s", what, e.Reason, aws.ToString(e.Type), aws.ToString(e.RetryAfterSeconds))
		}
	}
	d.ok("f", `1`)
	if err := list(other); err != nil {
		t.Errorf("another account: %v", err)
	}
	if n := testutil.ToFloat64(d.counts.refusedControl); n != 2 {
		t.Errorf("%v were counted", n)
	}
}

// A bucket fills up at its rate, to its size, and is not forgotten before.
func TestRates(t *testing.T) {
	now := time.Now()
	r := newRates(10, 30) // full after three seconds
	took := func(account string, want int) {
		t.Helper()
		n := 0
		for r.take(account, now) == 0 {
			n++
		}
		if n != want {
			t.Errorf("%s took %d, want %d", account, n, want)
		}
	}
	took("a", 30)
	if wait := r.take("a", now); wait.Round(time.Millisecond) != 100*time.Millisecond {
		t.Errorf("the next comes after %v", wait)
	}
	took("b", 30)
	for range 50 {
		now = now.Add(100 * time.Millisecond)
		took("a", 1)
	}
	now = now.Add(2900 * time.Millisecond)
	took("a", 29)
	took("b", 30)
	now = now.Add(time.Hour)
	took("a", 30)
}

// However many accounts come, few are kept, and who asks too often is known
// among as many others as are.
func TestRatesAreBounded(t *testing.T) {
	now := time.Now()
	r := newRates(controlRate, controlBurst)
	for range controlBurst {
		r.take("busy", now)
	}
	for i := range 10 * maxRated {
		r.take(fmt.Sprint(i), now)
		if i == maxRated && r.take("busy", now) == 0 {
			t.Error("a busy account was forgotten among few others")
		}
	}
	if kept := len(r.recent) + len(r.former); kept > 2*maxRated {
		t.Errorf("%d accounts are kept", kept)
	}
	now = now.Add(controlBurst / controlRate * time.Second)
	r.take("later", now)
	now = now.Add(controlBurst / controlRate * time.Second)
	r.take("last", now)
	if kept := len(r.recent) + len(r.former); kept != 2 {
		t.Errorf("%d accounts are kept once all are full", kept)
	}
}
