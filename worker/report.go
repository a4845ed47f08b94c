package worker

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
)

// Texts of a function's log, as Lambda writes them: tabs, trailing tabs and all.

// outcome is how an invoke or an init ended: Status and Error Type of REPORT.
type outcome struct {
	Status    string // success, error, timeout
	ErrorType string
	// told: the function itself reported the error and goes on. REPORT is as after a success.
	told bool
}

// failed tells whether the platform ended it.
func (o outcome) failed() bool { return o.Status != statusSuccess && !o.told }

// report is what REPORT tells.
type report struct {
	outcome
	requestID string
	duration  time.Duration
	init      time.Duration // 0: none in this invoke
	memory    int           // MB, configured
	peak      int64         // bytes
}

// billed is the duration that is paid for: what was begun of a millisecond counts
// whole, and so does the init.
func (r *report) billed() int64 { return int64(math.Ceil(millis(r.duration + r.init))) }

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// peakMB is Max Memory Used: what was begun of a megabyte counts whole, and no
// function uses more than it may.
func (r *report) peakMB() int64 { return min((r.peak+1<<20-1)>>20, int64(r.memory)) }

// text is the REPORT line, without line end.
func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "REPORT RequestId: %s\tDuration: %.2f ms\tBilled Duration: %d ms\tMemory Size: %d MB\tMax Memory Used: %d MB\t",
		r.requestID, millis(r.duration), r.billed(), r.memory, r.peakMB())
	if r.init > 0 {
		fmt.Fprintf(&b, "Init Duration: %.2f ms\t", millis(r.init))
	}
	b.WriteString(r.outcome.text())
	return b.String()
}

// text ends a REPORT or INIT_REPORT that tells of no success.
func (o outcome) text() string {
	switch {
	case !o.failed():
		return ""
	case o.ErrorType == "":
		return "Status: " + o.Status
	}
	return "Status: " + o.Status + "\tError Type: " + o.ErrorType
}

const (
	statusSuccess = "success"
	statusError   = "error"
	statusTimeout = "timeout"
)

// phases of INIT_REPORT.
const (
	phaseInit   = "init"
	phaseInvoke = "invoke" // an init that is run again within an invoke
)

// platformLines makes the platform's lines of one instance's log, as text or as
// JSON events.
type platformLines struct {
	json              bool
	function, version string
	runtime, region   string // of zip packages
}

// event is a line of a log whose format is JSON.
func (p *platformLines) event(now time.Time, kind string, record map[string]any) string {
	text, _ := json.Marshal(struct { // strings and numbers always can be
		Time   string         `json:"time"`
		Type   string         `json:"type"`
		Record map[string]any `json:"record"`
	}{now.UTC().Format("2006-01-02T15:04:05.000Z"), "platform." + kind, record})
	return string(text)
}

// initStart is "" for images: what runs in them is not the platform's.
func (p *platformLines) initStart(now time.Time) string {
	switch {
	case p.json:
		record := map[string]any{"initializationType": "on-demand", "phase": phaseInit, "functionName": p.function, "functionVersion": p.version}
		if p.runtime != "" {
			record["runtimeVersion"] = p.runtime
		}
		return p.event(now, "initStart", record)
	case p.runtime == "":
		return ""
	}
	rest := strings.TrimLeft(p.runtime, "abcdefghijklmnopqrstuvwxyz")
	name, version := strings.TrimSuffix(p.runtime, rest), strings.TrimSuffix(strings.TrimPrefix(rest, "."), ".x")
	return fmt.Sprintf("INIT_START Runtime Version: %s:%s\tRuntime Version ARN: arn:aws:lambda:%s::runtime:%s", name, version, p.region, p.runtime)
}

func (p *platformLines) initReport(now time.Time, d time.Duration, phase string, o outcome) string {
	if p.json {
		record := map[string]any{"initializationType": "on-demand", "phase": phase, "status": o.Status, "metrics": map[string]any{"durationMs": round(d)}}
		if o.ErrorType != "" {
			record["errorType"] = o.ErrorType
		}
		return p.event(now, "initReport", record)
	}
	return fmt.Sprintf("INIT_REPORT Init Duration: %.2f ms\tPhase: %s\t%s", millis(d), phase, o.text())
}

func (p *platformLines) start(now time.Time, requestID string) string {
	if p.json {
		return p.event(now, "start", map[string]any{"requestId": requestID, "version": p.version})
	}
	return "START RequestId: " + requestID + " Version: " + p.version
}

// timedOut is the line before END when the function took too long.
func (p *platformLines) timedOut(now time.Time, requestID string, timeout time.Duration) string {
	if p.json {
		return ""
	}
	return fmt.Sprintf("%s %s Task timed out after %.2f seconds\n", now.UTC().Format("2006-01-02T15:04:05.000Z"), requestID, timeout.Seconds())
}

// failed is the line before END when the platform ended the invoke.
func (p *platformLines) failed(e *functionError) string {
	if p.json {
		return ""
	}
	return e.message + "\n" + e.kind
}

func (p *platformLines) end(now time.Time, r *report) string {
	if !p.json {
		return "END RequestId: " + r.requestID
	}
	record := map[string]any{"requestId": r.requestID, "status": r.Status, "metrics": map[string]any{"durationMs": round(r.duration)}}
	if r.ErrorType != "" {
		record["errorType"] = r.ErrorType
	}
	return p.event(now, "runtimeDone", record)
}

func (p *platformLines) report(now time.Time, r *report) string {
	if !p.json {
		return r.text()
	}
	metrics := map[string]any{"durationMs": round(r.duration), "billedDurationMs": r.billed(), "memorySizeMB": r.memory, "maxMemoryUsedMB": r.peakMB()}
	if r.init > 0 {
		metrics["initDurationMs"] = round(r.init)
	}
	record := map[string]any{"requestId": r.requestID, "status": r.Status, "metrics": metrics}
	if r.ErrorType != "" {
		record["errorType"] = r.ErrorType
	}
	return p.event(now, "report", record)
}

// round gives milliseconds with three digits behind the point.
func round(d time.Duration) float64 { return math.Round(millis(d)*1000) / 1000 }

// functionError is an invoke's failure that the platform words.
type functionError struct{ kind, message string }

// body is the error's JSON, in Lambda's order.
func (e *functionError) body() []byte {
	text, _ := json.Marshal(struct { // strings always can be
		Type    string `json:"errorType"`
		Message string `json:"errorMessage"`
	}{e.kind, e.message})
	return text
}

// timeoutError is what a caller gets whose function took too long.
func timeoutError(requestID string, timeout time.Duration) *functionError {
	return &functionError{"Sandbox.Timedout", fmt.Sprintf("RequestId: %s Error: Task timed out after %.2f seconds", requestID, timeout.Seconds())}
}

// exitError is what a caller gets whose function's process ended, with how it did:
// "exit status 1", "signal: killed", or "" for a status of 0.
func exitError(requestID, how string) *functionError {
	if how == "" {
		return &functionError{"Runtime.ExitError", "RequestId: " + requestID + " Error: Runtime exited without providing a reason"}
	}
	return &functionError{"Runtime.ExitError", "RequestId: " + requestID + " Error: Runtime exited with error: " + how}
}
