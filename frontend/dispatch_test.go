package frontend

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/events"
	"thaw/functions"
)

// The policy of an event is its function's, of the qualifier that it was invoked with.
func TestEventPolicy(t *testing.T) {
	r, c := deployed(t, "f", "plain")
	r.publish(c, "f", "")
	f := aws.String("f")
	must(c.CreateAlias(t.Context(), &lambda.CreateAliasInput{FunctionName: f, Name: aws.String("live"), FunctionVersion: aws.String("1")}))
	for _, in := range []lambda.PutFunctionEventInvokeConfigInput{
		{MaximumRetryAttempts: aws.Int32(0)},
		{Qualifier: aws.String("1"), MaximumEventAgeInSeconds: aws.Int32(60)},
		{Qualifier: aws.String("live"), MaximumRetryAttempts: aws.Int32(1), MaximumEventAgeInSeconds: aws.Int32(3600)},
	} {
		in.FunctionName = f
		must(c.PutFunctionEventInvokeConfig(t.Context(), &in))
	}
	policy := EventPolicy(r.store)
	for _, x := range []struct {
		function, qualifier string
		retries             int
		age                 time.Duration
	}{
		{"f", "", 0, 6 * time.Hour},
		{"f", "$LATEST", 0, 6 * time.Hour},
		{"f", "1", 2, time.Minute},
		{"f", "live", 1, time.Hour},
		{"plain", "", 2, 6 * time.Hour},
		{"gone", "", 2, 6 * time.Hour},
	} {
		want := events.DefaultPolicy()
		want.Retries, want.MaxAge = x.retries, x.age
		got := policy(t.Context(), events.Event{Account: testAccount, Function: x.function, Qualifier: x.qualifier})
		if got.Retries != want.Retries || got.MaxAge != want.MaxAge || got.Backoff != want.Backoff || len(got.Delays) != len(want.Delays) {
			t.Errorf("%s:%s has the policy %+v, want %+v", x.function, x.qualifier, got, want)
		}
	}
	if got := policy(t.Context(), events.Event{Account: "111111111111", Function: "f"}); got.Retries != 2 {
		t.Errorf("another account's has the policy %+v", got)
	}
	// It is read anew each time: what is changed holds for events that wait.
	must(c.PutFunctionEventInvokeConfig(t.Context(), &lambda.PutFunctionEventInvokeConfigInput{FunctionName: f, MaximumEventAgeInSeconds: aws.Int32(120)}))
	if got := policy(t.Context(), events.Event{Account: testAccount, Function: "f"}); got.Retries != 2 || got.MaxAge != 2*time.Minute {
		t.Errorf("once changed, it is %+v", got)
	}
}

// An accepted event of a function whose reserved concurrency is 0 is given up at
// once, and no instance starts for it; one that fails is tried as often as its
// function's configuration says.
func TestGivenUp(t *testing.T) {
	d := newDoor(t)
	d.function("stopped", func(f *functions.Function) { f.Reserved = aws.Int(0) })
	d.function("once", func(f *functions.Function) {
		f.Events = map[string]functions.EventConfig{functions.Latest: {MaxRetries: aws.Int(0)}}
	})
	for _, x := range []struct {
		function, payload, reason, last string
		tries, starts                   int
	}{
		{"stopped", `1`, "ZeroReservedConcurrency", "its reserved concurrency is 0", 1, 0},
		{"once", `"fail"`, "RetriesExhausted", "the function failed: Boom", 1, 1},
	} {
		if _, err := d.invoke(&lambda.InvokeInput{FunctionName: &x.function, InvocationType: types.InvocationTypeEvent, Payload: []byte(x.payload)}); err != nil {
			t.Fatal(err)
		}
		var got []events.DeadLetter
		d.until("a dead letter of "+x.function, func() bool {
			got = must(d.options.Queue.List(t.Context(), testAccount, x.function, 0, 2))
			return len(got) > 0
		})
		starts, _, _ := d.worker.counts()
		if len(got) != 1 || got[0].Reason != x.reason || got[0].Last != x.last || got[0].Event.Attempt != x.tries || string(got[0].Event.Payload) != x.payload || starts != x.starts {
			t.Errorf("%s: %d starts, dead letters %+v", x.function, starts, got)
		}
	}
}
