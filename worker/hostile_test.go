package worker

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// Whatever a function does, its caller gets an answer in time, a neighbour goes on,
// and the function's next invoke works, here or in another instance.
func TestHostileFunctions(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Logs.Invoke = 256 << 10 })
	r.start("neighbour", "", spec(func(s *invokewire.Spec) { s.Function, s.Tenant = "neighbour", "other" }))
	for name, do := range map[string]string{
		"forks without end":            `{"forks":-1,"sleep_ms":60000}`,
		"forks and computes":           `{"forks":-1,"cpu_ms":60000}`,
		"eats memory":                  `{"allocate_mb":100000}`,
		"floods its log":               `{"log_lines":-1,"log_text":"flood"}`,
		"fills /tmp":                   `{"write_mb":-1,"sleep_ms":60000}`,
		"calls the API out of order":   `{"calls":["GET /2018-06-01/runtime/invocation/next","POST /2018-06-01/runtime/invocation/nobody/response {}","POST /2018-06-01/runtime/init/error {}"],"sleep_ms":60000}`,
		"keeps connections to the API": `{"connections":500,"sleep_ms":60000}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := r.of(t)
			id := strings.ReplaceAll(strings.ReplaceAll(name, " ", "-"), "/", "")
			hostile := spec(func(s *invokewire.Spec) {
				s.Memory, s.Timeout, s.Env["FUNCTION_IGNORE_SIGTERM"] = 256, time.Second, "1"
			})
			r.start(id, "", hostile)
			done := make(chan said, 1)
			go func() { done <- r.invoke(id, "r1", `{"do":`+do+`}`) }()
			r.until("it works", func() bool { p := r.phase(id); return p == invokewire.PhaseBusy || p == "" })
			if got := r.invoke("neighbour", "n1", "1"); got.body != "1" && got.status != http.StatusConflict { // it is all tests' neighbour
				t.Errorf("the neighbour: %+v", got)
			}
			got := <-done
			if got.status != 200 || !strings.Contains(got.tail, "REPORT RequestId: r1") || got.failed == "" && !strings.Contains(got.body, "wrote") {
				t.Errorf("%.500s %.500s", got.body, got.tail)
			}
			if next := r.invoke(id, "r2", "2"); next.body != "2" && next.status != 410 {
				t.Errorf("the next: %+v", next)
			}
			r.do("DELETE", "/instances/"+id+"?force", nil).Body.Close()
		})
	}
}

// of is the rig for a test within the test.
func (r *rig) of(t *testing.T) *rig {
	inner := *r
	inner.t = t
	return &inner
}
