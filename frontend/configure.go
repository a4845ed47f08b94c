package frontend

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"thaw/functions"
	"thaw/invokewire"
	"thaw/lambdaapi"
)

// Limits of a configuration that the service's model does not have, or has higher.
const (
	mostTimeout = 900      // seconds
	mostEnv     = 4 << 10  // bytes of all variables as JSON
	mostLaunch  = 32 << 10 // bytes of an image's entry point and command together: a kernel takes 128 KiB with the variables
	leastLogged = "INFO"
)

// reserved variables are the platform's own.
var reserved = []string{
	"AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
	"AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME",
	"AWS_LAMBDA_LOG_STREAM_NAME", "AWS_LAMBDA_RUNTIME_API", "AWS_REGION", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
	"LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT", "_HANDLER", "_X_AMZN_TRACE_ID",
}

// defaults is what a function has that says nothing.
func defaults(name string) functions.Config {
	return functions.Config{
		Timeout: 3, Memory: 128, Tmp: 512, Architecture: "x86_64",
		LogFormat: "Text", LogGroup: invokewire.LogPrefix + name, Tracing: "PassThrough",
	}
}

// environment checks and seals the variables of a request; nil: it has none.
func (c *control) environment(ctx context.Context, id functions.ID, q *lambdaapi.Environment) ([]byte, error) {
	if q == nil {
		return nil, nil
	}
	if err := checkEnv(q.Variables); err != nil {
		return nil, err
	}
	return c.secrets.seal(ctx, id, q.Variables)
}

// configure puts into a configuration what an update says. Env are its variables,
// sealed; nil: as they are.
func configure(to *functions.Config, q *lambdaapi.UpdateFunctionConfigurationRequest, env []byte) error {
	if err := unconfigurable(q); err != nil {
		return err
	}
	if err := atMost("timeout", q.Timeout, mostTimeout); err != nil {
		return err
	}
	set(&to.Description, q.Description)
	set(&to.Role, q.Role)
	set(&to.Runtime, q.Runtime)
	set(&to.Handler, q.Handler)
	set(&to.Timeout, q.Timeout)
	set(&to.Memory, q.MemorySize)
	if q.EphemeralStorage != nil {
		to.Tmp = q.EphemeralStorage.Size
	}
	if q.TracingConfig != nil {
		set(&to.Tracing, q.TracingConfig.Mode)
	}
	if env != nil {
		to.Env = env
	}
	if err := configureImage(to, q.ImageConfig); err != nil {
		return err
	}
	return configureLogs(to, q.LoggingConfig)
}

// atMost refuses a number as the model's own rules do.
func atMost(member string, given *int, most int) error {
	if value(given) <= most {
		return nil
	}
	return lambdaapi.ValidationException.Errorf("1 validation error detected: Value '%d' at '%s' failed to satisfy constraint: "+
		"Member must have value less than or equal to %d", *given, member, most)
}

// set changes what a client has said.
func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

// unconfigurable refuses by name what would have no effect and should have.
func unconfigurable(q *lambdaapi.UpdateFunctionConfigurationRequest) error {
	snap := q.SnapStart != nil && value(q.SnapStart.ApplyOn) == "PublishedVersions"
	vpc := q.VpcConfig != nil && (len(q.VpcConfig.SubnetIds) > 0 || len(q.VpcConfig.SecurityGroupIds) > 0)
	for _, c := range []struct {
		given bool
		name  string
	}{
		{q.CapacityProviderConfig != nil, "CapacityProviderConfig"},
		{q.DurableConfig != nil, "DurableConfig"},
		{q.DeadLetterConfig != nil && value(q.DeadLetterConfig.TargetArn) != "", "DeadLetterConfig (events that fail are kept as dead letters without it)"},
		{len(q.FileSystemConfigs) > 0, "FileSystemConfigs"},
		{value(q.KMSKeyArn) != "", "KMSKeyArn"},
		{len(q.Layers) > 0, "Layers"},
		{snap, "SnapStart with ApplyOn PublishedVersions"},
		{vpc, "VpcConfig with subnets or security groups"},
	} {
		if c.given {
			return refuse("%s is not supported here. Please leave it out.", c.name)
		}
	}
	return nil
}

func configureImage(to *functions.Config, q *lambdaapi.ImageConfig) error {
	if q == nil {
		return nil
	}
	size := 0
	for _, words := range [][]string{q.EntryPoint, q.Command} {
		for _, w := range words {
			size += len(w) + 1
			if strings.ContainsRune(w, 0) {
				return refuse("ImageConfig must not contain NUL characters.")
			}
		}
	}
	if size > mostLaunch {
		return refuse("EntryPoint and Command of ImageConfig have %d bytes, more than %d.", size, mostLaunch)
	}
	to.Entrypoint, to.Command, to.Workdir = given(q.EntryPoint), given(q.Command), value(q.WorkingDirectory)
	return nil
}

// given makes an empty list none: AWS takes both for the image's own.
func given(words []string) []string {
	if len(words) == 0 {
		return nil
	}
	return words
}

func configureLogs(to *functions.Config, q *lambdaapi.LoggingConfig) error {
	if q == nil {
		return nil
	}
	set(&to.LogFormat, q.LogFormat)
	set(&to.LogGroup, q.LogGroup)
	set(&to.AppLogLevel, q.ApplicationLogLevel)
	set(&to.SystemLogLevel, q.SystemLogLevel)
	if to.LogFormat == "JSON" {
		for _, level := range []*string{&to.AppLogLevel, &to.SystemLogLevel} {
			if *level == "" {
				*level = leastLogged
			}
		}
		return nil
	}
	if value(q.ApplicationLogLevel) != "" || value(q.SystemLogLevel) != "" {
		return refuse("Log level is not supported with Text log format. Please use JSON log format, or leave log levels out.")
	}
	to.AppLogLevel, to.SystemLogLevel = "", ""
	return nil
}

// checkEnv refuses variables that are too many, or the platform's own. No value
// gets into an error.
func checkEnv(vars map[string]string) error {
	var taken []string
	for k, v := range vars {
		if slices.Contains(reserved, k) {
			taken = append(taken, k)
		}
		if strings.ContainsRune(v, 0) {
			return refuse("The environment variable %s contains a NUL character.", k)
		}
	}
	if len(taken) > 0 {
		slices.Sort(taken)
		return refuse("Lambda was unable to configure your environment variables because the environment variables you have provided contains "+
			"reserved keys that are currently not supported for modification. Reserved keys used in this request: %s", strings.Join(taken, ", "))
	}
	if size := measure(vars); size > mostEnv {
		return refuse("Lambda was unable to configure your environment variables because the environment variables you have provided exceeded "+
			"the 4KB limit. String measured: %s", fmt.Sprintf("%d variables, %d bytes", len(vars), size))
	}
	return nil
}

// measure gives the size of variables as JSON.
func measure(vars map[string]string) int {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(vars) // a map of strings always is JSON
	return b.Len() - 1 // the line's end
}
