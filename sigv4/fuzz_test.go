package sigv4

import (
	"net/http"
	"net/url"
	"testing"
)

// Nothing that a client may send verifies without the secret, nor stops the
// server; what it cannot have signed is refused by name.
func FuzzVerify(f *testing.F) {
	whole := signed(f, "GET", arnPath, "", "").Header.Get("Authorization")
	f.Add(whole, "20261121T194831Z", "Qualifier=%24LATEST")
	f.Add(algorithm+" Credential=a/20261121/us-east-1/lambda/aws4_request,SignedHeaders=host,Signature=00", "20261121T194831Z", "a=%zz")
	f.Add("", "", "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=a%2F20261121%2Fus-east-1%2Flambda%2Faws4_request&X-Amz-Date=20261121T194831Z"+
		"&X-Amz-Expires=9&X-Amz-SignedHeaders=host&X-Amz-Signature=00")
	f.Add(algorithm+" ,,=;=", "x", "&&=&")
	f.Fuzz(func(t *testing.T, authorization, date, query string) {
		o := options()
		o.Presigned = true
		r := &http.Request{Method: "GET", Host: "localhost", URL: &url.URL{Path: "/other", RawQuery: query}, Header: http.Header{}}
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		r.Header.Set("X-Amz-Date", date)
		if _, err := Verify(r, hashOf(""), o); err == nil {
			t.Error("verified")
		} else if _, ok := err.(*Error); !ok {
			t.Errorf("%T %v", err, err)
		}
	})
}

// Encoding keeps what needs none, and is undone by decoding.
func FuzzEncode(f *testing.F) {
	f.Add("a b+c/%2F~é\x00")
	f.Fuzz(func(t *testing.T, s string) {
		for _, slashes := range []bool{true, false} {
			if back, err := url.PathUnescape(encode(s, slashes)); err != nil || back != s {
				t.Errorf("%q: %q %v", s, back, err)
			}
		}
	})
}
