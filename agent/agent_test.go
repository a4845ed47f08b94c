package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/mount"
)

func TestSetup(t *testing.T) {
	long := strings.Repeat("\"\n\x01/", 1024)
	want := Setup{
		Image: "app:v1" + long, Root: long, Deadline: time.Minute,
		DataKey: []byte("a key of thirty-two bytes or so."), Trace: []byte("\nsealed"), Manifest: []byte("sealed\nbytes\x00"),
	}
	var b bytes.Buffer
	if err := want.Send(&b); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(b.Bytes())
	got, err := receive(&b)
	if err != nil || !bytes.Equal(got.Manifest, want.Manifest) || !bytes.Equal(got.Trace, want.Trace) || !bytes.Equal(got.DataKey, want.DataKey) || got.Root != want.Root || got.Deadline != want.Deadline {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{want, &want} {
			if text := fmt.Sprintf(verb, v); !strings.Contains(text, "app:v1") || strings.Contains(text, "thirty") || strings.Contains(text, "7468697274") {
				t.Errorf("%s shows %q", verb, text)
			}
		}
	}
	// A parent that died: what it has not said is refused, and no text has the key.
	for _, n := range []int{0, 1, 20, bytes.IndexByte(whole, '\n')} {
		if _, err := receive(bytes.NewReader(whole[:n])); err == nil {
			t.Errorf("%d bytes of a setup were taken", n)
		}
	}
	for _, bad := range []string{"\n", "{}{}\n", `{"traceSize":-1}` + "\n", `{"traceSize":3}` + "\nab", `{"traceSize":100000000}` + "\n" + strings.Repeat("x", 1000), `{"dataKey":"c2VjcmV0LXNlY3JldA==","deadline":"soon"}` + "\n", strings.Repeat("x", maxSetup+1)} {
		if _, err := receive(strings.NewReader(bad)); err == nil || strings.Contains(err.Error(), "c2Vj") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"image":"a","root":"r1","deadline":1,"dataKey":"AAAA"}` + "\nmanifest"))
	f.Add([]byte(`{"dataKey":"AAAA","traceSize":5}` + "\ntracemanifest"))
	f.Add([]byte("{\"image\":\n"))
	f.Add([]byte(strings.Repeat("{", 100) + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := receive(bytes.NewReader(data))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := s.Send(&b); err != nil {
			t.Fatal(err)
		}
		again, err := receive(&b)
		if err != nil || again.Image != s.Image || !bytes.Equal(again.Manifest, s.Manifest) || !bytes.Equal(again.DataKey, s.DataKey) || !bytes.Equal(again.Trace, s.Trace) {
			t.Errorf("%q came back as %+v, %v", data, again, err)
		}
		// What it says must not end the agent in another way than by an error.
		if m, _, err := open(again); err == nil && m == nil {
			t.Error("no manifest and no error")
		}
	})
}

// Outside of namespaces of its own a process would cut up its parent's.
func TestJailRefused(t *testing.T) {
	before, err := mount.Under("/")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := (jail{dir, dir, dir}).enter(); err == nil || !strings.Contains(err.Error(), "not the first") {
		t.Fatalf("got %v", err)
	}
	if after, err := mount.Under("/"); err != nil || len(after) < len(before)/2 {
		t.Errorf("mounts: %d, were %d, %v", len(after), len(before), err)
	}
}

// What the jail holds, as seen from outside.
func TestJail(t *testing.T) {
	a := serves(t, newSample(t), patience)
	items, err := os.ReadDir(a.proc("root"))
	var names []string
	for _, i := range items {
		names = append(names, i.Name())
	}
	if err != nil || !slices.Equal(names, []string{"cache", "fetch"}) {
		t.Errorf("it sees %v, %v", names, err)
	}
	table, err := os.ReadFile(a.proc("mountinfo"))
	if err != nil || strings.Count(string(table), "\n") != 3 {
		t.Errorf("its mounts:\n%s%v", table, err)
	}
	for line := range strings.Lines(string(table)) {
		for _, flag := range []string{"ro", "nosuid", "nodev", "noexec"} {
			if !slices.Contains(strings.Split(strings.Fields(line)[5], ","), flag) {
				t.Errorf("not %s: %s", flag, line)
			}
		}
	}
	status, err := os.ReadFile(a.proc("status"))
	if err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint(UID)
	for name, want := range map[string]string{
		"Uid": strings.Join([]string{id, id, id, id}, " "), "Gid": strings.Join([]string{id, id, id, id}, " "), "Groups": "",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		_, rest, ok := strings.Cut("\n"+string(status), "\n"+name+":")
		line, _, _ := strings.Cut(rest, "\n")
		if got := strings.Join(strings.Fields(line), " "); !ok || got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	devices, err := os.ReadFile(a.proc("net/dev"))
	if err != nil || strings.Count(string(devices), ":") != 1 || !strings.Contains(string(devices), "lo:") {
		t.Errorf("its network:\n%s%v", devices, err)
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		its, err := os.Readlink(a.proc("ns/" + ns))
		ours, oerr := os.Readlink("/proc/self/ns/" + ns)
		if err := errors.Join(err, oerr); err != nil || its == ours {
			t.Errorf("namespace %s: %s, ours is %s, %v", ns, its, ours, err)
		}
	}
	threads, err := os.ReadDir(a.proc("task"))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range threads { // rights are a thread's
		status, err := os.ReadFile(a.proc("task/" + task.Name() + "/status"))
		if err == nil && (!strings.Contains(string(status), "NoNewPrivs:\t1") || !strings.Contains(string(status), "CapEff:\t0000000000000000")) {
			t.Errorf("thread %s has rights", task.Name())
		}
	}
	if environ, err := os.ReadFile(a.proc("environ")); err != nil || len(environ) > 0 {
		t.Errorf("its environment: %q, %v", environ, err)
	}
}

// The parent has no copy of the descriptor: the end of the agent is an error
// for who reads, and no hang.
func TestKilledAgent(t *testing.T) {
	s := newSample(t)
	a := serves(t, s, patience)
	image := filepath.Join(a.dir, "fuse", "image")
	if got, err := os.ReadFile(image); err != nil || !bytes.Equal(got, s.bytes) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to == "/dev/fuse" {
			t.Errorf("descriptor %s is /dev/fuse", fd.Name())
		}
	}
	a.end()
	if _, err := os.ReadFile(image); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("got %v", err)
	}
	if _, err := Dial(t.Context(), a.dir+"/control"); err == nil {
		t.Error("a dead agent answers")
	}
}

// An agent that cannot work says why, in one line, and ends.
func TestRefusedSetup(t *testing.T) {
	s := newSample(t)
	for name, c := range map[string]struct {
		change func(s *Setup)
		want   string
	}{
		"a wrong key":      {func(s *Setup) { s.DataKey = make([]byte, 32) }, "manifest"},
		"a short key":      {func(s *Setup) { s.DataKey = nil }, "manifest"},
		"another manifest": {func(s *Setup) { s.Manifest = s.Manifest[:100] }, "manifest"},
		"no root":          {func(s *Setup) { s.Root = "" }, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			a := blank(t)
			setup := s.setup()
			c.change(setup)
			if err := a.give(t, setup); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || errors.Is(err, ErrEnded) {
				t.Errorf("it said %v", err)
			}
			if err := a.cmd.Wait(); err == nil {
				t.Error("it ended well")
			}
			if log, err := os.ReadFile(a.dir + "/log"); err != nil || !strings.Contains(string(log), c.want) {
				t.Errorf("its log: %q, %v", log, err)
			}
		})
	}
	t.Run("no jail", func(t *testing.T) {
		for _, c := range []struct{ cache, fetcher, want string }{{"/cache/nowhere", "/fetch", "step 3: bind "}, {"/cache", "/fetch/nowhere", "step 4: bind "}} {
			dir := t.TempDir()
			if _, err := startAgent(t, dir, dir+c.cache, dir+c.fetcher); err == nil || !strings.Contains(err.Error(), "entering the jail: "+c.want) {
				t.Errorf("it said %v", err)
			}
		}
	})
}
