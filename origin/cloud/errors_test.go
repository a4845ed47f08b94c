package cloud

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"testing"

	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/aws/smithy-go"
	"google.golang.org/api/googleapi"

	"thaw/origin"
)

// TestErrorsOfServices is about the errors of services that no test can reach,
// as their SDKs make them.
func TestErrorsOfServices(t *testing.T) {
	const signed = "https://account.blob.core.windows.net/c/k?sig=hunter2"
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	azure := func(status int, code string) error {
		return &azcore.ResponseError{StatusCode: status, ErrorCode: code, RawResponse: &http.Response{
			StatusCode: status, Request: &http.Request{Method: "GET", URL: &url.URL{Host: "account", RawQuery: "sig=hunter2"}},
		}}
	}
	cases := []struct {
		name string
		err  error
		is   error // nil: none of the package's
		want string
	}{
		{"GCS refuses", &googleapi.Error{Code: 403, Message: "denied"}, origin.ErrRefused, "(403"},
		{"GCS without login", &googleapi.Error{Code: 401}, origin.ErrRefused, "(401"},
		{"GCS bucket", fmt.Errorf("x: %w", storage.ErrBucketNotExist), errNoBucket, "make it"},
		{"GCS is busy", &googleapi.Error{Code: 503, Message: "later"}, nil, "later"},
		{"Azure refuses", azure(403, "AuthorizationFailure"), origin.ErrRefused, "AuthorizationFailure"},
		{"Azure container", azure(404, "ContainerNotFound"), errNoBucket, "make it"},
		{"Azure is busy", azure(503, "ServerBusy"), nil, "ServerBusy"},
		{"S3 bucket", &smithy.GenericAPIError{Code: "NoSuchBucket"}, errNoBucket, "make it"},
		{"no connection", &url.Error{Op: "Get", URL: signed, Err: refused}, syscall.ECONNREFUSED, "cannot reach account.blob.core.windows.net"},
		{"no answer", &url.Error{Op: "Get", URL: signed, Err: errors.New("timeout")}, nil, "timeout"},
		{"a bad URL", &url.Error{Op: "Get", URL: "%zz?sig=hunter2", Err: errors.New("parse")}, nil, "the endpoint"},
		{"several lines", errors.New("one\n\ttwo"), nil, "one two"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := explain(t.Context(), c.err)
			checkFailure(t, "explain", fmt.Errorf("origin: %w", err), c.is, []string{c.want})
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the signature is in %q", err)
			}
			var slow slowing
			if busy := strings.HasSuffix(c.name, "is busy"); errors.As(err, &slow) != busy {
				t.Errorf("asks for fewer requests: %v", !busy)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := explain(ctx, errors.New("request canceled")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := explain(t.Context(), nil); err != nil {
		t.Errorf("none: %v", err)
	}
}

// TestOtherCloudsWithoutCredentials must not print, wait or go on.
func TestOtherCloudsWithoutCredentials(t *testing.T) {
	for _, name := range []string{
		"GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY",
		"AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGEBLOB_CONNECTIONSTRING",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	for url, want := range map[string]string{
		"gs://bucket":        "GOOGLE_APPLICATION_CREDENTIALS",
		"azblob://container": "AZURE_STORAGE_ACCOUNT",
	} {
		o, err := openURL(t, url)
		if err == nil {
			_, err = o.Manifests("r1", "t").Get(t.Context(), "x")
		}
		checkFailure(t, url, err, origin.ErrRefused, []string{want})
	}
}

// TestCloudStorageGivesUp: left to itself the SDK would try for ever.
func TestCloudStorageGivesUp(t *testing.T) {
	t.Setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:1")
	_, err := open(t, "gs://bucket").Manifests("r1", "t").Get(t.Context(), "x")
	checkFailure(t, "get", err, syscall.ECONNREFUSED, []string{"cannot reach 127.0.0.1:1"})
}
