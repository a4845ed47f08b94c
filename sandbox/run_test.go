package sandbox

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"thaw/internal/testbin"
)

// seen is what the probe's "look" tells.
type seen struct {
	Args, Env, Mounts []string
	UID, GID, PID     int
	Groups            []int
	Dir, Host, Net    string
	Status            map[string]string
	UIDMap            []string `json:"uid_map"`
	GIDMap            []string `json:"gid_map"`
	Links             map[string]bool
	Unshare           string
}

func (r *rig) look(c Config) seen {
	r.t.Helper()
	got := r.run(c)
	var s seen
	if err := json.Unmarshal([]byte(got.out), &s); err != nil || got.code != 0 || got.err != "" {
		r.t.Fatalf("%v: %+v", err, got)
	}
	return s
}

func TestExitCodes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		for _, code := range []int{0, 7, 255} {
			if got := r.run(r.config("exit", strconv.Itoa(code))); got.code != code || got.start != nil {
				t.Errorf("%d: %+v", code, got)
			}
		}
	})
}

// What a runtime refuses on its own, past what NewSpec finds.
func TestStartErrors(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		write(t, r.root, "bin/garbage", "\x7fnot a program")
		write(t, r.root, "bin/elsewhere", "#!/no/such/interpreter\n")
		for _, name := range []string{"garbage", "elsewhere"} {
			if err := os.Chmod(filepath.Join(r.root, "bin", name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for program, code := range map[string]int{"none": 127, "/none": 127, "/etc/data": 126, "/etc": 126, "garbage": 126, "elsewhere": 127} {
			c := r.config(program)
			c.Image = []byte(`{}`)
			c.Volumes = []Volume{{Source: r.dir, Target: "/volume"}} // so that NewSpec does not look
			got := r.run(c)
			err := cmp.Or(got.start, got.wait)
			if err == nil || ExitCode(err) != code || strings.Contains(err.Error(), "\n") || got.wait != nil && got.code != code {
				t.Errorf("%s: %d %v, want %d; %+v", program, ExitCode(err), err, code, got)
			}
			// A pipe gets the runtime's own words, and nobody need say it again.
			if Told(err) != (got.start != nil) || Told(err) && got.err == "" {
				t.Errorf("%s: told %v, it said %q", program, Told(err), got.err)
			}
		}
		c := r.config("exit", "0")
		c.Volumes = []Volume{{Source: "/etc/passwd", Target: "/bin/probe/below"}} // a file in the way
		if got := r.run(c); got.start == nil || ExitCode(got.start) != 125 {
			t.Errorf("%v", got.start)
		}
		t.Chdir("/")
		in := r.instance(c)
		in.ID = "../x"
		if _, err := r.supervisor.Start(t.Context(), in); err == nil {
			t.Error("an id that is a path")
		}
		in.ID, in.Bundle = "x", r.dir
		if _, err := r.supervisor.Start(t.Context(), in); err == nil || !strings.Contains(err.Error(), "config.json") {
			t.Errorf("no bundle: %v", err)
		}
	})
}

func TestIsolation(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		s := r.look(r.config("look"))
		dockers := "00000000a80425fb"
		for key, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapEff": dockers, "CapPrm": dockers, "CapBnd": dockers, "CapInh": "0000000000000000"} {
			if s.Status[key] != want {
				t.Errorf("%s: %s, want %s", key, s.Status[key], want)
			}
		}
		ids := []string{"0", strconv.Itoa(IDBase), strconv.Itoa(IDCount)}
		if !slices.Equal(s.UIDMap, ids) || !slices.Equal(s.GIDMap, ids) {
			t.Errorf("ids %v %v", s.UIDMap, s.GIDMap)
		}
		if !reflect.DeepEqual(s.Links, map[string]bool{"lo": true}) {
			t.Errorf("network: %v", s.Links)
		}
		if s.PID != 1 || s.Unshare != "operation not permitted" || s.Host != lastElement(r.config().Cgroup) {
			t.Errorf("%+v", s)
		}
		for place, option := range map[string]string{"/sys": "ro", "/sys/fs/cgroup/memory": "ro", "/dev/shm": "size=65536k", "/etc/hosts": "ro", "/proc/sys": "ro", "/dev/mqueue": "nosuid"} {
			if place == "/sys/fs/cgroup/memory" && isCgroup2("/sys/fs/cgroup") {
				place = "/sys/fs/cgroup"
			}
			if !slices.ContainsFunc(s.Mounts, func(m string) bool {
				f := strings.Fields(m)
				return f[1] == place && slices.Contains(strings.Split(f[3], ","), option)
			}) {
				t.Errorf("%s is not mounted with %s: %v", place, option, s.Mounts)
			}
		}
	})
}

func TestConfigured(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("look")
		c.Image = []byte(`{"config":{"Entrypoint":["/bin/probe"],"Cmd":["nothing"],"Env":["A=image","B=image"],"User":"app","WorkingDir":"/srv/made"}}`)
		c.Env, c.Hostname = []string{"A=mine"}, "box"
		s := r.look(c)
		if s.UID != 1000 || s.GID != 1001 || !slices.Contains(s.Groups, 1002) || s.Dir != "/srv/made" || s.Host != "box" || s.Status["CapEff"] != "0000000000000000" {
			t.Errorf("%+v", s)
		}
		for _, kv := range []string{"A=mine", "B=image", "HOME=/home/app", "HOSTNAME=box"} {
			if !slices.Contains(s.Env, kv) {
				t.Errorf("no %s in %v", kv, s.Env)
			}
		}
		c = r.config("read", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
		if got := r.run(c); got.code != 0 || !strings.Contains(got.out, "127.0.1.1\t"+c.hostname()) {
			t.Errorf("%+v", got)
		}
		c = r.config("write", "/etc/new", "x")
		c.ReadOnly = true
		if got := r.run(c); got.code != 3 || !strings.Contains(got.err, "read-only file system") {
			t.Errorf("read-only: %+v", got)
		}
	})
}

func TestHostNetwork(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("look")
		c.HostNetwork = true
		s := r.look(c)
		host, err := os.Readlink("/proc/self/ns/net") // its links come and go with others' instances
		if err != nil || s.Net != host || !s.Links["lo"] {
			t.Errorf("%s %v, host %s, %v", s.Net, s.Links, host, err)
		}
		c.Args = []string{"read", "/etc/hosts", "/etc/resolv.conf", "/sys/class/net/lo/ifindex"}
		hosts, _ := os.ReadFile("/etc/hosts")
		resolv, _ := os.ReadFile("/etc/resolv.conf")
		if got := r.run(c); got.out != string(hosts)+string(resolv)+"1\n" {
			t.Errorf("%+v", got)
		}
	})
}

func TestVolumes(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		dir := newFolder(t)
		write(t, dir, "file", "old ")
		for _, name := range []string{dir, filepath.Join(dir, "file")} {
			if err := os.Chown(name, IDBase, IDBase); err != nil {
				t.Fatal(err)
			}
		}
		c := r.config("write", "/a/b/file", "new")
		c.Volumes = []Volume{{Source: dir, Target: "/a/b"}}
		if got := r.run(c); got.code != 0 {
			t.Errorf("%+v", got)
		}
		c.Volumes[0].ReadOnly = true
		if got := r.run(c); got.code != 3 || !strings.Contains(got.err, "read-only") {
			t.Errorf("%+v", got)
		}
		c.Args, c.Volumes[0] = []string{"read", "/one"}, Volume{Source: dir + "/file", Target: "/one", ReadOnly: true}
		if got := r.run(c); got.out != "old new" {
			t.Errorf("%+v", got)
		}
		if err := os.Chmod(dir, 0o700); err != nil { // a home: nobody else may look into it
			t.Fatal(err)
		}
		if err := os.Chown(dir, 0, 0); err != nil {
			t.Fatal(err)
		}
		if got := r.run(c); got.out != "old new" {
			t.Errorf("%+v %v", got, got.start)
		}
	})
}

func TestLimits(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("eat", "200")
		c.Memory = 64 << 20
		in := r.instance(c)
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(); code != 137 || err != nil || !OOMKilled(c.Cgroup) {
			t.Errorf("memory: exit code %d, %v; out of memory: %v", code, err, OOMKilled(c.Cgroup))
		}
		r.delete(c)
		c = r.config("eat", "20")
		c.Memory, c.CPUs, c.Period, c.Pids = 64<<20, 0.5, 20*time.Millisecond, 30
		if got := r.run(c); got.out != "ate 20\n" {
			t.Errorf("%+v", got)
		}
		c.Args = []string{"fork", "40"}
		got := r.run(c)
		n, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(got.out, "forked ")))
		if err != nil || n < 1 || n >= 30 {
			t.Errorf("processes: %+v", got)
		}
		c.Args = []string{"wait"}
		outR, outW := mustPipe(t)
		in.Stdout = outW
		p, err = r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, bufio.NewReader(outR), "ready\n")
		files := map[string]string{"cpu/cpu.cfs_quota_us": "10000", "cpu/cpu.cfs_period_us": "20000", "memory/memory.limit_in_bytes": "67108864", "pids/pids.max": "30"}
		if isCgroup2("/sys/fs/cgroup") {
			files = map[string]string{"cpu.max": "10000 20000", "memory.max": "67108864", "pids.max": "30"}
		}
		for name, want := range files {
			dir, base := filepath.Split(name)
			data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", dir, c.Cgroup, base))
			if strings.TrimSpace(string(data)) != want {
				t.Errorf("%s: %s %v, want %s", name, data, err, want)
			}
		}
		if state, err := r.supervisor.State(t.Context(), in.State, in.ID); state != "running" || err != nil {
			t.Errorf("state %q, %v", state, err)
		}
	})
}

func expect(t testing.TB, r *bufio.Reader, want string) {
	t.Helper()
	if got, err := r.ReadString('\n'); got != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// Programs log to /dev/stdout and /dev/stderr, whatever these are.
func TestOutputs(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		for _, user := range []string{"", "app"} {
			c := r.config("write", "/dev/stdout", "text")
			c.User = user
			if got := r.run(c); got.out != "text" {
				t.Errorf("pipe, user %q: %+v", user, got)
			}
			f, err := os.OpenFile(filepath.Join(r.dir, "log"+user), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			in := r.instance(c)
			in.Stdout, in.Stderr = f, f
			p, err := r.start(c, in)
			if err != nil {
				t.Fatal(err)
			}
			code, err := p.Wait()
			if data, _ := os.ReadFile(f.Name()); string(data) != "text" || code != 0 || err != nil {
				t.Errorf("file, user %q: %q, %d, %v", user, data, code, err)
			}
			f.Close()
			r.delete(c)
		}
		c := r.config("cat")
		in := r.instance(c)
		inR, inW := mustPipe(t)
		outR, outW := mustPipe(t)
		in.Stdin, in.Stdout = inR, outW
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		outW.Close()
		if _, err := inW.WriteString("through"); err != nil {
			t.Fatal(err)
		}
		inW.Close()
		if got := readAll(outR); got != "through" {
			t.Errorf("standard input: %q", got)
		}
		if code, err := p.Wait(); code != 0 || err != nil {
			t.Error(code, err)
		}
	})
}

func TestSignals(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		for _, test := range []struct {
			verb, stop string
			send       []syscall.Signal
			code       int
		}{
			{"wait", "", []syscall.Signal{unix.SIGTERM}, 15},
			{"wait", "SIGQUIT", []syscall.Signal{unix.SIGTERM}, 3},
			{"wait", "SIGQUIT", []syscall.Signal{unix.SIGINT}, 2},
			{"wait", "", []syscall.Signal{unix.SIGUSR1}, 10},
			{"wait", "SIGKILL", []syscall.Signal{unix.SIGTERM}, 137},
			{"stubborn", "", []syscall.Signal{unix.SIGINT, unix.SIGHUP, unix.SIGTERM, unix.SIGINT}, 137},
		} {
			c := r.config(test.verb)
			c.Image = []byte(`{"config":{"Entrypoint":["/bin/probe"],"StopSignal":"` + test.stop + `"}}`)
			outR, outW := mustPipe(t)
			in := r.instance(c)
			in.Stdout = outW
			signals := Catch()
			p, err := r.start(c, in)
			if err != nil {
				t.Fatal(err)
			}
			stop := signals.Forward(p)
			out := bufio.NewReader(outR)
			expect(t, out, "ready\n")
			for i, sig := range test.send {
				if err := unix.Kill(os.Getpid(), sig); err != nil {
					t.Fatal(err)
				}
				if i < len(test.send)-1 {
					expect(t, out, "got "+strconv.Itoa(int(sig))+"\n")
				}
			}
			code, err := p.Wait()
			stop()
			if code != test.code || err != nil {
				t.Errorf("%+v: %d, %v", test, code, err)
			}
			r.delete(c)
		}
	})
}

// An orphan's end is not mistaken for the instance's, and is taken away.
func TestWaitReaps(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("wait")
		outR, outW := mustPipe(t)
		in := r.instance(c)
		in.Stdout = outW
		p, err := r.start(c, in)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, bufio.NewReader(outR), "ready\n")
		other, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		codes := make(chan int)
		go func() {
			code, _ := p.Wait()
			codes <- code
		}()
		for range 3 { // commands of the runtime's are not orphans
			if state, err := r.supervisor.State(t.Context(), in.State, in.ID); state != "running" || err != nil {
				t.Errorf("state %q, %v", state, err)
			}
		}
		// Once the instance has ended nobody reaps any more.
		eventually(t, "the orphan to be taken away", func() bool { return errors.Is(unix.Kill(other, 0), unix.ESRCH) })
		if err := p.Signal(unix.SIGTERM); err != nil {
			t.Error(err)
		}
		if code := <-codes; code != 15 {
			t.Errorf("exit code %d", code)
		}
		if again, err := p.Wait(); again != 15 || err != nil {
			t.Errorf("again %d, %v", again, err)
		}
		if _, err := syscall.Wait4(other, nil, syscall.WNOHANG, nil); !errors.Is(err, syscall.ECHILD) {
			t.Errorf("the orphan is still there: %v", err)
		}
	})
}

// One supervisor has many instances at once, which end in any order.
func TestMany(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		const count = 6
		for _, dir := range []string{"proc", "dev", "sys"} { // they have one root, and crun makes what is missing unless another one just has
			path := filepath.Join(r.root, dir)
			if err := errors.Join(os.MkdirAll(path, 0o755), os.Chown(path, IDBase, IDBase)); err != nil {
				t.Fatal(err)
			}
		}
		var group errgroup.Group
		for i := range count {
			c := r.config("exit", strconv.Itoa(i))
			c.Bundle += strconv.Itoa(i)
			c.Cgroup += "-" + strconv.Itoa(i)
			if err := WriteBundle(c); err != nil {
				t.Fatal(err)
			}
			in := r.instance(c)
			group.Go(func() error {
				for range 4 {
					p, err := r.supervisor.Start(context.Background(), in)
					if err != nil {
						return err
					}
					code, err := p.Wait()
					if err := errors.Join(err, p.Close(), Delete(context.Background(), in.State, in.ID, c.Cgroup)); err != nil || code != i {
						return fmt.Errorf("instance %d: exit code %d, %w", i, code, err)
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// A supervisor that is killed leaves an instance behind; Cgroups finds it, Delete ends it.
func TestKilledSupervisor(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("wait")
		if err := WriteBundle(c); err != nil {
			t.Fatal(err)
		}
		cmd, out := r.inProcess(c)
		line, err := out.ReadString('\n')
		pid, _ := strconv.Atoi(strings.TrimSpace(line))
		if err != nil || pid == 0 {
			t.Fatalf("%q, %v", line, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err := unix.Kill(pid, 0); err != nil {
			t.Fatalf("the instance is gone with its supervisor: %v", err)
		}
		left, err := Cgroups("/thaw-test-")
		if err != nil || !slices.Contains(left, c.Cgroup) {
			t.Fatalf("%v, %v", left, err)
		}
		r.delete(c)
		var status syscall.WaitStatus // we are its reaper now
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
			t.Errorf("%v, %v", status, err)
		}
	})
}

// Wherever in a start the supervisor is killed, Delete leaves nothing.
func TestKilledWhileStarting(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		for i := range 12 {
			c := r.config("wait")
			if err := WriteBundle(c); err != nil {
				t.Fatal(err)
			}
			cmd, _ := r.inProcess(c)
			<-time.After(time.Duration(i) * 4 * time.Millisecond) // moments of a start that takes some 40 ms
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			// A runtime that dies with it may start the instance behind this: it is
			// what another time is for, until all of them have ended.
			for again := time.NewTicker(10 * time.Millisecond); ; <-again.C {
				if err := Delete(t.Context(), r.instance(c).State, r.instance(c).ID, c.Cgroup); err != nil {
					t.Error(err)
				}
				var status syscall.WaitStatus // whatever it started is ours now
				pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
				for err == nil && pid > 0 {
					pid, err = syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
				}
				if err != nil {
					again.Stop()
					break // there is none any more
				}
			}
			r.delete(c)
		}
	})
}

// Of a runc that was killed a mount may be left in its folder.
func TestDeleteMounted(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root to mount")
	}
	dir := t.TempDir()
	state := filepath.Join(dir, "id")
	at := filepath.Join(state, "runc.aB3dE6")
	if err := errors.Join(os.Mkdir(state, 0o700), os.WriteFile(at, nil, 0o600), unix.Mount("/bin/true", at, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := Delete(t.Context(), dir, "id", "/thaw-test-none"); err != nil {
		_ = unix.Unmount(at, unix.MNT_DETACH)
		t.Fatal(err)
	}
	if _, err := os.Stat(state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// gVisor shows a kernel of its own, so what an instance sees differs; what we do for it does not.
func TestGVisor(t *testing.T) {
	r := newRig(t, testbin.Runtime(t, "runsc"))
	c := r.config("look")
	c.Image = []byte(`{"config":{"Entrypoint":["/bin/probe"],"Env":["B=image"],"User":"app","WorkingDir":"/srv/made"}}`)
	s := r.look(c)
	if s.UID != 1000 || s.GID != 1001 || s.Dir != "/srv/made" || !slices.Contains(s.Env, "B=image") || s.Status["NoNewPrivs"] != "1" {
		t.Errorf("%+v", s)
	}
	if got := r.run(r.config("exit", "7")); got.code != 7 {
		t.Errorf("%+v", got)
	}
	for program, code := range map[string]int{"none": 127, "/none": 127, "/etc/data": 126} {
		c := r.config(program)
		c.Image, c.Volumes = []byte(`{}`), []Volume{{Source: r.dir, Target: "/volume"}}
		if got := r.run(c); ExitCode(got.start) != code {
			t.Errorf("%s: %v, want %d", program, got.start, code)
		}
	}
	c = r.config("wait")
	c.Image = []byte(`{"config":{"Entrypoint":["/bin/probe"],"StopSignal":"SIGQUIT"}}`)
	outR, outW := mustPipe(t)
	in := r.instance(c)
	in.Stdout = outW
	signals := Catch()
	p, err := r.start(c, in)
	if err != nil {
		t.Fatal(err)
	}
	defer signals.Forward(p)()
	expect(t, bufio.NewReader(outR), "ready\n")
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(); code != 3 || err != nil {
		t.Error(code, err)
	}
}

// Starting changes none of the host's mounts, and no thread stays where it would keep others from being unmounted for good.
func TestHostMountsStay(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		mounts := func() string {
			data, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			return string(data)
		}
		before := mounts()
		if got := r.run(r.config("exit", "0")); got.code != 0 || got.start != nil {
			t.Fatalf("%+v", got)
		}
		if after := mounts(); strings.Contains(before, unified) != strings.Contains(after, unified) || strings.Contains(after, r.dir) {
			t.Errorf("before:\n%safter:\n%s", before, after)
		}
		ours, err := os.Readlink("/proc/self/ns/mnt")
		if err != nil {
			t.Fatal(err)
		}
		threads, _ := filepath.Glob("/proc/self/task/*/ns/mnt")
		for _, thread := range threads {
			if theirs, err := os.Readlink(thread); err == nil && theirs != ours {
				t.Errorf("%s is in %s, we are in %s", thread, theirs, ours)
			}
		}
		if len(threads) < 2 {
			t.Errorf("threads: %v", threads)
		}
	})
}
