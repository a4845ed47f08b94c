package lambdaapi

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
)

// transport answers a client's requests without a network.
type transport func(r *http.Request) (*http.Response, error)

// Do makes it a client's.
func (t transport) Do(r *http.Request) (*http.Response, error) { return t(r) }

// client is AWS's own, whose requests t answers.
func client(t transport) *lambda.Client {
	return lambda.New(lambda.Options{
		Region: "us-east-1", RetryMaxAttempts: 1, HTTPClient: t, BaseEndpoint: aws.String("http://localhost"),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKID", SecretAccessKey: "secret"}, nil
		}),
	})
}

// answered has write write an answer, and hands it to a client.
func answered(write func(w http.ResponseWriter)) transport {
	return func(*http.Request) (*http.Response, error) {
		w := httptest.NewRecorder()
		write(w)
		return w.Result(), nil
	}
}

// call has the client ask for an operation, with something in every member.
func call(t *testing.T, c *lambda.Client, op Op) (any, error) {
	t.Helper()
	method := reflect.ValueOf(c).MethodByName(string(op))
	if !method.IsValid() {
		t.Fatal("the SDK has no operation ", op)
	}
	in := reflect.New(method.Type().In(1).Elem())
	fill(in.Elem(), 0)
	results := method.Call([]reflect.Value{reflect.ValueOf(t.Context()), in})
	err, _ := results[1].Interface().(error)
	return results[0].Interface(), err
}

// fill puts something into a value and all it holds.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && depth < 8 && v.Type() != reflect.TypeFor[time.Time]() {
				fill(v.Field(i), depth+1)
			}
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Interface:
		if v.Type() == reflect.TypeFor[io.Reader]() {
			v.Set(reflect.ValueOf(strings.NewReader("x")))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		element := reflect.New(v.Type().Elem()).Elem()
		fill(element, depth+1)
		v.SetMapIndex(reflect.ValueOf("x"), element)
	}
}

// What we write is to AWS's client what AWS's own answer is.
func TestGoldenResponses(t *testing.T) {
	dir := golden(t, "response_snapshot")
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		if op == OpInvokeWithResponseStream {
			continue // has no golden response: see TestStream
		}
		t.Run(string(op), func(t *testing.T) {
			data := file(t, dir, string(op)+".response.snap")
			want, err := call(t, client(func(*http.Request) (*http.Response, error) { return response(t, data), nil }), op)
			if err != nil {
				t.Fatal("the SDK does not read its own file: ", err)
			}
			got, err := call(t, client(answered(func(w http.ResponseWriter) {
				if operations[op].out == nil {
					err = Write(w, "id", op, nil)
				} else {
					err = Write(w, "id", op, output(t, op, data))
				}
				if err != nil {
					t.Error(err)
				}
			})), op)
			if err != nil {
				t.Fatal(err)
			}
			for _, out := range []any{got, want} { // times and ids of this exchange
				reflect.ValueOf(out).Elem().FieldByName("ResultMetadata").SetZero()
			}
			if op == OpDeleteFunction { // the newest model says 200, AWS answers 204
				want.(*lambda.DeleteFunctionOutput).StatusCode = 204
			}
			if !reflect.DeepEqual(got, want) {
				t.Error("the SDK reads something else: ", differences("", tree(t, marshal(got)), tree(t, marshal(want))))
			}
		})
	}
}

// Errors of operations that are not answered.
func foreign(kind string) bool {
	for _, part := range []string{"Callback", "CapacityProvider", "CodeArtifact", "Durable", "PublicPolicy", "ServiceQuota", "AliasLimit", "ENINotReady", "ModeNotSupported", "Regeneration"} {
		if strings.Contains(kind, part) {
			return true
		}
	}
	return false
}

// Every error reaches AWS's client as its own type, with its text.
func TestGoldenErrors(t *testing.T) {
	dir := golden(t, "response_snapshot")
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".error.snap")
		if !ok || foreign(name) {
			continue
		}
		seen++
		t.Run(name, func(t *testing.T) {
			first, _, body := split(t, file(t, dir, f.Name()))
			w := httptest.NewRecorder()
			e := &Error{Kind: Kind(name), Message: "text <of it>", Reason: "why", RetryAfter: 1500 * time.Millisecond}
			WriteError(w, "id", e)
			wantError(t, w, first, tree(t, body).(map[string]any))
			_, err := call(t, client(answered(func(w http.ResponseWriter) { WriteError(w, "id", e) })), OpInvoke)
			wantTyped(t, err, name)
		})
	}
	if seen < 40 {
		t.Errorf("%d files of errors", seen)
	}
}

// wantError wants the status and the members of a golden answer.
func wantError(t *testing.T, w *httptest.ResponseRecorder, status string, want map[string]any) {
	t.Helper()
	if got := strconv.Itoa(w.Code); got != status {
		t.Errorf("status %s, want %s", got, status)
	}
	got := tree(t, w.Body.Bytes()).(map[string]any)
	for _, name := range []string{"__type", "EC2ErrorCode"} { // a header has it; of a service that is not here
		delete(want, name)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Errorf("members %v, want %v", got, want)
	}
}

// wantTyped wants an error that the SDK knows by name.
func wantTyped(t *testing.T, err error, name string) {
	t.Helper()
	e, ok := errors.AsType[smithy.APIError](err)
	if !ok || e.ErrorCode() != name || e.ErrorMessage() != "text <of it>" {
		t.Fatalf("%#v", err)
	}
	v := reflect.ValueOf(e).Elem()
	if v.Type().Name() != name {
		t.Errorf("type %s", v.Type())
	}
	kind := v.FieldByName("Type").Interface().(*string)
	if wantKind := map[bool]string{true: "Service", false: "User"}[modelled[Kind(name)].status >= 500]; kind == nil || *kind != wantKind {
		t.Errorf("Type %v", kind)
	}
	if throttled, ok := e.(*types.TooManyRequestsException); ok {
		if throttled.Reason != "why" || aws.ToString(throttled.RetryAfterSeconds) != "2" {
			t.Errorf("%+v", throttled)
		}
	}
}
