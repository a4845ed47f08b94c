package corpus

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runtimeAPI hands out one event after the other, as a Runtime API does.
type runtimeAPI struct {
	events chan string
	posts  chan post
}

type post struct{ path, body string }

func (a *runtimeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/2018-06-01/runtime/invocation/next" {
		select {
		case e := <-a.events:
			w.Header().Set("Lambda-Runtime-Aws-Request-Id", "request-1")
			w.Header().Set("Lambda-Runtime-Deadline-Ms", fmt.Sprint(time.Now().Add(time.Minute).UnixMilli()))
			w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:x")
			_, _ = io.WriteString(w, e) // the client may be gone
		case <-r.Context().Done():
		}
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		b = []byte(err.Error())
	}
	w.WriteHeader(http.StatusAccepted)
	a.posts <- post{strings.TrimPrefix(r.URL.Path, "/2018-06-01/runtime/"), string(b)}
}

// function starts a sample function on this machine.
func function(t *testing.T, env []string, command ...string) (*runtimeAPI, *exec.Cmd) {
	t.Helper()
	path, err := exec.LookPath(command[0])
	if err != nil {
		t.Skipf("NOT TESTED: %s is missing: run ./setup.sh", command[0])
	}
	a := &runtimeAPI{make(chan string), make(chan post, 1)}
	s := httptest.NewServer(a)
	c := exec.Command(path, command[1:]...)
	c.Env = append(os.Environ(), append(env, "AWS_LAMBDA_RUNTIME_API="+s.Listener.Addr().String(), "AWS_LAMBDA_FUNCTION_NAME=f")...)
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill() // it may have ended
		_ = c.Wait()
		s.CloseClientConnections()
		s.Close()
	})
	return a, c
}

func (a *runtimeAPI) invoke(t *testing.T, event string) post {
	t.Helper()
	limit := time.After(3 * time.Minute)
	select {
	case a.events <- event:
	case <-limit:
		t.Fatal("the function does not ask for an event")
	}
	select {
	case p := <-a.posts:
		return p
	case <-limit:
		t.Fatal("the function does not answer")
	}
	panic("unreachable")
}

func classes(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	javac, err := exec.LookPath("javac")
	if err != nil {
		t.Skip("NOT TESTED: javac is missing: run ./setup.sh")
	}
	if out, err := exec.Command(javac, "-encoding", "UTF-8", "-d", dir, "functions/java/Function.java").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return dir
}

// TestSampleFunctions runs the functions that are no Go against a Runtime API, outside of their images.
func TestSampleFunctions(t *testing.T) {
	folder := func(name string) string {
		dir, err := filepath.Abs(filepath.Join("functions", name))
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for _, c := range []struct {
		name    string
		command func(t *testing.T) []string
	}{
		{"shell", func(*testing.T) []string { return []string{"sh", folder("shell") + "/bootstrap"} }},
		{"python", func(*testing.T) []string { return []string{"python3", "-B", folder("python") + "/bootstrap.py"} }},
		{"node", func(*testing.T) []string { return []string{"node", folder("node") + "/bootstrap.js"} }},
		{"java", func(t *testing.T) []string { return []string{"java", "-cp", classes(t), "Function"} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, process := function(t, []string{"_HANDLER=app.handler", "LAMBDA_TASK_ROOT=" + folder(c.name)}, c.command(t)...)
			if p := a.invoke(t, `{"a":[1,true,null],"b":"c"}`); p.path != "invocation/request-1/response" || !sameJSON(p.body, `{"a":[1,true,null],"b":"c"}`) {
				t.Errorf("echo gave %+v", p)
			}
			p := a.invoke(t, `{"do":{"sleep_ms":1}}`)
			var told struct {
				Instance, Function string
				Invokes            int
				RequestID          string `json:"request_id"`
			}
			if err := json.Unmarshal([]byte(p.body), &told); err != nil || told.Invokes != 2 || told.RequestID != "request-1" || told.Function != "f" || told.Instance == "" {
				t.Errorf("told %+v, %v", p, err)
			}
			if p := a.invoke(t, `{"do":{"error":"no luck"}}`); p.path != "invocation/request-1/error" || !strings.Contains(p.body, "no luck") || !strings.Contains(p.body, "errorType") {
				t.Errorf("an error gave %+v", p)
			}
			a.events <- `{"do":{"exit":7}}`
			if err := process.Wait(); err == nil || process.ProcessState.ExitCode() != 7 {
				t.Errorf("exit gave %v", err)
			}
		})
	}
}

// TestInitErrors has handlers that cannot be found.
func TestInitErrors(t *testing.T) {
	for _, command := range [][]string{{"python3", "-B", "functions/python/bootstrap.py"}, {"node", "functions/node/bootstrap.js"}} {
		a, process := function(t, []string{"_HANDLER=none.handler", "LAMBDA_TASK_ROOT=" + t.TempDir()}, command...)
		if p := <-a.posts; p.path != "init/error" || !strings.Contains(p.body, "none") {
			t.Errorf("%v: %+v", command, p)
		}
		if err := process.Wait(); err == nil {
			t.Errorf("%v goes on", command)
		}
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	return fmt.Sprint(x) == fmt.Sprint(y)
}
