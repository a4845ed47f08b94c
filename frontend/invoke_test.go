package frontend

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"thaw/functions"
	"thaw/invokewire"
)

// RequestResponse: payload, executed version, log tail, request id.
func TestInvoke(t *testing.T) {
	d := newDoor(t)
	d.function("f", func(f *functions.Function) {
		f.Aliases = map[string]functions.Alias{"live": {Version: "1", RevisionID: "r"}}
	})
	for _, c := range []struct{ name, qualifier, version string }{
		{"f", "", "$LATEST"}, {"f", "1", "1"}, {"f:live", "", "1"}, {"f", "live", "1"},
		{"arn:aws:lambda:us-east-1:000000000000:function:f:$LATEST", "", "$LATEST"}, {"000000000000:function:f", "", "$LATEST"},
	} {
		in := &lambda.InvokeInput{FunctionName: &c.name, Payload: []byte(`{"a": 1}`), LogType: types.LogTypeTail}
		if c.qualifier != "" {
			in.Qualifier = &c.qualifier
		}
		out, err := d.invoke(in)
		if err != nil {
			t.Fatalf("%v: %v", c, err)
		}
		tail, _ := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
		if string(out.Payload) != `{"a": 1}` || aws.ToString(out.ExecutedVersion) != c.version || out.FunctionError != nil || string(tail) != "START\nREPORT\n" {
			t.Errorf("%v: %s, version %s, error %v, tail %q", c, out.Payload, aws.ToString(out.ExecutedVersion), out.FunctionError, tail)
		}
	}
	if out := d.ok("f", ""); string(out.Payload) != "{}" {
		t.Errorf("no payload: %s", out.Payload)
	}
	if out, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeDryRun}); err != nil || out.StatusCode != http.StatusNoContent {
		t.Errorf("dry run: %v, %v", out, err)
	}
	d.worker.mu.Lock()
	defer d.worker.mu.Unlock()
	for _, h := range d.worker.invokes {
		if len(h.Get(invokewire.HeaderRequestID)) != 36 || !strings.HasPrefix(h.Get(invokewire.HeaderARN), "arn:aws:lambda:us-east-1:000000000000:function:f") || h.Get(invokewire.HeaderDeadline) == "" {
			t.Errorf("headers %v", h)
		}
	}
	for _, s := range d.worker.specs {
		if s.Tenant != "default" || s.Image != "i1" || s.Keys.Token == "" || s.Memory != 128 {
			t.Errorf("spec of tenant %s, image %s, memory %d", s.Tenant, s.Image, s.Memory)
		}
	}
}

// Sticky: 1,000 serial invokes use one instance, and ask the manager once.
func TestSerialInvokesUseOneInstance(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	for range 1000 {
		d.ok("f", "1")
	}
	if starts, invokes, _ := d.worker.counts(); starts != 1 || invokes != 1000 {
		t.Errorf("%d starts for %d invokes", starts, invokes)
	}
}

func TestFunctionErrors(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	for payload, want := range map[string]string{
		`"fail"`: `{"errorType":"Boom","errorMessage":"no"}`,
		`"late"`: `{"errorType":"Late"}`,
		`"big"`:  tooLarge,
	} {
		out := d.ok("f", payload)
		if aws.ToString(out.FunctionError) != "Unhandled" || string(out.Payload) != want || out.StatusCode != 200 {
			t.Errorf("%s: %v %.100s", payload, aws.ToString(out.FunctionError), out.Payload)
		}
	}
	if starts, _, _ := d.worker.counts(); starts != 1 {
		t.Errorf("%d starts: the instance can be used again", starts)
	}
}

// refused wants an error of a kind.
func refused(t *testing.T, err error, kind, text string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != kind || !strings.Contains(api.ErrorMessage(), text) {
		t.Errorf("got %v, want %s: …%s…", err, kind, text)
	}
}

func status(err error) int {
	var e *smithyhttp.ResponseError
	if errors.As(err, &e) {
		return e.HTTPStatusCode()
	}
	return 0
}

// Every refusal, as a real client sees it.
func TestRefusals(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	long := strings.Repeat("x", 1<<20)
	event := types.InvocationTypeEvent
	for _, c := range []struct {
		name       string
		in         lambda.InvokeInput
		status     int
		kind, text string
	}{
		{"no function", lambda.InvokeInput{FunctionName: aws.String("g")}, 404, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:g"},
		{"no version", lambda.InvokeInput{FunctionName: aws.String("f"), Qualifier: aws.String("7")}, 404, "ResourceNotFoundException", "Function not found: arn:aws:lambda:us-east-1:000000000000:function:f:7"},
		{"no alias", lambda.InvokeInput{FunctionName: aws.String("f:live")}, 404, "ResourceNotFoundException", "function:f:live"},
		{"dry run of none", lambda.InvokeInput{FunctionName: aws.String("g"), InvocationType: types.InvocationTypeDryRun}, 404, "ResourceNotFoundException", "Function not found"},
		{"two qualifiers", lambda.InvokeInput{FunctionName: aws.String("f:1"), Qualifier: aws.String("2")}, 400, "InvalidParameterValueException", "does not match the specified qualifier"},
		{"region", lambda.InvokeInput{FunctionName: aws.String("arn:aws:lambda:eu-west-1:000000000000:function:f")}, 404, "ResourceNotFoundException", "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')"},
		{"account", lambda.InvokeInput{FunctionName: aws.String("arn:aws:lambda:us-east-1:111111111111:function:f")}, 403, "AccessDeniedException", "not authorized"},
		{"no JSON", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("{a")}, 400, "InvalidRequestContentException", "Could not parse request body into json: Could not parse payload into json: "},
		{"no UTF-8", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("\"\xff\"")}, 400, "InvalidRequestContentException", "Could not parse request body into json"},
		{"event: no JSON", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte("{"), InvocationType: event}, 400, "InvalidRequestContentException", "Could not parse"},
		{"too long", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(strings.Repeat(long, 6) + "1")}, 413, "RequestTooLargeException", "Request must be smaller than 6291456 bytes for the InvokeFunction operation"},
		{"event: too long", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(long + "1"), InvocationType: event}, 413, "RequestTooLargeException", "Request must be smaller than 1048576 bytes for the InvokeAsync operation"},
		{"type", lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: "Later"}, 400, "ValidationException", "'invocationType' failed to satisfy constraint: Member must satisfy enum value set"},
		{"log type", lambda.InvokeInput{FunctionName: aws.String("f"), LogType: "Head"}, 400, "ValidationException", "logType"},
		{"context", lambda.InvokeInput{FunctionName: aws.String("f"), ClientContext: aws.String("{}")}, 400, "InvalidRequestContentException", "Client context"},
		{"long context", lambda.InvokeInput{FunctionName: aws.String("f"), ClientContext: aws.String(long[:3584])}, 400, "InvalidParameterValueException", "3583"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := d.invoke(&c.in)
			refused(t, err, c.kind, c.text)
			if status(err) != c.status {
				t.Errorf("status %d, want %d", status(err), c.status)
			}
		})
	}
	if starts, _, _ := d.worker.counts(); starts != 0 {
		t.Errorf("%d starts for refused invokes", starts)
	}
}

// States: Pending is 409 with AWS's text, Failed 502.
func TestStates(t *testing.T) {
	d := newDoor(t)
	id := d.function("f", func(f *functions.Function) {})
	d.update(id, func(f *functions.Function) { f.Latest.State, f.Latest.StateReasonCode = functions.Pending, "Creating" })
	_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f")})
	refused(t, err, "ResourceConflictException", "The operation cannot be performed at this time. The function is currently in the following state: Pending")
	_, err = d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent})
	refused(t, err, "ResourceConflictException", "Pending")
	d.update(id, func(f *functions.Function) {
		f.Latest.State, f.Latest.StateReason = functions.Failed, "The image is not there."
	})
	_, err = d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f")})
	refused(t, err, "ResourceNotReadyException", "The image is not there.")
	if status(err) != http.StatusBadGateway {
		t.Errorf("status %d", status(err))
	}
	// An update that has been settled is what the next invoke runs.
	d.update(id, func(f *functions.Function) { f.Latest.State = functions.Active; f.Latest.Revision = "r2" })
	d.ok("f", "1")
	d.ok("f", "1")
	d.update(id, func(f *functions.Function) { f.Latest.Revision = "r3" })
	d.ok("f", "1")
	if starts, _, _ := d.worker.counts(); starts != 2 {
		t.Errorf("%d starts, want one for each revision", starts)
	}
}

func TestSignatures(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	in := &lambda.InvokeInput{FunctionName: aws.String("f")}
	for _, c := range []struct {
		name, id, secret, token, kind string
	}{
		{"wrong secret", d.key.ID, "x" + d.key.Secret, "", "InvalidSignatureException"},
		{"unknown key", "AKIA0000000000000000", "x", "", "UnrecognizedClientException"},
		{"no such session", "ASIA0000000000000000", "x", "abc.def", "UnrecognizedClientException"},
	} {
		client := lambda.New(lambda.Options{Region: testRegion, BaseEndpoint: &d.url, RetryMaxAttempts: 1,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: c.id, SecretAccessKey: c.secret, SessionToken: c.token}, nil
			})})
		_, err := client.Invoke(t.Context(), in)
		refused(t, err, c.kind, "")
		if status(err) != http.StatusForbidden {
			t.Errorf("%s: status %d", c.name, status(err))
		}
	}
	resp, err := http.Post(d.url+"/2015-03-31/functions/f/invocations", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || resp.Header.Get("X-Amzn-Errortype") != "MissingAuthenticationTokenException" || resp.Header.Get("X-Amzn-Requestid") == "" {
		t.Errorf("unsigned: %d %v", resp.StatusCode, resp.Header)
	}
}

// Functions' own keys are good for their account until they end; others' are not.
func TestSessions(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	call := func(end time.Time, spoil func(*invokewire.Keys)) error {
		k := d.sessions.issue(testAccount, end)
		spoil(&k)
		client := lambda.New(lambda.Options{Region: testRegion, BaseEndpoint: &d.url, RetryMaxAttempts: 1,
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: k.ID, SecretAccessKey: k.Secret, SessionToken: k.Token}, nil
			})})
		_, err := client.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f")})
		return err
	}
	later := time.Now().Add(time.Hour)
	if err := call(later, func(*invokewire.Keys) {}); err != nil {
		t.Errorf("good keys: %v", err)
	}
	refused(t, call(time.Now().Add(-time.Second), func(*invokewire.Keys) {}), "ExpiredTokenException", "")
	refused(t, call(later, func(k *invokewire.Keys) { k.Secret += "0" }), "InvalidSignatureException", "")
	refused(t, call(later, func(k *invokewire.Keys) { k.ID = "ASIA" + randomText(16) }), "UnrecognizedClientException", "")
	refused(t, call(later, func(k *invokewire.Keys) { *k = newSessions("another fleet's token").issue(testAccount, later) }), "UnrecognizedClientException", "")
}

// Whoever is throttled is told why: reserved concurrency, which is free again after,
// the account's, or that no worker takes more.
func TestThrottle(t *testing.T) {
	d := newDoor(t)
	id := d.function("f", func(f *functions.Function) { f.Reserved = aws.Int(1) })
	d.ok("f", "1")
	held := make(chan error, 1)
	go func() {
		_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"hold"`)})
		held <- err
	}()
	d.until("the invoke runs", func() bool { _, n, _ := d.worker.counts(); return n == 2 })
	throttled := func(name string, why types.ThrottleReason) {
		t.Helper()
		_, err := d.invoke(&lambda.InvokeInput{FunctionName: &name})
		var e *types.TooManyRequestsException
		if !errors.As(err, &e) || e.Reason != why || aws.ToString(e.RetryAfterSeconds) == "" || e.ErrorMessage() != "Rate Exceeded." {
			t.Errorf("%s: got %v, want %s", name, err, why)
		}
	}
	throttled("f", types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded)
	d.worker.letGo()
	if err := <-held; err != nil {
		t.Error(err)
	}
	d.ok("f", "1")
	d.ok("f:1", "1") // another version: the idle instance makes room
	d.update(id, func(f *functions.Function) { f.Reserved = aws.Int(0) })
	throttled("f", types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded)
	// Events are accepted all the same.
	if _, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent}); err != nil {
		t.Errorf("event: %v", err)
	}
	// One has all that the account may: nothing is left for another.
	d.function("all", func(f *functions.Function) { f.Reserved = aws.Int(1000) })
	d.ok("all", "1")
	d.function("g")
	throttled("g", types.ThrottleReasonConcurrentInvocationLimitExceeded)
	d.worker.mu.Lock()
	d.worker.limit = 0
	d.worker.mu.Unlock()
	throttled("all:1", types.ThrottleReasonFunctionInvocationRateLimitExceeded)
}

// A client that hangs up does not stop the function.
func TestHangUp(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := d.client.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"hold"`)})
		gone <- err
	}()
	d.until("the invoke runs", func() bool { _, n, _ := d.worker.counts(); return n == 1 })
	cancel()
	if err := <-gone; err == nil {
		t.Fatal("it did not hang up")
	}
	d.ok("f", "1") // on another instance
	d.worker.letGo()
	d.until("both have ended", func() bool { _, _, done := d.worker.counts(); return done == 2 })
	if starts, _, _ := d.worker.counts(); starts != 2 {
		t.Errorf("%d starts", starts)
	}
}

// A worker that dies answers nobody, and its clients know at once.
func TestWorkerDies(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	_, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`"die"`)})
	refused(t, err, "ServiceException", "")
	if status(err) != http.StatusInternalServerError {
		t.Errorf("status %d", status(err))
	}
	d.ok("f", "1")
}

// Instances that are busy or gone at their worker are passed over.
func TestBusyAndGone(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	d.ok("f", "1")
	d.worker.mu.Lock()
	for _, i := range d.worker.instances {
		i.Phase = invokewire.PhaseBusy
	}
	d.worker.mu.Unlock()
	d.ok("f", "1")
	d.worker.mu.Lock()
	clear(d.worker.instances)
	d.worker.mu.Unlock()
	d.ok("f", "1")
	if starts, _, _ := d.worker.counts(); starts != 3 {
		t.Errorf("%d starts, want 3", starts)
	}
}

// A manager that dies is not missed by who has leases, and another is found.
func TestManagerDies(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	d.function("g")
	d.ok("f", "1")
	stop := d.manage("m1")
	defer stop()
	// m0 is gone without a word: its registration and its ownership stay.
	for _, m := range must(d.leases.List(t.Context(), "managers/")) {
		if m.Key == "managers/m0" {
			d.managers.mu.Lock()
			d.managers.known["m0"] = "127.0.0.1:1"
			d.managers.mu.Unlock()
		}
	}
	d.ok("f", "1")
	d.ok("g", "1")
}

func TestLargePayloads(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	long := append(append([]byte(`"`), bytes.Repeat([]byte("x"), 6<<20-2)...), '"')
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			out, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), Payload: long})
			if err == nil && !bytes.Equal(out.Payload, long) {
				err = fmt.Errorf("another payload, of %d bytes", len(out.Payload))
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	d.until("the large buffers are given back", func() bool { return len(d.buffers.slots) == 0 }) // after their last byte was taken
}

func TestEvents(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	out, err := d.invoke(&lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: []byte(`{"e":1}`)})
	if err != nil || out.StatusCode != http.StatusAccepted || out.ExecutedVersion != nil || len(out.Payload) > 0 {
		t.Fatalf("got %+v, %v", out, err)
	}
	//nolint:staticcheck // deprecated, and still asked for
	if async, err := d.client.InvokeAsync(t.Context(), &lambda.InvokeAsyncInput{FunctionName: aws.String("f"), InvokeArgs: strings.NewReader("{}")}); err != nil || async.Status != http.StatusAccepted {
		t.Errorf("InvokeAsync: %+v, %v", async, err)
	}
	d.until("the events run", func() bool { _, _, done := d.worker.counts(); return done >= 2 }) // once each at least
}

func TestStreams(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	for _, c := range []struct{ payload, want, code, details string }{
		{`"chunks"`, "chunk 0;chunk 1;chunk 2;", "", ""},
		{`{"a":1}`, `{"a":1}`, "", ""},
		{`"fail"`, "", "Unhandled", `{"errorType":"Boom","errorMessage":"no"}`},
		{`"late"`, "partial", "Unhandled", `{"errorType":"Late"}`},
		{`"die"`, "partial", "ServiceException", "The worker that ran the function ended or cannot be reached."},
	} {
		t.Run(c.payload, func(t *testing.T) {
			out, err := d.client.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{
				FunctionName: aws.String("f"), Payload: []byte(c.payload), LogType: types.LogTypeTail})
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			var end *types.InvokeWithResponseStreamCompleteEvent
			stream := out.GetStream()
			for e := range stream.Events() {
				switch e := e.(type) {
				case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
					got = append(got, e.Value.Payload...)
				case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
					end = &e.Value
				}
			}
			if err := stream.Close(); err != nil || end == nil {
				t.Fatalf("no end: %v", err)
			}
			if string(got) != c.want || aws.ToString(end.ErrorCode) != c.code || aws.ToString(end.ErrorDetails) != c.details {
				t.Errorf("%q, then %v %v", got, aws.ToString(end.ErrorCode), aws.ToString(end.ErrorDetails))
			}
			if c.code != "ServiceException" && aws.ToString(end.LogResult) == "" {
				t.Error("no log tail")
			}
		})
	}
	_, err := d.client.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("g")})
	refused(t, err, "ResourceNotFoundException", "Function not found")
}

// A stream whose frontend goes is never taken for a whole one.
func TestStreamIsCut(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	out, err := d.client.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f"), Payload: []byte(`"half"`)})
	if err != nil {
		t.Fatal(err)
	}
	stream := out.GetStream()
	if _, ok := (<-stream.Events()).(*types.InvokeWithResponseStreamResponseEventMemberPayloadChunk); !ok {
		t.Fatalf("no first event: %v", stream.Err())
	}
	d.server.CloseClientConnections() // as the kernel does with those of a process that is killed
	if e, ok := <-stream.Events(); ok {
		t.Errorf("and then %T", e)
	}
	if err := stream.Close(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it ended with %v", err)
	}
	d.worker.letGo()
}

// What has been leased is given back at the end.
func TestRunGivesBack(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	second := New(d.options)
	stop := d.running(second.Run)
	inv := func() *invocation {
		fn, target, err := second.view.find(t.Context(), functions.ID{Account: testAccount, Name: "f"}, "", second.spec)
		if err != nil || fn == nil {
			t.Fatal(err)
		}
		b := second.buffers.get()
		b.b = append(b.b, "1"...)
		return &invocation{target: target, requestID: "r", payload: b}
	}
	o, err := second.invokeWhole(t.Context(), inv())
	if err != nil || string(o.body.b) != "1" {
		t.Fatalf("%v", err)
	}
	stop()
	d.ok("f", "1")
	if starts, _, _ := d.worker.counts(); starts != 1 {
		t.Errorf("%d starts: the lease was not given back", starts)
	}
}
