package main

import (
	"strconv"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"

	"thaw/internal/testbin"
)

// The sample functions in shell, Python, JavaScript and Java run cold and warm
// under each OCI runtime: deployed once, under the first. The one in
// JavaScript runs under AWS's own client too.
func TestContractRuntimes(t *testing.T) {
	t.Parallel()
	samples := []string{"shell", "python", "node", "java"}
	layouts := map[string]string{}
	for _, name := range samples {
		layouts[name] = corpusLayout(t, "fn-"+name)
	}
	k := newContract(t)
	for _, name := range samples {
		k.order(t, name, timeout(60), entryPoint(layouts[name]))
	}
	for _, name := range samples {
		k.active(t, name)
	}
	t.Run("default", func(t *testing.T) { k.coldAndWarm(t, samples) })
	t.Run("client", func(t *testing.T) {
		k.awsClient(t)
		samples = append(samples, "node-ric")
	})
	for _, runtime := range []string{"runc", "runsc"} {
		t.Run(runtime, func(t *testing.T) {
			path := testbin.Runtime(t, runtime)
			k.down()
			k.region = restarted(t, k.region, "--runtime="+path)
			k.c = k.client(t)
			k.coldAndWarm(t, samples)
		})
	}
}

// restarted brings a platform up again, with other flags.
func restarted(t *testing.T, r *region, more ...string) *region {
	t.Helper()
	again := &region{machine: r.machine, up: r.start(append([]string{"up", "--listen=127.0.0.1:0", "--registry=127.0.0.1:0", "--nodes=0", "--budget=4GiB"}, more...)...)}
	again.up.late.Reset(upLife)
	again.ready(t)
	again.find(t)
	return again
}

// coldAndWarm invokes each function three times: what it echoes, what it tells of
// itself, and an error of its own.
func (k *contract) coldAndWarm(t *testing.T, functions []string) {
	for _, name := range functions {
		t.Run(name, func(t *testing.T) {
			var told [2]struct {
				Instance, Function string
				Invokes            int
				ID                 string `json:"request_id"`
			}
			for i := range told {
				a := k.invoke(t, name, `{"do":{"sleep_ms":5}}`)
				if err := decode(a.Payload, &told[i]); err != nil || a.FunctionError != nil || told[i].ID != a.id || told[i].Function != name || told[i].Invokes != i+1 {
					t.Fatalf("invoke %d: %v, %s\n%s", i, err, a.Payload, a.log)
				}
				a.reported(t, i == 0)
				k.measured(t, a)
			}
			if told[0].Instance != told[1].Instance || told[0].Instance == "" {
				t.Errorf("a warm start in another instance: %+v", told)
			}
			if a := k.invoke(t, name, `{"a":[1,"x"]}`); strings.Join(strings.Fields(string(a.Payload)), "") != `{"a":[1,"x"]}` {
				t.Errorf("echo: %s", a.Payload)
			}
			a := k.invoke(t, name, `{"do":{"error":"no luck"}}`)
			var e struct{ ErrorType, ErrorMessage string }
			if err := decode(a.Payload, &e); err != nil || aws.ToString(a.FunctionError) != "Unhandled" || e.ErrorMessage != "no luck" || e.ErrorType == "" {
				t.Errorf("an error: %v, %v %s", err, aws.ToString(a.FunctionError), a.Payload)
			}
		})
	}
}

// awsClient invokes a function under aws-lambda-ric, as npm gives it: its errors
// have a type and a trace, and what it prints has the client's own form.
func (k *contract) awsClient(t *testing.T) {
	const name, streams, lost = "node-ric", "node-ric-stream", "node-ric-lost"
	layout := corpusLayout(t, "fn-node-ric")
	k.order(t, name, timeout(60), entryPoint(layout))
	k.order(t, streams, timeout(60), entryPoint(layout, "node", "/var/runtime/bin/index.mjs", "app.stream"))
	k.order(t, lost, timeout(60), entryPoint(layout, "node", "/var/runtime/bin/index.mjs", "nothing.handler"))
	k.active(t, name)
	k.active(t, streams)
	k.active(t, lost)
	k.coldAndWarm(t, []string{name})
	if a := k.invoke(t, name, `{"do":{"log_text":"so far"}}`); !strings.Contains(a.log, "\t"+a.id+"\tINFO\tso far\n") {
		t.Errorf("what it prints: %q", a.log)
	}
	a := k.invoke(t, name, `{"do":{"error":"no luck"}}`)
	var e struct {
		ErrorType string
		Trace     []string
	}
	if err := decode(a.Payload, &e); err != nil || e.ErrorType != "Error" || len(e.Trace) < 2 || e.Trace[0] != "Error: no luck" || !strings.Contains(e.Trace[1], "/var/task/app.js:") {
		t.Errorf("an error: %v, %s", err, a.Payload)
	}
	if !strings.Contains(a.log, "\t"+a.id+"\tERROR\tInvoke Error \t") {
		t.Errorf("an error's log: %q", a.log)
	}
	a = k.invoke(t, lost, `1`) // the client says so itself, in its init
	e.Trace = nil
	if err := decode(a.Payload, &e); err != nil || aws.ToString(a.FunctionError) != "Unhandled" || e.ErrorType != "Runtime.ImportModuleError" || len(e.Trace) == 0 {
		t.Errorf("a handler that is not there: %v, %s", err, a.Payload)
	}
	if s := k.stream(t, streams, `{"stream":["a","b","c"]}`); string(s.body) != "abc" || s.end.ErrorCode != nil {
		t.Errorf("a stream: %q, %s", s.body, aws.ToString(s.end.ErrorDetails))
	}
	if s := k.stream(t, streams, `{"stream":["a","b"],"error":"no more"}`); string(s.body) != "ab" || !strings.Contains(aws.ToString(s.end.ErrorDetails), "no more") {
		t.Errorf("a stream that fails: %q, %s: %s", s.body, aws.ToString(s.end.ErrorCode), aws.ToString(s.end.ErrorDetails))
	}
}

// measured checks what a REPORT says.
func (k *contract) measured(t *testing.T, a reply) {
	t.Helper()
	m := report().FindStringSubmatch(a.log)
	if m == nil {
		return // reported has said it
	}
	number := func(i int) float64 {
		if m[i] == "" {
			return 0
		}
		n, err := strconv.ParseFloat(m[i], 64)
		if err != nil {
			t.Errorf("%q in %q", m[i], a.log)
		}
		return n
	}
	duration, billed, size, used, init := number(1), number(2), number(3), number(4), number(7)
	if duration < 5 || billed < duration+init || billed > duration+init+2 || size != 256 || used < 1 || used > size {
		t.Errorf("%q", m[0])
	}
}
