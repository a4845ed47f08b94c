package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go/middleware"
)

// renewEvery is how often credentials are asked for again while there are no
// others to be had: each request that is refused would ask.
const renewEvery = time.Second

// errNoCredentials says that the AWS SDK found none.
var errNoCredentials = errors.New(
	"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or profile= in the URL")

// credentials are those of the machine, taken anew, from wherever they come
// from, when the service says that they are over: before their time, or without
// one, like those in a file that somebody keeps up to date.
type credentials struct {
	// load finds a source of credentials as if for the first time.
	load func(ctx context.Context) (aws.CredentialsProvider, error)

	turn chan struct{} // holds one token: whoever takes it may use what follows
	now  aws.CredentialsProvider
	vain time.Time // when there were no others last
}

func newCredentials(now aws.CredentialsProvider, load func(context.Context) (aws.CredentialsProvider, error)) *credentials {
	c := &credentials{load: load, now: now, turn: make(chan struct{}, 1)}
	c.turn <- struct{}{}
	return c
}

// take waits for the turn; the caller gives it back.
func (c *credentials) take(ctx context.Context) error {
	select {
	case <-c.turn:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *credentials) give() { c.turn <- struct{}{} }

// Retrieve is aws.CredentialsProvider's. It marks the failure to find any.
func (c *credentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if err := c.take(ctx); err != nil {
		return aws.Credentials{}, err
	}
	now := c.now
	c.give()
	got, err := now.Retrieve(ctx)
	if err != nil {
		return got, fmt.Errorf("%w (%w)", errNoCredentials, err)
	}
	return got, nil
}

// renew tells whether there are other credentials than those that were refused,
// and has Retrieve give them. Of many who ask, one goes and looks.
func (c *credentials) renew(ctx context.Context, refused aws.Credentials) bool {
	if c.take(ctx) != nil {
		return false
	}
	defer c.give()
	if got, err := c.now.Retrieve(ctx); err == nil && !same(got, refused) {
		return true
	}
	if time.Since(c.vain) < renewEvery {
		return false
	}
	fresh, err := c.load(ctx)
	var got aws.Credentials
	if err == nil {
		got, err = fresh.Retrieve(ctx)
	}
	if err != nil || same(got, refused) {
		c.vain = time.Now()
		return false
	}
	c.now = fresh
	return true
}

func same(a, b aws.Credentials) bool {
	return a.AccessKeyID == b.AccessKeyID && a.SecretAccessKey == b.SecretAccessKey && a.SessionToken == b.SessionToken
}

// stale are the codes of replies, most of them 400 and 403, to credentials that
// were good once.
var stale = map[string]bool{
	"ExpiredToken": true, "ExpiredTokenException": true, "InvalidToken": true, "TokenRefreshRequired": true,
	"RequestExpired": true, "InvalidClientTokenId": true, "InvalidAccessKeyId": true, "UnrecognizedClientException": true,
}

// isStale finds replies to credentials that are over. One to HEAD has no body,
// so it does not say why: credentials with a token may be over.
func isStale(err error, used aws.Credentials) bool {
	status := httpStatus(err)
	mute := status == http.StatusBadRequest && code(err) == "BadRequest" || status == http.StatusForbidden && code(err) == "Forbidden"
	return stale[code(err)] || mute && used.SessionToken != ""
}

// middleware sends a request once more, with other credentials, when those it
// was signed with are over. It is around the SDK's own attempts.
func (c *credentials) middleware(stack *middleware.Stack) error {
	return stack.Finalize.Add(middleware.FinalizeMiddlewareFunc("RenewCredentials", func(
		ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler,
	) (middleware.FinalizeOutput, middleware.Metadata, error) {
		used, missing := c.Retrieve(ctx)
		out, metadata, err := next.HandleFinalize(ctx, in)
		if err == nil || missing != nil || !isStale(err, used) || !c.renew(ctx, used) {
			return out, metadata, err
		}
		if body, ok := in.Request.(interface{ RewindStream() error }); ok {
			if body.RewindStream() != nil {
				return out, metadata, err
			}
		}
		return next.HandleFinalize(ctx, in)
	}), middleware.Before)
}
