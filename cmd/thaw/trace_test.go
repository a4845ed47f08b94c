package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/catalog"
	"thaw/internal/faults"
	"thaw/internal/tests3"
	"thaw/manifest"
	"thaw/trace"
)

// turnstile holds requests for chunks until so many wait at once, or one too long.
type turnstile struct {
	want int
	open chan struct{}

	mu      sync.Mutex // guards what follows
	waiting int
	over    bool // none is held any more
	full    bool // so many did wait
	traces  int  // requests for traces
}

func newTurnstile(want int) *turnstile { return &turnstile{want: want, open: make(chan struct{})} }

func (g *turnstile) rule(_ int64, r *http.Request) (faults.Fault, bool) {
	g.mu.Lock()
	if strings.Contains(r.URL.Path, "/traces/") || strings.Contains(r.URL.Query().Get("prefix"), "/traces/") {
		g.traces++
	}
	chunks := r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/chunks/")
	if chunks {
		g.waiting++
		g.full = g.full || g.waiting == g.want && !g.over
	}
	full := g.full
	g.mu.Unlock()
	if full {
		g.release()
	}
	if chunks {
		select {
		case <-g.open:
		case <-time.After(patience / 4):
			g.release()
		}
	}
	return faults.Fault{}, false
}

// release lets all pass.
func (g *turnstile) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.over {
		g.over = true
		close(g.open)
	}
}

// passed tells whether so many did wait.
func (g *turnstile) passed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.full
}

func (g *turnstile) askedForTraces() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.traces
}

// A program reads one chunk after the other. With a trace many are asked for at
// once, and the trace itself is asked for now and then only.
func TestPrefetchFromBucket(t *testing.T) {
	server := tests3.Start(t) // first: its credentials are in the environment
	m := newMachine(t)
	front := server.Front(t, nil, "/chunks/")
	m.flags = []string{"--origin", server.Bucket(t, front.URL) + "&region=us-east-1"}
	m.convert("app", 1)
	read := []string{"app", "/bin/inside", "sum", dataPath(1), dataPath(2), dataPath(3), dataPath(4), dataPath(5)}
	run := func(want int, flags ...string) *turnstile {
		t.Helper()
		g := newTurnstile(want)
		front.Set(g.rule)
		if out := m.must(append(append([]string{"run"}, flags...), read...)...); out != dataSum(1, 5)+"\n" {
			t.Errorf("%q", out)
		}
		return g
	}
	empty := func(dirs ...string) {
		for _, dir := range dirs {
			if err := os.RemoveAll(filepath.Join(m.state, dir)); err != nil {
				t.Fatal(err)
			}
		}
	}
	// A start waits a second for a trace: a slow machine may need another.
	again := func(so func() bool) bool {
		for range 5 {
			if so() {
				return true
			}
		}
		return false
	}
	if !again(func() bool { return run(1).askedForTraces() > 0 }) {
		t.Error("the first start did not ask for a trace")
	}
	if !again(func() bool { return run(1).askedForTraces() == 0 }) {
		t.Error("the next ones asked for one that is not there")
	}
	run(1, "--record")
	empty("cache")
	if g := run(8); !g.passed() || g.askedForTraces() != 0 {
		t.Errorf("8 chunks at once: %v; %d requests for the trace that is here", g.passed(), g.askedForTraces())
	}
	var g *turnstile
	if !again(func() bool {
		empty("cache", "traces", "manifests")
		g = run(8)
		return g.passed() && g.askedForTraces() == 2
	}) {
		t.Errorf("8 chunks at once: %v; %d requests for the trace, want a list and a get", g.passed(), g.askedForTraces())
	}
	// What was asked for long ago is asked for again.
	if !again(func() bool {
		long := time.Now().Add(-2 * traceLife)
		found, err := filepath.Glob(filepath.Join(m.state, "traces/r1/*"))
		if err != nil || len(found) != 1 || os.Chtimes(found[0], long, long) != nil {
			t.Fatal(found, err)
		}
		return run(1).askedForTraces() == 2
	}) {
		t.Error("an old trace was not asked for again")
	}
}

// localTraces gives the flags of a verb on a folder, and a trace of an image
// that is none.
func localTraces(t *testing.T) (g *Globals, ref catalog.Reference, key trace.Key, sealed []byte) {
	t.Helper()
	g = &Globals{State: t.TempDir(), Tenant: "default", LogFormat: "text", stderr: new(bytes.Buffer)}
	ref = catalog.Reference{Root: "r1", Image: manifest.ID{1}.String()}
	key = trace.NewKey(make([]byte, 32), manifest.ID{1})
	return g, ref, key, key.Seal(new(trace.Trace).Merge([]uint32{3, 1, 2}))
}

func TestCheckTrace(t *testing.T) {
	g, ref, _, sealed := localTraces(t)
	path := g.local().trace(ref.Root, ref.Image)
	for name, c := range map[string]struct {
		data    []byte
		damaged bool
	}{
		"none":             {nil, false},
		"good":             {sealed, false},
		"cut":              {sealed[:20], true},
		"too long":         {bytes.Repeat([]byte{1}, trace.MaxSize+1), true},
		"another manifest": {trace.NewKey([]byte{1}, manifest.ID{1}).Seal(new(trace.Trace).Merge([]uint32{3})), true},
	} {
		if err := keep(path, c.data); err != nil {
			t.Fatal(err)
		}
		stderr := new(bytes.Buffer)
		g.stderr = stderr
		s := &startable{name: "app", id: manifest.ID{1}, root: "r1", dataKey: make([]byte, 32), trace: readTrace(path)}
		if got := g.checkTrace(s); got != c.damaged || c.damaged != (strings.Count(stderr.String(), "\n") == 1) || c.damaged && s.trace != nil {
			t.Errorf("%s: %v, said %s", name, got, stderr)
		}
		if _, err := os.Stat(path); os.IsNotExist(err) != c.damaged {
			t.Errorf("%s: kept: %v", name, err)
		}
	}
	if got := readTrace(filepath.Join(g.State, "nothing")); got != nil {
		t.Errorf("of nothing: %q", got)
	}
}

// What is given to keep is looked at first, and an origin that is away keeps
// nobody from having it here.
func TestTracePut(t *testing.T) {
	m := &machine{t: t, state: filepath.Join(t.TempDir(), "state"), env: os.Environ()}
	_, ref, key, sealed := localTraces(t)
	put := func(trace []byte, args ...string) ended {
		cmd := m.command(append([]string{"trace", "put"}, args...)...)
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stderr = bytes.NewReader(trace), &stderr
		_ = cmd.Run() // the status says it
		return ended{cmd.ProcessState.ExitCode(), "", stderr.String()}
	}
	here := filepath.Join(m.state, "traces/r1", ref.Image)
	for name, c := range map[string]struct {
		trace []byte
		args  []string
		says  string
	}{
		"nonsense":   {[]byte("nonsense"), []string{"r1", ref.Image}, "corrupt"},
		"nothing":    {nil, []string{"r1", ref.Image}, "corrupt"},
		"no image":   {sealed, []string{"r1", "../../x"}, "not an id"},
		"no root":    {sealed, []string{"../r1", ref.Image}, "root"},
		"bad origin": {sealed, []string{"--origin=file:///dev/null/origin", "r1", ref.Image}, "origin"},
	} {
		e := put(c.trace, c.args...)
		if e.code != 1 || !strings.Contains(e.stderr, c.says) || strings.Count(e.stderr, "\n") != 1 {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if data, err := os.ReadFile(here); err != nil || !bytes.Equal(data, sealed) {
		t.Errorf("kept without the origin: %d bytes, %v", len(data), err)
	}
	for n := range 2 {
		next := key.Seal(new(trace.Trace).Merge([]uint32{uint32(n)}))
		if e := put(next, "r1", ref.Image); e.code != 0 || e.stderr != "" {
			t.Fatalf("%+v", e)
		}
		last, err := filepath.Glob(filepath.Join(m.state, "origin/roots/r1/traces/default", ref.Image, "*"))
		if err != nil || len(last) != n+1 {
			t.Fatal(last, err)
		}
		stored, err := os.ReadFile(last[n])
		kept, kerr := os.ReadFile(here)
		if err != nil || kerr != nil || !bytes.Equal(stored, next) || !bytes.Equal(kept, next) {
			t.Errorf("stored %d bytes, kept %d; %v, %v", len(stored), len(kept), err, kerr)
		}
	}
}
