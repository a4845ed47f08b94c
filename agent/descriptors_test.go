package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"thaw/internal/testleak"
	"thaw/mount"
)

// opened lists a process's descriptors, by what they are.
func opened(t *testing.T, proc string) []string {
	t.Helper()
	links, err := filepath.Glob(proc + "/fd/*")
	if err != nil || len(links) == 0 {
		t.Fatal(proc, err)
	}
	var to []string
	for _, l := range links {
		if what, err := os.Readlink(l); err == nil { // it may be closed
			to = append(to, what)
		}
	}
	slices.Sort(to)
	return to
}

// comesTo waits until got gives what is wanted.
func comesTo[T any](t *testing.T, what string, got func() T, ok func(T) bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		v := got()
		if ok(v) {
			return
		}
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("%s: %v", what, v)
		}
	}
}

// raw sends a request as no client of ours does, with files.
func (c *Conn) raw(t *testing.T, line string, files ...*os.File) {
	t.Helper()
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	if _, _, err := c.conn.WriteMsgUnix([]byte(line), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

// answer reads one answer.
func (c *Conn) answer(t *testing.T) answer {
	t.Helper()
	var a answer
	line, err := c.in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// Whatever files come along with requests, the agent keeps one for each
// writable device, and none when those are gone.
func TestFilesAreClosed(t *testing.T) {
	a := serves(t, newSample(t), patience)
	var files []*os.File
	for range 50 {
		f, err := os.CreateTemp(t.TempDir(), "overlay-")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	kept := func() (n int) {
		for _, what := range opened(t, a.proc("")) {
			if strings.Contains(what, "overlay-") {
				n++
			}
		}
		return n
	}
	is := func(want int) func(int) bool { return func(n int) bool { return n == want } }

	c := a.dial(t)
	add := func(name string) string { return fmt.Sprintf("{\"op\":\"add\",\"name\":%q}\n", name) }
	for _, n := range []int{1, 2, 3, 50} { // the last that is taken counts
		name := fmt.Sprint("of", n)
		c.raw(t, add(name), files[:n]...)
		if got := c.answer(t); got != (answer{}) {
			t.Errorf("%d files: %+v", n, got)
		}
	}
	comesTo(t, "four devices", kept, is(4))
	for _, name := range []string{"of1", "../x", "", ".", "a/b", strings.Repeat("x", 300)} {
		c.raw(t, add(name), files[0])
		if got := c.answer(t); got.Error == "" {
			t.Errorf("%.20q was added", name)
		}
	}
	comesTo(t, "refused ones", kept, is(4))
	for range 3 {
		c.raw(t, "{\"op\":\"stats\"}\n", files[:2]...) // nobody asked for it
		if got := c.answer(t); got.Stats == nil {
			t.Errorf("got %+v", got)
		}
	}
	for _, n := range []int{1, 2, 3, 50} {
		if err := c.Remove(fmt.Sprint("of", n)); err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"not JSON\n", "{\"op\":\"add\",\"na", add("x") + "\n" + add("y"), "{\"op\":\"events\"}\n"} {
		c := a.dial(t)
		c.raw(t, line, files[:3]...)
		_ = c.conn.CloseWrite()
		_, _ = io.ReadAll(c.conn)
		c.Close()
	}
	other := a.dial(t)
	if err := other.Remove("x"); err != nil { // was added before the connection went on to nonsense
		t.Error(err)
	}
	comesTo(t, "all gone", kept, is(0))
	if st, err := other.Stats(); err != nil {
		t.Error(st, err)
	}
}

// Nothing of the setup, and no folder of the host, is open in an agent that
// serves: what it has by descriptors is no jail.
func TestDescriptorsOfAgent(t *testing.T) {
	folder, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0) // as a shell may leave one to what it starts
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(folder)
	a := serves(t, newSample(t), patience)
	conn := a.dial(t)
	if _, err := conn.Stats(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(a.dir, "fuse", "image")); err != nil {
		t.Fatal(err)
	}
	for _, what := range opened(t, a.proc("")) {
		switch kind, _, _ := strings.Cut(what, ":"); {
		case strings.HasPrefix(what, "/cpu."): // limits of its group, which Go reads: files, not folders
		case kind == "socket" || kind == "anon_inode":
		case what == "/dev/null" || what == "/dev/fuse":
		case strings.HasSuffix(what, "/log"):
		case strings.HasPrefix(what, "/cache/") || strings.Contains(what, "/cache/"): // chunks
		default:
			t.Errorf("it has %s", what)
		}
	}
}

// As its own user, nobody looks into an agent.
func TestAgentIsClosedToItsUser(t *testing.T) {
	a := serves(t, newSample(t), patience)
	for _, name := range []string{"mem", "environ", "maps", "auxv", "stack"} {
		cmd := exec.Command("head", "-c1", a.proc(name))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: UID, Gid: UID}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ermission denied") && !strings.Contains(string(out), "not permitted") {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	info, err := os.Stat(a.proc("mem"))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 { // root's if it is not dumpable: proc(5)
		t.Errorf("mem is owned by %v, %v", info.Sys(), err)
	}
}

// The end of the file system is the end of the agent, whoever is connected.
func TestAgentEndsWhenUnmounted(t *testing.T) {
	a := serves(t, newSample(t), patience)
	listens, idle := a.dial(t), a.dial(t)
	if err := listens.Listen(); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Stats(); err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := idle.Add("one", file); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = a.cmd.Process.Kill() })
	defer late.Stop()
	if err := mount.Unmount(filepath.Join(a.dir, "fuse")); err != nil {
		t.Fatal(err)
	}
	if err := a.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	listens.Events(func(line string) { t.Errorf("told %q", line) }) // and ends
	if _, err := idle.Stats(); err == nil {
		t.Error("it answers")
	}
	if log, err := os.ReadFile(a.dir + "/log"); err != nil || len(log) > 0 {
		t.Errorf("its log: %s, %v", log, err)
	}
}

// A process that has no descriptor left for a connection takes it later.
func TestAcceptAfterExhaustion(t *testing.T) {
	_, path := newTestControl(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience.Seconds())}); err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: uint64(len(opened(t, "/proc/self")) + 40), Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var taken []int
	for {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			break
		}
		taken = append(taken, n)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	// The waiting connection is asked for again and again meanwhile.
	for range 3 {
		var fds [1]unix.PollFd
		_, _ = unix.Poll(fds[:0], 20)
	}
	for _, n := range taken {
		unix.Close(n)
	}
	if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("{\"op\":\"fault\"}\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	if n, err := f.Read(answer); err != nil || string(answer[:n]) != "{}\n" {
		t.Errorf("%q, %v", answer[:n], err)
	}
	if _, err := dialControl(t, path).Stats(); err != nil {
		t.Error(err)
	}
}

// One connection too many is closed, and takes nobody's place.
func TestTooManyConnections(t *testing.T) {
	c, path := newTestControl(t)
	for range cap(c.slots) - 1 {
		c.slots <- struct{}{}
	}
	one := dialControl(t, path)
	if _, err := one.Stats(); err != nil {
		t.Fatal(err)
	}
	if _, err := dialControl(t, path).Stats(); err == nil {
		t.Error("one too many was served")
	}
	if _, err := one.Stats(); err != nil {
		t.Error(err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	comesTo(t, "the free place is not given", func() error {
		conn, err := Dial(t.Context(), path)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Stats()
		return err
	}, func(err error) bool { return err == nil })
}

// close leaves no goroutine, whatever connections do.
func TestCloseEndsAll(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	before := len(opened(t, "/proc/self"))
	c, path := newTestControl(t)
	var conns []*Conn
	for i := range 40 {
		conn := dialControl(t, path)
		conns = append(conns, conn)
		switch i % 4 {
		case 0:
			if err := conn.Listen(); err != nil {
				t.Fatal(err)
			}
		case 1:
			conn.raw(t, "{\"op\":\"st") // and no more
		case 2:
			if _, err := conn.Stats(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var all sync.WaitGroup
	for range 2 {
		all.Go(c.close)
	}
	all.Wait()
	for _, conn := range conns {
		if _, err := conn.Stats(); err == nil {
			t.Error("it answers")
		}
		_ = conn.Close()
	}
	if err := c.chunks.Close(); err != nil {
		t.Error(err)
	}
	testleak.None(t, ignore)
	if after := len(opened(t, "/proc/self")); after > before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

// A listener is told again after a while, and of another cause at once; what is
// told has a bound, and so have the causes.
func TestEventsGoOn(t *testing.T) {
	c, path := newTestControl(t)
	conn := dialControl(t, path)
	if err := conn.Listen(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.report(fault(fmt.Sprint(i)))
		c.report(fault(fmt.Sprint("0f", i))) // of another chunk, too soon
		c.report(fault("no room"))
		c.mu.Lock()
		for l := range c.listeners { // a while
			for cause, at := range c.listeners[l] {
				c.listeners[l][cause] = at.Add(-eventGap)
			}
		}
		c.mu.Unlock()
	}
	c.report(fault(strings.Repeat("\x01é", 1<<20)))
	if err := conn.Finish(); err != nil {
		t.Fatal(err)
	}
	var told []string
	conn.Events(func(line string) { told = append(told, line) })
	if len(told) != 7 || !strings.HasSuffix(told[0], ": 0") || !strings.HasSuffix(told[4], ": 2") || !strings.HasSuffix(told[5], ": no room") {
		t.Fatalf("told %d: %.200q", len(told), told)
	}
	if last := told[6]; len(last) > maxText || strings.Contains(last, "\ufffd") {
		t.Errorf("a text of %d bytes ends in %q", len(last), last[len(last)-10:])
	}
	if text, err := dialControl(t, path).Fault(); err != nil || text == nil || text.Error() != told[6] {
		t.Errorf("%.20v, %v", text, err)
	}
}

func TestCausesAreBounded(t *testing.T) {
	seen, now, due := told{}, time.Now(), 0
	for i := range 3 * maxCauses {
		if seen.due(errors.New(strings.Repeat("x", i)), now) {
			due++
		}
	}
	if due != maxCauses || len(seen) != maxCauses {
		t.Errorf("%d are told, %d kept; want %d", due, len(seen), maxCauses)
	}
	if !seen.due(errors.New("y"), now.Add(eventGap)) || len(seen) != 1 {
		t.Errorf("%d are kept of another time", len(seen))
	}
}

// served gives a Conn to something that takes one line and answers as told.
func served(t *testing.T, say string) *Conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = bufio.NewReader(conn).ReadString('\n')
		_, _ = io.WriteString(conn, say)
	})
	conn := dialControl(t, path)
	t.Cleanup(func() {
		_ = conn.Close() // or who writes waits
		l.Close()
		work.Wait()
	})
	return conn
}

// An agent is in a jail because it may be anybody's: what it says does not fill
// the memory of who asks, and an answer is not taken for the next one's.
func TestBadAnswers(t *testing.T) {
	for say, want := range map[string]string{
		"":                           "does not answer",
		"{}":                         "does not answer",
		"{}\n":                       "no numbers",
		"nonsense\n":                 "does not answer",
		"[]\n":                       "does not answer",
		"{\"error\":\"no\"}\n":       "agent: no",
		strings.Repeat("x", 1<<22):   "does not answer",
		"{\"stats\":\"many\"}\n{}\n": "does not answer",
	} {
		conn := served(t, say)
		if s, err := conn.Stats(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %+v, %v", say, s, err)
		}
		if strings.HasPrefix(say, "{\"stats") || len(say) > maxAnswer {
			if err := conn.Remove("x"); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%.20q: the rest was taken for an answer: %v", say, err)
			}
		}
	}
	conn := served(t, "{}\n{\"event\":\"one\"}\nnonsense\n{\"event\":\"two\"}\n{\"event\":\""+strings.Repeat("x", 1<<22))
	if err := conn.Listen(); err != nil {
		t.Fatal(err)
	}
	var told []string
	conn.Events(func(line string) { told = append(told, line) })
	if !slices.Equal(told, []string{"one", "two"}) {
		t.Errorf("told %.100q", told)
	}
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "nobody")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
