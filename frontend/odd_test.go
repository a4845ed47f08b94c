package frontend

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/functions"
	"thaw/invokewire"
)

// Requests that no client of AWS's sends are refused, in the API's form, and
// never as a failure of the platform.
func TestOddRequests(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	const invoke = "POST /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: x\r\n"
	for name, raw := range map[string]string{
		"unsigned":                 invoke + "Content-Length: 2\r\n\r\n{}",
		"unsigned, in chunks":      invoke + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		"an old version":           "POST /2015-03-31/functions/f/invocations HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}",
		"signed by another scheme": invoke + "Authorization: Basic eDp5\r\nContent-Length: 2\r\n\r\n{}",
		"half a signature":         invoke + "Authorization: AWS4-HMAC-SHA256 Credential=\r\nContent-Length: 2\r\n\r\n{}",
		"a signature of nothing":   invoke + "Authorization: AWS4-HMAC-SHA256 Credential=A/20261122/us-east-1/lambda/aws4_request, SignedHeaders=, Signature=\r\nContent-Length: 2\r\n\r\n{}",
		"two signatures":           invoke + "Authorization: AWS4-HMAC-SHA256 x\r\nAuthorization: AWS4-HMAC-SHA256 y\r\nContent-Length: 2\r\n\r\n{}",
		"another method":           "BREW /2015-03-31/functions/f/invocations HTTP/1.1\r\nHost: x\r\n\r\n",
		"no such path":             "GET /2015-03-31/nothing HTTP/1.1\r\nHost: x\r\n\r\n",
		"a path with a NUL":        "GET /2015-03-31/functions/f%00g HTTP/1.1\r\nHost: x\r\n\r\n",
		"a path upwards":           "GET /2015-03-31/functions/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"slashes":                  "GET ///////// HTTP/1.1\r\nHost: x\r\n\r\n",
		"a long name":              "GET /2015-03-31/functions/" + strings.Repeat("f", 4000) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"a target of another API":  "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: DynamoDB_20120810.ListTables\r\nContent-Length: 2\r\n\r\n{}",
		"a URL that leads nowhere": "GET / HTTP/1.1\r\nHost: abc.lambda-url.us-east-1.localhost\r\n\r\n",
		"notifications, by GET":    "GET /s3/000000000000/f HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, raw); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode < 400 || resp.StatusCode > 499 || !json.Valid(body) {
				t.Errorf("%d %q, %v", resp.StatusCode, body, err)
			}
			if len(resp.Header.Get("X-Amzn-Requestid")) != 36 || len(body) > 4096 {
				t.Errorf("%v, %d bytes", resp.Header, len(body))
			}
		})
	}
	if starts, _, _ := d.worker.counts(); starts != 0 {
		t.Errorf("%d starts", starts)
	}
}

// endless gives n zero bytes, then an error or io.EOF.
type endless struct {
	n   int
	end error
}

func (e *endless) Read(p []byte) (int, error) {
	if e.n == 0 {
		return 0, e.end
	}
	n := min(len(p), e.n)
	e.n -= n
	return n, nil
}

// relayOf passes an answer on, and tells how many bytes its client got.
func relayOf(body io.Reader, header, trailer http.Header, send func(int) error) (relayed, int) {
	f, got := new(Frontend), 0
	r := f.relay(&answer{Response: &http.Response{Body: io.NopCloser(body), Header: header, Trailer: trailer}}, func(b []byte) error {
		got += len(b)
		return send(got)
	})
	return r, got
}

// Streams end at Lambda's limit, without an end of the instance; and an answer
// is read to its end when nobody takes it any more.
func TestStreamLimits(t *testing.T) {
	takes := func(int) error { return nil }
	failed := http.Header{invokewire.HeaderFunctionError: {"Unhandled"}}
	if r, got := relayOf(&endless{maxStream, io.EOF}, nil, nil, takes); got != maxStream || r.code != "" || !r.alive {
		t.Errorf("the longest: %d bytes, %+v", got, r)
	}
	if r, got := relayOf(&endless{maxStream + 1, io.EOF}, nil, nil, takes); got > maxStream || r.code != codeTooLarge || !r.alive {
		t.Errorf("a byte more: %d bytes, %+v", got, r)
	}
	left := &endless{10 * chunkSize, io.EOF}
	if r, got := relayOf(left, nil, nil, func(int) error { return errors.New("gone") }); got > chunkSize || left.n != 0 || r.code != "" || !r.alive {
		t.Errorf("a client that has gone: %d bytes, %d are left, %+v", got, left.n, r)
	}
	if r, _ := relayOf(&endless{1, errors.New("reset")}, nil, nil, takes); r.code != codeService || r.alive {
		t.Errorf("a worker that has died: %+v", r)
	}
	if r, got := relayOf(&endless{10 * maxDetails, io.EOF}, failed, nil, takes); got != 0 || r.code != codeUnhandled || len(r.details) != maxDetails || !r.alive {
		t.Errorf("an error that is long: %d bytes, %s, %d of details", got, r.code, len(r.details))
	}
	for text, want := range map[string]string{"eyJhIjoxfQ==": `{"a":1}`, "!": "Runtime.Unknown", "": "Runtime.Unknown", "eA==": "Runtime.Unknown"} {
		trailer := http.Header{invokewire.HeaderFunctionError: {"Unhandled"}, invokewire.HeaderErrorBody: {text}}
		if r, got := relayOf(&endless{5, io.EOF}, http.Header{}, trailer, takes); got != 5 || r.code != codeUnhandled || !strings.Contains(r.details, want) || !json.Valid([]byte(r.details)) {
			t.Errorf("an error midway, %q: %d bytes, %+v", text, got, r)
		}
	}
}

// The longest stream reaches a client of AWS's whole, one that is longer is cut
// there, and neither is kept on its way.
func TestLongestStream(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	before := heap()
	for mib, code := range map[int]string{maxStream >> 20: "", maxStream>>20 + 1: codeTooLarge} {
		out, err := d.client.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f"), Payload: fmt.Appendf(nil, `"flood %d"`, mib)})
		if err != nil {
			t.Fatal(err)
		}
		total, looked := 0, 0
		var end *types.InvokeWithResponseStreamCompleteEvent
		stream := out.GetStream()
		for e := range stream.Events() {
			switch e := e.(type) {
			case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
				for _, b := range e.Value.Payload {
					if b != byte('a'+total>>20%26) {
						t.Fatalf("byte %d is %q", total, b)
					}
					total++
				}
			case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
				end = &e.Value
			}
			if total-looked >= 16<<20 {
				looked = total
				if grown := heap() - before; grown > 32<<20 {
					t.Fatalf("after %d bytes, %d more are in use", total, grown)
				}
			}
		}
		if err := stream.Close(); err != nil || end == nil || aws.ToString(end.ErrorCode) != code || total > maxStream || total <= maxStream-chunkSize || code == "" && total != maxStream {
			t.Errorf("%d MiB: %d bytes, %+v, %v", mib, total, end, err)
		}
	}
	if starts, _, _ := d.worker.counts(); starts != 1 {
		t.Errorf("%d starts: a stream that is too long ends no instance", starts)
	}
}

// twoBuckets names two, of which a decoder that does not look at case sees the
// second and the function the first.
const twoBuckets = `{"s3":{"bucket":{"name":"videos","Name":"photos-1"}},"S3":{"bucket":{"name":"photos-1"}}}`

// A record keeps what is not the platform's to say, whatever it holds; none is
// taken of a bucket that the policy does not name.
func FuzzS3Record(f *testing.F) {
	for _, s := range []string{s3Record("photos-1"), s3Record("videos"), `{}`, `[]`, `1`, `null`, `{"s3":null}`, `{"s3":{"bucket":{"name":"photos-\u0000"}}}`, twoBuckets, `{"eventName":1,"s3":{"bucket":{"name":"photos-2"}}}`} {
		f.Add(s)
	}
	front := new(Frontend)
	fn := &functions.Function{Policies: map[string][]functions.Statement{"": {
		{Sid: "1", Action: "lambda:InvokeFunction", Principal: s3Principal, SourceARN: "arn:aws:s3:::photos-*"},
	}}}
	f.Fuzz(func(t *testing.T, raw string) {
		out, err := front.record(json.RawMessage(raw), fn, functions.Name{})
		if err != nil {
			return
		}
		var before, after map[string]json.RawMessage
		var bucket string
		if err := errors.Join(json.Unmarshal([]byte(raw), &before), json.Unmarshal(out, &after), json.Unmarshal(member(out, "s3", "bucket", "name"), &bucket)); err != nil {
			t.Fatalf("%q became %q: %v", raw, out, err)
		}
		if string(after["eventSource"]) != `"aws:s3"` || !strings.HasPrefix(bucket, "photos-") {
			t.Errorf("%q became %q", raw, out)
		}
		for name := range before {
			if _, there := after[name]; !there {
				t.Errorf("%q has lost %q: %q", raw, name, out)
			}
		}
	})
}
