package frontend

import (
	"context"

	"thaw/functions"
	"thaw/lambdaapi"
)

// updateFunctionCode gives $LATEST other code. Invokes run the former until that has been built.
func (c *control) updateFunctionCode(ctx context.Context, in call, q *lambdaapi.UpdateFunctionCodeRequest) (*lambdaapi.FunctionConfiguration, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if q.PublishTo != nil {
		return nil, refuse("PublishTo is not supported here. Please leave it out.")
	}
	f, err := c.find(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := checkRevision(q.RevisionId, f.Latest.RevisionID, byFunction); err != nil {
		return nil, err
	}
	// The package is checked, and a zip kept, before the record is changed, which may take several tries.
	packed := f.Latest
	if err := c.pack(ctx, n.ID(), &packed, sourceOfUpdate(q, &f.Latest)); err != nil {
		return nil, err
	}
	if len(q.Architectures) > 0 {
		packed.Architecture = q.Architectures[0]
	}
	if value(q.DryRun) {
		return c.describe(ctx, n, &packed), nil
	}
	change := func(f *functions.Function) error {
		if err := checkRevision(q.RevisionId, f.Latest.RevisionID, byFunction); err != nil {
			return err
		}
		return f.Change(n.ARN(c.region), c.now(), func(v *functions.Version) error {
			if packageType(v) != packageType(&packed) { // another function of that name by now
				return lambdaapi.ResourceConflictException.Errorf("The function has changed meanwhile. Please try again.")
			}
			v.Package, v.CodeSha256, v.CodeSize, v.Architecture = packed.Package, packed.CodeSha256, packed.CodeSize, packed.Architecture
			return nil
		})
	}
	if value(q.Publish) {
		return c.publish(ctx, n, "", change)
	}
	if f, err = c.change(ctx, n, change); err != nil {
		return nil, err
	}
	return c.describe(ctx, n, &f.Latest), nil
}

func (c *control) updateFunctionConfiguration(ctx context.Context, in call, q *lambdaapi.UpdateFunctionConfigurationRequest) (*lambdaapi.FunctionConfiguration, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	env, err := c.environment(ctx, n.ID(), q.Environment)
	if err != nil {
		return nil, err
	}
	f, err := c.change(ctx, n, func(f *functions.Function) error {
		if err := checkRevision(q.RevisionId, f.Latest.RevisionID, byFunction); err != nil {
			return err
		}
		return f.Change(n.ARN(c.region), c.now(), func(v *functions.Version) error {
			if err := configure(&v.Config, q, env); err != nil {
				return err
			}
			if packageType(v) == packageZip {
				return c.checkRuntime(&v.Config)
			}
			if v.Runtime != "" || v.Handler != "" {
				return refuse("Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.")
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return c.describe(ctx, n, &f.Latest), nil
}

// publishVersion makes a version of $LATEST, or gives the one that is the same.
func (c *control) publishVersion(ctx context.Context, in call, q *lambdaapi.PublishVersionRequest) (*lambdaapi.FunctionConfiguration, error) {
	n, err := c.bare(in, q.FunctionName)
	if err != nil {
		return nil, err
	}
	if q.PublishTo != nil {
		return nil, refuse("PublishTo is not supported here. Please leave it out.")
	}
	return c.publish(ctx, n, value(q.Description), func(f *functions.Function) error {
		if err := f.Idle(n.ARN(c.region)); err != nil {
			return err
		}
		if err := checkRevision(q.RevisionId, f.Latest.RevisionID, byFunction); err != nil {
			return err
		}
		if given := value(q.CodeSha256); given != "" && given != f.Latest.CodeSha256 {
			return refuse("CodeSHA256 (%s) is different from current CodeSHA256 in $LATEST (%s). Please try again with the CodeSHA256 in $LATEST.",
				given, f.Latest.CodeSha256)
		}
		return nil
	})
}

func (c *control) publish(ctx context.Context, n functions.Name, description string, change func(*functions.Function) error) (*lambdaapi.FunctionConfiguration, error) {
	v, err := c.store.Publish(ctx, n.ID(), description, change)
	if err != nil {
		return nil, instead(err, "Function not found: %s", n.ARN(c.region))
	}
	n.Qualifier = v.Number
	return c.describe(ctx, n, v), nil
}
