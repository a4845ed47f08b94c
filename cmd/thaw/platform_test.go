package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thaw/internal/testoci"
)

// sample is the sample function in Go, built once for all tests of a run.
var sample struct {
	once sync.Once
	data []byte
}

// sampleLayout makes an image of the sample function: one file, /function. Another
// environment makes it another image.
func sampleLayout(t *testing.T, env ...string) string {
	t.Helper()
	sample.once.Do(func() { sample.data = testoci.GoProgram(t) })
	if sample.data == nil {
		t.Fatal("the sample function was not built: an earlier test says why")
	}
	file := testoci.File("function", sample.data)
	file.Mode = 0o755
	return testoci.Layout(t, t.TempDir(), append(env, "FROM=image"), testoci.Tar(t, file))
}

// upLife is how long a platform may be up in a test before it is killed.
const upLife = 15 * time.Minute

// region is a platform that runs.
type region struct {
	*machine
	up       *running
	env      []string // for clients
	endpoint string
	registry string // address of the registry inside
	metrics  string // address, if it was asked for
	screen   string // what it said when it was up
}

// newRegion brings a platform up, with flags more, and down at the test's end.
func newRegion(t *testing.T, more ...string) *region {
	t.Helper()
	m := newMachine(t)
	m.env = append(m.env, "THAW_ZONE_DEADLINE="+zonePatience)
	r := &region{machine: m, up: m.start(append([]string{"up", "--listen=127.0.0.1:0", "--registry=127.0.0.1:0", "--nodes=0", "--budget=4GiB"}, more...)...)}
	r.up.late.Reset(upLife)
	t.Cleanup(r.down)
	r.ready(t)
	r.find(t)
	return r
}

// find asks where the platform is, and for keys.
func (r *region) find(t *testing.T) {
	t.Helper()
	var vars map[string]string
	if err := json.Unmarshal([]byte(r.must("env", "--json")), &vars); err != nil {
		t.Fatal(err)
	}
	r.endpoint = vars["AWS_ENDPOINT_URL"]
	if vars["AWS_ENDPOINT_URL_LAMBDA"] != r.endpoint || vars["AWS_ENDPOINT_URL_CLOUDWATCH_LOGS"] != r.endpoint {
		t.Errorf("the environment has other endpoints than %s: %v", r.endpoint, slices.Sorted(maps.Keys(vars)))
	}
	r.env = append(os.Environ(), "AWS_EC2_METADATA_DISABLED=true", "AWS_PAGER=", "HOME="+t.TempDir())
	for k, v := range vars {
		r.env = append(r.env, k+"="+v)
	}
}

// ready waits until all is up.
func (r *region) ready(t *testing.T) {
	t.Helper()
	for line := ""; !strings.Contains(line, "aws lambda invoke"); {
		if line = r.up.line(); strings.Contains(line, "(EOF)") {
			t.Fatalf("up has ended: %+v", r.up.wait())
		}
		r.screen += line + "\n"
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "metrics   http://"); ok {
			r.metrics = strings.TrimSuffix(at, "/metrics")
		}
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "registry  docker push "); ok {
			r.registry = strings.TrimSuffix(at, "/NAME")
		}
	}
}

// down ends the platform, which has to go well.
func (r *region) down() {
	if r.up.over {
		return
	}
	_ = r.up.cmd.Process.Signal(syscall.SIGINT)
	if e := r.up.wait(); e.code != exitInterrupted && e.code != 0 {
		r.t.Errorf("up ended with status %d: %s", e.code, e.stderr)
	}
}

// canary is a secret of a function and of a registry.
const canary = "a-canary-that-sings-nowhere"

// holding gives the files of a folder that have a text.
func holding(t *testing.T, folder, text string) (all []string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !e.Type().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		if bytes.Contains(data, []byte(text)) {
			all = append(all, path)
		}
		return err
	})
	if err != nil || files < 10 {
		t.Errorf("looked at %d files: %v", files, err)
	}
	return all
}

// nowhere looks for a text in all files of a folder.
func nowhere(t *testing.T, folder, text string) {
	t.Helper()
	if all := holding(t, folder, text); len(all) > 0 {
		t.Errorf("%q have it in clear", all)
	}
}

// A function is pushed, deployed, invoked cold and warm, and deleted, by thaw's
// own verbs.
func TestPlatform(t *testing.T) {
	const disk = 32 << 20
	layout := sampleLayout(t)
	private := newGuarded(t, layout)
	r := newRegion(t, "--metrics=127.0.0.1:0", "--region=eu-thaw-1", "--account=123456789012", fmt.Sprintf("--disk=%d", disk))
	r.firstScreen(t)
	r.must("deploy", "hello", r.pushed(t, layout, "team/hello:1"), "--command", "/function", "--memory", "256", "--timeout", "600", "-e", "GREETING="+canary)
	var cold, warm struct {
		Status int
		Answer json.RawMessage
		Log    string
	}
	for _, answer := range []any{&cold, &warm} {
		if err := json.Unmarshal([]byte(r.must("invoke", "hello", `{"name":"x"}`, "--json")), answer); err != nil {
			t.Fatal(err)
		}
	}
	if string(cold.Answer) != `{"name":"x"}` || string(warm.Answer) != `{"name":"x"}` {
		t.Errorf("answers %s, %s", cold.Answer, warm.Answer)
	}
	report := regexp.MustCompile(`REPORT RequestId: [0-9a-f-]{36}\tDuration: [0-9.]+ ms\tBilled Duration: [0-9]+ ms\tMemory Size: 256 MB\tMax Memory Used: [0-9]+ MB\t(Init Duration: [0-9.]+ ms\t)?\n$`)
	if m := report.FindStringSubmatch(cold.Log); m == nil || m[1] == "" {
		t.Errorf("a cold start logs %q", cold.Log)
	}
	if m := report.FindStringSubmatch(warm.Log); m == nil || m[1] != "" {
		t.Errorf("a warm invoke logs %q", warm.Log)
	}
	if out := r.must("functions"); !strings.Contains(out, "hello  Active  256 MB") {
		t.Errorf("functions: %s", out)
	}
	if out := r.must("coldstarts", "hello"); !strings.Contains(out, "1 of 2 invokes were cold") {
		t.Errorf("coldstarts: %s", out)
	}
	if out := r.must("logs", "hello"); strings.Count(out, "REPORT RequestId") != 2 {
		t.Errorf("logs: %s", out)
	}
	r.counted(t)
	r.followed(t)
	c := r.client(t)
	r.verbs(t, c)
	private.login(t, r)
	r.bounded(t, c, disk)
	if out := r.must("functions", "--json"); !strings.Contains(out, ":123456789012:function:hello") || strings.Contains(out, canary) {
		t.Errorf("functions: %s", out)
	}
	var pair struct{ ID, Account, Secret string }
	if err := json.Unmarshal([]byte(r.must("keys", "create", "--json")), &pair); err != nil || len(pair.Secret) != 40 || pair.Account != "123456789012" {
		t.Errorf("a key of %s with %d characters: %v", pair.Account, len(pair.Secret), err)
	}
	r.must("cluster", "backup", filepath.Join(r.state, "backup"))
	nowhere(t, r.state, canary)
	nowhere(t, r.state, pair.Secret)
	r.revoked(t, c, pair.ID, pair.Secret)
	private.logout(t, r)
	if e := r.thaw("fleet", "invite", "-"); e.code != 1 || !strings.Contains(e.stderr, "for this machine only") {
		t.Errorf("inviting to a platform on loopback: %+v", e)
	}
	r.until(t, "the worker is listed", func() bool { // its lease is renewed late at times
		out := r.must("fleet")
		return strings.Count(out, "\n") == 2 && strings.HasPrefix(out, "WORKER ")
	})
	r.deployedAgain(t)
	r.must("delete", "hello")
	r.must("delete", "private")
	if out := r.must("functions", "--json"); out != "" {
		t.Errorf("functions after delete: %s", out)
	}
	r.until(t, "its instances have ended", func() bool { return r.instances() == 0 })
}

// followed: who follows a log is shown what it has and what comes, once each.
func (r *region) followed(t *testing.T) {
	cmd := r.command("logs", "hello", "--follow")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(3*time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	shown, reports := map[string]bool{}, 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		if shown[line] {
			t.Errorf("shown twice: %s", line)
		}
		shown[line] = true
		if !strings.Contains(line, "REPORT RequestId") {
			continue
		}
		switch reports++; reports {
		case 2, 3:
			r.must("invoke", "hello", "{}")
		case 4:
			_ = cmd.Process.Signal(os.Interrupt)
		}
	}
	_ = cmd.Wait() // it was interrupted
	if reports != 4 {
		t.Errorf("%d reports of 4 were shown: %q", reports, slices.Sorted(maps.Keys(shown)))
	}
}

// instances counts those of all workers.
func (r *region) instances() (n int) {
	r.t.Helper()
	for _, w := range r.workers() {
		n += len(w.Instances)
	}
	return n
}

// aws runs the AWS CLI, which has to be there, and gives its output.
func (r *region) aws(args ...string) (string, error) {
	r.t.Helper()
	// Debian's does not know AWS_ENDPOINT_URL yet.
	cmd := exec.Command("aws", append([]string{"--endpoint-url", r.endpoint}, args...)...)
	cmd.Env = r.env
	out, err := cmd.Output()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		err = fmt.Errorf("aws %q: %s", args, e.Stderr)
	}
	return string(out), err
}

func (r *region) mustAWS(args ...string) string {
	r.t.Helper()
	out, err := r.aws(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// The AWS CLI deploys, waits, invokes in each way, and is refused as AWS refuses.
func TestPlatformAWSCLI(t *testing.T) {
	r := newRegion(t)
	layout := sampleLayout(t)
	answer, payload, bad := filepath.Join(t.TempDir(), "answer"), filepath.Join(t.TempDir(), "payload"), filepath.Join(t.TempDir(), "bad")
	if err := errors.Join(os.WriteFile(payload, []byte(`{"a":1}`), 0o600), os.WriteFile(bad, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	r.mustAWS("lambda", "create-function", "--function-name", "f", "--package-type", "Image", "--code", "ImageUri="+layout,
		"--role", "arn:aws:iam::000000000000:role/any", "--image-config", `{"EntryPoint":["/function"]}`, "--timeout", "60")
	r.mustAWS("lambda", "wait", "function-active-v2", "--function-name", "f")
	invoke := func(more ...string) string {
		return r.mustAWS(append([]string{"lambda", "invoke", "--function-name", "f", "--payload", "fileb://" + payload, answer}, more...)...)
	}
	out := invoke("--log-type", "Tail", "--query", "LogResult", "--output", "text")
	log, err := base64.StdEncoding.DecodeString(strings.TrimSpace(out))
	if err != nil || !strings.Contains(string(log), "\tInit Duration: ") || !strings.HasPrefix(string(log), "START RequestId: ") && !strings.Contains(string(log), "\nSTART RequestId: ") {
		t.Errorf("log %q, %v", log, err)
	}
	if got, err := os.ReadFile(answer); err != nil || string(got) != `{"a":1}` {
		t.Errorf("answer %q, %v", got, err)
	}
	if out := invoke("--invocation-type", "Event"); !strings.Contains(out, "202") {
		t.Errorf("Event: %s", out)
	}
	if out := invoke("--invocation-type", "DryRun"); !strings.Contains(out, "204") {
		t.Errorf("DryRun: %s", out)
	}
	if out := r.mustAWS("lambda", "publish-version", "--function-name", "f", "--query", "Version", "--output", "text"); out != "1\n" {
		t.Errorf("published version %q", out)
	}
	r.mustAWS("lambda", "create-alias", "--function-name", "f", "--name", "live", "--function-version", "1")
	if out := invoke("--qualifier", "live", "--query", "ExecutedVersion", "--output", "text"); out != "1\n" {
		t.Errorf("executed version %q", out)
	}
	for want, args := range map[string][]string{
		"ResourceNotFoundException":                {"lambda", "get-function", "--function-name", "none"},
		"InvalidRequestContentException":           {"lambda", "invoke", "--function-name", "f", "--payload", "fileb://" + bad, answer},
		"ResourceConflictException":                {"lambda", "create-alias", "--function-name", "f", "--name", "live", "--function-version", "1"},
		"Function not found: arn:aws:lambda:us-ea": {"lambda", "invoke", "--function-name", "none", answer},
	} {
		if _, err := r.aws(args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", args, err, want)
		}
	}
	if out := r.mustAWS("logs", "filter-log-events", "--log-group-name", "/aws/lambda/f", "--filter-pattern", "REPORT", "--query", "length(events)"); strings.TrimSpace(out) == "0" {
		t.Error("no REPORT in the log group")
	}
	wrong := *r
	wrong.env = append(slices.Clone(r.env), "AWS_SECRET_ACCESS_KEY=wrong")
	if _, err := wrong.aws("lambda", "list-functions"); err == nil || !strings.Contains(err.Error(), "InvalidSignatureException") {
		t.Errorf("with a wrong secret: %v", err)
	}
	r.mustAWS("lambda", "delete-function", "--function-name", "f")
}
