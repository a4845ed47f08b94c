package frontend

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// command runs a client with the door's keys.
func (d *door) command(name string, args ...string) string {
	d.t.Helper()
	if name == "aws" { // versions before 2.13 do not read AWS_ENDPOINT_URL
		args = append(args, "--endpoint-url", d.url)
	}
	if _, err := exec.LookPath(name); err != nil {
		d.t.Skipf("NOT TESTED: %s is not installed", name)
	}
	c := exec.CommandContext(d.t.Context(), name, args...)
	c.Env = append(os.Environ(), "AWS_ENDPOINT_URL="+d.url, "AWS_ACCESS_KEY_ID="+d.key.ID, "AWS_SECRET_ACCESS_KEY="+d.key.Secret,
		"AWS_SESSION_TOKEN=", "AWS_DEFAULT_REGION="+testRegion, "AWS_MAX_ATTEMPTS=1", "AWS_PAGER=", "AWS_EC2_METADATA_DISABLED=true")
	out, err := c.CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func version() string {
	out, _ := exec.Command("aws", "--version").CombinedOutput() // or there is none
	return string(out)
}

func TestCLIInvokes(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	file := filepath.Join(t.TempDir(), "out")
	out := d.command("aws", "lambda", "invoke", "--function-name", "f", "--log-type", "Tail", file)
	if b, err := os.ReadFile(file); err != nil || string(b) != "{}" || !strings.Contains(out, `"ExecutedVersion": "$LATEST"`) || !strings.Contains(out, "LogResult") {
		t.Errorf("%s, %q, %v", out, b, err)
	}
	now := time.Now().UnixMilli()
	for n, text := range []string{"START", "a line", "REPORT"} {
		d.worker.tell(invokewire.LogEvent{Time: now + int64(n), Stream: "2026/11/22/[$LATEST]s", Message: text})
	}
	d.until("the worker is known", func() bool { return len(d.workers.addresses()) == 1 })
	out = d.command("aws", "logs", "filter-log-events", "--log-group-name", "/aws/lambda/f", "--query", "events[].message", "--output", "text")
	if strings.TrimSpace(out) != "START\ta line\tREPORT" {
		t.Errorf("logs: %q", out)
	}
	if strings.Contains(version(), "aws-cli/1.") {
		t.Log("NOT TESTED: aws logs tail, which version 1 of the CLI has not got")
		return
	}
	out = d.command("aws", "logs", "tail", "/aws/lambda/f", "--format", "short")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) != 3 || !strings.HasSuffix(lines[1], "a line") {
		t.Errorf("logs: %q", out)
	}
}

// Invokes with boto3, and streams, which the CLI has not got; nor have versions of
// boto3 before 1.26.127, of which Debian 12's is one.
func TestBoto3(t *testing.T) {
	d := newDoor(t)
	d.function("f")
	if exec.Command("python3", "-c", "import boto3").Run() != nil {
		t.Skip("NOT TESTED: boto3 is not installed")
	}
	out := d.command("python3", "-c", `
import base64, boto3, os
c = boto3.client("lambda", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
if hasattr(c, "invoke_with_response_stream"):
    for e in c.invoke_with_response_stream(FunctionName="f", Payload=b'"chunks"', LogType="Tail")["EventStream"]:
        print("stream:", e)
else:
    print("no streams")
r = c.invoke(FunctionName="f", Payload=b'{"a": 1}', LogType="Tail")
print("answer:", r["StatusCode"], r["ExecutedVersion"], r["Payload"].read(), base64.b64decode(r["LogResult"]))
r = c.invoke(FunctionName="f", Payload=b'"fail"')
print("error:", r["FunctionError"], r["Payload"].read())
try:
    c.invoke(FunctionName="g")
except c.exceptions.ResourceNotFoundException as e:
    print("refused:", e.response["Error"]["Message"])
`)
	wants := []string{
		`answer: 200 $LATEST b'{"a": 1}' b'START\nREPORT\n'`, `error: Unhandled b'{"errorType":"Boom"`,
		"refused: Function not found: arn:aws:lambda:us-east-1:000000000000:function:g",
	}
	if strings.Contains(out, "no streams") {
		t.Log("NOT TESTED: streams, which this version of boto3 has not got; the SDK for Go is tried in cmd/thaw")
	} else {
		wants = append(wants, "b'chunk 1;'", "InvokeComplete", "LogResult")
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %s", want, out)
		}
	}
}
