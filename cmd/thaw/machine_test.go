package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"thaw/agent"
	"thaw/cache"
	"thaw/internal/testoci"
	"thaw/mount"
	"thaw/sandbox"
)

// exitRunFailed is the status of a run that failed, and not its program.
const exitRunFailed = 125

// insideProgram is testdata/inside, built once for all tests of a run.
var insideProgram struct {
	once sync.Once
	data []byte
	err  error
}

// inside gives the program that images of tests hold.
func inside(fail func(...any)) []byte {
	p := &insideProgram
	p.once.Do(func() {
		dir, err := os.MkdirTemp("", "thaw-inside")
		if err != nil {
			p.err = err
			return
		}
		defer os.RemoveAll(dir)
		cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", dir, "./testdata/inside")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.err = errors.New(string(out))
			return
		}
		p.data, p.err = os.ReadFile(filepath.Join(dir, "inside"))
	})
	if p.err != nil {
		fail("building testdata/inside: ", p.err)
	}
	return p.data
}

// Files of the image that insideLayout makes: dataFiles of them with dataBytes
// each, a chunk or so.
const (
	dataFiles = 8
	dataBytes = 600_000
)

func dataPath(i int) string { return fmt.Sprintf("/data/%d", i) }

// dataSum is what inside's sum says of a data file.
func dataSum(seed uint64, i int) string {
	sum := sha256.Sum256(testoci.Noise(seed+uint64(i), dataBytes))
	return hex.EncodeToString(sum[:])
}

// insideLayout makes an image with the program as /bin/inside and /bin/true,
// a user called app, and data that depends on the seed.
func insideLayout(tb testing.TB, program []byte, dir string, seed uint64) string {
	tb.Helper()
	bin := testoci.File("bin/inside", program)
	bin.Mode = 0o755
	layer := []testoci.Entry{
		testoci.Dir("bin"), bin,
		{Header: tar.Header{Name: "bin/true", Typeflag: tar.TypeLink, Linkname: "bin/inside"}},
		testoci.Dir("etc"), testoci.File("etc/passwd", []byte("root:x:0:0::/root:/bin/inside\napp:x:1000:1001::/home/app:/bin/inside\n")),
		testoci.File("etc/group", []byte("app:x:1001:\n")), testoci.Dir("data"),
	}
	for i := range dataFiles {
		layer = append(layer, testoci.File(dataPath(i)[1:], testoci.Noise(seed+uint64(i), dataBytes)))
	}
	return testoci.Layout(tb, dir, []string{"FROM=image", "PATH=/bin"}, testoci.Tar(tb, layer...))
}

// machine runs the program, as processes of its own, on one state.
type machine struct {
	t     *testing.T
	state string
	flags []string // global ones
	env   []string
	net   string // file of the network namespace that commands run in; empty: the test's
}

// newMachine gives a state, and checks at the test's end that nothing of it is
// left on this machine.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: mounting and running need root")
	}
	m := &machine{t: t, state: filepath.Join(t.TempDir(), "state"), env: append(os.Environ(), partsEnv+"="+builtParts(t), "AWS_EC2_METADATA_DISABLED=true")}
	t.Cleanup(func() {
		m.t = t
		left, err := m.left()
		if err != nil || len(left) > 0 {
			m.thaw("prune") // or what comes next suffers
			t.Fatalf("left at the end: %s, %v", strings.Join(left, "; "), err)
		}
	})
	return m
}

// convert makes an image of insideLayout and gives its id.
func (m *machine) convert(name string, seed uint64, flags ...string) string {
	m.t.Helper()
	dir := filepath.Join(m.t.TempDir(), name)
	source := insideLayout(m.t, inside(m.t.Fatal), dir, seed)
	out := m.must(append([]string{"convert", source, "--name", name, "--json"}, flags...)...)
	return imageOf(m.t, out)
}

func (m *machine) command(args ...string) *exec.Cmd {
	line := append(append([]string{"thaw", "--state", m.state}, m.flags...), args...)
	if m.net != "" {
		line = append([]string{"nsenter", "--net=" + m.net}, line...)
	}
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = m.env
	return cmd
}

// ended is a command that has ended.
type ended struct {
	code        int
	out, stderr string
}

// thaw runs a command to its end.
func (m *machine) thaw(args ...string) ended {
	m.t.Helper()
	return m.thawWithin(patience, args...)
}

// thawWithin is thaw for a command that waits for many others.
func (m *machine) thawWithin(limit time.Duration, args ...string) ended {
	m.t.Helper()
	var out, stderr bytes.Buffer
	cmd := m.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	late := time.AfterFunc(limit, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	_ = cmd.Wait() // the status says it
	return ended{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
}

// must runs a command that has to succeed and gives its output.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	return m.mustWithin(patience, args...)
}

func (m *machine) mustWithin(limit time.Duration, args ...string) string {
	m.t.Helper()
	e := m.thawWithin(limit, args...)
	if e.code != 0 {
		m.t.Fatalf("thaw %q: status %d\n%s%s", args, e.code, e.out, e.stderr)
	}
	return e.out
}

// running is a command that runs, and answers on its standard streams.
type running struct {
	m      *machine
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *bytes.Buffer // after wait
	late   *time.Timer
	over   bool
}

// start starts a command, and kills it at the end of the test if it runs then.
func (m *machine) start(args ...string) *running {
	m.t.Helper()
	r := &running{m: m, cmd: m.command(args...), stderr: &bytes.Buffer{}}
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	r.out, r.cmd.Stderr = bufio.NewReader(out), r.stderr
	if err := r.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	r.late = time.AfterFunc(patience, func() {
		_ = r.cmd.Process.Kill()
		_ = out.Close() // others may have it open
	})
	m.t.Cleanup(func() {
		if !r.over {
			_ = r.cmd.Process.Signal(syscall.SIGTERM)
			r.wait()
		}
	})
	return r
}

// serve starts a container that answers, and waits until it does.
func (m *machine) serve(args ...string) *running {
	m.t.Helper()
	r := m.start(append(append([]string{"run", "-i"}, args...), "/bin/inside", "serve")...)
	r.expect("ready")
	return r
}

// line reads what the command says next.
func (r *running) line() string {
	line, err := r.out.ReadString('\n')
	if err != nil {
		return line + "(" + err.Error() + ")"
	}
	return strings.TrimSuffix(line, "\n")
}

func (r *running) expect(want string) {
	r.m.t.Helper()
	if got := r.line(); got != want {
		r.wait()
		r.m.t.Fatalf("%q: it said %q, want %q\n%s", r.cmd.Args, got, want, r.stderr)
	}
}

// ask gives the answer to a question.
func (r *running) ask(format string, args ...any) string {
	r.m.t.Helper()
	r.late.Reset(patience)
	if _, err := fmt.Fprintf(r.in, format+"\n", args...); err != nil {
		r.m.t.Fatal(err)
	}
	return r.line()
}

// reads checks that a data file of the image reads as it should.
func (r *running) reads(seed uint64, i int) {
	r.m.t.Helper()
	if got, want := r.ask("sum %s", dataPath(i)), dataSum(seed, i); got != want {
		r.m.t.Fatalf("%s is %s, want %s", dataPath(i), got, want)
	}
}

// readsAgain checks that a data file reads as it should once what was wrong is
// mended, and gives how often it failed before: a slow machine may take longer
// than the deadline of a read.
func (r *running) readsAgain(seed uint64, i int) (failed int) {
	r.m.t.Helper()
	want := dataSum(seed, i)
	for late := time.Now().Add(patience); ; failed++ {
		got := r.ask("sum %s", dataPath(i))
		if got == want {
			return failed
		}
		if got != "error: input/output error" || time.Now().After(late) {
			r.m.t.Fatalf("%s is %s, want %s", dataPath(i), got, want)
		}
	}
}

// end ends the container by ending its input.
func (r *running) end() ended {
	_ = r.in.Close()
	return r.wait()
}

// wait waits for the end.
func (r *running) wait() ended {
	rest, _ := io.ReadAll(r.out)
	_ = r.cmd.Wait()
	r.late.Stop()
	r.over = true
	return ended{r.cmd.ProcessState.ExitCode(), string(rest), r.stderr.String()}
}

// settled waits until what was read through the fetcher at a socket is stored,
// which readers do not wait for; so its zone is filled, if the test wants that.
func settled(tb testing.TB, socket string, filled bool) {
	tb.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); ; <-tick.C {
		n, err := askFetcher(socket)
		var more struct {
			Zone struct{ Fills, Dropped int64 }
		}
		if err == nil && filled {
			err = json.Unmarshal(n.More, &more)
		}
		if err == nil && n.Fetching == 0 && (!filled || more.Zone.Fills+more.Zone.Dropped >= n.Origin.Hits) {
			return
		}
		if time.Now().After(late) {
			tb.Fatal("the fetcher is at work still: ", n, ", ", err)
		}
	}
}

func askFetcher(socket string) (cache.FetcherStats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return cache.FetcherStats{}, err
	}
	defer conn.Close()
	return cache.AskStats(ctx, conn)
}

// settled is that of the state's fetchers. One ends with its last user, whatever
// it was about to store: somebody has to use it until then.
func (m *machine) settled(tb testing.TB, filled bool) {
	tb.Helper()
	sockets, err := filepath.Glob(m.runDir() + "/fetchers/*/" + agent.SocketName)
	if err != nil || len(sockets) == 0 {
		tb.Fatal("no fetcher runs: ", err)
	}
	for _, socket := range sockets {
		settled(tb, socket, filled)
	}
}

// keep starts a program of an image, and leaves all that was read in the cache.
func (m *machine) keep(image string) {
	m.t.Helper()
	user := m.serve(image)
	if out := m.must("run", image, "/bin/inside", "echo", "first"); out != "first\n" {
		m.t.Fatal(out)
	}
	m.settled(m.t, false)
	if e := user.end(); e.code != 0 {
		m.t.Fatal(e)
	}
}

// runDir is where the state's runtime files are (package host).
func (m *machine) runDir() string {
	sum := sha256.Sum256([]byte(m.state))
	return "/run/thaw/" + hex.EncodeToString(sum[:6])
}

// left lists what of the state is on this machine: processes, mounts, loop
// devices, groups, networks, files. Some ends take the kernel a moment.
func (m *machine) left() (left []string, err error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); ; {
		if left, err = m.leftNow(); err != nil || len(left) == 0 || time.Now().After(late) {
			break
		}
		<-tick.C
	}
	return left, err
}

func (m *machine) leftNow() (left []string, err error) {
	key := filepath.Base(m.runDir())
	mounts, err := mount.Under(m.runDir())
	for _, mnt := range mounts {
		left = append(left, "mount "+mnt.Dir)
	}
	loops, lerr := mount.Loops(m.runDir())
	groups, gerr := sandbox.Cgroups("/thaw-" + key + "-")
	processes, perr := m.processes()
	if err := errors.Join(err, lerr, gerr, perr); err != nil {
		return nil, err
	}
	for _, l := range append(loops, groups...) {
		left = append(left, "loop device or group "+l)
	}
	for pid, what := range processes {
		left = append(left, fmt.Sprintf("process %d: %s", pid, what))
	}
	for _, pattern := range []string{m.runDir(), m.runDir() + "/fetchers/*", m.runDir() + "/images/*", m.runDir() + "/instances/*", m.runDir() + "/instances/.*", m.state + "/overlays/*", "/run/thaw-network/" + key, "/sys/class/net/thaw-" + key[:10]} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}

// processes finds those of the state by their arguments, groups and what their
// own mount namespaces show of it. One
// that has ended and that nobody has waited for is none.
func (m *machine) processes() (map[int]string, error) {
	key := filepath.Base(m.runDir())
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	own, _ := os.Readlink("/proc/self/ns/mnt")
	found := map[int]string{}
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		args, _ := os.ReadFile(dir + "/cmdline") // all empty once it has ended
		if pid == os.Getpid() || len(args) == 0 {
			continue
		}
		group, _ := os.ReadFile(dir + "/cgroup")
		text := string(args) + string(group)
		if ns, _ := os.Readlink(dir + "/ns/mnt"); ns != own {
			table, _ := os.ReadFile(dir + "/mountinfo")
			for line := range strings.Lines(string(table)) {
				if f := strings.Fields(line); len(f) > 3 { // the 4th is what is bound there
					text += f[3]
				}
			}
		}
		if strings.Contains(text, m.state+"\x00") || strings.Contains(text, "--state="+m.state) || strings.Contains(text, key) {
			found[pid] = strings.ReplaceAll(strings.TrimRight(string(args), "\x00"), "\x00", " ")
		}
	}
	return found, nil
}

func cmdApp(ts *testscript.TestScript, _ bool, args []string) {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	ts.Check(err)
	insideLayout(scriptTB{ts: ts}, inside(scriptTB{ts: ts}.Fatal), ts.MkAbs(args[0]), seed)
	m := &machine{state: ts.Getenv("THAW_STATE")}
	ts.Defer(func() {
		left, err := m.left()
		if err != nil || len(left) > 0 {
			_ = ts.Exec("thaw", "prune") // or what comes next suffers
			ts.Fatalf("left at the end: %s, %v", left, err)
		}
	})
}

func cmdSettles(ts *testscript.TestScript, _ bool, args []string) {
	(&machine{state: ts.Getenv("THAW_STATE")}).settled(scriptTB{ts: ts}, len(args) > 0)
}

func cmdAppears(ts *testscript.TestScript, _ bool, args []string) {
	await(scriptTB{ts: ts}, ts.MkAbs(args[0]))
}

// await waits until a file is there.
func await(tb testing.TB, path string) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(patience); ; {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			tb.Fatal(path, " never appeared")
		}
	}
}
