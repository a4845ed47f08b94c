package cloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/aws/smithy-go"
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
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return fmt.Errorf("%w (%d %s): check the credentials, and that they allow to read, write, list and delete",
			origin.ErrRefused, status, code(err))
	case code(err) == "NoSuchBucket", code(err) == string(bloberror.ContainerNotFound), errors.Is(err, storage.ErrBucketNotExist):
		return errNoBucket
	case status == http.StatusMovedPermanently:
		return fmt.Errorf("the bucket is in another region: set region= in the URL")
	case errors.Is(err, errBroken), status != 0 && status != http.StatusNotFound:
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
