// Command caller is a function that invokes another with AWS's SDK, set up by
// nothing but its environment.
package main

import (
	"context"
	"encoding/json"
	"errors"

	runtime "github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/lambda"
)

func main() { runtime.Start(handle) }

// handle gives the other function's answer, or what kept it from one.
func handle(ctx context.Context, event struct {
	Function string
	Payload  json.RawMessage
}) (json.RawMessage, error) {
	found, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, err
	}
	client := lambda.NewFromConfig(found, func(o *lambda.Options) { o.Retryer = aws.NopRetryer{} })
	out, err := client.Invoke(ctx, &lambda.InvokeInput{FunctionName: &event.Function, Payload: event.Payload})
	if err == nil && out.FunctionError != nil {
		err = errors.New(string(out.Payload))
	}
	if err != nil {
		return nil, err
	}
	return out.Payload, nil
}
