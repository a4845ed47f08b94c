package worker

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// An instance whose function asked for it gets SIGTERM and time before its end.
func TestShutdown(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_SIGTERM"] = "1" }))
	got := r.invoke("i", "r1", "1")
	if got.body != "1" {
		t.Fatalf("%+v", got)
	}
	r.until("it is frozen", r.w.find("i").box.group.Frozen)
	if resp := r.do("DELETE", "/instances/i", nil); resp.StatusCode != http.StatusNoContent {
		t.Error(resp.Status)
	}
	if log := lines(t, r.w.logs, query{}); log[len(log)-1] != "function: SIGTERM" {
		t.Errorf("%q", log)
	}
}

// With LogFormat JSON all that the platform says are events.
func TestJSONLog(t *testing.T) {
	r := newRig(t, nil)
	r.start("i", "", spec(func(s *invokewire.Spec) { s.LogJSON = true }))
	got := r.invoke("i", "r1", `{"do":{"exit":1}}`)
	var types []string
	for _, line := range lines(t, r.w.logs, query{}) {
		var e struct{ Type string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		types = append(types, e.Type)
	}
	if want := "platform.initStart platform.start platform.runtimeDone platform.report"; strings.Join(types, " ") != want || !strings.HasSuffix(got.tail, `"status":"error"}}`+"\n") {
		t.Errorf("%q, tail %q", types, got.tail)
	}
}

// An init that takes too long is run again within the invoke, whose time it takes.
func TestInitTimeout(t *testing.T) {
	r := newRig(t, nil)
	r.w.limits.init = 300 * time.Millisecond
	r.start("i", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_SLEEP_MS"] = "600000" }))
	i := r.w.find("i")
	<-i.ready
	i.spec.Env["FUNCTION_INIT_SLEEP_MS"] = "100" // the next time
	got := r.invoke("i", "r1", "1")
	duration := regexp.MustCompile(`Duration: (\d+)`).FindStringSubmatch(got.tail)
	if got.body != "1" || len(duration) != 2 || len(duration[1]) < 3 || strings.Contains(got.tail, "Init Duration") {
		t.Errorf("%+v", got)
	}
	if log := lines(t, r.w.logs, query{}); !regexp.MustCompile(`^INIT_REPORT Init Duration: 300\.00 ms\tPhase: init\tStatus: timeout$`).MatchString(log[0]) {
		t.Errorf("%q", log)
	}
	r.start("i2", "", spec(func(s *invokewire.Spec) { s.Env["FUNCTION_INIT_SLEEP_MS"], s.Timeout = "60000", time.Second }))
	if got := r.invoke("i2", "r2", "1"); !strings.Contains(got.body, "Sandbox.Timedout") || !strings.Contains(got.tail, "INIT_REPORT Init Duration: 1000.00 ms\tPhase: invoke\tStatus: timeout\n") {
		t.Errorf("%+v", got)
	}
}

// Tenants' functions are different users; the root cannot be written.
func TestUsersAndRoot(t *testing.T) {
	r := newRig(t, nil)
	users := map[int]bool{}
	for n, tenant := range []string{"a", "b", "a"} {
		id := fmt.Sprintf("i%d", n)
		r.start(id, "", spec(func(s *invokewire.Spec) { s.Tenant = tenant }))
		v, _ := r.ask(id, "r", `{"files":["/proc/self/mounts","/.thaw/init"]}`)
		users[v.User] = true
		if !regexp.MustCompile(`(?m)^\S+ / overlay ro,`).MatchString(v.Files["/proc/self/mounts"]) || !regexp.MustCompile(`(?m)^/dev/loop\S+ /tmp ext4 rw,nosuid,nodev`).MatchString(v.Files["/proc/self/mounts"]) {
			t.Error(v.Files["/proc/self/mounts"])
		}
	}
	if len(users) != 2 || users[0] {
		t.Errorf("users %v", users)
	}
}

// An image that no instance uses for a while is released, and mounted again.
func TestImageReleased(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Keep = time.Millisecond })
	for range 2 {
		r.start("i", "", spec(nil))
		if got := r.invoke("i", "r1", "1"); got.kind != invokewire.StartFull || got.body != "1" {
			t.Errorf("%+v", got)
		}
		path := r.w.find("i").box.root.path
		r.do("DELETE", "/instances/i", nil).Body.Close()
		r.until("the image is released", func() bool { _, err := os.Stat(path); return err != nil })
	}
}

// Instances are refused that there is no memory for.
func TestMemoryBudget(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Memory = reserve + 1 })
	r.start("i", "", spec(nil))
	resp := r.do("POST", "/instances", invokewire.Start{ID: "more", Spec: spec(nil)})
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusTooManyRequests {
		t.Error(resp.Status)
	}
}

// Errors too long for a trailer keep their type and what fits of the message.
func TestShorten(t *testing.T) {
	short := []byte(`{"errorType":"E","errorMessage":"m","stackTrace":[]}`)
	if got := shorten(short); string(got) != string(short) {
		t.Errorf("%s", got)
	}
	for _, message := range []string{strings.Repeat("x", 1<<20), strings.Repeat("\x01", 1<<20), strings.Repeat("ü", 1<<20)} {
		long, err := json.Marshal(map[string]any{"errorType": "E", "errorMessage": message, "stackTrace": []string{message}})
		if err != nil {
			t.Fatal(err)
		}
		var e struct{ ErrorType, ErrorMessage string }
		if got := shorten(long); len(got) > maxTrailer || json.Unmarshal(got, &e) != nil || e.ErrorType != "E" || !strings.HasPrefix(message, e.ErrorMessage) || e.ErrorMessage == "" {
			t.Errorf("%.100s", got)
		}
	}
}
