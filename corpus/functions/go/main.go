// Command go is the sample function in Go, over AWS's own library for it. It is
// static, so that an image of it needs no file but this one.
//
// It answers with its event, byte for byte, unless that is an object with the
// member "do": then it does what that says (see Do) and tells of itself and of
// what it found (see Told). Before the first invoke it does what its variables
// say:
//
//	FUNCTION_INIT_SLEEP_MS=N   sleep
//	FUNCTION_INIT_CPU_MS=N     compute for that much processor time
//	FUNCTION_INIT_HASH_MB=N    a fixed amount of work: hash that many MiB
//	FUNCTION_INIT_DO=JSON      what an event's "do" asks for
//	FUNCTION_INIT_EXIT=N       exit with that status
//	FUNCTION_INIT_PANIC=TEXT   panic
//	FUNCTION_SIGTERM=1         ask for SIGTERM, as the library does it: an internal extension
//	FUNCTION_IGNORE_SIGTERM=1  ignore SIGTERM
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"
)

// childVariable makes this program one that only sleeps: what Do.Forks starts.
const childVariable = "FUNCTION_CHILD"

// childLife ends children that nobody has ended.
const childLife = 5 * time.Minute

func main() {
	if os.Getenv(childVariable) != "" {
		time.Sleep(childLife)
		return
	}
	f := newFunction()
	f.init(os.Getenv)
	var options []lambda.Option
	if os.Getenv("FUNCTION_SIGTERM") != "" {
		options = append(options, lambda.WithEnableSIGTERM(func() { fmt.Println("function: SIGTERM") }))
	}
	if os.Getenv("FUNCTION_IGNORE_SIGTERM") != "" {
		signal.Ignore(syscall.SIGTERM)
	}
	lambda.StartWithOptions(f.handle, options...)
}

// function is the state of one instance. Invokes come one at a time.
type function struct {
	id      string
	started time.Time
	invokes int
	held    [][]byte // by Do.AllocateMB
	kept    []keeper // by Do.Connections
}

func newFunction() *function {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	return &function{id: hex.EncodeToString(id), started: time.Now()}
}

// init does what the variables ask for. What is no number counts as none.
func (f *function) init(variable func(string) string) {
	number := func(name string) int {
		n, _ := strconv.Atoi(variable("FUNCTION_INIT_" + name))
		return n
	}
	time.Sleep(milliseconds(number("SLEEP_MS")))
	compute(milliseconds(number("CPU_MS")))
	hashMB(number("HASH_MB"))
	if text := variable("FUNCTION_INIT_DO"); text != "" {
		var d Do
		err := json.Unmarshal([]byte(text), &d)
		if err == nil {
			_, err = f.do(context.Background(), &d)
		}
		if err != nil {
			panic(err)
		}
	}
	if variable("FUNCTION_INIT_EXIT") != "" {
		os.Exit(number("EXIT"))
	}
	if text := variable("FUNCTION_INIT_PANIC"); text != "" {
		panic(text)
	}
}

// Told is the answer to an event with "do".
type Told struct {
	Instance   string `json:"instance"` // made up at the start of the process
	Invokes    int    `json:"invokes"`  // of this process, with this one
	AgeMS      int64  `json:"age_ms"`   // of this process
	RequestID  string `json:"request_id"`
	ARN        string `json:"arn"`
	RemainMS   int64  `json:"remain_ms"` // until the deadline
	Function   string `json:"function"`
	Version    string `json:"version"`
	MemoryMB   int    `json:"memory_mb"`
	LogStream  string `json:"log_stream"`
	User       int    `json:"user"`
	ClientText string `json:"client,omitempty"` // title of the app in the client context

	Found
}

// handle is the handler. It gives a reader, or something to encode as JSON.
func (f *function) handle(ctx context.Context, event json.RawMessage) (any, error) {
	f.invokes++
	var e struct {
		Do *Do `json:"do"`
	}
	if json.Unmarshal(event, &e) != nil || e.Do == nil {
		return jsonBytes{bytes.NewReader(event)}, nil
	}
	found, err := f.do(ctx, e.Do)
	if err != nil {
		return nil, err
	}
	switch {
	case e.Do.Stream != nil:
		return newStream(*e.Do.Stream), nil
	case e.Do.AnswerBytes > 0:
		return filler(e.Do.AnswerBytes), nil
	}
	return f.tell(ctx, found), nil
}

func (f *function) tell(ctx context.Context, found Found) Told {
	t := Told{
		Instance: f.id, Invokes: f.invokes, AgeMS: time.Since(f.started).Milliseconds(),
		Function: lambdacontext.FunctionName, Version: lambdacontext.FunctionVersion,
		MemoryMB: lambdacontext.MemoryLimitInMB, LogStream: lambdacontext.LogStreamName,
		User: os.Getuid(), Found: found,
	}
	if c, ok := lambdacontext.FromContext(ctx); ok {
		t.RequestID, t.ARN, t.ClientText = c.AwsRequestID, c.InvokedFunctionArn, c.ClientContext.Client.AppTitle
	}
	if deadline, ok := ctx.Deadline(); ok {
		t.RemainMS = time.Until(deadline).Milliseconds()
	}
	return t
}

// jsonBytes goes out as it is. The library takes a reader whose JSON is empty
// as one, and asks it for its type.
type jsonBytes struct{ *bytes.Reader }

// ContentType tells the library what the bytes are.
func (jsonBytes) ContentType() string { return "application/json" }

// filler is a JSON string of n bytes in all.
func filler(n int) jsonBytes {
	b := bytes.Repeat([]byte{'x'}, max(n, 2))
	b[0], b[len(b)-1] = '"', '"'
	return jsonBytes{bytes.NewReader(b)}
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }
