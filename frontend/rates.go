package frontend

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"thaw/invokewire"
	"thaw/lambdaapi"
)

const (
	// controlRate is how many requests a second that read or change functions one
	// account gets answered by a frontend for long, and controlBurst how many at once.
	// Lambda's are 15 a second, and 100 of GetFunction; the burst is for tools that ask
	// about each of many functions.
	controlRate, controlBurst = 100, 1000
	// maxRated bounds the accounts whose buckets are kept, twice: some 200 bytes each.
	maxRated = 8192
)

// rates hold accounts to a rate: each has a bucket of tokens of its own. One that
// is full is that of an account that nothing is known of, and is forgotten:
//
//	recent ── each time that a bucket takes to fill ─→ former ─→ gone
//	  ↑                                                   │
//	  └────────────────── who asks again ─────────────────┘
//
// With more accounts than maxRated in that time, the first get a new one sooner.
type rates struct {
	limit rate.Limit
	burst int

	mu             sync.Mutex
	recent, former map[string]*rate.Limiter // by account; guarded by mu
	turned         time.Time                // when recent became former; guarded by mu
}

func newRates(limit rate.Limit, burst int) *rates {
	return &rates{limit: limit, burst: burst}
}

// after is how long so many tokens take to come.
func (r *rates) after(tokens float64) time.Duration {
	return time.Duration(tokens / float64(r.limit) * float64(time.Second))
}

// take takes a token of an account, or gives the time until there is one.
func (r *rates) take(account string, now time.Time) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, known := r.recent[account]
	if full := now.Sub(r.turned) >= r.after(float64(r.burst)); full || !known && len(r.recent) >= maxRated {
		r.former, r.recent, r.turned, known = r.recent, map[string]*rate.Limiter{}, now, false
	}
	if !known {
		if b = r.former[account]; b == nil {
			b = rate.NewLimiter(r.limit, r.burst)
		}
		r.recent[account] = b
	}
	if b.AllowN(now, 1) {
		return 0
	}
	return r.after(1 - b.TokensAt(now))
}

// admit refuses a request of control that is one too many of its account.
func (f *Frontend) admit(account string) error {
	wait := f.rates.take(account, time.Now())
	if wait <= 0 {
		return nil
	}
	f.counts.refusedControl.Inc()
	return throttled(&invokewire.Throttle{Reason: lambdaapi.ThrottleReasonCallerRateLimitExceeded, RetryAfter: wait})
}
