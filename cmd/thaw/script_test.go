package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"

	"thaw/internal/testoci"
)

// TestMain makes the test binary the program, if it is called thaw. Its parts
// are those of builtParts.
func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){
		"thaw": func() { os.Exit(mainWith(os.DirFS(os.Getenv(partsEnv)))) },
	})
}

// patience bounds every wait for another process; nothing takes it all unless
// it hangs.
const patience = 3 * time.Minute

// TestScripts runs the transcripts in testdata/script. Each has a state of its
// own, and these commands besides testscript's:
//
//	layout DIR [env=K=V]... LAYER...   an OCI layout; a layer is ENTRY,ENTRY…: dir/ or file=text or file=@SEED:BYTES of noise
//	exits N COMMAND...                 runs, and wants that status
//	shows N PATTERN COMMAND...         runs until N times that is printed: who is asked how it is may be too slow to be heard
//	pick VAR GLOB                      the largest file that matches
//	content VAR FILE                   what it holds, without the last newline
//	spoil FILE OFFSET                  flips a bit; a negative offset is from the end
//	count N DIR...                     regular files below, however deep
//	absent TEXT DIR...                 no file below has it in name or content
//	app DIR SEED                       insideLayout's; nothing of the state may be left on this machine at the end
//	appears FILE                       waits for it
//	adds                               the last line of JSON has total = zero + new + stored
//	serve DIR NAME [stall]             a registry with the layout's image at $REGISTRY/NAME; stalls at the largest blob
//	interrupt COMMAND...               runs, and sends SIGINT once the registry stalls; wants status 130
//	closed VAR                         an address at which nobody listens
//	tmpfs DIR SIZE                     a file system of that size
//	sparse FILE                        takes less than half of its size
//	starts VAR COMMAND...              in the background; VAR is the first line it prints: where it listens
//	ends VAR TERM|INT|KILL             a signal to it; then nobody listens there
//	loses VAR                          its first child is killed
//	settles [filled]                   waits until the state's fetchers have stored all that was read, also in their zone
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	parts := builtParts(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv(partsEnv, parts)
			e.Vars = append(e.Vars, "THAW_STATE="+e.WorkDir+"/state", "AWS_EC2_METADATA_DISABLED=true", "DOCKER_CONFIG="+e.WorkDir)
			e.Values[stalledKey{}] = make(chan struct{})
			e.Values[testKey{}] = e.T()
			e.Values[startedKey{}] = map[string]*exec.Cmd{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"layout": cmdLayout, "exits": cmdExits, "pick": cmdPick, "content": cmdContent, "spoil": cmdSpoil, "count": cmdCount, "absent": cmdAbsent,
			"app": cmdApp, "appears": cmdAppears, "adds": cmdAdds, "serve": cmdServe, "interrupt": cmdInterrupt, "closed": cmdClosed, "tmpfs": cmdTmpfs, "sparse": cmdSparse,
			"starts": cmdStarts, "ends": cmdEnds, "loses": cmdLoses, "settles": cmdSettles, "shows": cmdShows,
		},
	})
}

type (
	stalledKey struct{} // of a channel that is closed when the registry stalls
	testKey    struct{}
)

// scriptTB lets testoci fail a script. Only what testoci calls is there.
type scriptTB struct {
	testing.TB
	ts *testscript.TestScript
}

func (s scriptTB) Helper()           {}
func (s scriptTB) Fatal(args ...any) { s.ts.Fatalf("%s", fmt.Sprint(args...)) }

func cmdLayout(ts *testscript.TestScript, _ bool, args []string) {
	tb := scriptTB{ts: ts}
	var env []string
	var layers [][]byte
	for _, arg := range args[1:] {
		if v, ok := strings.CutPrefix(arg, "env="); ok {
			env = append(env, v)
			continue
		}
		var entries []testoci.Entry
		for item := range strings.SplitSeq(arg, ",") {
			entries = append(entries, entry(ts, item))
		}
		layers = append(layers, testoci.Tar(tb, entries...))
	}
	testoci.Layout(tb, ts.MkAbs(args[0]), env, layers...)
}

func entry(ts *testscript.TestScript, item string) testoci.Entry {
	name, body, ok := strings.Cut(item, "=")
	if !ok {
		return testoci.Dir(name)
	}
	seed, size, noise := strings.Cut(strings.TrimPrefix(body, "@"), ":")
	if !noise {
		return testoci.File(name, []byte(body))
	}
	s, err := strconv.ParseUint(seed, 10, 64)
	ts.Check(err)
	n, err := strconv.Atoi(size)
	ts.Check(err)
	return testoci.File(name, testoci.Noise(s, n))
}

func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	code := 0
	if exit != nil {
		code = exit.ExitCode()
	}
	if strconv.Itoa(code) != args[0] {
		ts.Fatalf("exit status %d, want %s", code, args[0])
	}
}

func cmdShows(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	line, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); ; <-tick.C {
		_ = ts.Exec(args[2], args[3:]...) // what it prints says more
		found := line.FindAllString(ts.ReadFile("stdout")+ts.ReadFile("stderr"), -1)
		if len(found) == want {
			return
		}
		if time.Now().After(late) {
			ts.Fatalf("%d times %s, want %d", len(found), line, want)
		}
	}
}

func cmdPick(ts *testscript.TestScript, _ bool, args []string) {
	found, err := filepath.Glob(ts.MkAbs(args[1]))
	ts.Check(err)
	var best string
	size := int64(-1)
	for _, f := range found {
		info, err := os.Stat(f)
		ts.Check(err)
		if info.Size() > size {
			best, size = f, info.Size()
		}
	}
	if best == "" {
		ts.Fatalf("nothing matches %s", args[1])
	}
	ts.Setenv(args[0], best)
	ts.Setenv(args[0]+"_BASE", filepath.Base(best))
}

func cmdContent(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSuffix(ts.ReadFile(args[1]), "\n"))
}

func cmdSpoil(ts *testscript.TestScript, _ bool, args []string) {
	at, err := strconv.Atoi(args[1])
	ts.Check(err)
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	ts.Check(os.Chmod(path, 0o600))
	ts.Check(os.WriteFile(path, b, 0o600))
}

// filesBelow gives the regular files below a folder, and none if it is not there.
func filesBelow(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			found = append(found, path)
		}
		return err
	})
	return found, err
}

func cmdCount(ts *testscript.TestScript, _ bool, args []string) {
	n := 0
	for _, dir := range args[1:] {
		found, err := filesBelow(ts.MkAbs(dir))
		ts.Check(err)
		n += len(found)
	}
	if strconv.Itoa(n) != args[0] {
		ts.Fatalf("%d files below %s, want %s", n, args[1:], args[0])
	}
}

func cmdAbsent(ts *testscript.TestScript, _ bool, args []string) {
	looked := 0
	for _, dir := range args[1:] {
		found, err := filesBelow(ts.MkAbs(dir))
		ts.Check(err)
		for _, path := range found {
			looked++
			if strings.Contains(path, args[0]) || strings.Contains(ts.ReadFile(path), args[0]) {
				ts.Fatalf("%s has %q", path, args[0])
			}
		}
	}
	if looked == 0 || args[0] == "" {
		ts.Fatalf("nothing to look at")
	}
}

func cmdAdds(ts *testscript.TestScript, _ bool, _ []string) {
	var res struct {
		Chunks struct{ Total, Zero, New, Stored int64 }
	}
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")
	ts.Check(json.Unmarshal([]byte(lines[len(lines)-1]), &res))
	if c := res.Chunks; c.Total == 0 || c.Total != c.Zero+c.New+c.Stored {
		ts.Fatalf("%+v does not add up", c)
	}
}

func cmdServe(ts *testscript.TestScript, _ bool, args []string) {
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	stall := &stalling{next: handler, stalled: ts.Value(stalledKey{}).(chan struct{})}
	server := httptest.NewServer(stall)
	ts.Defer(server.Close)
	address := strings.TrimPrefix(server.URL, "http://")
	ts.Setenv("REGISTRY", address)
	index, err := layout.ImageIndexFromPath(ts.MkAbs(args[0]))
	ts.Check(err)
	list, err := index.IndexManifest()
	ts.Check(err)
	img, err := index.Image(list.Manifests[0].Digest)
	ts.Check(err)
	ref, err := name.ParseReference(address+"/"+args[1], name.Insecure)
	ts.Check(err)
	ts.Check(remote.Write(ref, img))
	if len(args) > 2 {
		layers, err := img.Layers()
		ts.Check(err)
		stall.at(largest(ts, layers))
	}
}

func largest(ts *testscript.TestScript, layers []v1.Layer) string {
	size, digest := int64(-1), ""
	for _, l := range layers {
		n, err := l.Size()
		ts.Check(err)
		if d, err := l.Digest(); n > size && err == nil {
			size, digest = n, d.String()
		}
	}
	return digest
}

// stalling serves with next, and answers for one blob with its announcement
// and nothing more, until the client goes.
type stalling struct {
	next    http.Handler
	stalled chan struct{}
	once    sync.Once

	mu     sync.Mutex // guards digest
	digest string
}

func (s *stalling) at(digest string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.digest = digest
}

func (s *stalling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	digest := s.digest
	s.mu.Unlock()
	if digest == "" || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, digest) {
		s.next.ServeHTTP(w, r)
		return
	}
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	s.once.Do(func() { close(s.stalled) })
	<-r.Context().Done()
}

func cmdInterrupt(ts *testscript.TestScript, _ bool, args []string) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = ts.Getenv("WORK"), []string{"THAW_STATE=" + ts.Getenv("THAW_STATE"), "PATH=" + ts.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	ts.Check(cmd.Start())
	late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	select {
	case <-ts.Value(stalledKey{}).(chan struct{}):
	case <-time.After(patience):
		ts.Fatalf("the registry was never asked")
	}
	ts.Check(cmd.Process.Signal(os.Interrupt))
	_ = cmd.Wait() // the status says it
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		ts.Fatalf("%v, want status 130", cmd.ProcessState)
	}
}

func cmdClosed(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], "127.0.0.1:1") // one that is free now may be another's soon
}

func cmdTmpfs(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]))
	ts.Defer(func() { ts.Check(syscall.Unmount(dir, syscall.MNT_DETACH)) })
}

func cmdSparse(ts *testscript.TestScript, _ bool, args []string) {
	var st syscall.Stat_t
	ts.Check(syscall.Stat(ts.MkAbs(args[0]), &st))
	if st.Blocks*512*2 > st.Size {
		ts.Fatalf("%s takes %d bytes of %d", args[0], st.Blocks*512, st.Size)
	}
}
