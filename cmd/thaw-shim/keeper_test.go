package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/host"
	"thaw/internal/testleak"
	"thaw/mount"
)

// asShim is what the test binary is called when it is a shim.
const asShim = "thaw-shim-test"

func TestMain(m *testing.M) {
	if os.Args[0] == asShim {
		main()
	}
	os.Exit(m.Run())
}

// patience bounds every wait.
const patience = 3 * time.Minute

// kept is an instance as thaw hands it over, on a host folder of its own. Its
// agent and its fetcher are processes that do nothing; the test answers for the
// agent.
type kept struct {
	t              *testing.T
	state, run     string
	agent, fetcher *waits
	control        *fakeAgent
	files          []*os.File // the locks
}

const keptID = "0123456789ab"

func newKept(t *testing.T, kind string) *kept {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: instances are kept by root")
	}
	k := &kept{t: t, state: t.TempDir(), agent: newWaits(t), fetcher: newWaits(t)}
	sum := sha256.Sum256([]byte(k.state))
	k.run = "/run/thaw/" + hex.EncodeToString(sum[:6]) // package host
	t.Cleanup(k.clear)
	for _, dir := range []string{"instances/" + keptID + "/bundle", "instances/" + keptID + "/runtime", "images/img/fuse", "fetchers/fet"} {
		if err := os.MkdirAll(filepath.Join(k.run, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	k.write("instances/"+keptID+"/instance.json", &host.Instance{ID: keptID, Kind: kind, Image: "app:v1", ImageID: "f00", ImageOf: "img", Fetcher: "fet", Target: k.target()})
	k.write("images/img/image.json", map[string]any{"id": "f00", "process": k.process(k.agent.Process.Pid), "mounted": true})
	k.write("fetchers/fet/fetcher.json", map[string]any{"process": k.process(k.fetcher.Process.Pid), "fetcher": host.Fetcher{Args: []string{"sleep", "1000"}}})
	for path, how := range map[string]int{"images/img/users": unix.LOCK_SH, "fetchers/fet/users": unix.LOCK_SH} {
		f := k.lock(path, how) // another's: image and fetcher stay
		t.Cleanup(func() { f.Close() })
	}
	k.files = []*os.File{k.lock("instances/"+keptID+"/lock", unix.LOCK_EX), k.lock("images/img/users", unix.LOCK_SH), k.lock("fetchers/fet/users", unix.LOCK_SH)}
	k.control = newFakeAgent(t, filepath.Join(k.run, "images/img/control"))
	return k
}

// clear removes what the test has, and tells of mounts that are left.
func (k *kept) clear() {
	for _, f := range k.files {
		_ = f.Close() // they may be passed on
	}
	for _, dir := range []string{k.run, k.state} {
		left, err := mount.Under(dir)
		if err != nil || len(left) > 0 {
			k.t.Errorf("left: %v, %v", left, err)
		}
		if err := mount.DetachAll(dir); err != nil {
			k.t.Error(err)
		}
	}
	if pid := k.fetcherPID(); pid != k.fetcher.Process.Pid && pid != 0 { // it was started again
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if err := os.RemoveAll(k.run); err != nil {
		k.t.Error(err)
	}
}

func (k *kept) target() string { return filepath.Join(k.state, "target") }

func (k *kept) path(name string) string { return filepath.Join(k.run, name) }

func (k *kept) write(name string, v any) {
	k.t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(k.path(name), data, 0o600)
	}
	if err != nil {
		k.t.Fatal(err)
	}
}

// process names a process as host does: proc_pid_stat(5), fields 1 and 22, and
// the boot.
func (k *kept) process(pid int) map[string]any {
	k.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		k.t.Fatal(err)
	}
	start, err := strconv.ParseUint(strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))[19], 10, 64)
	if err != nil {
		k.t.Fatal(err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		k.t.Fatal(err)
	}
	return map[string]any{"pid": pid, "start": start, "boot": strings.TrimSpace(string(boot))}
}

func (k *kept) fetcherPID() int {
	var r struct {
		Process struct{ PID int }
	}
	data, err := os.ReadFile(k.path("fetchers/fet/fetcher.json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return 0
	}
	return r.Process.PID
}

func (k *kept) lock(name string, how int) *os.File {
	k.t.Helper()
	f, err := os.OpenFile(k.path(name), os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	}
	if err != nil {
		k.t.Fatal(err)
	}
	return f
}

// mountImage mounts an image, and makes the folder at which a shim shows it.
func (k *kept) mountImage() {
	k.t.Helper()
	image := k.path("images/img/fuse/image")
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		k.t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		k.t.Skipf("NOT TESTED: mkfs.ext4: %v %s", err, out)
	}
	loop, err := mount.AttachLoop(image, true)
	if err != nil {
		k.t.Fatal(err)
	}
	defer loop.Close()
	for _, dir := range []string{k.root(), k.target()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			k.t.Fatal(err)
		}
	}
	if err := mount.MountExt4(loop.Device, k.root(), true); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = mount.Unmount(k.root()) }) // unless the shim has
}

// root is where the image is mounted.
func (k *kept) root() string { return k.path("images/img/root") }

// fakeAgent answers at a control socket: requests for numbers with those it is
// given, and listeners with early at once and late when they ask no more.
type fakeAgent struct {
	listener    net.Listener
	work        sync.WaitGroup
	stats       cache.Stats
	early, late string
}

func newFakeAgent(t *testing.T, path string) *fakeAgent {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := &fakeAgent{listener: l, stats: counts(1, 2, 4), early: "early\nfault", late: "late \x1b fault"}
	a.work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			a.work.Go(func() { a.answer(conn) })
		}
	})
	t.Cleanup(a.close)
	return a
}

func (a *fakeAgent) close() {
	_ = a.listener.Close() // may be the second time
	a.work.Wait()
}

func (a *fakeAgent) answer(conn net.Conn) {
	defer conn.Close()
	out := json.NewEncoder(conn)
	listens := false
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var err error
		if listens = strings.Contains(lines.Text(), `"events"`); listens {
			_, err = conn.Write([]byte("{}\n"))
			if err == nil {
				err = out.Encode(map[string]string{"event": a.early})
			}
		} else {
			err = out.Encode(map[string]any{"stats": a.stats})
		}
		if err != nil {
			return
		}
	}
	if listens {
		_ = out.Encode(map[string]string{"event": a.late})
	}
}

// shim is a shim that runs.
type shim struct {
	*exec.Cmd
	t      *testing.T
	stderr *bufio.Reader
	said   strings.Builder
}

// start hands the instance over to a shim.
func (k *kept) start(order string) *shim {
	k.t.Helper()
	if err := os.WriteFile(k.path("instances/"+keptID+"/order.json"), []byte(order), 0o600); err != nil {
		k.t.Fatal(err)
	}
	s := &shim{t: k.t, Cmd: &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{asShim, k.state, keptID, "3", "4", "5"}, ExtraFiles: k.files, Env: os.Environ(),
		SysProcAttr: &unix.SysProcAttr{Pdeathsig: unix.SIGKILL},
	}}
	stderr, err := s.StderrPipe()
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		k.t.Fatal(err)
	}
	s.stderr = bufio.NewReader(stderr)
	for _, f := range k.files {
		f.Close()
	}
	late := time.AfterFunc(patience, func() { _ = s.Process.Kill() })
	k.t.Cleanup(func() {
		late.Stop()
		_ = s.Process.Kill()
		_ = s.Wait() // may be the second time
	})
	return s
}

// until reads what the shim says until a line contains text.
func (s *shim) until(text string) {
	s.t.Helper()
	for {
		line, err := s.stderr.ReadString('\n')
		s.said.WriteString(line)
		if err != nil {
			s.t.Fatalf("it did not say %q: %v; it said\n%s", text, err, s.said.String())
		}
		if strings.Contains(line, text) {
			return
		}
	}
}

// ends waits for the end and gives all that was said, and the status.
func (s *shim) ends() (string, int) {
	s.t.Helper()
	for {
		line, err := s.stderr.ReadString('\n')
		s.said.WriteString(line)
		if err != nil {
			break
		}
	}
	_ = s.Wait() // the status says it
	return s.said.String(), s.ProcessState.ExitCode()
}

const mountOrder = `{"began":"2026-01-02T03:04:05Z","stages":{"mount":1.5},"imageBytes":209715200,"deviceBytes":4096,"statsFile":%q,"before":{"Origin":{"Chunks":1,"Bytes":1048576}}}`

// A mount ends by a signal, when it is unmounted, and with its agent, and takes
// all down that is its own.
func TestMountEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(k *kept, s *shim) error
		code int
		says string
	}{
		"by SIGTERM":     {func(_ *kept, s *shim) error { return s.Process.Signal(unix.SIGTERM) }, 0, ""},
		"by SIGINT":      {func(_ *kept, s *shim) error { return s.Process.Signal(unix.SIGINT) }, 0, ""},
		"by SIGHUP":      {func(_ *kept, s *shim) error { return s.Process.Signal(unix.SIGHUP) }, 0, ""},
		"when unmounted": {func(k *kept, _ *shim) error { return unix.Unmount(k.target(), 0) }, 0, ""},
		"with its agent": {func(k *kept, _ *shim) error { k.agent.end(); return nil }, exitFailed, "has ended: unmounting it"},
		"not by SIGUSR1": {func(k *kept, s *shim) error {
			_ = s.Process.Signal(unix.SIGUSR1)
			return s.Process.Signal(unix.SIGTERM)
		}, 0, ""},
		"other mounts end": {func(k *kept, s *shim) error { return k.otherMounts(s) }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKept(t, host.KindMount)
			k.mountImage()
			file := filepath.Join(k.state, "stats")
			s := k.start(fmt.Sprintf(mountOrder, file))
			s.until("app:v1 is mounted at " + k.target())
			if err := c.end(k, s); err != nil {
				t.Fatal(err)
			}
			said, code := s.ends()
			if code != c.code || !strings.Contains(said, c.says) {
				t.Errorf("status %d, want %d; it said\n%s", code, c.code, said)
			}
			for _, want := range []string{"thaw: early; fault\n", "thaw: late ? fault\n", "thaw: read 6.0 MiB of 200.0 MiB (3.0 %): 3 chunks from the origin, 2 from the zone, 1 from the cache; started in "} {
				if !strings.Contains(said, want) {
					t.Errorf("it did not say %q:\n%s", want, said)
				}
			}
			var n numbers
			if data, err := os.ReadFile(file); err != nil || json.Unmarshal(data, &n) != nil || n.Chunks != (tiers{1, 2, 3}) || n.Image != "f00" || n.StartMS["mount"] != 1.5 {
				t.Errorf("numbers: %s, %v", data, err)
			}
			if _, err := os.Stat(k.path("instances/" + keptID)); err == nil {
				t.Error("the instance's folder is there still")
			}
			if left, err := mount.Under(k.target()); err != nil || len(left) > 0 {
				t.Errorf("mounted still: %v, %v", left, err)
			}
		})
	}
}

// otherMounts come and go, and what is mounted over the target is not its end;
// then the target is unmounted.
func (k *kept) otherMounts(s *shim) error {
	other := filepath.Join(k.state, "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		return err
	}
	for range 20 {
		if err := unix.Mount("none", other, "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := unix.Unmount(other, 0); err != nil {
			return err
		}
	}
	if err := s.Process.Signal(unix.Signal(0)); err != nil {
		return fmt.Errorf("it has ended: %w", err)
	}
	return unix.Unmount(k.target(), 0)
}

// What was handed over in bad shape is refused in one line, and left for prune.
func TestRefusedOrder(t *testing.T) {
	for order, want := range map[string]string{
		``:                     "order.json: ",
		`{"stages":`:           "order.json: ",
		`{"stages":{"a":"b"}}`: "order.json: ",
		`[]`:                   "order.json: ",
	} {
		k := newKept(t, host.KindMount)
		said, code := k.start(order).ends()
		if code != exitFailed || !strings.Contains(said, want) || strings.Count(said, "\n") != 1 || !strings.HasPrefix(said, "thaw: ") {
			t.Errorf("%q: status %d, said %q", order, code, said)
		}
		if _, err := os.Stat(k.path("instances/" + keptID)); err != nil {
			t.Error(err)
		}
	}
	k := newKept(t, host.KindMount)
	for _, args := range [][]string{{}, {k.state}, {k.state, keptID, "3", "4", "0"}, {k.state, keptID, "x", "4", "5"}, {k.state, "nobody", "3", "4", "5"}} {
		cmd := &exec.Cmd{Path: "/proc/self/exe", Args: append([]string{asShim}, args...), ExtraFiles: k.files}
		out, _ := cmd.CombinedOutput() // the status says it
		if cmd.ProcessState.ExitCode() != exitFailed || strings.Count(string(out), "\n") != 1 || !strings.HasPrefix(string(out), "thaw: ") {
			t.Errorf("%q: %v, %q", args, cmd.ProcessState, out)
		}
	}
}

// A container that does not start is status 125, its cause, and nothing left;
// an order without stages is no reason to die.
func TestRunWithoutRuntime(t *testing.T) {
	for _, order := range []string{`{"runtime":"/nowhere/crun"}`, `{"runtime":"/nowhere/crun","stages":null}`} {
		k := newKept(t, host.KindRun)
		said, code := k.start(order).ends()
		if code != exitFailed || !strings.Contains(said, "thaw: runtime /nowhere/crun: ") || strings.Contains(said, "started in") || strings.Contains(said, "panic") {
			t.Errorf("status %d, said %q", code, said)
		}
		if _, err := os.Stat(k.path("instances/" + keptID)); err == nil {
			t.Error("the instance's folder is there still")
		}
	}
}

// A mount whose order has no stages is mounted, not a panic.
func TestMountWithoutStages(t *testing.T) {
	k := newKept(t, host.KindMount)
	k.mountImage()
	s := k.start(`{}`)
	s.until("is mounted at")
	if err := unix.Unmount(k.target(), 0); err != nil {
		t.Fatal(err)
	}
	if said, code := s.ends(); code != 0 {
		t.Errorf("status %d, said %q", code, said)
	}
}

// keeper takes the instance over in this process.
func (k *kept) keeper() *keeper {
	k.t.Helper()
	if err := os.WriteFile(k.path("instances/"+keptID+"/order.json"), []byte(`{"stages":{}}`), 0o600); err != nil {
		k.t.Fatal(err)
	}
	args := []string{k.state, keptID}
	for _, f := range k.files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			k.t.Fatal(err)
		}
		args = append(args, strconv.Itoa(fd))
	}
	kp, err := newKeeper(args)
	if err != nil {
		k.t.Fatal(err)
	}
	return kp
}

// What watches ends when it is told to, with all that it has opened.
func TestWatchStops(t *testing.T) {
	k := newKept(t, host.KindRun)
	kp := k.keeper()
	ignore := goleak.IgnoreCurrent()
	before := descriptors(t)
	said := told(t, func() {
		for range 20 {
			w := kp.watch()
			w.stop()
			if err := w.cause(nil); err != nil {
				t.Errorf("the agent runs: %v", err)
			}
		}
	})
	if n := strings.Count(said, "thaw: late ? fault\n"); n != 20 {
		t.Errorf("the last fault was told %d times of 20", n)
	}
	k.control.close()
	testleak.None(t, ignore)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
}

// An agent that has ended, or does not answer, is told at once.
func TestWatchWithoutAgent(t *testing.T) {
	k := newKept(t, host.KindRun)
	kp := k.keeper()
	k.control.close()
	k.agent.end()
	w := kp.watch()
	<-w.agentGone
	w.stop()
	if err := w.cause(os.ErrInvalid); err != errAgentGone {
		t.Errorf("got %v", err)
	}
	if s := kp.host.Stats(t.Context(), kp.image); !s.IsZero() {
		t.Errorf("numbers of nobody: %+v", s)
	}
}

// A fetcher that has ended is started again, also when that failed before.
func TestFetcherRevived(t *testing.T) {
	k := newKept(t, host.KindRun)
	kp := k.keeper()
	record := k.path("fetchers/fet/fetcher.json")
	good, err := os.ReadFile(record)
	if err == nil {
		err = os.WriteFile(record, []byte("{"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	said := told(t, func() {
		w := kp.watch()
		defer w.stop()
		k.fetcher.end()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		late := time.After(patience)
		for written := false; ; {
			if pid := k.fetcherPID(); pid != 0 && pid != k.fetcher.Process.Pid {
				return
			}
			text, err := os.ReadFile(os.Stderr.Name())
			if err == nil && !written && strings.Contains(string(text), "fetcher.json") { // it was tried
				written, err = true, os.WriteFile(record, good, 0o600)
			}
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-tick.C:
			case <-late:
				t.Error("it is not started again")
				return
			}
		}
	})
	if strings.Count(said, "fetcher.json") != 1 {
		t.Errorf("told %q", said)
	}
}

// polled lists what an epoll of this process looks at and is the file at path:
// proc_pid_fdinfo(5). Those who read the table have it as a thread's file.
func polled(t *testing.T, path string) []string {
	t.Helper()
	infos, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatal(infos, err)
	}
	var found []string
	for _, info := range infos {
		text, _ := os.ReadFile(info) // it may be closed
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "tfd:" {
				if to, _ := os.Readlink("/proc/self/fd/" + fields[1]); to == path {
					found = append(found, to)
				}
			}
		}
	}
	return found
}

// The watch of the mount table can be ended before anything is unmounted.
func TestUnmountWatchClosed(t *testing.T) {
	k := newKept(t, host.KindMount)
	k.mountImage()
	if _, err := mount.Bind(k.root(), k.target(), true); err != nil {
		t.Fatal(err)
	}
	kp := k.keeper()
	ignore := goleak.IgnoreCurrent()
	before := descriptors(t)
	for range 10 {
		w, err := kp.unmounted()
		if err != nil {
			t.Fatal(err)
		}
		if others := polled(t, fmt.Sprintf("/proc/%d/mountinfo", os.Getpid())); len(others) > 0 {
			t.Fatalf("Go polls %q, and takes changes from the watch", others)
		}
		w.close()
		select {
		case <-w.done:
			t.Error("it is mounted")
		default:
		}
	}
	testleak.None(t, ignore)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are open, were %d", after, before)
	}
	if err := mount.Unmount(k.target()); err != nil {
		t.Fatal(err)
	}
	w, err := kp.unmounted()
	if err != nil {
		t.Fatal(err)
	}
	<-w.done // it was so before
	w.close()
}
