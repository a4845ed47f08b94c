package frontend

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"thaw/functions"
)

// visit asks a function URL.
func (d *door) visit(id string, change func(*http.Request), method, path, body string) (int, http.Header, string) {
	d.t.Helper()
	r, err := http.NewRequest(method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	r.Host = id + ".lambda-url.us-east-1.localhost:9000"
	if change != nil {
		change(r)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		b = append(b, " CUT"...)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func withURL(u functions.URL) func(*functions.Function) {
	return func(f *functions.Function) {
		f.URLs = map[string]functions.URL{"": u}
		f.Policies = map[string][]functions.Statement{"": {
			{Sid: "open", Action: "lambda:InvokeFunctionUrl", Principal: "*", URLAuth: "NONE"},
		}}
	}
}

// A function URL has the door's scheme and port, and the domain that is said, or
// else the door's own name, or localhost if that is an address.
func TestURLOf(t *testing.T) {
	for _, c := range []struct{ endpoint, domain, want string }{
		{"", "", "http://abc.lambda-url.us-east-1.localhost/"},
		{"", "x.example", "http://abc.lambda-url.us-east-1.x.example/"},
		{"http://127.0.0.1:9000", "", "http://abc.lambda-url.us-east-1.localhost:9000/"},
		{"https://10.0.0.5:9000", "x.example", "https://abc.lambda-url.us-east-1.x.example:9000/"},
		{"https://api.example:443", "", "https://abc.lambda-url.us-east-1.api.example:443/"},
		{"https://api.example", "x.example", "https://abc.lambda-url.us-east-1.x.example/"},
	} {
		f := &Frontend{options: Options{Region: testRegion, Endpoint: c.endpoint, URLDomain: c.domain}}
		got := f.urlOf("abc")
		if got != c.want {
			t.Errorf("%q, %q: %s, want %s", c.endpoint, c.domain, got, c.want)
		}
		if u, err := url.Parse(got); err != nil {
			t.Error(err)
		} else if id, ok := isURLHost(u.Hostname()); !ok || id != "abc" {
			t.Errorf("%s leads to %q, %v", got, id, ok)
		}
	}
}

func TestURL(t *testing.T) {
	d := newDoor(t)
	d.function("f", withURL(functions.URL{ID: "abc", Auth: "NONE", Mode: "BUFFERED", Cors: &functions.Cors{
		AllowOrigins: []string{"https://a.example"}, AllowMethods: []string{"GET"}, MaxAge: 5}}))
	d.function("closed", withURL(functions.URL{ID: "closed", Auth: "NONE"}), func(f *functions.Function) { f.Policies = nil })

	status, h, body := d.visit("abc", func(r *http.Request) {
		r.Header.Set("Cookie", "a=b; c=d")
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Mine", "1")
	}, "POST", "/p/q%20r?x=1&x=2&y=z", `{"k":1}`)
	var e urlEvent
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != 200 || h.Get("Content-Type") != "application/json" || h.Get("X-Amzn-Requestid") == "" {
		t.Fatalf("%d %v %s", status, h, body)
	}
	if e.Version != "2.0" || e.RawPath != "/p/q r" || e.RawQueryString != "x=1&x=2&y=z" || e.Query["x"] != "1,2" || e.Headers["x-mine"] != "1" ||
		len(e.Cookies) != 2 || e.Body != `{"k":1}` || e.Base64 || e.Context.HTTP.Method != "POST" || e.Context.DomainPrefix != "abc" ||
		e.Context.AccountID != "anonymous" || e.Context.HTTP.SourceIP != "127.0.0.1" || e.Context.TimeEpoch == 0 {
		t.Errorf("event %+v", e)
	}
	_, _, body = d.visit("abc", func(r *http.Request) { r.Header.Set("Content-Type", "image/png") }, "PUT", "/", "\x00\xff")
	if err := json.Unmarshal([]byte(body), &e); err != nil || !e.Base64 || e.Body != "AP8=" {
		t.Errorf("binary body: %s", body)
	}
	if status, _, body := d.visit("nobody", nil, "GET", "/", ""); status != 403 || body != unknownURL {
		t.Errorf("unknown: %d %s", status, body)
	}
	if status, _, body := d.visit("closed", nil, "GET", "/", ""); status != 403 || !strings.Contains(body, "Forbidden") {
		t.Errorf("not allowed by policy: %d %s", status, body)
	}
	status, h, _ = d.visit("abc", func(r *http.Request) {
		r.Header.Set("Origin", "https://a.example")
		r.Header.Set("Access-Control-Request-Method", "GET")
	}, "OPTIONS", "/", "")
	if status != 200 || h.Get("Access-Control-Allow-Origin") != "https://a.example" || h.Get("Access-Control-Max-Age") != "5" || h.Get("Access-Control-Allow-Methods") != "GET" {
		t.Errorf("preflight: %d %v", status, h)
	}
	if _, h, _ = d.visit("abc", func(r *http.Request) { r.Header.Set("Origin", "https://b.example") }, "GET", "/", ""); h.Get("Access-Control-Allow-Origin") != "" {
		t.Error("another origin is allowed")
	}
}

// What a function answers becomes an HTTP answer.
func TestURLAnswers(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		status       int
		header, body string
	}{
		{"object", `{"statusCode":201,"headers":{"X-A":"b","Connection":"close","Content-Length":"7"},"cookies":["a=b"],"body":"hi"}`, 201, "b", "hi"},
		{"base64", `{"statusCode":200,"headers":{"x-a":1},"body":"aGk=","isBase64Encoded":true}`, 200, "1", "hi"},
		{"no status", `{"a":1}`, 200, "", `{"a":1}`},
		{"text", `"plain"`, 200, "", "plain"},
		{"bad status", `{"statusCode":"x"}`, 200, "", `{"statusCode":"x"}`},
		{"absurd status", `{"statusCode":7}`, 200, "", `{"statusCode":7}`},
		{"null", `null`, 200, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := readURLAnswer([]byte(c.answer))
			h := http.Header{}
			a.setHeaders(h)
			if a.Status != c.status || h.Get("X-A") != c.header || string(a.raw) != c.body || h.Get("Connection") != "" || h.Get("Content-Length") != "" {
				t.Errorf("%d %v %q", a.Status, h, a.raw)
			}
		})
	}
}

func FuzzURLAnswer(f *testing.F) {
	f.Add([]byte(`{"statusCode":201,"headers":{"X-A":"b"},"multiValueHeaders":{"a":["b"]},"cookies":["a=b"],"body":"hi"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a := readURLAnswer(b)
		a.setHeaders(http.Header{})
		if a.Status < 100 || a.Status > 999 {
			t.Errorf("status %d", a.Status)
		}
	})
}

// sign signs a request for a function URL.
func (d *door) sign(r *http.Request, body string, k Key) {
	sum := sha256.Sum256([]byte(body))
	err := v4.NewSigner().SignHTTP(context.Background(), aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret}, r, hex.EncodeToString(sum[:]), "lambda", testRegion, time.Now())
	if err != nil {
		d.t.Fatal(err)
	}
}

func TestURLWithIAM(t *testing.T) {
	d := newDoor(t)
	id := d.function("f", withURL(functions.URL{ID: "abc", Auth: "AWS_IAM"}))
	stranger := must(d.options.Keys.Create(t.Context(), "111111111111", ""))
	if status, _, _ := d.visit("abc", nil, "GET", "/", ""); status != 403 {
		t.Errorf("unsigned: %d", status)
	}
	status, _, body := d.visit("abc", func(r *http.Request) { d.sign(r, "x", d.key) }, "POST", "/a?b=c", "x")
	var e urlEvent
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != 200 || e.Context.Authorizer == nil || e.Context.Authorizer.IAM.AccessKey != d.key.ID || e.Context.AccountID != testAccount {
		t.Errorf("signed: %d %s", status, body)
	}
	call := func() int {
		status, _, _ := d.visit("abc", func(r *http.Request) { d.sign(r, "", stranger) }, "GET", "/", "")
		return status
	}
	if status := call(); status != 403 {
		t.Errorf("another account: %d", status)
	}
	d.update(id, func(f *functions.Function) {
		f.Policies[""] = append(f.Policies[""], functions.Statement{Action: "lambda:InvokeFunctionUrl", Principal: "111111111111", URLAuth: "AWS_IAM"})
	})
	if status := call(); status != 200 {
		t.Errorf("another account that is allowed: %d", status)
	}
	d.function("streams", withURL(functions.URL{ID: "presigned", Auth: "AWS_IAM"}))
	status, _, _ = d.visit("presigned", func(r *http.Request) {
		q := r.URL.Query()
		q.Set("X-Amz-Expires", "60")
		r.URL.RawQuery = q.Encode()
		signed, _, err := v4.NewSigner().PresignHTTP(t.Context(), aws.Credentials{AccessKeyID: d.key.ID, SecretAccessKey: d.key.Secret}, r, hashOf(""), "lambda", testRegion, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.URL.Parse(signed)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = u.RawQuery
	}, "GET", "/", "")
	if status != 200 {
		t.Errorf("presigned: %d", status)
	}
}

func hashOf(s string) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:]) }

// Streamed answers come with what their prelude says, and are cut off if the
// function fails after it has begun.
func TestURLStreams(t *testing.T) {
	d := newDoor(t)
	// The event is what the function gets, so the worker is told by a header.
	d.worker.script = func(payload []byte) []byte {
		var e urlEvent
		_ = json.Unmarshal(payload, &e)
		b, _ := json.Marshal(e.Headers["x-do"])
		return b
	}
	d.function("f", withURL(functions.URL{ID: "abc", Auth: "NONE", Mode: "RESPONSE_STREAM"}))
	visit := func(what string) (int, http.Header, string) {
		return d.visit("abc", func(r *http.Request) { r.Header.Set("X-Do", what) }, "GET", "/", "")
	}
	if status, h, body := visit("prelude"); status != 418 || h.Get("X-A") != "b" || h.Get("Set-Cookie") != "c=d" || body != "body" {
		t.Errorf("prelude: %d %v %q", status, h, body)
	}
	if status, h, body := visit("chunks"); status != 200 || body != "chunk 0;chunk 1;chunk 2;" || h.Get("Content-Type") != unformatted {
		t.Errorf("chunks: %d %v %q", status, h, body)
	}
	if status, _, body := visit("fail"); status != 502 || strings.Contains(body, "Boom") {
		t.Errorf("fail: %d %q", status, body)
	}
	if _, _, body := visit("late"); !strings.HasSuffix(body, "CUT") {
		t.Errorf("late: %q", body)
	}
	if _, _, body := visit("die"); !strings.HasSuffix(body, "CUT") {
		t.Errorf("die: %q", body)
	}
}

// The prelude may come in any pieces.
func TestPreludeInPieces(t *testing.T) {
	whole := []byte(`{"statusCode":203}` + preludeEnd + "rest")
	for cut := range whole {
		w := newRecorder()
		s := &urlStream{w: w, control: http.NewResponseController(w), contentType: preludeType}
		if err := s.send(bytes.Clone(whole[:cut])); err != nil {
			t.Fatal(err)
		}
		if err := s.send(bytes.Clone(whole[cut:])); err != nil {
			t.Fatal(err)
		}
		if w.Code != 203 || w.Body.String() != "rest" {
			t.Errorf("cut at %d: %d %q", cut, w.Code, w.Body)
		}
	}
	w := newRecorder()
	s := &urlStream{w: w, control: http.NewResponseController(w), contentType: preludeType}
	if err := s.send(make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	s.end(false)
	if w.Code != http.StatusBadGateway {
		t.Errorf("a prelude without an end: %d", w.Code)
	}
}
