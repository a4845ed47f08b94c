package cloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"gocloud.dev/gcerrors"
	"google.golang.org/api/googleapi"

	"thaw/origin"
)

// errNoBucket says that the bucket of the URL is missing, which is not the same
// as a missing object, though services answer both with 404.
var errNoBucket = errors.New("no such bucket: make it, or check the URL and the region")

// httpStatus finds the HTTP status in an SDK's error, or gives 0.
func httpStatus(err error) int {
	var aws interface{ HTTPStatusCode() int }
	var google *googleapi.Error
	var azure *azcore.ResponseError
	switch {
	case errors.As(err, &aws):
		return aws.HTTPStatusCode()
	case errors.As(err, &google):
		return google.Code
	case errors.As(err, &azure):
		return azure.StatusCode
	}
	return 0
}

// code finds the service's own word for an error, or gives "".
func code(err error) string {
	var aws smithy.APIError
	var azure *azcore.ResponseError
	switch {
	case errors.As(err, &aws):
		return aws.ErrorCode()
	case errors.As(err, &azure):
		return azure.ErrorCode
	}
	return ""
}

// header finds the header of the reply that made an SDK's error, or gives none.
func header(err error) http.Header {
	var aws interface{ HTTPResponse() *smithyhttp.Response }
	var google *googleapi.Error
	var azure *azcore.ResponseError
	switch {
	case errors.As(err, &aws):
		if r := aws.HTTPResponse(); r != nil && r.Response != nil {
			return r.Header
		}
	case errors.As(err, &google):
		return google.Header
	case errors.As(err, &azure):
		if azure.RawResponse != nil {
			return azure.RawResponse.Header
		}
	}
	return nil
}

// isSlowDown finds the replies that ask for fewer requests.
func isSlowDown(err error) bool {
	switch httpStatus(err) {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return true
	}
	_, throttled := retry.DefaultThrottleErrorCodes[code(err)]
	return throttled
}

// askedPause gives how long the service asks not to be asked, or 0.
func askedPause(err error) time.Duration {
	after := header(err).Get("Retry-After") // seconds or a date (RFC 9110, 10.2.3)
	if seconds, err := strconv.ParseUint(after, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if date, err := http.ParseTime(after); err == nil {
		return max(time.Until(date), 0)
	}
	return 0
}

// slowDown is the error of a service that asks for fewer requests.
type slowDown struct {
	error
	pause time.Duration
}

// SlowDown gives how long to ask nothing; 0 if the service did not say.
func (s slowDown) SlowDown() time.Duration { return s.pause }
func (s slowDown) Unwrap() error           { return s.error }

// explain gives an SDK's error package origin's words, in one line. The
// status comes before gocloud's code, which calls some refusals "not found".
func explain(ctx context.Context, err error) error {
	status := httpStatus(err)
	switch {
	case err == nil, errors.Is(err, origin.ErrCorrupt):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errNoCredentials):
		return fmt.Errorf("%w: %w", origin.ErrRefused, errNoCredentials)
	case stale[code(err)]:
		return fmt.Errorf("%w (%d %s): the credentials are over, and there are no newer ones", origin.ErrRefused, status, code(err))
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return fmt.Errorf("%w (%d %s): check the credentials, and that they allow to read, write, list and delete",
			origin.ErrRefused, status, code(err))
	case code(err) == "NoSuchBucket", code(err) == string(bloberror.ContainerNotFound), errors.Is(err, storage.ErrBucketNotExist):
		return errNoBucket
	case status == http.StatusMovedPermanently:
		return fmt.Errorf("the bucket is in another region: set region= in the URL")
	case isSlowDown(err):
		return slowDown{plain{err}, askedPause(err)}
	case status == http.StatusNotFound && (code(err) == "NoSuchKey" || code(err) == "NotFound"):
		return origin.ErrNotFound
	case errors.Is(err, errBroken), errors.Is(err, errStalled), status != 0 && status != http.StatusNotFound:
		return plain{err}
	}
	if host, cause := unreachable(err); cause != nil {
		return fmt.Errorf("cannot reach %s: %w", host, cause)
	}
	if gcerrors.Code(err) == gcerrors.NotFound {
		return origin.ErrNotFound
	}
	return plain{err}
}

// unreachable finds the host that a request did not get to, or lost. The rest
// of the URL may hold an access signature and is left out.
func unreachable(err error) (host string, cause error) {
	var request *url.Error
	if !errors.As(err, &request) {
		return "", nil
	}
	host = "the endpoint"
	if u, perr := url.Parse(request.URL); perr == nil {
		host = u.Host
	}
	var network *net.OpError
	if errors.As(request.Err, &network) {
		return host, network
	}
	return host, request.Err
}

// plain is an SDK's error in one line.
type plain struct{ error }

func (p plain) Error() string { return strings.Join(strings.Fields(p.error.Error()), " ") }
func (p plain) Unwrap() error { return p.error }
