package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// probe builds the static program of testdata/probe once for a run of the tests.
func buildProbe(dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	return nil
}

// newFolder makes a folder with a short name that nobody else's users are kept from: sockets lie in it, and instances reach through it.
func newFolder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "thaw-sandbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newRoot makes a root file system that belongs to an instance's users: the probe as /bin/probe, and lists of users.
func newRoot(t testing.TB) string {
	t.Helper()
	root := filepath.Join(newFolder(t), "root")
	write(t, root, "etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
	write(t, root, "etc/group", "root:x:0:\napp:x:1001:\nmore:x:1002:app\n")
	write(t, root, "etc/data", "not a program\n")
	if os.Getuid() != 0 {
		return root
	}
	data, err := os.ReadFile(filepath.Join(os.Getenv("THAW_TEST_PROBE"), "probe"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "bin/probe", string(data))
	err = filepath.WalkDir(root, func(name string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o755)
		if strings.Contains(name, "/etc/") {
			mode = 0o644
		}
		if err := os.Chmod(name, mode); err != nil {
			return err
		}
		return os.Chown(name, IDBase, IDBase)
	})
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func write(t testing.TB, root, name, text string) {
	t.Helper()
	name = filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestMain runs the tests, or, in a process that they started, what a supervisor does that is to be killed.
func TestMain(m *testing.M) {
	if bundle := os.Getenv("THAW_TEST_SUPERVISE"); bundle != "" {
		supervise(bundle)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() == 0 {
		dir, err := os.MkdirTemp("", "thaw-probe-")
		if err == nil {
			defer os.RemoveAll(dir)
			err = buildProbe(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		os.Setenv("THAW_TEST_PROBE", dir)
	}
	return m.Run()
}

// bench is one runtime with what running instances with it takes.
type rig struct {
	t          testing.TB
	supervisor *Supervisor
	root       string // root file system
	dir        string
}

// eachRuntime runs a test with both runtimes that make containers of the host's kernel.
func eachRuntime(t *testing.T, test func(t *testing.T, r *rig)) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: running instances needs root")
	}
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) { test(t, newRig(t, name)) })
	}
}

func newRig(t testing.TB, name string) *rig {
	t.Helper()
	found, err := Find(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSupervisor(found)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t: t, supervisor: s, root: newRoot(t), dir: newFolder(t)}
}

// config makes a configuration that runs the probe.
func (r *rig) config(args ...string) Config {
	id := strings.TrimPrefix(filepath.Base(r.dir), "thaw-sandbox-")
	return Config{
		Image:  []byte(`{"config":{"Entrypoint":["/bin/probe"]}}`),
		Root:   r.root,
		Bundle: filepath.Join(r.dir, "bundle"),
		Cgroup: "/thaw-test-" + id,
		Args:   args,
	}
}

func (r *rig) instance(c Config) Instance {
	return Instance{ID: lastElement(c.Cgroup), Bundle: c.Bundle, State: filepath.Join(r.dir, "state")}
}

// start starts an instance whose streams are given, and sees that nothing of it is left when the test ends.
func (r *rig) start(c Config, in Instance) (*Process, error) {
	r.t.Helper()
	if err := WriteBundle(c); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.delete(c) })
	return r.supervisor.Start(context.Background(), in)
}

func (r *rig) delete(c Config) {
	in := r.instance(c)
	for range 2 { // it may be done again
		if err := Delete(context.Background(), in.State, in.ID, c.Cgroup); err != nil {
			r.t.Error(err)
		}
	}
	if left, err := Cgroups(c.Cgroup); err != nil || len(left) > 0 {
		r.t.Errorf("left: %v, %v", left, err)
	}
	if left, _ := os.ReadDir(in.State); len(left) > 0 {
		r.t.Errorf("the runtime's state is left: %v", left)
	}
}

// result is how an instance ended.
type result struct {
	code     int
	out, err string
	start    error
	wait     error
}

// run runs an instance to its end.
func (r *rig) run(c Config) result {
	r.t.Helper()
	in := r.instance(c)
	outR, outW := mustPipe(r.t)
	errR, errW := mustPipe(r.t)
	in.Stdout, in.Stderr = outW, errW
	texts := make(chan string, 1)
	go func() { texts <- readAll(errR) }()
	p, err := r.start(c, in)
	outW.Close()
	errW.Close()
	defer r.delete(c)
	if err != nil {
		return result{start: err, out: readAll(outR), err: <-texts}
	}
	defer p.Close()
	out := readAll(outR)
	code, err := p.Wait()
	return result{code: code, out: out, err: <-texts, wait: err}
}

// eventually waits until something is so.
func eventually(t testing.TB, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(3 * time.Minute); !so(); <-tick.C {
		if time.Now().After(end) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

func mustPipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func readAll(f *os.File) string {
	_ = f.SetReadDeadline(time.Now().Add(3 * time.Minute)) // a test that hangs says where
	data, _ := io.ReadAll(f)
	return string(data)
}

// killed is a supervisor in a process of its own, that is to be killed.
type killed struct {
	Runtime  string
	Instance Instance
}

// supervise starts an instance and stays. It prints the instance's process id.
func supervise(text string) {
	var k killed
	p, err := func() (*Process, error) {
		if err := json.Unmarshal([]byte(text), &k); err != nil {
			return nil, err
		}
		found, err := Find(k.Runtime)
		if err != nil {
			return nil, err
		}
		s, err := NewSupervisor(found)
		if err != nil {
			return nil, err
		}
		return s.Start(context.Background(), k.Instance)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(p.PID)
	_, err = p.Wait()
	fmt.Println("ended", err)
	os.Exit(1)
}

// inProcess starts supervise for an instance.
func (r *rig) inProcess(c Config) (*exec.Cmd, *bufio.Reader) {
	r.t.Helper()
	text, err := json.Marshal(killed{Runtime: r.supervisor.runtime.Path, Instance: r.instance(c)})
	if err != nil {
		r.t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "THAW_TEST_SUPERVISE="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}
