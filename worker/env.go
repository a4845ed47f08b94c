package worker

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"thaw/invokewire"
)

// apiAddress is where the Runtime API listens inside: a name or IPv4 address and
// a port, since some clients split it at the colon.
const apiAddress = "127.0.0.1:9001"

// imageConfig is what starting a function needs of its image's config JSON.
type imageConfig struct {
	Entrypoint, Cmd words
	Env             []string
	WorkingDir      string
}

// words is a list of strings that old images give as one string.
type words []string

// UnmarshalJSON takes a list, a string, or null.
func (w *words) UnmarshalJSON(data []byte) error {
	var one string
	if len(data) > 0 && data[0] == '"' && json.Unmarshal(data, &one) == nil {
		*w = words{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

func parseImage(data []byte) (imageConfig, error) {
	var whole struct{ Config imageConfig }
	if err := json.Unmarshal(data, &whole); err != nil {
		return imageConfig{}, fmt.Errorf("image config: %w", err)
	}
	return whole.Config, nil
}

// defaults are what a function has that neither its image nor its owner sets.
func defaults() map[string]string {
	return map[string]string{
		"PATH": "/usr/local/bin:/usr/bin/:/bin:/opt/bin", "LD_LIBRARY_PATH": "/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		"LANG": "en_US.UTF-8", "TZ": ":UTC",
		"AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR", "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
		"_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1", "_AWS_XRAY_DAEMON_PORT": "2000",
	}
}

// platformVariables are those that nobody else can set.
func platformVariables(s *invokewire.Spec, stream, handler string) map[string]string {
	v := map[string]string{
		"AWS_LAMBDA_FUNCTION_NAME": s.Function, "AWS_LAMBDA_FUNCTION_VERSION": s.Version, "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(s.Memory),
		"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_LAMBDA_LOG_GROUP_NAME": s.LogGroup, "AWS_LAMBDA_LOG_STREAM_NAME": stream,
		"AWS_LAMBDA_RUNTIME_API": apiAddress, "LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime",
		"AWS_REGION": s.Region, "AWS_DEFAULT_REGION": s.Region, "_HANDLER": handler,
		"AWS_ACCESS_KEY_ID": s.Keys.ID, "AWS_SECRET_ACCESS_KEY": s.Keys.Secret, "AWS_SESSION_TOKEN": s.Keys.Token,
	}
	if s.Runtime != "" && !strings.HasPrefix(s.Runtime, "provided") { // those are but a system
		v["AWS_EXECUTION_ENV"] = "AWS_Lambda_" + s.Runtime
	}
	if s.LogJSON {
		v["AWS_LAMBDA_LOG_FORMAT"], v["AWS_LAMBDA_LOG_LEVEL"] = "JSON", "INFO"
	}
	maps.DeleteFunc(v, func(_, value string) bool { return value == "" })
	return v
}

// ownEndpoint is the one platform variable that a function may set itself.
const ownEndpoint = "AWS_ENDPOINT_URL"

// environment is what a function's runtime sees: defaults, over them the image's,
// over them the function's own, over them the platform's.
func environment(s *invokewire.Spec, image *imageConfig, stream, handler string) map[string]string {
	env := defaults()
	if s.Endpoint != "" {
		env[ownEndpoint] = s.Endpoint
	}
	for _, kv := range image.Env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	maps.Copy(env, s.Env)
	maps.Copy(env, platformVariables(s, stream, handler))
	maps.DeleteFunc(env, func(k, v string) bool { // what no program could be given
		return k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(v, "\x00")
	})
	return env
}

// forExtensions is what of an environment external extensions see.
func forExtensions(env map[string]string) map[string]string {
	reduced := maps.Clone(env)
	maps.DeleteFunc(reduced, func(k, _ string) bool {
		return k == "AWS_EXECUTION_ENV" || k == "_HANDLER" || k == "AWS_LAMBDA_LOG_GROUP_NAME" || k == "AWS_LAMBDA_LOG_STREAM_NAME" ||
			strings.HasPrefix(k, "LAMBDA_") || strings.Contains(k, "_XRAY_")
	})
	return reduced
}

// list gives an environment as programs get it, in a constant order.
func list(env map[string]string) []string {
	all := make([]string, 0, len(env))
	for k, v := range env {
		all = append(all, k+"="+v)
	}
	slices.Sort(all)
	return all
}

// setup is what an instance's processes need.
func setup(s *invokewire.Spec, image *imageConfig, stream string, id uint32) invokewire.Setup {
	entrypoint, command := []string(image.Entrypoint), []string(image.Cmd)
	if len(s.Entrypoint) > 0 { // each by itself, unlike docker's
		entrypoint = s.Entrypoint
	}
	if len(s.Command) > 0 {
		command = s.Command
	}
	handler := s.Handler
	if handler == "" && len(command) > 0 {
		handler = command[0]
	}
	dir := image.WorkingDir
	if s.Workdir != "" {
		dir = s.Workdir
	}
	env := environment(s, image, stream, handler)
	return invokewire.Setup{
		Argv: slices.Concat(entrypoint, command), Env: list(env), Workdir: dir, UID: id, GID: id,
		Extensions: "/opt/extensions", ExtensionEnv: list(forExtensions(env)), API: apiAddress,
		Function: s.Function, Version: s.Version, Handler: handler, Account: s.Account,
	}
}
