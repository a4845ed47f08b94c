package lambdaapi

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"
)

func TestWrite(t *testing.T) {
	for _, c := range []struct {
		op     Op
		out    any
		status int
		typ    string
		body   string
	}{
		{OpListFunctions, &ListFunctionsResponse{Functions: []FunctionConfiguration{}}, 200, "application/json", `{"Functions":[]}`},
		{OpCreateFunction, &FunctionConfiguration{Description: new(""), Timeout: new(3)}, 201, "application/json", `{"Description":"","Timeout":3}`},
		{OpPublishVersion, &FunctionConfiguration{StateReason: new("a<b>&é")}, 201, "application/json", `{"StateReason":"a<b>&é"}`},
		{OpGetFunctionConcurrency, &GetFunctionConcurrencyResponse{}, 200, "application/json", `{}`},
		{OpGetFunctionConcurrency, &GetFunctionConcurrencyResponse{ReservedConcurrentExecutions: new(0)}, 200, "application/json", `{"ReservedConcurrentExecutions":0}`},
		{OpGetFunctionEventInvokeConfig, &FunctionEventInvokeConfig{LastModified: &Time{time.Unix(1795290511, 0)}}, 200, "application/json", `{"LastModified":1795290511}`},
		{OpDeleteFunction, nil, 204, "", ""},
		{OpTagResource, nil, 204, "", ""},
		{OpInvoke, &InvocationResponse{StatusCode: new(202)}, 202, "application/json", ""},
		{OpInvoke, &InvocationResponse{StatusCode: new(204)}, 204, "", ""},
		{OpInvoke, &InvocationResponse{StatusCode: new(200), Payload: []byte("null")}, 200, "application/json", "null"},
		{OpInvokeAsync, &InvokeAsyncResponse{Status: new(202)}, 202, "", ""},
	} {
		w := httptest.NewRecorder()
		if err := Write(w, "the-id", c.op, c.out); err != nil {
			t.Error(err)
		}
		h := w.Result().Header
		if w.Code != c.status || h.Get("Content-Type") != c.typ || w.Body.String() != c.body || h.Get("x-amzn-RequestId") != "the-id" {
			t.Errorf("%s: %d %v %s", c.op, w.Code, h, w.Body)
		}
	}
	w := httptest.NewRecorder()
	out := &InvocationResponse{ExecutedVersion: new("$LATEST"), FunctionError: new("Unhandled"), LogResult: new("bG9n"), Payload: []byte("{}")}
	if err := Write(w, "id", OpInvoke, out); err != nil {
		t.Fatal(err)
	}
	if h := w.Result().Header; h.Get("X-Amz-Executed-Version") != "$LATEST" || h.Get("X-Amz-Function-Error") != "Unhandled" || h.Get("X-Amz-Log-Result") != "bG9n" {
		t.Error(h)
	}
}

// signature stands for the errors of packages that do not know this one.
type signature struct{ code string }

func (s signature) Error() string   { return "secret detail" }
func (s signature) Code() string    { return s.code }
func (s signature) Message() string { return "for the client" }

func TestWriteError(t *testing.T) {
	const unknown = `{"Message":"An error occurred and the request cannot be processed.","Type":"Service"}`
	for _, c := range []struct {
		err    error
		status int
		kind   string
		retry  string
		body   string
	}{
		{ResourceNotFoundException.Errorf("Function not found: %s", "arn"), 404, "ResourceNotFoundException", "", `{"Message":"Function not found: arn","Type":"User"}`},
		{fmt.Errorf("create: %w", InvalidParameterValueException.Errorf("no")), 400, "InvalidParameterValueException", "", `{"Type":"User","message":"no"}`},
		{&Error{Kind: TooManyRequestsException, Message: "Rate Exceeded.", Reason: ThrottleReasonReservedFunctionConcurrentInvocationLimitExceeded, RetryAfter: time.Millisecond}, 429, "TooManyRequestsException", "1",
			`{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`},
		{ResourceNotReadyException.Errorf("x"), 502, "ResourceNotReadyException", "", `{"Type":"Service","message":"x"}`},
		{ValidationException.Errorf("<é>"), 400, "ValidationException", "", `{"message":"<é>"}`},
		{SerializationException.Errorf("x"), 400, "SerializationException", "", `{"Message":"x"}`},
		{signature{"InvalidSignatureException"}, 403, "InvalidSignatureException", "", `{"message":"for the client"}`},
		{signature{"MissingAuthenticationTokenException"}, 403, "MissingAuthenticationTokenException", "", `{"message":"for the client"}`},
		{signature{"Unheard"}, 500, "ServiceException", "", unknown},
		{errors.New("secret detail"), 500, "ServiceException", "", unknown},
		{&Error{Kind: "Unheard", Message: "secret detail"}, 500, "ServiceException", "", unknown},
		{nil, 500, "ServiceException", "", unknown},
	} {
		w := httptest.NewRecorder()
		WriteError(w, "the-id", c.err)
		h := w.Result().Header
		if w.Code != c.status || h.Get("x-amzn-ErrorType") != c.kind || h.Get("Retry-After") != c.retry || w.Body.String() != c.body ||
			h.Get("Content-Type") != "application/json" || h.Get("x-amzn-RequestId") != "the-id" {
			t.Errorf("%v: %d %v %s", c.err, w.Code, h, w.Body)
		}
	}
	if err := fmt.Errorf("x: %w", ResourceConflictException.Errorf("y")); !errors.Is(err, ResourceConflictException) || errors.Is(err, ServiceException) {
		t.Error(err)
	}
}
