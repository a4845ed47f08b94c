package frontend

import (
	"context"
	"slices"

	"thaw/functions"
	"thaw/lambdaapi"
)

// createAlias names a version.
func (c *control) createAlias(ctx context.Context, in call, q *lambdaapi.CreateAliasRequest) (*lambdaapi.AliasConfiguration, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if len(q.Name) > 128 || !isName(q.Name) || isNumber(q.Name) {
		return nil, lambdaapi.ValidationException.Errorf("1 validation error detected: Value '%.128s' at 'name' failed to satisfy constraint: "+
			"Member must satisfy regular expression pattern: (?!^[0-9]+$)([a-zA-Z0-9-_]+)", q.Name)
	}
	a := functions.Alias{Description: value(q.Description), Version: q.FunctionVersion}
	f, err := c.store.Update(ctx, n.ID(), func(f *functions.Function) error {
		full := functions.Name{Account: n.Account, Region: n.Region, Function: n.Function, Qualifier: q.Name}
		if _, ok := f.Aliases[q.Name]; ok {
			return lambdaapi.ResourceConflictException.Errorf("Alias already exists: %s", full.ARN(c.region))
		}
		if err := c.route(f, &a, q.RoutingConfig); err != nil {
			return err
		}
		f.SetAlias(q.Name, a)
		return nil
	})
	if err != nil {
		n.Qualifier = q.FunctionVersion // AWS names the version that it looks for
		return nil, instead(err, "Function not found: %s", n.ARN(c.region))
	}
	return c.describeAlias(f, q.Name), nil
}

// route puts a request's routing into an alias, and checks the alias's versions.
func (c *control) route(f *functions.Function, a *functions.Alias, q *lambdaapi.AliasRoutingConfiguration) error {
	if q != nil {
		if len(q.AdditionalVersionWeights) > 1 {
			return refuse("Number of items in AdditionalVersionWeights cannot be greater than 1")
		}
		a.Second, a.Weight = "", 0
		for version, weight := range q.AdditionalVersionWeights {
			a.Second, a.Weight = version, weight
		}
	}
	switch {
	case a.Second == "":
	case a.Version == functions.Latest:
		return refuse("$LATEST is not supported for an alias pointing to more than 1 version")
	case a.Second == a.Version:
		return refuse("Invalid function version %s. Function version %s is already included in routing configuration.", a.Version, a.Version)
	}
	for _, version := range []string{a.Version, a.Second} {
		if _, ok := f.Versions[version]; !ok && version != "" && version != functions.Latest {
			return notFound("Function not found: %s", f.ARN(c.region, version))
		}
	}
	return nil
}

func (c *control) getAlias(ctx context.Context, in call, q *lambdaapi.GetAliasRequest) (*lambdaapi.AliasConfiguration, error) {
	f, err := c.findBare(ctx, in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if _, ok := f.Aliases[q.Name]; !ok {
		return nil, notFound("Cannot find alias arn: %s", f.ARN(c.region, q.Name))
	}
	return c.describeAlias(f, q.Name), nil
}

// updateAlias changes what the request has of an alias.
func (c *control) updateAlias(ctx context.Context, in call, q *lambdaapi.UpdateAliasRequest) (*lambdaapi.AliasConfiguration, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	f, err := c.change(ctx, n, func(f *functions.Function) error {
		a, ok := f.Aliases[q.Name]
		if !ok {
			return notFound("Alias not found: %s", f.ARN(c.region, q.Name))
		}
		if err := checkRevision(q.RevisionId, a.RevisionID, byFunction); err != nil {
			return err
		}
		set(&a.Description, q.Description)
		set(&a.Version, q.FunctionVersion)
		if err := c.route(f, &a, q.RoutingConfig); err != nil {
			return err
		}
		f.SetAlias(q.Name, a)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c.describeAlias(f, q.Name), nil
}

// deleteAlias removes an alias with all that is set for it; that there is none is no error.
func (c *control) deleteAlias(ctx context.Context, in call, q *lambdaapi.DeleteAliasRequest) (none, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	_, err = c.change(ctx, n, func(f *functions.Function) error {
		f.DeleteAlias(q.Name)
		return nil
	})
	return nil, err
}

func (c *control) listAliases(ctx context.Context, in call, q *lambdaapi.ListAliasesRequest) (*lambdaapi.ListAliasesResponse, error) {
	f, err := c.findBare(ctx, in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	var found []string
	for name, a := range f.Aliases {
		if v := value(q.FunctionVersion); v == "" || a.Version == v || a.Second == v {
			found = append(found, name)
		}
	}
	slices.Sort(found)
	found, next, err := page(found, q.Marker, q.MaxItems)
	if err != nil {
		return nil, err
	}
	out := &lambdaapi.ListAliasesResponse{Aliases: []lambdaapi.AliasConfiguration{}, NextMarker: next}
	for _, name := range found {
		out.Aliases = append(out.Aliases, *c.describeAlias(f, name))
	}
	return out, nil
}

func (c *control) describeAlias(f *functions.Function, name string) *lambdaapi.AliasConfiguration {
	a := f.Aliases[name]
	out := &lambdaapi.AliasConfiguration{
		AliasArn: new(f.ARN(c.region, name)), Description: new(a.Description), FunctionVersion: new(a.Version), Name: new(name), RevisionId: new(a.RevisionID)}
	if a.Second != "" {
		out.RoutingConfig = &lambdaapi.AliasRoutingConfiguration{AdditionalVersionWeights: map[string]float64{a.Second: a.Weight}}
	}
	return out
}

// aliasesOf lists the ARNs' last parts of those aliases that point to a version.
func aliasesOf(f *functions.Function, version string) []string {
	var users []string
	for name, a := range f.Aliases {
		if a.Version == version || a.Second == version {
			users = append(users, name)
		}
	}
	slices.Sort(users)
	return users
}
