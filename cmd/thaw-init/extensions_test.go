package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
)

// extensionsDir gives a folder of external extensions of these names.
func extensionsDir(t *testing.T, names ...string) string {
	t.Helper()
	dir, err := os.MkdirTemp(built(t), "extensions")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	for _, name := range names {
		if err == nil {
			err = os.Link(filepath.Join(built(t), "function"), filepath.Join(dir, name))
		}
	}
	if err == nil {
		err = os.Mkdir(filepath.Join(dir, "lib"), 0o755) // not an extension
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestExtensions(t *testing.T) {
	w := newWorker(t)
	s := w.setup("leaves")
	s.Extensions = extensionsDir(t, "quiet", "watches")
	done := w.ready(s)
	want := []invokewire.Extension{{Name: "quiet", State: "Ready"}, {Name: "watches", State: "Ready", Events: []string{"INVOKE", "SHUTDOWN"}}, {Name: "GoLangEnableSIGTERM", Internal: true, State: "Ready"}}
	if !reflect.DeepEqual(done.Extensions, want) {
		t.Errorf("%+v", done.Extensions)
	}
	const registered = `registered 200 {"functionName":"f","functionVersion":"$LATEST","handler":"h"}` + "\n"
	if w.logs["watches"] != registered || w.logs["quiet"] != registered {
		t.Errorf("%q", w.logs)
	}
	for n := range 3 {
		w.logs = map[string]string{}
		id := fmt.Sprint("r", n)
		w.invoke(id, `{}`)
		if got := w.logs["watches"]; !strings.HasPrefix(got, `event {"eventType":"INVOKE","deadlineMs":`) || !strings.Contains(got, `"requestId":"`+id+`"`) || strings.Count(got, "\n") != 1 || w.logs["quiet"] != "" {
			t.Errorf("%q", w.logs)
		}
	}
	// First the runtime ends, then who asked to be told.
	w.exits = nil
	w.reset(maxGrace) // they need a moment of it
	if got := w.logs["watches"]; !strings.Contains(got, `"shutdownReason":"timeout"`) {
		t.Errorf("%q", got)
	}
	if !strings.Contains(w.logs[""], "got SIGTERM") {
		t.Errorf("%q", w.logs[""])
	}
	ends := map[string]invokewire.Exited{}
	for _, e := range w.exits {
		ends[e.Name] = e
	}
	if len(ends) != 3 || ends["watches"].Signal != 0 || ends["watches"].Status != 0 || ends["quiet"].Signal != 9 || ends[""].ErrorType != "" {
		t.Errorf("%+v", w.exits)
	}
}

// Who does not end in time is ended. In a short time an extension may not have
// heard of it: it gets more.
func TestGraceIsOver(t *testing.T) {
	heard := false
	for grace := 300 * time.Millisecond; !heard; grace *= 4 {
		if grace > maxGrace {
			t.Fatal("the extension was not told")
		}
		w := newWorker(t)
		s := w.setup("stubborn")
		s.Extensions = extensionsDir(t, "stays")
		w.ready(s)
		w.exits = nil
		w.send(invokewire.FrameShutdown, invokewire.Stop{Reason: "spindown", GraceMs: grace.Milliseconds()})
		said, err := w.over()
		if err != nil || said != "" {
			t.Errorf("%q, %v", said, err)
		}
		if len(w.exits) != 2 || w.exits[0].Name != "" || w.exits[0].Signal != 9 || w.exits[1].Signal != 9 {
			t.Errorf("%+v", w.exits)
		}
		heard = strings.Contains(w.logs["stays"], `"shutdownReason":"spindown"`)
	}
}

// One that never registers holds up the init, and a reset ends that.
func TestExtensionHangs(t *testing.T) {
	w := newWorker(t)
	s := w.setup("function")
	s.Extensions, s.ExtensionEnv[0] = extensionsDir(t, "hangs"), roleEnv+"=sleep"
	for range 2 {
		w.send(invokewire.FrameSetup, s)
		until(t, "it is started", func() bool { return w.pids()["all"] == 2 })
		w.reset(50 * time.Millisecond)
		if e := w.exits[len(w.exits)-1]; e.Name != "hangs" || e.Signal != 9 || e.ErrorType != "" || w.logs[""] != "" {
			t.Errorf("%+v %q", e, w.logs)
		}
	}
}

func TestExtensionsFail(t *testing.T) {
	many := make([]string, 11)
	for i := range many {
		many[i] = fmt.Sprint("e", i)
	}
	broken := extensionsDir(t, "quiet")
	if err := os.WriteFile(filepath.Join(broken, "text"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir, kind, cause string
		exit             *invokewire.Exited
	}{
		"it crashes":     {extensionsDir(t, "crashes", "quiet"), "Extension.Crash", "", &invokewire.Exited{Name: "crashes", Status: 7, ErrorType: "Extension.Crash"}},
		"it gives up":    {extensionsDir(t, "gives-up"), "Extension.InitError", "", nil},
		"no program":     {broken, "Extension.LaunchError", "permission denied", nil},
		"one too many":   {extensionsDir(t, many...), "Extension.LaunchError", "holds 11 extensions, at most 10 may be", nil},
		"not readable":   {"/proc/self/mem/x", "", "", nil},
		"not there":      {"/not/there", "", "", nil},
		"none inside":    {extensionsDir(t), "", "", nil},
		"a file instead": {"/etc/passwd", "", "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorker(t)
			s := w.setup("function")
			s.Extensions = c.dir
			if c.kind == "" {
				w.ready(s)
				return
			}
			w.send(invokewire.FrameSetup, s)
			var failed invokewire.InitFailed
			w.decode(w.await(invokewire.FrameInitFailed), &failed)
			if failed.ErrorType != c.kind || !strings.HasSuffix(failed.Cause, c.cause) || c.exit != nil && (failed.Exit == nil || *failed.Exit != *c.exit) {
				t.Errorf("%+v %+v", failed, failed.Exit)
			}
			w.reset(0)
		})
	}
}

// An image's own shell is enough for a runtime.
func TestShell(t *testing.T) {
	for _, name := range []string{"sh", "curl"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("SKIPPED: no %s on this machine", name)
		}
	}
	w := newWorker(t)
	s := w.setup("")
	s.Argv = []string{"sh", "-c", `api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation
headers=$(mktemp)
while :; do
	event=$(curl -sS -LD "$headers" "$api/next") || exit 1
	id=$(sed -n 's/^Lambda-Runtime-Aws-Request-Id: \([^[:space:]]*\).*$/\1/p' "$headers")
	echo "got $event"
	case $event in
	*large*) head -c 3000000 /dev/zero | tr '\0' x | curl -sS -X POST "$api/$id/response" --data-binary @- ;;
	*stream*) echo streamed | curl -sS -X POST "$api/$id/response" -H 'Lambda-Runtime-Function-Response-Mode: streaming' -H 'Transfer-Encoding: chunked' --data-binary @- ;;
	*) curl -sS -X POST "$api/$id/response" -d "$event" ;;
	esac
done`}
	w.ready(s)
	if got := w.invoke("r1", `{"a": 1}`); got != `{"a": 1}` || !strings.HasPrefix(w.logs[""], "got {\"a\": 1}\n{\"status\":\"OK\"}") {
		t.Errorf("%s, %q", got, w.logs)
	}
	if got := w.invoke("r2", `"large"`); got != strings.Repeat("x", 3000000) { // it asks for 100-continue
		t.Errorf("%d bytes", len(got))
	}
	if got := w.invoke("r3", `"stream"`); got != "streamed\n" || !w.answer.begin.Streamed {
		t.Errorf("%q %+v", got, w.answer.begin)
	}
}
