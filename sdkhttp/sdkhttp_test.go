package sdkhttp

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// closedBody is a body that was closed when all of it had been read, as the SDK
// leaves it.
type closedBody struct{ io.Reader }

func (closedBody) WriteTo(io.Writer) (int64, error) { return 0, io.EOF }
func (closedBody) Close() error                     { return nil }

// An answer can be read to its end, however soon the request's body is closed.
func TestAnswerIsWhole(t *testing.T) {
	finish := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.CopyN(io.Discard, r.Body, r.ContentLength); err != nil {
			t.Error(err)
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-finish:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, "the rest")
	}))
	defer server.Close()
	base := &http.Transport{}
	defer base.CloseIdleConnections()
	ask := func(rt http.RoundTripper) (string, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, closedBody{strings.NewReader("body")})
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = 4
		resp, err := rt.RoundTrip(r)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		if rt != base {
			close(finish)
		}
		got, err := io.ReadAll(resp.Body)
		return string(got), err
	}
	if got, err := ask(base); err == nil {
		t.Errorf("net/http gives %q by itself: this package is needed no more", got)
	}
	if got, err := ask(Transport{Base: base}); err != nil || got != "the rest" {
		t.Errorf("%q, %v", got, err)
	}
}

// Requests without a body, and those of callers, stay as they are.
func TestRequestsStay(t *testing.T) {
	var sent *http.Request
	tr := Transport{Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = r
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})}
	for _, body := range []io.ReadCloser{nil, http.NoBody, closedBody{strings.NewReader("body")}} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Body = body
		resp, err := tr.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if _, ok := sent.Body.(io.WriterTo); ok && body != http.NoBody || r.Body != body {
			t.Errorf("%T was sent as %T, and is now %T", body, sent.Body, r.Body)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
