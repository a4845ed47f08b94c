package frontend

import (
	"context"
	"regexp"

	"thaw/functions"
	"thaw/lambdaapi"
)

var (
	numbers = regexp.MustCompile(`^[0-9]+$`)
	names   = regexp.MustCompile(`^[a-zA-Z0-9_-]+$`)
)

func isNumber(s string) bool { return numbers.MatchString(s) }
func isName(s string) bool   { return names.MatchString(s) }

// Types of packages.
const (
	packageImage = "Image"
	packageZip   = "Zip"
)

// packageType tells what a version was made of.
func packageType(v *functions.Version) string {
	if v.Package.ImageURI != "" {
		return packageImage
	}
	return packageZip
}

// describe says what clients see of a version; its ARN depends on how it was asked for.
func (c *control) describe(ctx context.Context, n functions.Name, v *functions.Version) *lambdaapi.FunctionConfiguration {
	out := &lambdaapi.FunctionConfiguration{
		Architectures:              []string{v.Architecture},
		CodeSha256:                 some(v.CodeSha256),
		CodeSize:                   new(int(v.CodeSize)),
		Description:                new(v.Description),
		EphemeralStorage:           &lambdaapi.EphemeralStorage{Size: v.Tmp},
		FunctionArn:                new(n.ARN(c.region)),
		FunctionName:               new(n.Function),
		Handler:                    some(v.Handler),
		LastModified:               new(lambdaapi.FormatTime(v.LastModified)),
		LastUpdateStatus:           some(v.LastUpdateStatus),
		LastUpdateStatusReason:     some(v.LastUpdateReason),
		LastUpdateStatusReasonCode: some(v.LastUpdateReasonCode),
		LoggingConfig: &lambdaapi.LoggingConfig{
			ApplicationLogLevel: some(v.AppLogLevel), LogFormat: new(v.LogFormat), LogGroup: new(v.LogGroup), SystemLogLevel: some(v.SystemLogLevel),
		},
		MemorySize:      new(v.Memory),
		PackageType:     new(packageType(v)),
		RevisionId:      new(v.RevisionID),
		Role:            new(v.Role),
		Runtime:         some(v.Runtime),
		SnapStart:       &lambdaapi.SnapStartResponse{ApplyOn: new("None"), OptimizationStatus: new("Off")},
		State:           new(v.State),
		StateReason:     some(v.StateReason),
		StateReasonCode: some(v.StateReasonCode),
		Timeout:         new(v.Timeout),
		TracingConfig:   &lambdaapi.TracingConfigResponse{Mode: new(v.Tracing)},
		Version:         new(v.Number),
	}
	if v.Env != nil {
		vars, err := c.secrets.open(ctx, n.ID(), v.Env)
		out.Environment = &lambdaapi.EnvironmentResponse{Variables: vars}
		if err != nil {
			out.Environment.Error = &lambdaapi.EnvironmentError{ErrorCode: new("AccessDeniedException"), Message: new(closed(err))}
		}
	}
	if v.Entrypoint != nil || v.Command != nil || v.Workdir != "" {
		out.ImageConfigResponse = &lambdaapi.ImageConfigResponse{ImageConfig: &lambdaapi.ImageConfig{
			Command: v.Command, EntryPoint: v.Entrypoint, WorkingDirectory: some(v.Workdir)}}
	}
	return out
}

// listed is describe for lists, which leave out states. Without a qualifier it has
// the function's own ARN.
func (c *control) listed(ctx context.Context, id functions.ID, qualifier string, v *functions.Version) lambdaapi.FunctionConfiguration {
	out := c.describe(ctx, functions.Name{Region: c.region, Account: id.Account, Function: id.Name, Qualifier: qualifier}, v)
	out.State, out.StateReason, out.StateReasonCode = nil, nil, nil
	out.LastUpdateStatus, out.LastUpdateStatusReason, out.LastUpdateStatusReasonCode = nil, nil, nil
	return *out
}

// location says where a version's code came from.
func location(v *functions.Version) *lambdaapi.FunctionCodeLocation {
	if packageType(v) == packageZip {
		return &lambdaapi.FunctionCodeLocation{RepositoryType: new("S3")}
	}
	return &lambdaapi.FunctionCodeLocation{
		ImageUri: new(v.Package.ImageURI), RepositoryType: new("ECR"), ResolvedImageUri: some(v.Package.ResolvedURI)}
}
