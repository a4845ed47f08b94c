package runtimeapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"thaw/runtimeapi/http1"
)

const (
	functionEnv = "THAW_TEST_FUNCTION"
	patience    = 3 * time.Minute
)

// TestMain is also a function, with Lambda's own client, if it is told to be.
func TestMain(m *testing.M) {
	if os.Getenv(functionEnv) != "" {
		lambda.StartWithOptions(function, lambda.WithEnableSIGTERM(func() { fmt.Println("SIGTERM") }))
	}
	os.Exit(m.Run())
}

func function(ctx context.Context, in map[string]string) (any, error) {
	about, _ := lambdacontext.FromContext(ctx)
	deadline, _ := ctx.Deadline()
	switch in["do"] {
	case "fail":
		return nil, errors.New("as it was told")
	case "panic":
		panic("as it was told")
	case "stream":
		return io.MultiReader(strings.NewReader("piece "), strings.NewReader("by piece")), nil
	case "break":
		return io.MultiReader(strings.NewReader("half"), failing{}), nil
	}
	return map[string]any{"id": about.AwsRequestID, "arn": about.InvokedFunctionArn, "deadline": deadline.UnixMilli(), "client": about.ClientContext.Custom["a"]}, nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken off") }

// host is an API with the client of Go as its runtime.
type host struct {
	*API
	rec  *recorder
	tell chan string
}

func newHost(t *testing.T) *host {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{rec: new(recorder), tell: make(chan string, 10)}
	sink := h.rec.sink()
	sink.InitDone = func() { h.tell <- "init-done" }
	sink.Done = func(id string) { h.tell <- "done:" + id }
	h.API = New(Options{Sink: sink})
	served := make(chan error, 1)
	server := &http1.Server{Handler: h.Answer}
	go func() { served <- server.Serve(l) }()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = []string{functionEnv + "=1", "AWS_LAMBDA_RUNTIME_API=" + l.Addr().String()}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = l.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *host) await(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-h.tell:
		if got != want {
			t.Fatalf("%s, want %s", got, want)
		}
	case <-time.After(patience):
		t.Fatalf("no %s: %s", want, h.rec.took())
	}
}

// Lambda's own client is content, and what it says arrives.
func TestClient(t *testing.T) {
	h := newHost(t)
	h.await(t, "init-done")
	if got := h.Extensions(); len(got) != 1 || got[0].Name != "GoLangEnableSIGTERM" || !got[0].Internal || len(got[0].Events) != 0 {
		t.Errorf("%v", got)
	}
	deadline := time.Now().Add(time.Hour).UnixMilli()
	for i, c := range []struct{ do, told, body string }{
		{"", "begin:%s:application/json:false: end::", fmt.Sprintf(`{"arn":"arn:f:live","client":"b","deadline":%d,"id":"%%s"}`, deadline)},
		{"fail", "begin:%s:application/json:false:Runtime.Unknown end::", `{"errorMessage":"as it was told","errorType":"errorString"}`},
		{"stream", "begin:%s:application/octet-stream:false: end::", "piece by piece"},
		{"break", `begin:%s:application/octet-stream:false: end:Runtime.Unknown:{"errorMessage":"broken off","errorType":"errorString"}`, "half"},
		{"", "begin:%s:application/json:false: end::", fmt.Sprintf(`{"arn":"arn:f:live","client":"b","deadline":%d,"id":"%%s"}`, deadline)},
	} {
		id := fmt.Sprint("request-", i)
		err := h.Invoke(Invoke{RequestID: id, DeadlineMs: deadline, ARN: "arn:f:live", ClientContext: `{"custom":{"a":"b"}}`, Payload: []byte(`{"do":"` + c.do + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		h.await(t, "done:"+id)
		if got, want := h.rec.took(), strings.ReplaceAll(c.told, "%s", id); got != want {
			t.Errorf("%s: %s\nwant %s", c.do, got, want)
		}
		if got, want := h.rec.body.String(), strings.ReplaceAll(c.body, "%s", id); got != want {
			t.Errorf("%s: %s\nwant %s", c.do, got, want)
		}
		h.rec.body.Reset()
	}
}
