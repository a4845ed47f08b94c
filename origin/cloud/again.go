package cloud

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
)

const (
	// attempts bounds how often a write is sent that S3 answers with 409, for
	// puts at once.
	attempts = 4
	// readAttempts bounds how often a read of S3 is sent, whatever goes wrong:
	// the SDK does not try again by itself. Where one request in a hundred
	// fails, three leave one read in a million.
	readAttempts = 3
	// backoff is the longest wait before the second attempt; it doubles.
	backoff = 100 * time.Millisecond
	// longestWait bounds what a read waits because the service says so. The
	// error of one that says more is the caller's at once, see slowDown.
	longestWait = time.Second
	// stallTimeout bounds the time in which not one byte of a read comes, at the
	// first attempt; it doubles, for services that are slow. S3 answers 99.9 %
	// within 0.2 s, and a connection to a host that is gone would never end.
	stallTimeout = 5 * time.Second

	// The reads of a bucket share a budget, so that an origin that fails
	// altogether is asked once for each read and not three times: 20 repetitions,
	// and one more for each 5 reads that succeed.
	retryBudget = 20 * retryCost
	retryCost   = 5
	retryRefund = 1
)

// again runs f at most tries times, until it gives something other than an
// error to be tried again. It does not wait for what ctx leaves no time for.
func again(ctx context.Context, tries int, transient func(error) bool, f func() error) error {
	longest := backoff
	for try := 1; ; try++ {
		err := f()
		if err == nil || try == tries || ctx.Err() != nil {
			return explain(ctx, err)
		}
		wait := longest/2 + rand.N(longest/2) // workers that failed together part
		wait = max(wait, askedPause(err))
		end, limited := ctx.Deadline()
		if wait > longestWait || limited && time.Until(end) <= wait || !transient(err) {
			return explain(ctx, err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return explain(ctx, err)
		}
		longest *= 2
	}
}

// errBroken marks a body that ended too early: the SDKs have given the reply
// away by then and do not try again.
var errBroken = errors.New("the object's bytes broke off")

// errStalled is the cause of a read's end in which no byte came for too long.
var errStalled = errors.New("no byte came for too long")

// reads says which reads are sent again.
type reads struct {
	budget *ratelimit.TokenRateLimit
	// passing finds errors that may pass. SDKs that try again by themselves
	// have nil.
	passing func(error) bool
}

func newReads() *reads {
	return &reads{budget: ratelimit.NewTokenRateLimit(retryBudget)}
}

// worthwhile finds an error that may pass, and takes the next attempt out of
// the budget.
func (r *reads) worthwhile(err error) bool {
	passing := r.passing != nil && r.passing(err)
	if !passing && !errors.Is(err, errBroken) && !errors.Is(err, errStalled) {
		return false
	}
	_, spent := r.budget.GetToken(context.Background(), retryCost)
	return spent == nil
}

func (r *reads) succeeded() { _ = r.budget.AddTokens(retryRefund) } // it has no errors

// passes finds errors of AWS' SDK that may pass: broken connections, 5xx, and
// being asked to slow down.
func passes(err error) bool {
	return retry.IsErrorRetryables(retry.DefaultRetryables).IsErrorRetryable(err) == aws.TrueTernary || isSlowDown(err)
}

// stallable ends ctx, with errStalled as its cause, once a time has passed in
// which touch was not called. The caller calls cancel.
func stallable(ctx context.Context, timeout time.Duration) (_ context.Context, touch func(), cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	timer := time.AfterFunc(timeout, func() { end(fmt.Errorf("%w: %v", errStalled, timeout)) })
	return ctx, func() { timer.Reset(timeout) }, func() {
		timer.Stop()
		end(nil)
	}
}

// stalled gives an error of a stallable context its cause.
func stalled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// touching calls touch when bytes come.
type touching struct {
	io.Reader
	touch func()
}

// Read implements io.Reader.
func (t touching) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.touch()
	}
	return n, err
}
