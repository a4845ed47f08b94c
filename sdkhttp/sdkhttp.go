// Package sdkhttp carries requests of the AWS SDK.
//
// smithy-go 1.28 closes the body of a request once the head of the answer is
// there (transport/http/client.go). net/http may then still be looking whether
// the body goes on past its length, by WriteTo where there is one, and that of a
// closed body ends with io.EOF (transport/http/internal/io/safe.go), where
// [io.WriterTo] wants nil. net/http takes it for a failed write and closes the
// connection under the answer: "use of closed network connection". Of streams
// that begin at once, over loopback, about one in 150 was lost so.
package sdkhttp

import (
	"io"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
)

// Client gives an HTTP client for the SDK. Its connections are the SDK's but for
// what is set, and it follows no redirects, as the SDK's own.
func Client(set ...func(*http.Transport)) *http.Client {
	return &http.Client{
		Transport:     Transport{Base: awshttp.NewBuildableClient().WithTransportOptions(set...).GetTransport()},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Transport sends requests by another RoundTripper, with bodies that can only be
// read: what Read says of a closed body is right. It is safe for concurrent use
// as far as the other is.
type Transport struct{ Base http.RoundTripper }

// RoundTrip is http.RoundTripper's.
func (t Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		body := r.Body
		r = r.WithContext(r.Context()) // the caller's stays as it is
		r.Body = struct{ io.ReadCloser }{body}
	}
	return t.Base.RoundTrip(r)
}

// CloseIdleConnections is for http.Client's.
func (t Transport) CloseIdleConnections() {
	if c, ok := t.Base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}
