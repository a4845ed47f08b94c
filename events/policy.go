package events

import (
	"slices"
	"time"
)

// Kind is how a try ended.
type Kind uint8

// The kinds of outcomes.
const (
	Untried       Kind = iota // it has not been tried: Next says whether it may be
	Succeeded                 // the function answered
	FunctionError             // the function failed, or ran out of time or memory
	Throttled                 // there was no room to run it: 429
	SystemError               // it could not be run: 5xx
	Refused                   // it can never be run: its reserved concurrency is 0, or the function is gone
)

// Outcome is the end of one try.
type Outcome struct {
	Kind   Kind
	Reason string // one line for people and dead letters, without payloads; may be empty
}

// Policy says when an event is tried again. Build on DefaultPolicy.
type Policy struct {
	// Retries is how many tries follow a first that failed: 0 to 2.
	Retries int
	// Delays are what passes before each of them. The last one serves all that
	// follow.
	Delays []time.Duration
	// MaxAge is how old an event may be when it is tried.
	MaxAge time.Duration
	// Backoff is what passes after the first try that was throttled or met an
	// error of the system. It doubles with each, up to MaxBackoff. Such tries do
	// not count as retries.
	Backoff, MaxBackoff time.Duration
}

// DefaultPolicy is Lambda's: two retries after one and two minutes, back-off
// from a second to five minutes, up to six hours.
func DefaultPolicy() Policy {
	return Policy{Retries: 2, Delays: []time.Duration{time.Minute, 2 * time.Minute}, MaxAge: 6 * time.Hour,
		Backoff: time.Second, MaxBackoff: 5 * time.Minute}
}

// Step is what to do with an event.
type Step uint8

// The steps.
const (
	Done  Step = iota // forget it
	Retry             // try it after a delay
	Dead              // keep it as a dead letter
)

// Reasons of dead letters, in the words of Lambda's destinations.
const (
	reasonRetries = "RetriesExhausted"
	reasonAge     = "EventAgeExceeded"
	reasonRefused = "ZeroReservedConcurrency"
	// reasonUnreadable is ours: a message that is no event of a version we know.
	reasonUnreadable = "Unreadable"
)

// Decision is a step and what belongs to it.
type Decision struct {
	Step   Step
	Delay  time.Duration // of Retry
	Reason string        // of Dead: RetriesExhausted, EventAgeExceeded or ZeroReservedConcurrency
}

// Next decides what happens to an event of some age after a try. Attempt counts
// the tries before this one that ended alike: failures of the function; or
// throttles and errors of the system, since the last failure. Of an Untried
// event it decides whether it is tried now.
func (p Policy) Next(attempt int, o Outcome, age time.Duration) Decision {
	var delay time.Duration
	switch o.Kind {
	case Succeeded:
		return Decision{Step: Done}
	case Refused:
		return Decision{Step: Dead, Reason: reasonRefused}
	case FunctionError:
		if attempt >= p.Retries {
			return Decision{Step: Dead, Reason: reasonRetries}
		}
		if len(p.Delays) > 0 {
			delay = p.Delays[min(max(attempt, 0), len(p.Delays)-1)]
		}
	case Throttled, SystemError:
		delay = p.Backoff
		for range attempt {
			if delay >= p.MaxBackoff {
				break
			}
			delay *= 2
		}
		delay = min(delay, p.MaxBackoff)
	}
	if age+delay > p.MaxAge {
		return Decision{Step: Dead, Reason: reasonAge}
	}
	return Decision{Step: Retry, Delay: delay}
}

// normal is the policy with sense: counts and times that cannot be are brought
// to the nearest that can.
func (p Policy) normal() Policy {
	p.Retries = min(max(p.Retries, 0), 2)
	p.Delays = slices.Clone(p.Delays)
	for i := range p.Delays {
		p.Delays[i] = max(p.Delays[i], 0)
	}
	p.Backoff = max(p.Backoff, time.Millisecond)
	p.MaxBackoff = max(p.MaxBackoff, p.Backoff)
	return p
}
