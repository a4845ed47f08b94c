package frontend

import (
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
func describe(name string, v *functions.Version, arn string) *lambdaapi.FunctionConfiguration {
	out := &lambdaapi.FunctionConfiguration{
		Architectures:              []string{v.Architecture},
		CodeSha256:                 some(v.CodeSha256),
		CodeSize:                   new(int(v.CodeSize)),
		Description:                new(v.Description),
		EphemeralStorage:           &lambdaapi.EphemeralStorage{Size: v.Tmp},
		FunctionArn:                new(arn),
		FunctionName:               new(name),
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
		out.Environment = &lambdaapi.EnvironmentResponse{Variables: v.Env}
	}
	if v.Entrypoint != nil || v.Command != nil || v.Workdir != "" {
		out.ImageConfigResponse = &lambdaapi.ImageConfigResponse{ImageConfig: &lambdaapi.ImageConfig{
			Command: v.Command, EntryPoint: v.Entrypoint, WorkingDirectory: some(v.Workdir)}}
	}
	return out
}

// listed is describe for lists, which leave out states.
func listed(name string, v *functions.Version, arn string) lambdaapi.FunctionConfiguration {
	out := describe(name, v, arn)
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
