package frontend

import (
	"context"

	"thaw/functions"
	"thaw/lambdaapi"
)

// putConcurrency reserves a share of the account's concurrency; 0 switches the function off.
func (c *control) putConcurrency(ctx context.Context, in call, q *lambdaapi.PutFunctionConcurrencyRequest) (*lambdaapi.Concurrency, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if err := c.store.Reserve(ctx, n.ID(), &q.ReservedConcurrentExecutions); err != nil {
		n.Qualifier = functions.Latest // as AWS names it here
		return nil, instead(err, "Function not found: %s", n.ARN(c.region))
	}
	return &lambdaapi.Concurrency{ReservedConcurrentExecutions: &q.ReservedConcurrentExecutions}, nil
}

func (c *control) getConcurrency(ctx context.Context, in call, q *lambdaapi.GetFunctionConcurrencyRequest) (*lambdaapi.GetFunctionConcurrencyResponse, error) {
	f, err := c.findBare(ctx, in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	return &lambdaapi.GetFunctionConcurrencyResponse{ReservedConcurrentExecutions: f.Reserved}, nil
}

func (c *control) deleteConcurrency(ctx context.Context, in call, q *lambdaapi.DeleteFunctionConcurrencyRequest) (none, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	return nil, instead(c.store.Reserve(ctx, n.ID(), nil), "Function not found: %s", n.ARN(c.region))
}

// provisionable reads the version or alias that a request about provisioned
// concurrency names.
func (c *control) provisionable(ctx context.Context, in call, function, qualifier, latest string) error {
	n, err := c.name(in, function, &qualifier)
	if err != nil {
		return err
	}
	if n.Qualifier == functions.Latest {
		return refuse("%s", latest)
	}
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		if !isNumber(n.Qualifier) {
			return instead(err, "Cannot find alias arn: %s", n.ARN(c.region))
		}
		return instead(err, "Function not found: %s", n.ARN(c.region))
	}
	return c.has(f, n)
}

const mustBePublished = "The function resource provided must be an alias or a published version."

// putProvisioned refuses: nothing would start instances ahead.
func (c *control) putProvisioned(ctx context.Context, in call, q *lambdaapi.PutProvisionedConcurrencyConfigRequest) (*lambdaapi.PutProvisionedConcurrencyConfigResponse, error) {
	err := c.provisionable(ctx, in, q.FunctionName, q.Qualifier, "Provisioned Concurrency Configs cannot be applied to unpublished function versions.")
	if err == nil {
		err = refuse("Provisioned concurrency is not supported here yet. Functions start on demand.")
	}
	return nil, err
}

func (c *control) getProvisioned(ctx context.Context, in call, q *lambdaapi.GetProvisionedConcurrencyConfigRequest) (*lambdaapi.GetProvisionedConcurrencyConfigResponse, error) {
	err := c.provisionable(ctx, in, q.FunctionName, q.Qualifier, mustBePublished)
	if err == nil {
		err = lambdaapi.ProvisionedConcurrencyConfigNotFoundException.Errorf("No Provisioned Concurrency Config found for this function")
	}
	return nil, err
}

func (c *control) deleteProvisioned(ctx context.Context, in call, q *lambdaapi.DeleteProvisionedConcurrencyConfigRequest) (none, error) {
	return nil, c.provisionable(ctx, in, q.FunctionName, q.Qualifier, mustBePublished)
}

func (c *control) listProvisioned(ctx context.Context, in call, q *lambdaapi.ListProvisionedConcurrencyConfigsRequest) (*lambdaapi.ListProvisionedConcurrencyConfigsResponse, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if _, err := c.find(ctx, n); err != nil {
		return nil, err
	}
	return &lambdaapi.ListProvisionedConcurrencyConfigsResponse{ProvisionedConcurrencyConfigs: []lambdaapi.ProvisionedConcurrencyConfigListItem{}}, nil
}
