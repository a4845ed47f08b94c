package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// contract is a platform, and a client of it that tries nothing twice.
type contract struct {
	*region
	c      *lambda.Client
	layout string // of the sample function in Go, /function
}

func newContract(t *testing.T, more ...string) *contract {
	t.Helper()
	r := newRegion(t, more...)
	return &contract{r, r.client(t), sampleLayout(t)}
}

// corpusLayout gives an image of the corpus.
func corpusLayout(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("THAW_CORPUS")
	if dir == "" {
		dir = "../../out/corpus"
	}
	dir, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
		t.Skipf("NOT TESTED: no image %s: make corpus makes it: %v", name, err)
	}
	return "oci:" + dir
}

// spec changes what a function is made of.
type spec func(*lambda.CreateFunctionInput)

func env(name, value string) spec {
	return func(in *lambda.CreateFunctionInput) {
		in.Environment = &types.Environment{Variables: map[string]string{name: value}}
	}
}

func timeout(seconds int32) spec {
	return func(in *lambda.CreateFunctionInput) { in.Timeout = &seconds }
}

// entryPoint takes another image, with its own entry point unless words say one.
func entryPoint(image string, words ...string) spec {
	return func(in *lambda.CreateFunctionInput) {
		in.Code.ImageUri, in.ImageConfig = &image, nil
		if len(words) > 0 {
			in.ImageConfig = &types.ImageConfig{EntryPoint: words}
		}
	}
}

// create makes a function, of the sample function unless a spec says otherwise,
// and waits until it is active.
func (k *contract) create(t *testing.T, name string, specs ...spec) {
	t.Helper()
	k.order(t, name, specs...)
	k.active(t, name)
}

// order makes a function, and does not wait.
func (k *contract) order(t *testing.T, name string, specs ...spec) {
	t.Helper()
	in := &lambda.CreateFunctionInput{
		FunctionName: &name, Role: aws.String(usualRoleOfTests), PackageType: types.PackageTypeImage, MemorySize: aws.Int32(256),
		Code: &types.FunctionCode{ImageUri: &k.layout}, ImageConfig: &types.ImageConfig{EntryPoint: []string{"/function"}},
	}
	for _, s := range specs {
		s(in)
	}
	if _, err := k.c.CreateFunction(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

const usualRoleOfTests = "arn:aws:iam::000000000000:role/any"

func (k *contract) active(t *testing.T, name string) {
	t.Helper()
	k.until(t, name+" is active", func() bool {
		out, err := k.c.GetFunctionConfiguration(t.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: &name})
		if err != nil || out.State == types.StateFailed || out.LastUpdateStatus == types.LastUpdateStatusFailed {
			t.Fatalf("%s: %v, %s\n%s", name, err, aws.ToString(out.StateReason)+aws.ToString(out.LastUpdateStatusReason), k.up.stderr)
		}
		return out.State == types.StateActive && out.LastUpdateStatus != types.LastUpdateStatusInProgress
	})
}

// reply is an invoke's answer.
type reply struct {
	*lambda.InvokeOutput
	id, log string
}

// invoke wants an answer, of the function or about it.
func (k *contract) invoke(t *testing.T, name, payload string) reply {
	t.Helper()
	out, err := k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte(payload), LogType: types.LogTypeTail})
	if err != nil {
		t.Fatalf("%s with %.100s: %v\n%s", name, payload, err, k.up.stderr)
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	log, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
	if err != nil || len(log) > 4096 || out.StatusCode != 200 {
		t.Errorf("%s with %.100s: status %d, log of %d bytes, %v", name, payload, out.StatusCode, len(log), err)
	}
	return reply{out, id, string(log)}
}

// report matches REPORT lines as the public tools do that read them: groups are
// Duration, Billed Duration, Memory Size, Max Memory Used, Restore Duration,
// Billed Restore Duration, Init Duration.
var report = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`REPORT RequestId: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\t` +
		`Duration: ([0-9.]+) ms\tBilled Duration: ([0-9]+) ms\tMemory Size: ([0-9]+) MB\tMax Memory Used: ([0-9]+) MB\t` +
		`(?:Restore Duration: ([0-9.]+) ms\tBilled Restore Duration: ([0-9]+) ms\t)?(?:Init Duration: ([0-9.]+) ms\t)?`)
}) // not before main: TestQuickStart

// reported checks that a log ends with a REPORT, and whether it tells of an init.
func (a reply) reported(t *testing.T, cold bool) {
	t.Helper()
	m := report().FindAllStringSubmatch(a.log, -1)
	if len(m) != 1 || (m[0][7] != "") != cold || !strings.Contains(a.log, "START RequestId: "+a.id+" Version: ") || !strings.Contains(a.log, "\nEND RequestId: "+a.id+"\n") {
		t.Errorf("want a log of %s with START, END and REPORT, and an init %t: %q", a.id, cold, a.log)
	}
}

// refused wants a status, a type, and a part of the message.
func refused(t *testing.T, err error, status int, kind, text string) {
	t.Helper()
	var api smithy.APIError
	var resp *smithyhttp.ResponseError
	if !errors.As(err, &api) || !errors.As(err, &resp) || resp.HTTPStatusCode() != status || api.ErrorCode() != kind || !strings.Contains(api.ErrorMessage(), text) {
		t.Errorf("got %v, want status %d, %s: %s", err, status, kind, text)
	}
}

// Everything that can go wrong with a function, as a client sees it: status 200,
// Unhandled, and Lambda's own words; and the function works afterwards.
func TestContractFunctionErrors(t *testing.T) {
	t.Parallel() // it waits more than it works
	k := newContract(t)
	const ids = "RequestId: ID Error: "
	makes := map[string][]spec{
		"plain":     {timeout(60)},
		"brief":     {timeout(3)},
		"patient":   {timeout(300)}, // memory is touched slowly with so little processor time
		"entry":     {timeout(60), entryPoint(k.layout, "/nothing")},
		"workdir":   {timeout(60), func(in *lambda.CreateFunctionInput) { in.ImageConfig.WorkingDirectory = aws.String("/nothing") }},
		"exits":     {timeout(60), env("FUNCTION_INIT_EXIT", "3")},
		"panics":    {timeout(60), env("FUNCTION_INIT_PANIC", "early")},
		"slowbrief": {env("FUNCTION_INIT_SLEEP_MS", "11000"), timeout(1)},
	}
	for name, specs := range makes {
		k.order(t, name, specs...)
	}
	for name := range makes {
		k.active(t, name)
	}
	for _, c := range []struct{ name, function, payload, kind, message, status string }{
		{"timeout", "brief", `{"do":{"sleep_ms":30000}}`, "Sandbox.Timedout", ids + "Task timed out after 3.00 seconds", "Status: timeout"},
		{"exit status", "plain", `{"do":{"exit":7}}`, "Runtime.ExitError", ids + "Runtime exited with error: exit status 7", "Status: error\tError Type: Runtime.ExitError"},
		{"exit 0", "plain", `{"do":{"exit":0}}`, "Runtime.ExitError", ids + "Runtime exited without providing a reason", "Status: error\tError Type: Runtime.ExitError"},
		{"memory", "patient", `{"do":{"allocate_mb":400}}`, "Runtime.ExitError", ids + "Runtime exited with error: signal: killed", "Status: error\tError Type: Runtime.ExitError"},
		{"error", "plain", `{"do":{"error":"no luck"}}`, "errorString", "no luck", ""},
		{"panic", "plain", `{"do":{"panic":"oh"}}`, "string", "oh", ""},
		{"answer", "plain", `{"do":{"answer_bytes":6291557}}`, "Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).", ""},
		{"entrypoint", "entry", `1`, "Runtime.InvalidEntrypoint", ids, "Status: error\tError Type: Runtime.InvalidEntrypoint"},
		{"working directory", "workdir", `1`, "Runtime.InvalidWorkingDir", ids + "chdir /nothing", "Status: error\tError Type: Runtime.InvalidWorkingDir"},
		{"exit in init", "exits", `1`, "Runtime.ExitError", ids + "Runtime exited with error: exit status 3", "Status: error\tError Type: Runtime.ExitError"},
		{"panic in init", "panics", `1`, "Runtime.ExitError", ids + "Runtime exited with error: exit status 2", "Status: error\tError Type: Runtime.ExitError"},
		// Init is given up after ten seconds, and run again within the invoke.
		{"init takes too long", "slowbrief", `1`, "Sandbox.Timedout", ids + "Task timed out after 1.00 seconds", "Status: timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasPrefix(c.function, "slow") {
				t.Parallel() // with the others of ten seconds
			}
			a := k.invoke(t, c.function, c.payload)
			want := strings.ReplaceAll(c.message, "ID", a.id)
			if strings.HasPrefix(c.message, ids) {
				want = strings.Replace(c.message, "ID", a.id, 1)
			}
			var body struct{ ErrorType, ErrorMessage string }
			if err := decode(a.Payload, &body); err != nil || aws.ToString(a.FunctionError) != "Unhandled" || body.ErrorType != c.kind ||
				!strings.HasPrefix(body.ErrorMessage, want) || !strings.Contains(a.log, c.status) || aws.ToString(a.ExecutedVersion) != "$LATEST" {
				t.Errorf("%s: %v %s %.1000s\nlog %q\nwant %s, %s", a.id, aws.ToString(a.FunctionError), aws.ToString(a.ExecutedVersion), a.Payload, a.log, c.kind, want)
			}
			if !report().MatchString(a.log) {
				t.Errorf("no REPORT in %q", a.log)
			}
		})
	}
	k.afterwards(t, "plain", "brief")
	if a := k.invoke(t, "plain", `{"do":{"answer_bytes":6291556}}`); len(a.Payload) != 6291556 || a.FunctionError != nil {
		t.Errorf("the longest answer: %v, %d bytes", aws.ToString(a.FunctionError), len(a.Payload))
	}
	for name, test := range map[string]func(*testing.T){"shell": k.initErrors, "extensions": k.extensions, "lingers": k.lingers} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t)
		})
	}
}

// afterwards has functions work that have failed.
func (k *contract) afterwards(t *testing.T, names ...string) {
	for _, name := range names {
		var a reply
		k.until(t, name+" works afterwards", func() bool { // three seconds, init and all, may be few
			a = k.invoke(t, name, `{"a": 1}`)
			return name != "brief" || !strings.Contains(string(a.Payload), "Sandbox.Timedout")
		})
		if string(a.Payload) != `{"a": 1}` || a.FunctionError != nil {
			t.Errorf("%s afterwards: %v %s", name, aws.ToString(a.FunctionError), a.Payload)
		}
	}
}

// initErrors tries what a function says of its own init, and an init of more
// than ten seconds that is quick when it is run again.
func (k *contract) initErrors(t *testing.T) {
	shell := corpusLayout(t, "fn-shell")
	k.order(t, "posts", timeout(60), entryPoint(shell, "/bin/sh", "-c",
		`curl -sS -X POST -H 'Lambda-Runtime-Function-Error-Type: Function.NoConfig' -d '{"errorType":"NoConfig","errorMessage":"none found","stackTrace":[]}' http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/init/error; exit 1`))
	k.order(t, "slow", timeout(60), entryPoint(shell, "/bin/sh", "-c", `[ -e /tmp/tried ] || { touch /tmp/tried; sleep 60; }; exec /var/task/bootstrap`))
	k.active(t, "posts")
	a := k.invoke(t, "posts", `1`)
	if string(a.Payload) != `{"errorType":"NoConfig","errorMessage":"none found","stackTrace":[]}` || aws.ToString(a.FunctionError) != "Unhandled" {
		t.Errorf("init/error is passed on as it is: %v %s\n%q", aws.ToString(a.FunctionError), a.Payload, a.log)
	}
	k.active(t, "slow")
	a = k.invoke(t, "slow", `"x"`)
	if string(a.Payload) != `"x"` || a.FunctionError != nil || !strings.Contains(k.must("logs", "slow"), "\tPhase: init\tStatus: timeout") {
		t.Errorf("an init of 10 s that is quick the second time: %v %s\n%q", aws.ToString(a.FunctionError), a.Payload, a.log)
	}
}

// Every refusal of an invoke, with Lambda's status, type and message.
func TestContractRefusals(t *testing.T) {
	k := newContract(t)
	k.pending(t)
	k.active(t, "f")
	const arn = "arn:aws:lambda:us-east-1:000000000000:function:"
	dry, event := types.InvocationTypeDryRun, types.InvocationTypeEvent
	for _, c := range []struct {
		name       string
		in         lambda.InvokeInput
		status     int
		kind, text string
	}{
		{"function", lambda.InvokeInput{FunctionName: aws.String("g")}, 404, "ResourceNotFoundException", "Function not found: " + arn + "g"},
		{"version", lambda.InvokeInput{FunctionName: aws.String("f"), Qualifier: aws.String("7")}, 404, "ResourceNotFoundException", "Function not found: " + arn + "f:7"},
		{"alias", lambda.InvokeInput{FunctionName: aws.String("f:live")}, 404, "ResourceNotFoundException", "Function not found: " + arn + "f:live"},
		{"dry run", lambda.InvokeInput{FunctionName: aws.String("g"), InvocationType: dry}, 404, "ResourceNotFoundException", "Function not found: " + arn + "g"},
		{"event", lambda.InvokeInput{FunctionName: aws.String("g"), InvocationType: event}, 404, "ResourceNotFoundException", "Function not found: " + arn + "g"},
		{"qualifiers", lambda.InvokeInput{FunctionName: aws.String("f:1"), Qualifier: aws.String("2")}, 400, "InvalidParameterValueException", "The derived qualifier from the function name does not match the specified qualifier."},
		{"JSON", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: []byte(`{"a"`)}, 400, "InvalidRequestContentException", "Could not parse request body into json: Could not parse payload into json: "},
		{"size", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: jsonText(6<<20 + 1)}, 413, "RequestTooLargeException", "Request must be smaller than 6291456 bytes"},
		{"event's size", lambda.InvokeInput{FunctionName: aws.String("f"), Payload: jsonText(1<<20 + 1), InvocationType: event}, 413, "RequestTooLargeException", "Request must be smaller than 1048576 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := k.c.Invoke(t.Context(), &c.in)
			refused(t, err, c.status, c.kind, c.text)
		})
	}
	t.Run("kinds", k.kinds)
	t.Run("aliases", k.aliases)
	t.Run("reserved", k.reserved)
}

// pending orders f, and invokes it while no builder works.
func (k *contract) pending(t *testing.T) {
	builder := k.role(t, "builder")
	stop(t, builder)
	defer func() { try(t, syscall.Kill(builder, syscall.SIGCONT)) }()
	k.order(t, "f", timeout(30))
	_, err := k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f")})
	refused(t, err, 409, "ResourceConflictException", "The operation cannot be performed at this time. The function is currently in the following state: Pending")
}

// jsonText is a JSON string of n bytes.
func jsonText(n int) []byte { return []byte(`"` + strings.Repeat("x", n-2) + `"`) }

// kinds tries each kind of invoke, with the longest payloads.
func (k *contract) kinds(t *testing.T) {
	out, err := k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeDryRun})
	if err != nil || out.StatusCode != 204 || len(out.Payload) != 0 {
		t.Errorf("DryRun: %+v, %v", out, err)
	}
	before := k.must("logs", "f")
	if strings.Contains(before, "START") {
		t.Errorf("DryRun ran the function: %s", before)
	}
	out, err = k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("f"), InvocationType: types.InvocationTypeEvent, Payload: jsonText(1 << 20)})
	if err != nil || out.StatusCode != 202 || len(out.Payload) != 0 || out.ExecutedVersion != nil || out.FunctionError != nil {
		t.Errorf("Event: %+v, %v", out, err)
	}
	id, _ := awsmiddleware.GetRequestIDMetadata(out.ResultMetadata)
	k.until(t, "the event is run under its request id", func() bool { return strings.Contains(k.must("logs", "f"), "REPORT RequestId: "+id) })
	if a := k.invoke(t, "f", string(jsonText(6<<20))); len(a.Payload) != 6<<20 || a.FunctionError != nil {
		t.Errorf("the longest payload: %v, %d bytes", aws.ToString(a.FunctionError), len(a.Payload))
	}
	told := k.told(t, "f", `{}`)
	if !strings.HasSuffix(told.ARN, ":function:f") || told.Version != "$LATEST" || told.MemoryMB != 256 || told.User == 0 || told.RemainMS < 20_000 || told.RemainMS > 30_000 {
		t.Errorf("the function knows %+v", told)
	}
}

// toldOf is what the sample function tells that contracts look at.
type toldOf struct {
	Instance, ARN, Function, Version string
	RequestID                        string `json:"request_id"`
	Invokes                          int
	MemoryMB                         int   `json:"memory_mb"`
	RemainMS                         int64 `json:"remain_ms"`
	User                             int
	Env, Dial, Get, Resolve, Files   map[string]string
}

// told asks the sample function to do something and to tell of it.
func (k *contract) told(t *testing.T, name, do string) (told toldOf) {
	t.Helper()
	a := k.invoke(t, name, `{"do":`+do+`}`)
	if err := decode(a.Payload, &told); err != nil || a.FunctionError != nil {
		t.Fatalf("%s: %v, %s\n%q", do, err, a.Payload, a.log)
	}
	return told
}

// aliases tries versions and aliases, with weights.
func (k *contract) aliases(t *testing.T) {
	for _, want := range []string{"1", "2"} {
		if want == "2" {
			if _, err := k.c.UpdateFunctionConfiguration(t.Context(), &lambda.UpdateFunctionConfigurationInput{FunctionName: aws.String("f"), Description: aws.String("second")}); err != nil {
				t.Fatal(err)
			}
			k.active(t, "f")
		}
		out, err := k.c.PublishVersion(t.Context(), &lambda.PublishVersionInput{FunctionName: aws.String("f")})
		if err != nil || aws.ToString(out.Version) != want {
			t.Fatalf("published %+v, %v", out, err)
		}
		k.active(t, "f:"+want)
	}
	alias := func(name, version string, weights map[string]float64) {
		t.Helper()
		in := &lambda.CreateAliasInput{FunctionName: aws.String("f"), Name: &name, FunctionVersion: &version}
		if weights != nil {
			in.RoutingConfig = &types.AliasRoutingConfiguration{AdditionalVersionWeights: weights}
		}
		if _, err := k.c.CreateAlias(t.Context(), in); err != nil {
			t.Fatal(err)
		}
	}
	alias("one", "1", nil)
	alias("both", "1", map[string]float64{"2": 0.5})
	a := k.invoke(t, "f:one", `{"do":{}}`)
	var told toldOf
	if err := decode(a.Payload, &told); err != nil || aws.ToString(a.ExecutedVersion) != "1" || told.Version != "1" || !strings.HasSuffix(told.ARN, ":function:f:one") {
		t.Errorf("alias one: version %s, %+v, %v", aws.ToString(a.ExecutedVersion), told, err)
	}
	ran := map[string]int{}
	for range 60 { // both are chosen, but for one time in 2^59
		ran[aws.ToString(k.invoke(t, "f:both", `1`).ExecutedVersion)]++
	}
	if len(ran) != 2 || ran["1"] == 0 || ran["2"] == 0 {
		t.Errorf("alias both ran versions %v", ran)
	}
}

// reserved tries reserved concurrency of none and one.
func (k *contract) reserved(t *testing.T) {
	k.create(t, "narrow", timeout(30))
	reserve := func(n int32) {
		t.Helper()
		if _, err := k.c.PutFunctionConcurrency(t.Context(), &lambda.PutFunctionConcurrencyInput{FunctionName: aws.String("narrow"), ReservedConcurrentExecutions: &n}); err != nil {
			t.Fatal(err)
		}
	}
	throttled := func() bool {
		t.Helper()
		_, err := k.c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: aws.String("narrow"), Payload: []byte(`1`)})
		var e *types.TooManyRequestsException
		if !errors.As(err, &e) {
			return false
		}
		refused(t, err, 429, "TooManyRequestsException", "Rate Exceeded.")
		if e.Reason != types.ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded || aws.ToString(e.RetryAfterSeconds) == "" || aws.ToString(e.Type) != "User" {
			t.Errorf("throttled with %s, %q, %q", e.Reason, aws.ToString(e.RetryAfterSeconds), aws.ToString(e.Type))
		}
		return true
	}
	reserve(0)
	k.until(t, "reserved concurrency 0 throttles", throttled)
	reserve(1)
	k.until(t, "reserved concurrency 1 lets one through", func() bool { return !throttled() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	seen, held := make(chan struct{}), make(chan error, 1)
	go func() {
		for { // who asks whether it is taken may be in its way, or not look while it is
			_, err := k.c.Invoke(ctx, &lambda.InvokeInput{FunctionName: aws.String("narrow"), Payload: []byte(`{"do":{"log_text":"held","sleep_ms":2000}}`)})
			if e := (*types.TooManyRequestsException)(nil); errors.As(err, &e) {
				continue
			}
			select {
			case <-seen:
			default:
				if err == nil {
					continue
				}
			}
			held <- err
			return
		}
	}()
	k.until(t, "the one is taken", throttled)
	close(seen)
	if err := <-held; err != nil {
		t.Error(err)
	}
	k.invoke(t, "narrow", `1`)
}

// decode reads JSON.
func decode(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w in %.300q", err, b)
	}
	return nil
}
