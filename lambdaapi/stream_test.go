package lambdaapi

import (
	"bytes"
	"errors"
	"net/http"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// The SDK reads a stream as it was written: chunks, then how it ended.
func TestStream(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 30_000)
	c := client(answered(func(w http.ResponseWriter) {
		s := StartStream(w, "id", &InvokeWithResponseStreamResponse{ExecutedVersion: new("7")})
		for _, part := range [][]byte{payload[:1], nil, payload[1:]} {
			if n, err := s.Write(part); n != len(part) || err != nil {
				t.Error(n, err)
			}
		}
		if err := s.Complete(InvokeWithResponseStreamCompleteEvent{ErrorCode: new("Unhandled"), ErrorDetails: new(`{"a":"<b>"}`), LogResult: new("bG9n")}); err != nil {
			t.Error(err)
		}
	}))
	out, err := c.InvokeWithResponseStream(t.Context(), &lambda.InvokeWithResponseStreamInput{FunctionName: aws.String("f")})
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(out.ExecutedVersion) != "7" || out.StatusCode != 200 {
		t.Errorf("%+v", out)
	}
	var got []byte
	ended := false
	for event := range out.GetStream().Events() {
		switch e := event.(type) {
		case *types.InvokeWithResponseStreamResponseEventMemberPayloadChunk:
			got = append(got, e.Value.Payload...)
		case *types.InvokeWithResponseStreamResponseEventMemberInvokeComplete:
			ended = true
			if aws.ToString(e.Value.ErrorCode) != "Unhandled" || aws.ToString(e.Value.ErrorDetails) != `{"a":"<b>"}` || aws.ToString(e.Value.LogResult) != "bG9n" {
				t.Errorf("%+v", e.Value)
			}
		}
	}
	if err := out.GetStream().Err(); err != nil || !ended || !bytes.Equal(got, payload) {
		t.Errorf("%d bytes of %d, ended: %v, %v", len(got), len(payload), ended, err)
	}
}

// broken is a connection that has gone.
type broken struct{ http.ResponseWriter }

func (broken) Header() http.Header       { return http.Header{} }
func (broken) WriteHeader(int)           {}
func (broken) Write([]byte) (int, error) { return 0, errGone }

var errGone = errors.New("gone")

func TestStreamBroken(t *testing.T) {
	s := StartStream(broken{}, "id", &InvokeWithResponseStreamResponse{})
	if n, err := s.Write([]byte("a")); n != 0 || !errors.Is(err, errGone) {
		t.Error(n, err)
	}
	if err := s.Complete(InvokeWithResponseStreamCompleteEvent{}); !errors.Is(err, errGone) {
		t.Error(err)
	}
}
