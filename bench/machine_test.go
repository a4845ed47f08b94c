package bench

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"thaw/host"
	"thaw/mount"
	"thaw/sandbox"
)

// asRoot skips what this user or machine cannot do.
func asRoot(b testing.TB, tools ...string) {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: mounting and running need root: run make bench as root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("SKIPPED: %v", err)
		}
	}
}

func try(b testing.TB, errs ...error) {
	b.Helper()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}

// place is a state folder of its own.
type place struct {
	thaw, state string
	flags       []string // of every verb, beside --state
}

// newPlace makes a place with images of the corpus in it. Nothing of it is left
// on the machine at the end.
func newPlace(b testing.TB, images ...string) *place {
	p := &place{thaw: program(b), state: filepath.Join(b.TempDir(), "state")}
	b.Cleanup(func() {
		if out, err := exec.Command(p.thaw, "--state", p.state, "prune").CombinedOutput(); err != nil {
			b.Errorf("prune: %v\n%s", err, out)
		}
		if left, err := mount.Under(p.runDir()); err != nil || len(left) > 0 {
			b.Errorf("left mounted: %v %v", left, err)
			return
		}
		try(b, os.RemoveAll(p.runDir()))
	})
	for _, name := range images {
		p.convert(b, corpus(b, name), name)
	}
	return p
}

func (p *place) convert(b testing.TB, layout, name string) {
	b.Helper()
	timed(b, p.thaw, p.args("convert", "oci:"+layout, "--name", name)...)
}

func (p *place) args(args ...string) []string {
	return slices.Concat([]string{"--state", p.state}, p.flags, args)
}

// runDir is where the program keeps what runs of this state; see package host.
func (p *place) runDir() string {
	sum := sha256.Sum256([]byte(p.state))
	return filepath.Join("/run/thaw", hex.EncodeToString(sum[:6]))
}

// fuseFile is the device of the one image that is mounted.
func (p *place) fuseFile(b testing.TB) string {
	b.Helper()
	found, err := filepath.Glob(filepath.Join(p.runDir(), "images", "*", "fuse", "image"))
	if err != nil || len(found) != 1 {
		b.Fatalf("%d devices, want one: %v", len(found), err)
	}
	return found[0]
}

// forget empties the caches of chunks and manifests.
func (p *place) forget(b testing.TB) {
	for _, dir := range []string{"cache", "manifests", "last"} {
		try(b, os.RemoveAll(filepath.Join(p.state, dir)))
	}
}

// running is a program that has said its first line.
type running struct {
	cmd  *exec.Cmd
	in   io.Closer // its standard input
	line string
	took time.Duration // to the line
	errs *os.File
}

// begin starts a command and waits for its first line. What else it prints is
// dropped.
func begin(b testing.TB, name string, args ...string) *running {
	b.Helper()
	r := &running{cmd: exec.Command(name, args...)}
	out, err := r.cmd.StdoutPipe()
	try(b, err)
	r.in, err = r.cmd.StdinPipe()
	try(b, err)
	r.errs, err = os.CreateTemp(b.TempDir(), "stderr")
	try(b, err)
	defer r.errs.Close()
	r.cmd.Stderr = r.errs
	start := time.Now()
	try(b, r.cmd.Start())
	r.line, err = bufio.NewReader(out).ReadString('\n')
	r.took = time.Since(start)
	if err != nil {
		_ = r.cmd.Wait()
		b.Fatalf("%s %v: %v\n%s", name, args, err, r.stderr())
	}
	return r
}

func (r *running) stderr() []byte {
	text, _ := os.ReadFile(r.errs.Name())
	return text
}

// end closes the program's standard input and waits for its end.
func (r *running) end(b testing.TB) {
	b.Helper()
	_ = r.in.Close()
	if err := r.cmd.Wait(); err != nil {
		b.Fatalf("%v: %v\n%s", r.cmd.Args, err, r.stderr())
	}
}

// hold mounts an image at a folder until the function it gives is called.
func (p *place) hold(b testing.TB, image string) (dir string, release func()) {
	b.Helper()
	dir = b.TempDir()
	cmd := exec.Command(p.thaw, p.args("mount", image, dir)...)
	errs, err := cmd.StderrPipe() // it says when it is done
	try(b, err)
	try(b, cmd.Start())
	lines := bufio.NewReader(errs)
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "is mounted at") {
		_ = cmd.Wait()
		b.Fatalf("thaw mount: %v %s", err, line)
	}
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		try(b, cmd.Process.Signal(syscall.SIGTERM))
		rest, _ := io.ReadAll(lines)
		if err := cmd.Wait(); err != nil {
			b.Errorf("thaw mount: %v\n%s", err, rest)
		}
	}
	b.Cleanup(release)
	return dir, release
}

// bundle is a root file system, unpacked to a folder, with the configuration
// that the program would give a container of it.
type bundle struct{ dir, state string }

// openDir is a folder that containers can reach.
func openDir(b testing.TB) string {
	b.Helper()
	dir := b.TempDir()
	try(b, os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

// unpack unpacks an image for containers.
func unpack(b testing.TB, image, rootfs string, args ...string) {
	b.Helper()
	timed(b, "umoci", append(append([]string{"raw", "unpack"}, args...), "--image", corpus(b, image)+":latest", rootfs)...)
}

// shifted are the arguments that give files the owners that containers have.
func shifted() []string {
	ids := fmt.Sprintf("0:%d:%d", sandbox.IDBase, 1<<16)
	return []string{"--uid-map", ids, "--gid-map", ids}
}

// bundle makes a bundle of which the root file system is still missing.
func (p *place) bundle(b testing.TB, image string, args ...string) *bundle {
	b.Helper()
	r := &bundle{openDir(b), b.TempDir()}
	program := begin(b, p.thaw, p.args("run", "-i", image, "sh", "-c", "echo ready; cat")...)
	h, err := host.Open(p.state)
	try(b, err)
	all, err := h.Instances()
	try(b, err)
	if len(all) != 1 {
		b.Fatalf("%d instances, want 1", len(all))
	}
	var config map[string]any
	readJSON(b, all[0].Dir("bundle", "config.json"), &config)
	program.end(b)
	config["root"].(map[string]any)["path"] = filepath.Join(r.dir, "rootfs")
	config["process"].(map[string]any)["args"] = args
	config["linux"].(map[string]any)["cgroupsPath"] = "/thaw-bench-" + filepath.Base(r.dir) + fmt.Sprint(os.Getpid())
	config["mounts"] = slices.DeleteFunc(config["mounts"].([]any), func(m any) bool {
		source, _ := m.(map[string]any)["source"].(string)
		return strings.HasPrefix(source, p.runDir())
	})
	data, err := json.Marshal(config)
	try(b, err, os.WriteFile(filepath.Join(r.dir, "config.json"), data, 0o600))
	return r
}

func (r *bundle) command() []string {
	return []string{"runc", "--root", r.state, "run", "--bundle", r.dir, "bench" + filepath.Base(r.state) + fmt.Sprint(os.Getpid())}
}

// treeBytes adds up the sizes of a tree's files, each once.
func treeBytes(b testing.TB, dir string) (sum int64) {
	b.Helper()
	seen := map[uint64]bool{}
	try(b, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if ino := info.Sys().(*syscall.Stat_t).Ino; !seen[ino] {
			seen[ino] = true
			sum += info.Size()
		}
		return nil
	}))
	return sum
}

// milliseconds are times, or differences of times, of several rounds.
type milliseconds []float64

func (m *milliseconds) add(d time.Duration) { *m = append(*m, float64(d.Microseconds())/1000) }

// median is 0 of nothing.
func (m milliseconds) median() float64 { return m.quantile(0.5) }

func (m milliseconds) quantile(q float64) float64 {
	if len(m) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(m))
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// String gives the median and the quartiles.
func (m milliseconds) String() string {
	return fmt.Sprintf("%.1f ms (quartiles %.1f to %.1f, %d rounds)", m.median(), m.quantile(0.25), m.quantile(0.75), len(m))
}

func TestMilliseconds(t *testing.T) {
	if got := (milliseconds{4, 1, 3, 2}).String(); got != "3.0 ms (quartiles 2.0 to 4.0, 4 rounds)" {
		t.Error(got)
	}
}
