package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"

	"thaw/internal/tests3"
)

// Streams, function URLs and zip packages, with real clients.
func TestContractWays(t *testing.T) {
	runtimes := filepath.Join(t.TempDir(), "runtimes.toml")
	shell := corpusLayout(t, "fn-shell")
	if err := os.WriteFile(runtimes, []byte("[runtimes]\n\"ruby3.4\" = \""+shell+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := tests3.Start(t) // first: its credentials are in the environment
	bucket := server.Bucket(t, "")
	k := newContract(t, "--runtimes="+runtimes, "--s3="+bucket)
	k.order(t, "f", timeout(60))
	k.order(t, "brief", timeout(3))
	k.active(t, "f")
	k.active(t, "brief")
	t.Run("streams", k.streams)
	t.Run("URL", k.urls)
	t.Run("zip", k.zips)
	t.Run("zip from S3", func(t *testing.T) {
		u, err := url.Parse(bucket)
		if err != nil {
			t.Fatal(err)
		}
		k.zipsFromS3(t, u.Host, filepath.Join(server.Objects(), u.Host))
	})
}

// streamed is a stream as a client has read it.
type streamed struct {
	body   []byte
	pieces int
	end    types.InvokeWithResponseStreamCompleteEvent
}

// stream invokes with a stream, and reads it to its end.
func (k *contract) stream(t *testing.T, name, do string) (s streamed) {
	t.Helper()
	out, err := k.c.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{
		FunctionName: &name, Payload: []byte(`{"do":` + do + `}`), LogType: types.LogTypeTail,
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", do, err, k.up.stderr)
	}
	if out.StatusCode != 200 || aws.ToString(out.ExecutedVersion) != "$LATEST" {
		t.Errorf("%s: status %d, version %s", do, out.StatusCode, aws.ToString(out.ExecutedVersion))
	}
	events, ended := out.GetStream(), false
	for e := range events.Events() {
		switch e := e.(type) {
		case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
			s.body, s.pieces = append(s.body, e.Value.Payload...), s.pieces+1
		case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
			s.end, ended = e.Value, true
		}
	}
	if err := events.Close(); err != nil || events.Err() != nil || !ended || aws.ToString(s.end.LogResult) == "" {
		t.Errorf("%s: %v, %v, ended %t, log %q", do, err, events.Err(), ended, aws.ToString(s.end.LogResult))
	}
	return s
}

func (k *contract) streams(t *testing.T) {
	k.until(t, "three pieces come one by one", func() bool { // what has waited for somebody comes at once
		s := k.stream(t, "f", `{"stream":{"pieces":3,"bytes":2,"every_ms":300}}`)
		if string(s.body) != "aabbcc" || s.pieces > 3 || s.end.ErrorCode != nil {
			t.Fatalf("three pieces: %q in %d, %v", s.body, s.pieces, aws.ToString(s.end.ErrorCode))
		}
		return s.pieces == 3
	})
	if s := k.stream(t, "f", `{"stream":{"pieces":7,"bytes":1048576}}`); len(s.body) != 7<<20 || s.body[len(s.body)-1] != 'g' || s.end.ErrorCode != nil {
		t.Errorf("7 MB: %d bytes, %v: %s", len(s.body), aws.ToString(s.end.ErrorCode), aws.ToString(s.end.ErrorDetails))
	}
	for _, c := range []struct{ name, function, do, body, code, details string }{
		{"fails midway", "f", `{"stream":{"pieces":2,"bytes":2,"fail":"no more"}}`, "aabb", "Unhandled", "no more"},
		{"fails at once", "f", `{"error":"no luck"}`, "", "Unhandled", "no luck"},
		{"takes too long midway", "brief", `{"stream":{"pieces":2,"bytes":3,"every_ms":30000}}`, "aaa", "Unhandled", "Task timed out after 3.00 seconds"},
		{"takes too long at once", "brief", `{"sleep_ms":30000}`, "", "Unhandled", "Task timed out after 3.00 seconds"},
		{"ends", "f", `{"exit":4}`, "", "Unhandled", "exit status 4"},
	} {
		var s streamed
		k.until(t, c.name, func() bool { // three seconds may be few even for the first piece
			s = k.stream(t, c.function, c.do)
			return len(s.body) >= len(c.body)
		})
		if string(s.body) != c.body || aws.ToString(s.end.ErrorCode) != c.code || !strings.Contains(aws.ToString(s.end.ErrorDetails), c.details) {
			t.Errorf("%s: %.300q, %s: %.1000s", c.name, s.body, aws.ToString(s.end.ErrorCode), aws.ToString(s.end.ErrorDetails))
		}
	}
	if a := k.invoke(t, "f", `{"do":{"stream":{"pieces":3,"bytes":2}}}`); string(a.Payload) != "aabbcc" || a.FunctionError != nil {
		t.Errorf("a stream, read whole: %q, %v", a.Payload, aws.ToString(a.FunctionError))
	}
	if a := k.invoke(t, "f", `{"do":{"stream":{"pieces":2,"bytes":2,"fail":"no more"}}}`); !strings.Contains(string(a.Payload), `"no more"`) || !json.Valid(a.Payload) || aws.ToString(a.FunctionError) != "Unhandled" {
		t.Errorf("a stream that fails, read whole: %q, %v", a.Payload, aws.ToString(a.FunctionError))
	}
	if a := k.invoke(t, "f", `{"do":{"stream":{"pieces":7,"bytes":1048576}}}`); !strings.Contains(string(a.Payload), "Function.ResponseSizeTooLarge") {
		t.Errorf("a stream that is too long to be read whole: %.300q", a.Payload)
	}
	for _, c := range []struct {
		in         lambda.InvokeWithResponseStreamInput
		status     int
		kind, text string
	}{
		{lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("g")}, 404, "ResourceNotFoundException", "Function not found: "},
		{lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f"), Payload: []byte("{")}, 400, "InvalidRequestContentException", "Could not parse"},
	} {
		_, err := k.c.InvokeWithResponseStream(t.Context(), &c.in)
		refused(t, err, c.status, c.kind, c.text)
	}
}

// visit asks a function URL, as a browser would that finds every name here.
func (k *contract) visit(t *testing.T, url, method, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(k.endpoint, "http://"))
	}}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	return resp.StatusCode, string(said)
}

func (k *contract) urls(t *testing.T) {
	made, err := k.c.CreateFunctionUrlConfig(t.Context(), &lambda.CreateFunctionUrlConfigInput{FunctionName: aws.String("f"), AuthType: types.FunctionUrlAuthTypeNone})
	if err != nil {
		t.Fatal(err)
	}
	url := aws.ToString(made.FunctionUrl)
	if status, said := k.visit(t, url, "GET", "", nil); status != 403 || !strings.Contains(said, "Forbidden") {
		t.Errorf("without a policy: %d %s", status, said)
	}
	if _, err := k.c.AddPermission(t.Context(), &lambda.AddPermissionInput{
		FunctionName: aws.String("f"), StatementId: aws.String("open"), Action: aws.String("lambda:InvokeFunctionUrl"), Principal: aws.String("*"), FunctionUrlAuthType: types.FunctionUrlAuthTypeNone,
	}); err != nil {
		t.Fatal(err)
	}
	k.until(t, "the policy is known", func() bool { status, _ := k.visit(t, url, "GET", "", nil); return status == 200 })
	echo := func(mode types.InvokeMode) {
		t.Helper()
		status, said := k.visit(t, url+"a/b?x=1", "POST", "hello", func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") })
		var event struct {
			Version, RawPath, RawQueryString, Body string
			RequestContext                         struct{ HTTP struct{ Method string } }
		}
		if err := decode([]byte(said), &event); err != nil || status != 200 || event.Version != "2.0" || event.RawPath != "/a/b" || event.RawQueryString != "x=1" ||
			event.Body != "hello" || event.RequestContext.HTTP.Method != "POST" {
			t.Errorf("%s: status %d, %v, %.500s", mode, status, err, said)
		}
	}
	echo(types.InvokeModeBuffered)
	change := func(in lambda.UpdateFunctionUrlConfigInput) {
		t.Helper()
		in.FunctionName = aws.String("f")
		if _, err := k.c.UpdateFunctionUrlConfig(t.Context(), &in); err != nil {
			t.Fatal(err)
		}
	}
	change(lambda.UpdateFunctionUrlConfigInput{InvokeMode: types.InvokeModeResponseStream})
	echo(types.InvokeModeResponseStream)
	change(lambda.UpdateFunctionUrlConfigInput{AuthType: types.FunctionUrlAuthTypeAwsIam})
	k.until(t, "the URL asks who is there", func() bool { status, _ := k.visit(t, url, "GET", "", nil); return status == 403 })
	keys, err := k.c.Options().Credentials.Retrieve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for secret, want := range map[string]int{keys.SecretAccessKey: 200, "wrong": 403} {
		status, said := k.visit(t, url+"a?b=c", "POST", `{"x":1}`, func(r *http.Request) {
			sum := sha256.Sum256([]byte(`{"x":1}`))
			if err := v4.NewSigner().SignHTTP(t.Context(), aws.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: secret}, r, hex.EncodeToString(sum[:]), "lambda", "us-east-1", time.Now()); err != nil {
				t.Fatal(err)
			}
		})
		if status != want || want == 200 && !strings.Contains(said, keys.AccessKeyID) {
			t.Errorf("signed: %d %s, want %d", status, said, want)
		}
	}
}

// pack makes a zip file with files, which can be run.
func pack(t *testing.T, files map[string][]byte) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, data := range files {
		h := &zip.FileHeader{Name: name, Method: zip.Deflate}
		h.SetMode(0o755)
		w, err := z.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "package.zip")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (k *contract) zips(t *testing.T) {
	k.must("deploy", "zipped", pack(t, map[string][]byte{"bootstrap": sample.data, "data.txt": []byte("inside")}), "--runtime", "provided.al2023", "--handler", "x.y", "--timeout", "60")
	told := k.told(t, "zipped", `{"env":["_HANDLER","LAMBDA_TASK_ROOT","AWS_EXECUTION_ENV","PWD"],"files":["/var/task/data.txt"]}`)
	if told.Env["_HANDLER"] != "x.y" || told.Env["LAMBDA_TASK_ROOT"] != "/var/task" || told.Env["AWS_EXECUTION_ENV"] != "" || told.Files["/var/task/data.txt"] != "inside" {
		t.Errorf("a zip package knows %+v, %v", told.Env, told.Files)
	}
	if a := k.invoke(t, "zipped", `[1]`); string(a.Payload) != `[1]` {
		t.Errorf("a zip package answers %s", a.Payload)
	}
	e := k.thaw("deploy", "unmapped", pack(t, map[string][]byte{"app.py": nil}), "--runtime", "python3.12", "--handler", "app.handler")
	if e.code != 1 || !strings.Contains(e.stderr, "python3.12") || !strings.Contains(e.stderr, "has mapped no base image to it") || strings.Count(e.stderr, "\n") != 1 {
		t.Errorf("an unmapped runtime: %+v", e)
	}
	e = k.thaw("deploy", "empty", pack(t, map[string][]byte{"app.py": nil}), "--runtime", "provided.al2023", "--handler", "x")
	if e.code != 1 || !strings.Contains(e.stderr, "no file bootstrap") {
		t.Errorf("a package without bootstrap: %+v", e)
	}
	const script = `#!/bin/sh
while :; do
	curl -sS -D /tmp/headers -o /tmp/event "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next"
	id=$(tr -d '\r' </tmp/headers | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')
	curl -sS -o /tmp/answer -d "\"$1 $AWS_EXECUTION_ENV\"" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"
done
`
	k.must("deploy", "mapped", pack(t, map[string][]byte{"bootstrap": []byte(script)}), "--runtime", "ruby3.4", "--handler", "app.handler", "--timeout", "60")
	if a := k.invoke(t, "mapped", `1`); string(a.Payload) != `"app.handler AWS_Lambda_ruby3.4"` {
		t.Errorf("over a mapped base: %s\n%s", a.Payload, a.log)
	}
}

// zipsFromS3 deploys what is in a bucket: a package of more than requests may
// have, and one of more than any may.
func (k *contract) zipsFromS3(t *testing.T, bucket, folder string) {
	in := &lambda.CreateFunctionInput{
		FunctionName: aws.String("large"), Role: aws.String(usualRoleOfTests), Runtime: types.RuntimeProvidedal2023, Handler: aws.String("x.y"), Timeout: aws.Int32(60),
		Code: &types.FunctionCode{S3Bucket: &bucket, S3Key: aws.String("large.zip")},
	}
	const filler = 53 << 20
	f, err := os.Create(filepath.Join(folder, "large.zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := zip.NewWriter(f)
	for name, data := range map[string]io.Reader{
		"bootstrap": bytes.NewReader(sample.data), "data.txt": strings.NewReader("inside"),
		"filler": io.LimitReader(mathrand.NewChaCha8([32]byte{}), filler),
	} {
		h := &zip.FileHeader{Name: name, Method: zip.Store}
		h.SetMode(0o755)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = io.Copy(w, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	k.until(t, "a large package is kept", func() bool { // in less time than SDKs have
		_, err = k.c.CreateFunction(t.Context(), in)
		return err == nil || !strings.Contains(err.Error(), "could not be read from S3 and kept within")
	})
	if err != nil {
		t.Fatal(err)
	}
	k.active(t, "large")
	if told := k.told(t, "large", `{"files":["/var/task/data.txt"]}`); told.Files["/var/task/data.txt"] != "inside" {
		t.Errorf("a large package knows %v", told.Files)
	}
	now, err := k.c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("large")})
	if err != nil || now.CodeSize < filler {
		t.Errorf("%+v, %v", now, err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(folder, "huge.zip"), nil, 0o600), os.Truncate(filepath.Join(folder, "huge.zip"), 400<<20)); err != nil {
		t.Fatal(err)
	}
	in.FunctionName, in.Code.S3Key = aws.String("huge"), aws.String("huge.zip")
	_, err = k.c.CreateFunction(t.Context(), in)
	if e := (*types.InvalidParameterValueException)(nil); !errors.As(err, &e) || aws.ToString(e.Message) != "Unzipped size must be smaller than 262144000 bytes" {
		t.Errorf("a package that is too large: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(k.state, "fleet", "thaw-package-*")); err != nil || len(left) > 0 {
		t.Errorf("left of scratch files: %v, %v", left, err)
	}
}
