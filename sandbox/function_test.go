package sandbox

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func functionConfig(dir string) Config {
	return Config{
		Root: filepath.Join(dir, "root"), Bundle: filepath.Join(dir, "bundle"), Cgroup: "/thaw-test-" + strings.TrimPrefix(filepath.Base(dir), "thaw-sandbox-"),
		Hostname: "localhost", Memory: 64 << 20,
		Function: &Function{Init: []string{"/bin/probe"}, Tmp: filepath.Join(dir, "tmp")},
	}
}

// An instance of a function has a root that cannot be written, an init with few
// capabilities, and no limit of CPU time yet.
func TestFunctionSpec(t *testing.T) {
	c := functionConfig("/dir")
	c.CPUs = 1
	s, err := NewSpec(c)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Root.Readonly || s.Linux.Resources.CPU != nil || !s.Process.NoNewPrivileges || s.Linux.Seccomp == nil {
		t.Errorf("%+v", s)
	}
	if want := []string{"CAP_KILL", "CAP_SETGID", "CAP_SETUID"}; !slices.Equal(s.Process.Capabilities.Bounding, want) || len(s.Process.Capabilities.Inheritable)+len(s.Process.Capabilities.Ambient) > 0 {
		t.Errorf("%+v", s.Process.Capabilities)
	}
	c.Function.NetNS = "/run/netns/one"
	if s, err = NewSpec(c); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/one"}) || s.Linux.Sysctl != nil {
		t.Errorf("%+v, %v", s.Linux.Namespaces, s.Linux.Sysctl)
	}
	for _, bad := range []func(*Config){
		func(c *Config) { c.Function.Init = nil }, func(c *Config) { c.Function.Init = []string{"probe"} },
		func(c *Config) { c.Function.Tmp = "tmp" }, func(c *Config) { c.Cgroup = "/" },
	} {
		c := functionConfig("/dir")
		bad(&c)
		if _, err := NewSpec(c); err == nil {
			t.Errorf("no error for %+v", c.Function)
		}
	}
}

// A shared supervisor passes descriptors, waits for its instance alone, leaves the
// process's own children to who started them, and sweeps orphans.
func TestSharedSupervisor(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		shared, err := NewSharedSupervisor(r.supervisor.runtime)
		if err != nil {
			t.Fatal(err)
		}
		r.supervisor = shared
		own := exec.Command("true")
		if err := own.Start(); err != nil {
			t.Fatal(err)
		}
		orphan, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		ours, _ := startFunction(t, r, "say3", "hello")
		if line, err := bufio.NewReader(ours).ReadString('\n'); err != nil || line != "hello\n" {
			t.Errorf("the instance said %q, %v", line, err)
		}
		if err := own.Wait(); err != nil {
			t.Errorf("a child of the process's own: %v", err)
		}
		// Who has ended stays for who may still wait for it, and then goes.
		gone := func() bool { return errors.Is(unix.Kill(orphan.Pid, 0), unix.ESRCH) }
		shared.launcher.linger = time.Hour
		for range 3 {
			shared.Sweep()
		}
		if gone() {
			t.Error("an orphan did not stay")
		}
		shared.launcher.linger = 0
		eventually(t, "an orphan to go", func() bool { shared.Sweep(); return gone() })
	})
}

func try(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// folders makes those that an instance's root must have.
func folders(t *testing.T, root string) {
	t.Helper()
	for _, dir := range []string{"proc", "dev", "sys", "tmp", RootPlace} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// A started instance is given another root: what it finds from then on is there,
// read-only, and what its specification mounts is as before.
func TestGiveRoot(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		if !r.supervisor.runtime.SharesKernel() {
			t.Skip("gVisor's root is what it started on")
		}
		other := newRoot(t)
		write(t, other, "etc/data", "another root\n")
		folders(t, other)
		place := filepath.Join(newFolder(t), "mounted")
		try(t, os.Mkdir(place, 0o755), unix.Mount(other, place, "", unix.MS_BIND, ""))
		defer func() { try(t, unix.Unmount(place, unix.MNT_DETACH)) }()
		c, p := startFunction(t, r, "told3", "/etc/data", "/proc/self/mounts", RootPlace+"/etc/data", "/proc/1/cmdline")
		try(t, r.supervisor.GiveRoot(p, place))
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		text := string(said)
		if !strings.HasPrefix(text, "another root\n") || !strings.Contains(text, "no such file") || !strings.HasSuffix(text, "/proc/1/cmdline\x00") {
			t.Errorf("%q", text)
		}
		roots := 0
		for line := range strings.Lines(text) {
			if f := strings.Fields(line); len(f) > 4 && f[1] == "/" {
				roots++
				if !strings.HasPrefix(f[3], "ro,nosuid,nodev") {
					t.Error(line)
				}
			}
		}
		for _, at := range []string{" /proc proc ", " /dev tmpfs ", " /dev/shm tmpfs ", " /sys sysfs ", " /tmp "} {
			if !strings.Contains(text, at) {
				t.Errorf("nothing at%s: %s", at, text)
			}
		}
		if roots != 1 || strings.Contains(text, RootPlace+" ") {
			t.Errorf("%d roots: %s", roots, text)
		}
		if err := r.supervisor.GiveRoot(p, filepath.Join(place, "none")); err == nil {
			t.Error("a root that is not there")
		}
	})
}

// startFunction runs the probe as an instance's first process, and gives the other
// end of its descriptor 3.
func startFunction(t *testing.T, r *rig, args ...string) (net.Conn, *Process) {
	t.Helper()
	c := functionConfig(r.dir)
	c.Root = r.root
	folders(t, r.root)
	if err := os.Mkdir(c.Function.Tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	c.Function.Init = append([]string{"/bin/probe"}, args...)
	if err := WriteBundle(c); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	t.Cleanup(func() { conn.Close() })
	state := filepath.Join(r.dir, "state")
	p, err := r.supervisor.Start(t.Context(), Instance{ID: "i", Bundle: c.Bundle, State: state, Files: []*os.File{theirs}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if code, err := p.Wait(); code != 0 || err != nil {
			t.Errorf("exit code %d, %v", code, err)
		}
		p.Close()
		if err := Delete(context.Background(), state, "i", c.Cgroup); err != nil {
			t.Error(err)
		}
	})
	return conn, p
}
