package host

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/mount"
	"thaw/sandbox"
)

// asHelper is what the test binary is called when it is another process of
// the tests: helper BASE STATE VERB KEY.
const asHelper = "thaw-host-test"

func TestMain(m *testing.M) {
	if os.Args[0] == asHelper {
		if err := help(os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(asideEnv) != "" {
		os.Exit(tellAside())
	}
	if len(os.Args) == 3 && os.Args[1] == asFetcher {
		if err := fetch(os.Args[2]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const testPatience = 3 * time.Minute

// imageDeadline is how long reads of an image take whose chunks cannot be had.
const imageDeadline = 3 * time.Second

// openTest gives a host for the time of the test, after which nothing of it may
// be left.
func openTest(t *testing.T) *Host { return openTestIn(t, runDir) }

// openTestIn is openTest with another folder for runtime files.
func openTestIn(t *testing.T, base string) *Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root can use the package")
	}
	h, err := openIn(base, filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testPatience)
		defer cancel()
		if err := h.Remove(ctx); err != nil {
			t.Error(err)
		}
		mounts, err := mount.Under(h.run)
		if err != nil || len(mounts) > 0 {
			t.Errorf("left mounted: %v, %v", mounts, err)
		}
		if err := os.RemoveAll(h.run); err != nil {
			t.Error(err)
		}
	})
	return h
}

// helper is another process, which says a line and then waits for its input's
// end.
type helper struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Reader
}

func (h *Host) helper(t *testing.T, args ...string) *helper {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = append([]string{asHelper, filepath.Dir(h.run), h.state}, args...)
	cmd.Stderr = os.Stderr
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = inR
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	inR.Close()
	if err != nil {
		t.Fatal(err)
	}
	p := &helper{t, cmd, inW, bufio.NewReader(out)}
	late := time.AfterFunc(testPatience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		late.Stop()
		p.kill()
	})
	return p
}

func (p *helper) expect(want string) {
	p.t.Helper()
	if line, err := p.out.ReadString('\n'); line != want+"\n" {
		p.t.Fatalf("%q said %q, %v; want %q", p.cmd.Args, line, err, want)
	}
}

// kill is SIGKILL, and what comes after an end.
func (p *helper) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // the signal says it
	p.in.Close()
}

// leave lets the process go on to its end.
func (p *helper) leave() {
	p.t.Helper()
	p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%q: %v", p.cmd.Args, err)
	}
}

// help is the other process.
func help(args []string) error {
	h, err := openIn(args[0], args[1])
	if err != nil {
		return err
	}
	args = args[1:]
	wait := func(say string) { // until the parent leaves us, or is gone
		fmt.Println(say)
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
	ctx, cancel := contextOf()
	defer cancel()
	switch args[1] {
	case "sleep":
		wait("asleep")
	case "use": // a thing without content
		u, err := h.use(ctx, "images", args[2])
		if err != nil {
			return err
		}
		u.unlock()
		wait("used")
		return h.release(ctx, u, func() error { return os.Remove(h.dir("images", args[2], "thing")) })
	case "make": // stops while it sets a thing up
		if _, err := h.use(ctx, "images", args[2]); err != nil {
			return err
		}
		wait("making")
	case "instance":
		i, err := h.NewInstance(args[2], &Use{key: "none"}, &Use{key: "none"})
		if err != nil {
			return err
		}
		if len(args) > 3 {
			i.Target = args[3]
			err = i.Save()
		}
		if err != nil {
			return err
		}
		wait(i.ID)
		return i.End(ctx)
	default:
		return compete(ctx, h, args[1:])
	}
	return nil
}

// compete does something many times.
func compete(ctx context.Context, h *Host, args []string) error {
	switch args[0] {
	case "race": // takes and gives back
		for range raceRounds {
			u, err := h.use(ctx, "images", args[1])
			if err != nil {
				return err
			}
			made := os.WriteFile(h.dir("images", args[1], "thing"), nil, 0o600)
			u.unlock()
			if _, err := os.Stat(h.dir("images", args[1], "thing")); err != nil || made != nil {
				return fmt.Errorf("a thing in use is gone: %w, %w", err, made)
			}
			if err := h.release(ctx, u, func() error { return os.Remove(h.dir("images", args[1], "thing")) }); err != nil {
				return err
			}
		}
	case "churn": // instances come and go
		for range raceRounds {
			i, err := h.NewInstance(KindRun, &Use{key: "none"}, &Use{key: "none"})
			if err != nil {
				return err
			}
			if err := i.End(ctx); err != nil {
				return err
			}
		}
	case "reap":
		for range raceRounds {
			removed, err := h.Reap(ctx)
			if err != nil {
				return err
			}
			if i := slices.IndexFunc(removed, func(s string) bool { return strings.HasPrefix(s, "instance") }); i >= 0 {
				return fmt.Errorf("removed what was in use: %s", removed[i])
			}
		}
	}
	return nil
}

// raceRounds is how often each of the racing processes does its thing.
const raceRounds = 60

// empty checks that nothing is left of a host.
func (h *Host) empty(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"fetchers", "images", "instances"} {
		if items, err := os.ReadDir(h.dir(kind)); err != nil || len(items) > 0 {
			t.Errorf("%s: %v, %v", kind, items, err)
		}
	}
	if items, err := os.ReadDir(h.overlays()); err != nil || len(items) > 0 {
		t.Errorf("overlays: %v, %v", items, err)
	}
	if groups, err := sandbox.Cgroups(cgroupPrefix + filepath.Base(h.run)); err != nil || len(groups) > 0 {
		t.Errorf("groups: %v, %v", groups, err)
	}
	noLoops(t, h.run)
}

// noLoops waits until no loop device has a file below a path: each mount
// namespace that was made meanwhile has copies of mounts for a moment.
func noLoops(t *testing.T, dir string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(testPatience); ; <-tick.C {
		loops, err := mount.Loops(dir)
		if err == nil && len(loops) == 0 {
			return
		}
		if err != nil || time.Now().After(late) {
			t.Fatalf("loop devices: %v, %v", loops, err)
		}
	}
}

// group makes a control group in the first hierarchy there is, with a process.
func (h *Host) group(t *testing.T, name string, pid int) {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		if _, err := os.Stat(dir + "/cgroup.procs"); err != nil {
			continue
		}
		if err := os.Mkdir(dir+name, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+name+"/cgroup.procs", fmt.Append(nil, pid), 0); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("no control groups on this machine")
}

// tmpfs mounts something at dir.
func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
}
