//go:build cloud

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
)

// maxPayload bounds a payload in bytes, as Lambda does.
const maxPayload = 6 << 20

// errFunctionFailed makes invoke end with status 1 once the function's error is
// printed.
var errFunctionFailed = errors.New("the function failed")

// invoked is an invoke's answer, for --json.
type invoked struct {
	Status  int32           `json:"status"`
	Version string          `json:"version,omitempty"`
	Error   string          `json:"function_error,omitempty"`
	Answer  json.RawMessage `json:"answer,omitempty"`
	Log     string          `json:"log,omitempty"`
}

// Run invokes the function.
func (c *invokeCmd) Run(ctx context.Context, g *Globals) error {
	p, err := g.platform()
	if err != nil {
		return err
	}
	payload, err := c.payload()
	if err != nil {
		return err
	}
	in := &lambda.InvokeInput{FunctionName: &c.Name, Payload: payload, LogType: types.LogTypeTail}
	if c.Async {
		in.InvocationType, in.LogType = types.InvocationTypeEvent, types.LogTypeNone
	}
	out, err := p.functions.Invoke(ctx, in)
	if err != nil {
		return plain(err)
	}
	log, err := base64.StdEncoding.DecodeString(aws.ToString(out.LogResult))
	if err != nil {
		return fmt.Errorf("the log's end: %w", err)
	}
	if err := c.report(g, out, string(log)); err != nil {
		return err
	}
	if out.FunctionError != nil {
		return errFunctionFailed
	}
	return nil
}

func (c *invokeCmd) report(g *Globals, out *lambda.InvokeOutput, log string) error {
	if c.JSON {
		all := invoked{Status: out.StatusCode, Version: aws.ToString(out.ExecutedVersion), Error: aws.ToString(out.FunctionError), Log: log}
		if json.Valid(out.Payload) {
			all.Answer = out.Payload
		}
		return json.NewEncoder(g.stdout).Encode(all)
	}
	if c.Log {
		fmt.Fprint(g.stderr, log)
	}
	if c.Async {
		return nil
	}
	_, err := fmt.Fprintf(g.stdout, "%s\n", out.Payload)
	return err
}

// payload reads what the function gets; {} if nothing is given.
func (c *invokeCmd) payload() ([]byte, error) {
	var from io.Reader
	path, isFile := strings.CutPrefix(c.Payload, "@")
	switch {
	case c.Payload == "":
		return []byte("{}"), nil
	case c.Payload == "-":
		from = os.Stdin
	case isFile:
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	default:
		return []byte(c.Payload), nil
	}
	data, err := io.ReadAll(io.LimitReader(from, maxPayload+1))
	if err == nil && len(data) > maxPayload {
		err = fmt.Errorf("the payload has more than %d MB", maxPayload>>20)
	}
	return data, err
}
