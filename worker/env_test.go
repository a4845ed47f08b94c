package worker

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"thaw/invokewire"
)

func testSpec() *invokewire.Spec {
	return &invokewire.Spec{
		Account: "000000000000", Tenant: "default", Function: "f", Version: "3", Memory: 256, LogGroup: "/aws/lambda/f", Region: "us-east-1",
		Keys: invokewire.Keys{ID: "AK", Secret: "S", Token: "T"}, Env: map[string]string{"A": "function", "B": "function"},
	}
}

// The image's variables are the base, the function's win, and the platform's
// cannot be set.
func TestEnvironment(t *testing.T) {
	s := testSpec()
	s.Env["AWS_LAMBDA_FUNCTION_NAME"], s.Env["BAD\x00"] = "forged", "x"
	s.Endpoint = "http://127.0.0.1:9000"
	env := environment(s, &imageConfig{Env: []string{"A=image", "C=image", "TZ=Europe/Berlin", "nonsense"}}, "stream", "app.handler")
	for k, want := range map[string]string{
		"A": "function", "B": "function", "C": "image", "TZ": "Europe/Berlin", "LANG": "en_US.UTF-8", "AWS_LAMBDA_FUNCTION_NAME": "f",
		"AWS_LAMBDA_FUNCTION_VERSION": "3", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256", "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9001", "_HANDLER": "app.handler",
		"AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand", "AWS_LAMBDA_LOG_STREAM_NAME": "stream", "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
		"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
		"LAMBDA_TASK_ROOT": "/var/task", "LAMBDA_RUNTIME_DIR": "/var/runtime", "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
	} {
		if env[k] != want {
			t.Errorf("%s=%q, want %q", k, env[k], want)
		}
	}
	for _, k := range []string{"nonsense", "BAD\x00", "AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_FORMAT"} {
		if _, ok := env[k]; ok {
			t.Errorf("%q is set", k)
		}
	}
	s.Env["AWS_ENDPOINT_URL"], s.Runtime, s.LogJSON = "https://elsewhere", "python3.13", true
	env = environment(s, &imageConfig{}, "stream", "")
	other := testSpec()
	other.Runtime = "provided.al2023"
	if kind, ok := environment(other, &imageConfig{}, "stream", "")["AWS_EXECUTION_ENV"]; ok {
		t.Errorf("a system alone is the environment %s", kind)
	}
	if env["AWS_ENDPOINT_URL"] != "https://elsewhere" || env["AWS_EXECUTION_ENV"] != "AWS_Lambda_python3.13" || env["AWS_LAMBDA_LOG_FORMAT"] != "JSON" {
		t.Error(env)
	}
}

// External extensions do not see what tells of the handler, logs and tracing.
func TestExtensionEnvironment(t *testing.T) {
	s := testSpec()
	s.Runtime = "python3.13"
	full := environment(s, &imageConfig{}, "stream", "h")
	reduced := forExtensions(full)
	want := []string{
		"AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_XRAY_CONTEXT_MISSING", "AWS_XRAY_DAEMON_ADDRESS",
		"LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT", "_AWS_XRAY_DAEMON_ADDRESS", "_AWS_XRAY_DAEMON_PORT", "_HANDLER",
	}
	maps.DeleteFunc(full, func(k, _ string) bool { _, ok := reduced[k]; return ok })
	if got := slices.Sorted(maps.Keys(full)); !slices.Equal(got, want) {
		t.Errorf("left out %q, want %q", got, want)
	}
}

// ImageConfig replaces entry point, command and folder, each by itself.
func TestSetup(t *testing.T) {
	image, err := parseImage([]byte(`{"config":{"Entrypoint":"/entry","Cmd":["app.handler","x"],"WorkingDir":"/var/task","Env":["P=1"]}}`))
	if err != nil {
		t.Fatal(err)
	}
	s := testSpec()
	check := func(argv []string, dir, handler string) {
		t.Helper()
		got := setup(s, &image, "stream", 100001)
		if !slices.Equal(got.Argv, argv) || got.Workdir != dir || got.Handler != handler || got.UID != 100001 || !slices.Contains(got.Env, "P=1") {
			t.Errorf("%q in %q, handler %q, user %d", got.Argv, got.Workdir, got.Handler, got.UID)
		}
	}
	check([]string{"/entry", "app.handler", "x"}, "/var/task", "app.handler")
	s.Command = []string{"other.handler"}
	check([]string{"/entry", "other.handler"}, "/var/task", "other.handler")
	s.Entrypoint, s.Workdir, s.Handler = []string{"/mine", "-v"}, "/srv", "zip.handler"
	check([]string{"/mine", "-v", "other.handler"}, "/srv", "zip.handler")
}

// Configs of images are read as docker reads them, or refused.
func FuzzImageConfig(f *testing.F) {
	for _, seed := range []string{`{}`, `{"config":null}`, `{"config":{"Cmd":["a"],"Entrypoint":"b"}}`, `{"config":{"Cmd":1}}`, `[`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := parseImage(data); err == nil {
			if _, err := json.Marshal(setup(testSpec(), &c, "stream", 1)); err != nil {
				t.Error(err)
			}
		}
	})
}
