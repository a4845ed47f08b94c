package frontend

import (
	"context"

	"thaw/functions"
	"thaw/lambdaapi"
)

// createFunction makes a Pending function, which a builder finds.
func (c *control) createFunction(ctx context.Context, in call, q *lambdaapi.CreateFunctionRequest) (*lambdaapi.FunctionConfiguration, error) {
	n, err := functions.ParseNewName(q.FunctionName)
	if err != nil {
		return nil, err
	}
	if n, err = n.In(in.account, c.region, ""); err != nil {
		return nil, err
	}
	if n.Qualifier != "" {
		return nil, refuse("The function name must not have a qualifier: %s", n.Qualifier)
	}
	if err := unsupported(q); err != nil {
		return nil, err
	}
	if err := checkTags(q.Tags); err != nil {
		return nil, err
	}
	v := functions.Version{Config: defaults(n.Function)}
	env, err := c.environment(ctx, n.ID(), q.Environment)
	if err != nil {
		return nil, err
	}
	if err := configure(&v.Config, settings(q), env); err != nil {
		return nil, err
	}
	if len(q.Architectures) > 0 {
		v.Architecture = q.Architectures[0]
	}
	if err := c.pack(ctx, n.ID(), &v, sourceOf(q)); err != nil {
		return nil, err
	}
	f := functions.NewFunction(n.ID(), v, c.now())
	f.Tags = q.Tags
	if err := c.store.Create(ctx, f, value(q.Publish)); err != nil {
		return nil, err
	}
	out := c.describe(ctx, n, &f.Latest)
	if value(q.Publish) {
		out.Version = new(f.Published)
	}
	return out, nil
}

// unsupported refuses by name what has no meaning here yet.
func unsupported(q *lambdaapi.CreateFunctionRequest) error {
	for name, given := range map[string]bool{
		"CapacityProviderConfig": q.CapacityProviderConfig != nil,
		"DurableConfig":          q.DurableConfig != nil,
		"PublishTo":              q.PublishTo != nil,
		"TenancyConfig":          q.TenancyConfig != nil,
	} {
		if given {
			return refuse("%s is not supported here. Please leave it out.", name)
		}
	}
	if arn := value(q.CodeSigningConfigArn); arn != "" {
		return signingNotFound(arn)
	}
	return nil
}

// settings gives what a creation says of a configuration as an update would.
func settings(q *lambdaapi.CreateFunctionRequest) *lambdaapi.UpdateFunctionConfigurationRequest {
	return &lambdaapi.UpdateFunctionConfigurationRequest{
		DeadLetterConfig:  q.DeadLetterConfig,
		Description:       q.Description,
		Environment:       q.Environment,
		EphemeralStorage:  q.EphemeralStorage,
		FileSystemConfigs: q.FileSystemConfigs,
		Handler:           q.Handler,
		ImageConfig:       q.ImageConfig,
		KMSKeyArn:         q.KMSKeyArn,
		Layers:            q.Layers,
		LoggingConfig:     q.LoggingConfig,
		MemorySize:        q.MemorySize,
		Role:              &q.Role,
		Runtime:           q.Runtime,
		SnapStart:         q.SnapStart,
		Timeout:           q.Timeout,
		TracingConfig:     q.TracingConfig,
		VpcConfig:         q.VpcConfig,
	}
}

// getFunction tells all of one version.
func (c *control) getFunction(ctx context.Context, in call, q *lambdaapi.GetFunctionRequest) (*lambdaapi.GetFunctionResponse, error) {
	n, f, v, err := c.qualified(ctx, in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.GetFunctionResponse{Code: location(v), Configuration: c.describe(ctx, n, v)}
	if len(f.Tags) > 0 {
		out.Tags = f.Tags
	}
	if f.Reserved != nil {
		out.Concurrency = &lambdaapi.Concurrency{ReservedConcurrentExecutions: f.Reserved}
	}
	return out, nil
}

func (c *control) getFunctionConfiguration(ctx context.Context, in call, q *lambdaapi.GetFunctionConfigurationRequest) (*lambdaapi.FunctionConfiguration, error) {
	n, _, v, err := c.qualified(ctx, in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	return c.describe(ctx, n, v), nil
}

// deleteFunction removes a function, or one of its versions.
func (c *control) deleteFunction(ctx context.Context, in call, q *lambdaapi.DeleteFunctionRequest) (none, error) {
	n, err := c.name(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	qualifier := n.Qualifier
	n.Qualifier = ""
	switch {
	case qualifier == "":
		return nil, instead(c.store.Delete(ctx, n.ID()), "Function not found: %s", n.ARN(c.region))
	case qualifier == functions.Latest:
		return nil, refuse("$LATEST version cannot be deleted without deleting the function.")
	case !isNumber(qualifier):
		return nil, refuse("Deletion of aliases is not currently supported.")
	}
	err = c.store.DeleteVersion(ctx, n.ID(), qualifier, func(f *functions.Function) error {
		if users := aliasesOf(f, qualifier); len(users) > 0 {
			return lambdaapi.ResourceConflictException.Errorf("Unable to delete version because the following aliases reference it: %v", users)
		}
		return nil
	})
	return nil, instead(err, "Function not found: %s", n.ARN(c.region))
}
