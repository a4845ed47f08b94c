package worker

import (
	"encoding/json"
	"regexp"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 5e6, time.UTC)

// Lines are Lambda's to the letter: tabs, trailing tabs, two digits.
func TestReportText(t *testing.T) {
	r := report{outcome: outcome{Status: statusSuccess}, requestID: "8f5", duration: 1291 * time.Microsecond, memory: 128, peak: 12<<20 + 1}
	timeout := r
	timeout.outcome, timeout.duration = outcome{Status: statusTimeout}, 3*time.Second
	cold := r
	cold.init = 48259 * time.Microsecond
	exited := cold
	exited.outcome, exited.peak = outcome{Status: statusError, ErrorType: "Runtime.ExitError"}, 1<<40
	told := r
	told.outcome = outcome{Status: statusError, ErrorType: "errorString", told: true}
	for _, c := range []struct {
		r    report
		want string
	}{
		{r, "REPORT RequestId: 8f5\tDuration: 1.29 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 13 MB\t"},
		{cold, "REPORT RequestId: 8f5\tDuration: 1.29 ms\tBilled Duration: 50 ms\tMemory Size: 128 MB\tMax Memory Used: 13 MB\tInit Duration: 48.26 ms\t"},
		{timeout, "REPORT RequestId: 8f5\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 13 MB\tStatus: timeout"},
		{exited, "REPORT RequestId: 8f5\tDuration: 1.29 ms\tBilled Duration: 50 ms\tMemory Size: 128 MB\tMax Memory Used: 128 MB\tInit Duration: 48.26 ms\tStatus: error\tError Type: Runtime.ExitError"},
		{told, "REPORT RequestId: 8f5\tDuration: 1.29 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 13 MB\t"},
	} {
		if got := c.r.text(); got != c.want {
			t.Errorf("\n%q, want\n%q", got, c.want)
		}
	}
}

// The public pattern of those who measure cold starts matches.
func TestReportPattern(t *testing.T) {
	pattern := regexp.MustCompile(`REPORT RequestId: \S+\s+Duration: (?P<duration>[0-9.]+) ms\s+Billed Duration: (?P<billed>[0-9.]+) ms\s+Memory Size: (?P<size>\d+) MB\s+Max Memory Used: (?P<used>\d+) MB(\s+Init Duration: (?P<init>[0-9.]+) ms)?`)
	r := report{outcome: outcome{Status: statusSuccess}, requestID: "a-b", duration: time.Second, init: time.Millisecond, memory: 512}
	if m := pattern.FindStringSubmatch(r.text()); m == nil || m[1] != "1000.00" || m[2] != "1001" || m[6] != "1.00" {
		t.Errorf("%q: %q", r.text(), m)
	}
}

func TestPlatformText(t *testing.T) {
	p := platformLines{function: "f", version: "$LATEST", runtime: "python3.13", region: "us-east-1"}
	for got, want := range map[string]string{
		p.initStart(noon):                                                           "INIT_START Runtime Version: python:3.13\tRuntime Version ARN: arn:aws:lambda:us-east-1::runtime:python3.13",
		(&platformLines{}).initStart(noon):                                          "",
		(&platformLines{runtime: "nodejs22.x"}).initStart(noon):                     "INIT_START Runtime Version: nodejs:22\tRuntime Version ARN: arn:aws:lambda:::runtime:nodejs22.x",
		(&platformLines{runtime: "provided.al2023"}).initStart(noon):                "INIT_START Runtime Version: provided:al2023\tRuntime Version ARN: arn:aws:lambda:::runtime:provided.al2023",
		p.start(noon, "8f5"):                                                        "START RequestId: 8f5 Version: $LATEST",
		p.end(noon, &report{requestID: "8f5"}):                                      "END RequestId: 8f5",
		p.timedOut(noon, "8f5", time.Second):                                        "2026-11-22T12:00:00.005Z 8f5 Task timed out after 1.00 seconds\n",
		p.failed(exitError("8f5", "exit status 1")):                                 "RequestId: 8f5 Error: Runtime exited with error: exit status 1\nRuntime.ExitError",
		p.initReport(noon, 10*time.Second, "init", outcome{Status: "timeout"}):      "INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout",
		p.initReport(noon, time.Second, "invoke", outcome{statusError, "E", false}): "INIT_REPORT Init Duration: 1000.00 ms\tPhase: invoke\tStatus: error\tError Type: E",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// With a log in JSON each line of the platform's is an event of its own.
func TestPlatformJSON(t *testing.T) {
	p := platformLines{json: true, function: "f", version: "7"}
	r := &report{outcome: outcome{Status: statusError, ErrorType: "E"}, requestID: "8f5", duration: 1500 * time.Microsecond, init: time.Millisecond, memory: 128, peak: 5 << 20}
	for line, want := range map[string]string{
		p.initStart(noon):    `{"time":"2026-11-22T12:00:00.005Z","type":"platform.initStart","record":{"functionName":"f","functionVersion":"7","initializationType":"on-demand","phase":"init"}}`,
		p.start(noon, "8f5"): `{"time":"2026-11-22T12:00:00.005Z","type":"platform.start","record":{"requestId":"8f5","version":"7"}}`,
		p.report(noon, r):    `{"time":"2026-11-22T12:00:00.005Z","type":"platform.report","record":{"errorType":"E","metrics":{"billedDurationMs":3,"durationMs":1.5,"initDurationMs":1,"maxMemoryUsedMB":5,"memorySizeMB":128},"requestId":"8f5","status":"error"}}`,
	} {
		if line != want || !json.Valid([]byte(line)) {
			t.Errorf("%s, want\n%s", line, want)
		}
	}
	if p.timedOut(noon, "8f5", time.Second) != "" {
		t.Error("a line that is no event")
	}
}

// Callers' errors are Lambda's to the letter.
func TestErrorBodies(t *testing.T) {
	for got, want := range map[string]string{
		string(timeoutError("8f5", time.Second).body()):    `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: 8f5 Error: Task timed out after 1.00 seconds"}`,
		string(exitError("8f5", "exit status 127").body()): `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: 8f5 Error: Runtime exited with error: exit status 127"}`,
		string(exitError("8f5", "").body()):                `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: 8f5 Error: Runtime exited without providing a reason"}`,
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
