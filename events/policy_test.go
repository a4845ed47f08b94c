package events_test

import (
	"testing"
	"time"

	"thaw/events"
)

func TestNext(t *testing.T) {
	p := events.DefaultPolicy()
	short := p
	short.MaxAge = 90 * time.Second
	none := p
	none.Retries = 0
	one := p
	one.Retries = 1
	retry := func(d time.Duration) events.Decision { return events.Decision{Step: events.Retry, Delay: d} }
	dead := func(reason string) events.Decision {
		return events.Decision{Step: events.Dead, Reason: reason}
	}
	const retries, age, refused = "RetriesExhausted", "EventAgeExceeded", "ZeroReservedConcurrency"
	for _, c := range []struct {
		name    string
		p       events.Policy
		attempt int
		kind    events.Kind
		age     time.Duration
		want    events.Decision
	}{
		{"new", p, 0, events.Untried, 0, retry(0)},
		{"waited as long as it may", p, 0, events.Untried, 6 * time.Hour, retry(0)},
		{"waited longer", p, 0, events.Untried, 6*time.Hour + 1, dead(age)},
		{"done", p, 2, events.Succeeded, 9 * time.Hour, events.Decision{}},
		{"first failure", p, 0, events.FunctionError, time.Second, retry(time.Minute)},
		{"second failure", p, 1, events.FunctionError, time.Minute, retry(2 * time.Minute)},
		{"third failure", p, 2, events.FunctionError, 3 * time.Minute, dead(retries)},
		{"failure, one retry", one, 0, events.FunctionError, 0, retry(time.Minute)},
		{"second failure, one retry", one, 1, events.FunctionError, 0, dead(retries)},
		{"failure, no retries", none, 0, events.FunctionError, 0, dead(retries)},
		{"failure, soon too old", short, 0, events.FunctionError, 31 * time.Second, dead(age)},
		{"failure, just young enough", short, 0, events.FunctionError, 30 * time.Second, retry(time.Minute)},
		{"throttled", p, 0, events.Throttled, 0, retry(time.Second)},
		{"throttled again", p, 1, events.Throttled, time.Second, retry(2 * time.Second)},
		{"throttled, eighth", p, 8, events.Throttled, time.Hour, retry(256 * time.Second)},
		{"throttled, ninth", p, 9, events.Throttled, time.Hour, retry(5 * time.Minute)},
		{"throttled very often", p, 1 << 40, events.Throttled, time.Hour, retry(5 * time.Minute)},
		{"throttled with no retries", none, 5, events.Throttled, 0, retry(32 * time.Second)},
		{"throttled too long", p, 80, events.Throttled, 6*time.Hour - time.Minute, dead(age)},
		{"broken system", p, 3, events.SystemError, time.Minute, retry(8 * time.Second)},
		{"broken system too long", short, 0, events.SystemError, 90 * time.Second, dead(age)},
		{"reserved concurrency 0", p, 0, events.Refused, 0, dead(refused)},
		{"no delays", events.Policy{Retries: 2, MaxAge: time.Hour}, 1, events.FunctionError, 0, retry(0)},
		{"one delay", events.Policy{Retries: 2, MaxAge: time.Hour, Delays: []time.Duration{time.Second}}, 1, events.FunctionError, 0, retry(time.Second)},
	} {
		if got := c.p.Next(c.attempt, events.Outcome{Kind: c.kind}, c.age); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// TestNextEnds: whatever happens, an event is done or dead once it is old.
func TestNextEnds(t *testing.T) {
	p := events.DefaultPolicy()
	for kind := events.Untried; kind <= events.Refused; kind++ {
		var age time.Duration
		steps := 0
		for d := p.Next(0, events.Outcome{Kind: kind}, 0); d.Step == events.Retry && kind != events.Untried; d = p.Next(steps, events.Outcome{Kind: kind}, age) {
			age += d.Delay
			if steps++; steps > 100 || age > p.MaxAge {
				t.Fatalf("kind %d: still tried after %d steps and %v", kind, steps, age)
			}
		}
	}
}
