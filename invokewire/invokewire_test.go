package invokewire

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

// Instances are alike if their keys are, and only then.
func TestKey(t *testing.T) {
	a := Spec{Account: "000000000000", Function: "f", Version: "$LATEST", Revision: "7"}
	if got := a.Key(); got != "000000000000/f/$LATEST/7" {
		t.Error(got)
	}
	for name, change := range map[string]func(*Spec){
		"account":  func(s *Spec) { s.Account = "000000000001" },
		"function": func(s *Spec) { s.Function = "g" },
		"version":  func(s *Spec) { s.Version = "1" },
		"revision": func(s *Spec) { s.Revision = "8" },
	} {
		b := a
		if change(&b); a.Key() == b.Key() {
			t.Errorf("%s does not tell them apart", name)
		}
	}
}

// What roles say in JSON is read as it was meant, secrets included: Format hides
// them from people only.
func TestMessagesBetweenMachines(t *testing.T) {
	reserved := 0
	spec := Spec{
		Account: "000000000000", Tenant: "default", Function: "f", Version: "1", ARN: "arn", Revision: "r", Image: "i", Root: "r1",
		Memory: 128, Tmp: 512, Timeout: 3 * time.Second, Env: map[string]string{"A": "<b>\u2028"}, Entrypoint: []string{"/e"}, Command: []string{"c", ""},
		Workdir: "/w", Egress: true, LogGroup: "/aws/lambda/f", LogJSON: true, Reserved: &reserved, Keys: Keys{"i", "s", "t"}, Region: "us-east-1", Endpoint: "http://x",
	}
	now := time.Now().UTC().Round(0)
	for _, in := range []any{
		&Acquire{Frontend: "a", Spec: spec, Avoid: []string{"x"}},
		&Start{ID: "i", Spec: spec, Force: StartFull},
		&Lease{Instance: "i", Worker: "127.0.0.1:1", Fresh: true, TTL: time.Second},
		&Renew{"f", []string{"i"}}, &Renewed{[]string{"i"}}, &Release{"f", []string{"i"}, []string{"g"}},
		&WorkerState{ID: "w", Started: now, Memory: 1 << 40, Instances: []InstanceState{{ID: "i", Phase: PhaseBusy, Since: now}}, Starts: map[string]uint64{StartWarm: 1}},
		&ManagerState{ID: "m", Workers: []WorkerState{{ID: "w", Started: now}}, Leases: 1},
		&LogEvent{1, "s", "m\t"}, &LogStream{"s", 1, 2, 3, 4},
	} {
		text, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		out := reflect.New(reflect.TypeOf(in).Elem())
		if err := json.Unmarshal(text, out.Interface()); err != nil || !reflect.DeepEqual(in, out.Interface()) {
			t.Errorf("%T: %s comes out as another: %v", in, text, err)
		}
	}
	// Reserved 0 is not the same as none.
	var out Spec
	if text, _ := json.Marshal(Spec{}); json.Unmarshal(text, &out) != nil || out.Reserved != nil {
		t.Error(out.Reserved)
	}
}

func TestThrottle(t *testing.T) {
	err := fmt.Errorf("acquiring: %w", &Throttle{Reason: ReasonReserved, RetryAfter: time.Second})
	var throttle *Throttle
	if !errors.As(err, &throttle) || throttle.RetryAfter != time.Second || !strings.Contains(err.Error(), "ReservedFunctionConcurrentInvocationLimitExceeded") {
		t.Error(err)
	}
}

func TestExitedText(t *testing.T) {
	for want, e := range map[string]Exited{
		"exit status 0":                 {},
		"exit status 127":               {Status: 127},
		"signal: killed":                {Status: -1, Signal: 9},
		"signal: segmentation fault":    {Status: -1, Signal: 11, Name: "e"},
		"signal: aborted (core dumped)": {Status: -1, Signal: 6, Core: true},
		"signal: signal 34":             {Status: -1, Signal: 34},
		"exit status 1":                 {Status: 1, ErrorType: "Runtime.ExitError"},
	} {
		if got := e.String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
