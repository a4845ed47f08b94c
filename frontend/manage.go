package frontend

import (
	"context"

	"thaw/functions"
	"thaw/lambdaapi"
)

// Modes of runtime management, and of what happens to recursive loops.
const (
	runtimeAuto   = "Auto"
	runtimeManual = "Manual"
	loopTerminate = "Terminate"
)

func (c *control) getRuntimeManagement(ctx context.Context, in call, q *lambdaapi.GetRuntimeManagementConfigRequest) (*lambdaapi.GetRuntimeManagementConfigResponse, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	f, err := c.find(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := c.has(f, n); err != nil {
		return nil, err
	}
	mode := f.RuntimeUpdates[n.Qualifier]
	if mode == "" {
		mode = runtimeAuto
	}
	return &lambdaapi.GetRuntimeManagementConfigResponse{FunctionArn: new(n.ARN(c.region)), UpdateRuntimeOn: &mode}, nil
}

// putRuntimeManagement keeps the mode. Runtimes change when the operator maps
// another base image, and a function when it is updated: there is no version to hold on to.
func (c *control) putRuntimeManagement(ctx context.Context, in call, q *lambdaapi.PutRuntimeManagementConfigRequest) (*lambdaapi.PutRuntimeManagementConfigResponse, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	if q.UpdateRuntimeOn == runtimeManual || value(q.RuntimeVersionArn) != "" {
		return nil, refuse("Runtime versions are not supported here. Please choose Auto or FunctionUpdate, without RuntimeVersionArn.")
	}
	_, err = c.change(ctx, n, func(f *functions.Function) error {
		if err := c.has(f, n); err != nil {
			return err
		}
		if f.RuntimeUpdates == nil {
			f.RuntimeUpdates = map[string]string{}
		}
		f.RuntimeUpdates[n.Qualifier] = q.UpdateRuntimeOn
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &lambdaapi.PutRuntimeManagementConfigResponse{FunctionArn: n.ARN(c.region), UpdateRuntimeOn: q.UpdateRuntimeOn}, nil
}

func (c *control) getRecursion(ctx context.Context, in call, q *lambdaapi.GetFunctionRecursionConfigRequest) (*lambdaapi.GetFunctionRecursionConfigResponse, error) {
	f, err := c.findBare(ctx, in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	loop := f.Recursion
	if loop == "" {
		loop = loopTerminate
	}
	return &lambdaapi.GetFunctionRecursionConfigResponse{RecursiveLoop: &loop}, nil
}

func (c *control) putRecursion(ctx context.Context, in call, q *lambdaapi.PutFunctionRecursionConfigRequest) (*lambdaapi.PutFunctionRecursionConfigResponse, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if _, err := c.change(ctx, n, func(f *functions.Function) error {
		f.Recursion = q.RecursiveLoop
		return nil
	}); err != nil {
		return nil, err
	}
	return &lambdaapi.PutFunctionRecursionConfigResponse{RecursiveLoop: &q.RecursiveLoop}, nil
}

// signing is a function's code signing, which it has none of.
type signing struct {
	CodeSigningConfigArn *string `json:",omitzero"`
}

func signingNotFound(arn string) error {
	return lambdaapi.CodeSigningConfigNotFoundException.Errorf(
		"The code signing configuration cannot be found. Check that the provided configuration is not deleted: %s.", arn)
}

func noSigning(arn string) error {
	return notFound("The Lambda code signing configuration %s can not be found.", arn)
}

func (c *control) getFunctionSigning(ctx context.Context, in call, q *lambdaapi.GetFunctionCodeSigningConfigRequest) (*signing, error) {
	n, err := c.name(in, q.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	_, err = c.find(ctx, n)
	return &signing{}, err
}

func (c *control) putFunctionSigning(_ context.Context, _ call, q *lambdaapi.PutFunctionCodeSigningConfigRequest) (none, error) {
	return nil, signingNotFound(q.CodeSigningConfigArn)
}

func (c *control) deleteFunctionSigning(ctx context.Context, in call, q *lambdaapi.DeleteFunctionCodeSigningConfigRequest) (none, error) {
	n, err := c.name(in, q.FunctionName, nil)
	if err != nil {
		return nil, err
	}
	_, err = c.find(ctx, n)
	return nil, err
}

func (c *control) createSigning(context.Context, call, *lambdaapi.CreateCodeSigningConfigRequest) (none, error) {
	return nil, refuse("Code signing is not supported here.")
}

func (c *control) getSigning(_ context.Context, _ call, q *lambdaapi.GetCodeSigningConfigRequest) (none, error) {
	return nil, noSigning(q.CodeSigningConfigArn)
}

func (c *control) updateSigning(_ context.Context, _ call, q *lambdaapi.UpdateCodeSigningConfigRequest) (none, error) {
	return nil, noSigning(q.CodeSigningConfigArn)
}

func (c *control) deleteSigning(_ context.Context, _ call, q *lambdaapi.DeleteCodeSigningConfigRequest) (none, error) {
	return nil, noSigning(q.CodeSigningConfigArn)
}

func (c *control) listSigning(context.Context, call, *lambdaapi.ListCodeSigningConfigsRequest) (*lambdaapi.ListCodeSigningConfigsResponse, error) {
	return &lambdaapi.ListCodeSigningConfigsResponse{CodeSigningConfigs: []lambdaapi.CodeSigningConfig{}}, nil
}

func (c *control) listFunctionsBySigning(_ context.Context, _ call, q *lambdaapi.ListFunctionsByCodeSigningConfigRequest) (none, error) {
	return nil, noSigning(q.CodeSigningConfigArn)
}

const noMapping = "The resource you requested does not exist."

func (c *control) createMapping(context.Context, call, *lambdaapi.CreateEventSourceMappingRequest) (none, error) {
	return nil, refuse("Event source mappings are not supported here.")
}

func (c *control) getMapping(context.Context, call, *lambdaapi.GetEventSourceMappingRequest) (none, error) {
	return nil, notFound(noMapping)
}

func (c *control) updateMapping(context.Context, call, *lambdaapi.UpdateEventSourceMappingRequest) (none, error) {
	return nil, notFound(noMapping)
}

func (c *control) deleteMapping(context.Context, call, *lambdaapi.DeleteEventSourceMappingRequest) (none, error) {
	return nil, notFound(noMapping)
}

func (c *control) listMappings(context.Context, call, *lambdaapi.ListEventSourceMappingsRequest) (*lambdaapi.ListEventSourceMappingsResponse, error) {
	return &lambdaapi.ListEventSourceMappingsResponse{EventSourceMappings: []lambdaapi.EventSourceMappingConfiguration{}}, nil
}
