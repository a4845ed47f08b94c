package sigv4

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const arnPath = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Af%3A%24LATEST/invocations?Qualifier=%24LATEST&b=2&b=1&a="

func TestVerify(t *testing.T) {
	for _, c := range []struct{ method, target, body string }{
		{"POST", arnPath, `{"a":1}`},
		{"GET", "/", ""},
		{"GET", "/2015-03-31/functions/?MaxItems=3", ""},
		{"DELETE", "/2017-03-31/tags/arn%3Aaws?tagKeys=c%2Bd%2F%3D&tagKeys=a%20b&tagKeys=%C3%A9&tagKeys=~&tagKeys=a%21", ""},
		{"PUT", "/a//b/../c%2Fd;e=f/%E2%82%AC?x&y=%26", "body"},
	} {
		id, err := Verify(signed(t, c.method, c.target, c.body, ""), hashOf(c.body), options())
		if err != nil || id != (Identity{KeyID: keyID, Account: account}) {
			t.Errorf("%s %s: %v %v", c.method, c.target, id, err)
		}
	}
}

// Whatever is changed on the way, the request is refused.
func TestTampering(t *testing.T) {
	const body = `{"a":1}`
	for what, change := range map[string]func(r *http.Request){
		"method":       func(r *http.Request) { r.Method = "PUT" },
		"host":         func(r *http.Request) { r.Host = "localhost:9001" },
		"length":       func(r *http.Request) { r.ContentLength++ },
		"path":         func(r *http.Request) { r.URL.Path += "x"; r.URL.RawPath += "x" },
		"path's case":  func(r *http.Request) { r.URL.RawPath = strings.Replace(r.URL.RawPath, "%3A", "%3a", 1) },
		"decoded path": func(r *http.Request) { r.URL.RawPath = "" },
		"query":        func(r *http.Request) { r.URL.RawQuery += "&c=3" },
		"less query":   func(r *http.Request) { r.URL.RawQuery = "Qualifier=%24LATEST" },
		"header":       func(r *http.Request) { r.Header.Set("X-Amz-Invocation-Type", "DryRun") },
		"one more":     func(r *http.Request) { r.Header.Add("X-Amz-Invocation-Type", "Event") },
		"no header":    func(r *http.Request) { r.Header.Del("X-Amz-Invocation-Type") },
		"own header":   func(r *http.Request) { r.Header.Set("X-Amz-Log-Type", "Tail") },
		"other header": func(r *http.Request) { r.Header.Set("X-Padded", "ab") },
		"date":         func(r *http.Request) { r.Header.Set("X-Amz-Date", "20261121T194832Z") },
		"own hash":     func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", hashOf(body)) },
		"signature":    func(r *http.Request) { replace(r, "Signature=", "Signature=0") },
		"short mac":    func(r *http.Request) { a := r.Header.Get("Authorization"); r.Header.Set("Authorization", a[:len(a)-2]) },
		"one bit": func(r *http.Request) {
			a := []byte(r.Header.Get("Authorization"))
			a[len(a)-1] = "1032547698badcfe"[strings.IndexByte("0123456789abcdef", a[len(a)-1])]
			r.Header.Set("Authorization", string(a))
		},
		"less headers":   func(r *http.Request) { replace(r, ";x-padded", "") },
		"unsigned":       func(r *http.Request) { replace(r, ";x-amz-invocation-type", "") },
		"unsigned host":  func(r *http.Request) { replace(r, ";host", "") },
		"other region":   func(r *http.Request) { replace(r, "us-east-1", "eu-west-1") },
		"other service":  func(r *http.Request) { replace(r, "/lambda/", "/s3/") },
		"other end":      func(r *http.Request) { replace(r, "aws4_request", "aws5_request") },
		"other day":      func(r *http.Request) { replace(r, "/20261121/", "/20261122/") },
		"claimed":        func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "UNSIGNED-PAYLOAD") },
		"streaming body": func(r *http.Request) { r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD") },
	} {
		r := signed(t, "POST", arnPath, body, "")
		change(r)
		_, err := Verify(r, hashOf(body), options())
		if what == "short mac" || what == "signature" {
			refused(t, what, err, "InvalidSignatureException")
		} else if e, ok := errors.AsType[*Error](err); !ok || e.Code() != "InvalidSignatureException" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := Verify(signed(t, "POST", arnPath, body, ""), hashOf(body+" "), options())
	refused(t, "body", err, "InvalidSignatureException")
}

func replace(r *http.Request, old, with string) {
	r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), old, with, 1))
}

func TestMalformed(t *testing.T) {
	whole := signed(t, "GET", "/", "", "").Header.Get("Authorization")
	for what, authorization := range map[string][]string{
		"nothing":         {algorithm + " "},
		"other algorithm": {"AWS4-HMAC-SHA512 " + strings.TrimPrefix(whole, algorithm+" ")},
		"version 2":       {"AWS AKID:signature"},
		"bearer":          {"Bearer token"},
		"no credential":   {strings.Replace(whole, "Credential", "credential", 1)},
		"no signature":    {whole[:strings.Index(whole, ", Signature")]},
		"twice":           {whole, whole},
		"twice inside":    {whole + ", Signature=00"},
		"rubbish":         {whole + ", rubbish"},
		"four parts":      {strings.Replace(whole, "/lambda", "", 1)},
		"no key":          {strings.Replace(whole, keyID, "", 1)},
		"no day":          {strings.Replace(whole, "/20261121/", "/today/", 1)},
		"unsorted":        {strings.Replace(whole, "host;", "zzz;host;", 1)},
		"upper case":      {strings.Replace(whole, "host;", "Host;", 1)},
		"no headers":      {whole[:strings.Index(whole, "SignedHeaders=")] + "SignedHeaders=, Signature=" + strings.Repeat("0", 64)},
	} {
		r := signed(t, "GET", "/", "", "")
		r.Header["Authorization"] = authorization
		_, err := Verify(r, hashOf(""), options())
		refused(t, what, err, "IncompleteSignatureException")
		if err != nil && strings.Contains(err.Error(), whole[len(whole)-64:]) {
			t.Errorf("%s: the error repeats the signature: %v", what, err)
		}
	}
	for what, dates := range map[string][]string{"none": nil, "two": {"20261121T194831Z", "20261121T194831Z"}, "HTTP's": {start().Format(http.TimeFormat)}, "bad": {"20261121T194899Z"}} {
		r := signed(t, "GET", "/", "", "")
		r.Header["X-Amz-Date"] = dates
		_, err := Verify(r, hashOf(""), options())
		refused(t, "dates: "+what, err, "IncompleteSignatureException")
	}
	r := signed(t, "GET", "/", "", "")
	r.Header.Del("Authorization")
	_, err := Verify(r, hashOf(""), options())
	refused(t, "no authorization", err, "MissingAuthenticationTokenException")
	r = signed(t, "GET", "/", "", "")
	r.URL.RawQuery = "%zz"
	_, err = Verify(r, hashOf(""), options())
	refused(t, "query", err, "IncompleteSignatureException")
}

// The words are AWS's.
func TestTexts(t *testing.T) {
	for _, c := range []struct {
		after time.Duration
		want  string
	}{
		{0, ""},
		{5 * time.Minute, ""},
		{-5 * time.Minute, ""},
		{5*time.Minute + time.Second, "InvalidSignatureException: Signature expired: 20261121T194831Z is now earlier than 20261121T194832Z (20261121T195332Z - 5 min.)"},
		{-5*time.Minute - time.Second, "InvalidSignatureException: Signature not yet current: 20261121T194831Z is still later than 20261121T194830Z (20261121T194330Z + 5 min.)"},
	} {
		o := options()
		o.Now = func() time.Time { return start().Add(c.after).In(time.FixedZone("far", 3600)) }
		_, err := Verify(signed(t, "GET", "/", "", ""), hashOf(""), o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("after %v: %v", c.after, err)
		}
	}
	o := options()
	o.Secret = known(Key{Secret: "another"})
	const want = "InvalidSignatureException: The request signature we calculated does not match the signature you provided. " +
		"Check your AWS Secret Access Key and signing method. Consult the service documentation for details."
	if _, err := Verify(signed(t, "GET", "/", "", ""), hashOf(""), o); err == nil || err.Error() != want {
		t.Error(err)
	}
}

func TestKeys(t *testing.T) {
	o := options()
	o.Secret = func(context.Context, string) (Key, error) { return Key{}, ErrUnknownKey }
	_, err := Verify(signed(t, "GET", "/", "", ""), hashOf(""), o)
	refused(t, "unknown", err, "UnrecognizedClientException")

	broken := errors.New("records unavailable")
	o.Secret = func(context.Context, string) (Key, error) { return Key{}, broken }
	if _, err := Verify(signed(t, "GET", "/", "", ""), hashOf(""), o); !errors.Is(err, broken) {
		t.Error(err)
	} else if _, ok := errors.AsType[*Error](err); ok {
		t.Error("the client is blamed for a look-up that failed: ", err)
	}

	session := Key{Secret: secret, Account: account, Token: "session+token/=", Expires: start().Add(time.Minute)}
	o.Secret = known(session)
	if _, err := Verify(signed(t, "POST", arnPath, "x", session.Token), hashOf("x"), o); err != nil {
		t.Error(err)
	}
	for what, token := range map[string]string{"no token": "", "another token": "session"} {
		_, err := Verify(signed(t, "GET", "/", "", token), hashOf(""), o)
		refused(t, what, err, "UnrecognizedClientException")
	}
	_, err = Verify(signed(t, "GET", "/", "", "token"), hashOf(""), options())
	refused(t, "a token with a key that has none", err, "UnrecognizedClientException")
	o.Now = func() time.Time { return session.Expires }
	_, err = Verify(signed(t, "GET", "/", "", session.Token), hashOf(""), o)
	refused(t, "ended", err, "ExpiredTokenException")
}

func TestUnsignedPayload(t *testing.T) {
	out, _ := http.NewRequest("POST", "http://localhost:9000/x", nil)
	out.Header.Set("X-Amz-Content-Sha256", unsigned)
	credentials := aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret}
	if err := v4.NewSigner().SignHTTP(t.Context(), credentials, out, unsigned, "lambda", region, start()); err != nil {
		t.Fatal(err)
	}
	r := received(t, out)
	_, err := Verify(r, hashOf("anything"), options())
	refused(t, "unsigned", err, "InvalidSignatureException")
	o := options()
	o.UnsignedPayload = true
	if _, err := Verify(r, hashOf("anything"), o); err != nil {
		t.Error(err)
	}
}

func TestPresigned(t *testing.T) {
	o := options()
	o.Presigned = true
	presign := func(target string) *http.Request {
		out, _ := http.NewRequest("GET", "http://f.lambda-url.localhost:9000"+target, nil)
		credentials := aws.Credentials{AccessKeyID: keyID, SecretAccessKey: secret}
		signedURL, headers, err := v4.NewSigner().PresignHTTP(t.Context(), credentials, out, hashOf(""), "lambda", region, start())
		if err != nil {
			t.Fatal(err)
		}
		if out.URL, err = url.Parse(signedURL); err != nil {
			t.Fatal(err)
		}
		out.Header = headers
		return received(t, out)
	}
	const target = "/a%2Fb/c?X-Amz-Expires=900&q=1%202"
	if _, err := Verify(presign(target), hashOf(""), o); err != nil {
		t.Fatal(err)
	}
	_, err := Verify(presign(target), hashOf(""), options())
	refused(t, "where it is not accepted", err, "MissingAuthenticationTokenException")
	for what, change := range map[string]func(r *http.Request){
		"path":    func(r *http.Request) { r.URL.Path = "/a/b"; r.URL.RawPath = "" },
		"query":   func(r *http.Request) { r.URL.RawQuery += "&q=2" },
		"expires": func(r *http.Request) { r.URL.RawQuery = strings.Replace(r.URL.RawQuery, "=900", "=901", 1) },
		"token":   func(r *http.Request) { r.URL.RawQuery += "&X-Amz-Security-Token=t" },
	} {
		r := presign(target)
		change(r)
		_, err := Verify(r, hashOf(""), o)
		refused(t, what, err, "InvalidSignatureException")
	}
	for _, odd := range []string{"0", "-1", "604801", "x", "99999999999999999999"} {
		_, err := Verify(presign("/?X-Amz-Expires="+odd), hashOf(""), o)
		refused(t, "expires "+odd, err, "IncompleteSignatureException")
	}
	r := presign(target)
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 x")
	_, err = Verify(r, hashOf(""), o)
	refused(t, "two signatures", err, "IncompleteSignatureException")
	o.Now = func() time.Time { return start().Add(901 * time.Second) }
	_, err = Verify(presign(target), hashOf(""), o)
	refused(t, "ended", err, "InvalidSignatureException")
	o.Now = func() time.Time { return start().Add(900 * time.Second) }
	if _, err := Verify(presign(target), hashOf(""), o); err != nil {
		t.Error(err)
	}
}
