package frontend

import (
	"context"
	"slices"

	"thaw/functions"
	"thaw/lambdaapi"
)

// eventChange is what a put and an update of an event-invoke config have in common.
type eventChange struct {
	name    functions.Name // with a qualifier, $LATEST if none was given
	retries *int
	age     *int
	to      *lambdaapi.DestinationConfig
	update  bool // keep what is not given, and refuse if there is nothing
}

func (c *control) putEventConfig(ctx context.Context, in call, q *lambdaapi.PutFunctionEventInvokeConfigRequest) (*lambdaapi.FunctionEventInvokeConfig, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	return c.setEventConfig(ctx, eventChange{name: n, retries: q.MaximumRetryAttempts, age: q.MaximumEventAgeInSeconds, to: q.DestinationConfig})
}

func (c *control) updateEventConfig(ctx context.Context, in call, q *lambdaapi.UpdateFunctionEventInvokeConfigRequest) (*lambdaapi.FunctionEventInvokeConfig, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	return c.setEventConfig(ctx, eventChange{name: n, retries: q.MaximumRetryAttempts, age: q.MaximumEventAgeInSeconds, to: q.DestinationConfig, update: true})
}

// eventName is name, with $LATEST where no qualifier is given.
func (c *control) eventName(in call, function string, qualifier *string) (functions.Name, error) {
	n, err := c.name(in, function, qualifier)
	if n.Qualifier == "" {
		n.Qualifier = functions.Latest
	}
	return n, err
}

func (c *control) setEventConfig(ctx context.Context, e eventChange) (*lambdaapi.FunctionEventInvokeConfig, error) {
	if e.retries == nil && e.age == nil && e.to == nil {
		return nil, refuse("You must specify at least one of error handling or destination setting.")
	}
	if hasDestination(e.to) {
		return nil, refuse("Destinations are not supported here yet. Please leave them out: events that fail are kept as dead letters.")
	}
	f, err := c.store.Update(ctx, e.name.ID(), func(f *functions.Function) error {
		if c.has(f, e.name) != nil {
			return notFound("The function doesn't exist.")
		}
		config, there := f.Events[e.name.Qualifier]
		switch {
		case e.update && !there:
			return c.noEventConfig(e.name)
		case !e.update:
			config = functions.EventConfig{}
		}
		if e.retries != nil {
			config.MaxRetries = e.retries
		}
		if e.age != nil {
			config.MaxAge = e.age
		}
		config.LastModified = c.now()
		if f.Events == nil {
			f.Events = map[string]functions.EventConfig{}
		}
		f.Events[e.name.Qualifier] = config
		return nil
	})
	if err != nil {
		return nil, instead(err, "The function doesn't exist.")
	}
	return c.describeEvents(f, e.name.Qualifier), nil
}

func hasDestination(d *lambdaapi.DestinationConfig) bool {
	return d != nil && (d.OnFailure != nil && value(d.OnFailure.Destination) != "" || d.OnSuccess != nil && value(d.OnSuccess.Destination) != "")
}

func (c *control) noEventConfig(n functions.Name) error {
	return notFound("The function %s doesn't have an EventInvokeConfig", n.ARN(c.region))
}

func (c *control) getEventConfig(ctx context.Context, in call, q *lambdaapi.GetFunctionEventInvokeConfigRequest) (*lambdaapi.FunctionEventInvokeConfig, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		return nil, instead(err, "The function %s doesn't have an EventInvokeConfig", n.ARN(c.region))
	}
	if _, ok := f.Events[n.Qualifier]; !ok {
		return nil, c.noEventConfig(n)
	}
	return c.describeEvents(f, n.Qualifier), nil
}

func (c *control) deleteEventConfig(ctx context.Context, in call, q *lambdaapi.DeleteFunctionEventInvokeConfigRequest) (none, error) {
	n, err := c.eventName(in, q.FunctionName, q.Qualifier)
	if err != nil {
		return nil, err
	}
	_, err = c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		if _, ok := f.Events[n.Qualifier]; !ok {
			return c.noEventConfig(n)
		}
		delete(f.Events, n.Qualifier)
		return nil
	})
	return nil, instead(err, "The function %s doesn't have an EventInvokeConfig", n.ARN(c.region))
}

func (c *control) listEventConfigs(ctx context.Context, in call, q *lambdaapi.ListFunctionEventInvokeConfigsRequest) (*lambdaapi.ListFunctionEventInvokeConfigsResponse, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	f, err := c.store.Get(ctx, n.ID())
	if err != nil {
		return nil, instead(err, "The function doesn't exist.")
	}
	var qualifiers []string
	for qualifier := range f.Events {
		qualifiers = append(qualifiers, qualifier)
	}
	slices.Sort(qualifiers)
	qualifiers, next, err := page(qualifiers, q.Marker, q.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.ListFunctionEventInvokeConfigsResponse{FunctionEventInvokeConfigs: []lambdaapi.FunctionEventInvokeConfig{}, NextMarker: next}
	for _, qualifier := range qualifiers {
		out.FunctionEventInvokeConfigs = append(out.FunctionEventInvokeConfigs, *c.describeEvents(f, qualifier))
	}
	return out, nil
}

func (c *control) describeEvents(f *functions.Function, qualifier string) *lambdaapi.FunctionEventInvokeConfig {
	config := f.Events[qualifier]
	return &lambdaapi.FunctionEventInvokeConfig{
		DestinationConfig:        &lambdaapi.DestinationConfig{OnFailure: &lambdaapi.OnFailure{}, OnSuccess: &lambdaapi.OnSuccess{}},
		FunctionArn:              new(f.ARN(c.region, qualifier)),
		LastModified:             &lambdaapi.Time{Time: config.LastModified},
		MaximumEventAgeInSeconds: config.MaxAge,
		MaximumRetryAttempts:     config.MaxRetries,
	}
}
