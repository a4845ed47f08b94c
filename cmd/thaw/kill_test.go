package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/internal/testoci"
	"thaw/keys"
	"thaw/manifest"
	"thaw/origin"
	"thaw/verify"
)

const (
	killMoments = 100 // spread over a run
	killHits    = 90  // of those, processes that were alive; fewer prove too little
	killBlocks  = 10  // parts of them, each with a new measurement: machines get busy and idle
	// Tries of one moment or step until the process is alive there: runs differ
	// in length, and steps near the end are short.
	momentTries = 20
	stepTries   = 150
)

// victim is a command that is killed in a copy of a prepared state, and what
// has to hold then.
type victim struct {
	t        *testing.T
	prepared string // state, never changed
	args     []string
	after    func(state string) // checks the next command
}

// killLayers gives the sample's layers: old is base and first, new is base and
// the others.
func killLayers(t *testing.T) (base, first, second, third []byte) {
	layer := func(name string, seed uint64) []byte {
		return testoci.Tar(t, testoci.Dir(name), testoci.File(name+"/a", testoci.Noise(seed, 600_000)), testoci.File(name+"/b", testoci.Noise(seed+1, 3000)))
	}
	return layer("base", 10), layer("first", 20), layer("second", 30), layer("third", 40)
}

// must runs the program in this process and gives its output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	var out, err bytes.Buffer
	if code := run(context.Background(), program{}, args, &out, &err); code != 0 {
		t.Fatalf("thaw %s: %d, %s%s", args, code, out.String(), err.String())
	}
	return out.String()
}

// convertNew is the command that makes the image called app another one.
func convertNew(source, chunkSize string) []string {
	return []string{"convert", source, "--name", "app", "--chunk-size", chunkSize, "--json"}
}

// prepare makes a state in which app and keep are the same old image.
func prepare(t *testing.T, chunkSize string) (state, newSource string) {
	dir := t.TempDir()
	base, first, second, third := killLayers(t)
	oldSource := testoci.Layout(t, dir+"/old", nil, base, first)
	newSource = testoci.Layout(t, dir+"/new", nil, base, second, third)
	state = dir + "/state"
	for _, name := range []string{"app", "keep"} {
		must(t, "--state", state, "convert", oldSource, "--name", name, "--chunk-size", chunkSize)
	}
	return state, newSource
}

// undisturbed runs the command in a copy, gives the image's id, and makes the
// folders in the state that it has made there, so that they can be watched.
func undisturbed(t *testing.T, state string, args []string) string {
	t.Helper()
	done := copyState(t, state)
	id := imageOf(t, must(t, append([]string{"--state", done}, args...)...))
	made, err := filepath.Glob(done + "/origin/roots/r1/chunks/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range made {
		if err := os.MkdirAll(state+strings.TrimPrefix(dir, done), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// copyState copies a state. Files in it never change, so links do.
func copyState(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "state")
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		}
		return os.Link(path, filepath.Join(to, rel))
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// start runs the command as a process of its own, behind a command if there is
// one.
func (v *victim) start(state string, behind ...string) *exec.Cmd {
	line := slices.Concat(behind, []string{"thaw", "--state", state}, v.args)
	cmd := exec.Command(line[0], line[1:]...)
	if err := cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
	return cmd
}

// killed kills the command with SIGKILL and tells whether it was alive.
func killed(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the state says it
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() && status.ExitStatus() != 0 {
		t.Fatalf("undisturbed, it ended with %v", cmd.ProcessState)
	}
	return status.Signaled()
}

// duration measures undisturbed runs, and gives the shortest.
func (v *victim) duration() time.Duration {
	shortest := patience
	for range 2 {
		state := copyState(v.t, v.prepared)
		begin := time.Now()
		cmd := v.start(state)
		if err := cmd.Wait(); err != nil {
			v.t.Fatal(err)
		}
		shortest = min(shortest, time.Since(begin))
		remove(v.t, state)
	}
	return shortest
}

// atMoments kills at moments spread evenly over a run. Each block of them goes
// over the whole run.
func (v *victim) atMoments() {
	hits := 0
	for block := range killBlocks {
		length := v.duration()
		for i := block; i < killMoments; i += killBlocks {
			if v.atMoment(length * time.Duration(2*i+1) / (2 * killMoments)) {
				hits++
			}
		}
	}
	v.t.Logf("%d of %d moments hit a live process", hits, killMoments)
	if hits < killHits {
		v.t.Fatalf("want %d", killHits)
	}
}

func (v *victim) atMoment(moment time.Duration) bool {
	for range momentTries {
		state := copyState(v.t, v.prepared)
		due := time.After(moment) // as measured, starting a process included
		cmd := v.start(state)
		<-due
		alive := killed(v.t, cmd)
		v.check(state)
		if alive {
			return true
		}
	}
	return false
}

// atStep kills when a file appears in, or goes from, one of some folders. Both
// processes stand on one processor, and this one is served first: so it is
// there before the other has gone far.
func (v *victim) atStep(name string, folders ...string) {
	unpin := pin(v.t)
	defer unpin()
	for try := range stepTries {
		state := copyState(v.t, v.prepared)
		w := watch(v.t, state, folders)
		cmd := v.start(state, "nice", "-n", "10")
		w.wait()
		if killed(v.t, cmd) {
			v.t.Logf("%s: killed at try %d", name, try+1)
			v.check(state)
			return
		}
		remove(v.t, state)
	}
	v.t.Fatalf("%s: the process was never alive by then", name)
}

// pin keeps this goroutine, and the processes it starts, on one processor.
func pin(t *testing.T) (unpin func()) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range 8 * len(before) * int(unsafe.Sizeof(before[0])) {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	}
}

// watcher waits for a change in folders.
type watcher struct {
	t  *testing.T
	fd int
}

func watch(t *testing.T, state string, folders []string) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, pattern := range folders {
		found, err := filepath.Glob(filepath.Join(state, "origin", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("nothing to watch at %s: %v", pattern, err)
		}
		for _, dir := range found {
			if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &watcher{t, fd}
}

// wait returns at the first change. It waits in the kernel, since the way
// through the runtime's poller is longer than some steps.
func (w *watcher) wait() {
	w.t.Helper()
	defer unix.Close(w.fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(patience/time.Millisecond))
		if n > 0 {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			w.t.Fatalf("the step never came: %v", err)
		}
	}
}

// check looks at what a killed process has left, and at the next command.
func (v *victim) check(state string) {
	v.t.Helper()
	checkFiles(v.t, state)
	checkNames(v.t, state)
	v.after(state)
	checkFiles(v.t, state)
	checkNames(v.t, state)
	left, err := filesBelow(filepath.Join(state, "origin", ".tmp"))
	if err != nil || len(left) > 0 {
		v.t.Fatalf("left after the next command: %v, %v", left, err)
	}
	remove(v.t, state)
}

func remove(t *testing.T, state string) {
	t.Helper()
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
}

// checkFiles checks that every file with a final name is whole.
func checkFiles(t *testing.T, state string) {
	t.Helper()
	files, err := filesBelow(state)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		rel := strings.TrimPrefix(path, state+"/")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		base := filepath.Base(rel)
		switch parts := strings.Split(rel, "/"); {
		case rel == "keys/default", parts[1] == ".tmp", parts[1] == "names", parts[1] == "roots" && parts[3] == "state":
		case parts[1] == "roots" && parts[3] == "chunks":
			var name chunk.Name
			if name, err = chunk.ParseName(base); err == nil {
				err = chunk.Check(data, name)
			}
		case parts[1] == "roots" && (parts[3] == "manifests" || parts[3] == "recipes"):
			var s *manifest.Sealed
			if s, err = manifest.Parse(data); err == nil && parts[3] == "manifests" && s.ID().String() != base {
				err = errors.New("its id is not its name")
			}
		default:
			err = errors.New("what is that?")
		}
		if err != nil {
			t.Fatalf("%s: %v", rel, err)
		}
	}
}

// checkNames checks that every name means a whole image, and that keep is there.
func checkNames(t *testing.T, state string) {
	t.Helper()
	ctx := t.Context()
	o, err := origin.Open(ctx, "file://"+state+"/origin")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	key, err := keys.OpenExisting(ctx, "file://"+state+"/keys/default")
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	refs, err := catalog.New(o, "default", key).List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(refs, func(r catalog.Reference) bool { return r.Name == "keep" }) {
		t.Fatalf("the other image's name is gone: %v", refs)
	}
	for _, r := range refs {
		data, err := o.Manifests(r.Root, "default").Get(ctx, r.Image)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		s, err := manifest.Parse(data)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		m, err := s.Open(ctx, key)
		if err != nil {
			t.Fatalf("%s: %v", r.Name, err)
		}
		report, err := verify.Chunks(ctx, m, o.Chunks(r.Root), nil)
		if err != nil || len(report.Bad) > 0 {
			t.Fatalf("%s: %v, %v", r.Name, report.Bad, err)
		}
	}
}

// imageOf gives the id from convert --json.
func imageOf(t *testing.T, out string) string {
	t.Helper()
	var res struct{ Image string }
	if err := json.Unmarshal([]byte(out), &res); err != nil || res.Image == "" {
		t.Fatalf("%s: %v", out, err)
	}
	return res.Image
}

func TestKilledConvert(t *testing.T) {
	const chunkSize = "64KiB" // so that a run has many steps
	state, source := prepare(t, chunkSize)
	command := convertNew(source, chunkSize)
	want := undisturbed(t, state, command)
	v := &victim{t: t, prepared: state, args: command}
	v.after = func(state string) {
		t.Helper()
		if id := imageOf(t, must(t, append([]string{"--state", state}, command...)...)); id != want {
			t.Fatalf("the next conversion gave %s, undisturbed it is %s", id, want)
		}
	}
	v.atStep("a chunk", "roots/r1/chunks/*")
	v.atStep("a recipe", "roots/r1/recipes/default")
	v.atStep("the manifest", "roots/r1/manifests/default")
	v.atStep("the name", "names/default/app")
	v.atMoments()
}

func TestKilledRm(t *testing.T) {
	const chunkSize = "2MiB" // rm does not look at chunks
	state, source := prepare(t, chunkSize)
	image := imageOf(t, must(t, append([]string{"--state", state}, convertNew(source, chunkSize)...)...))
	v := &victim{t: t, prepared: state, args: []string{"rm", "app"}}
	v.after = func(state string) {
		t.Helper()
		listed := must(t, "--state", state, "images", "--json")
		switch {
		case strings.Contains(listed, `"name":"app"`):
			must(t, "--state", state, "rm", "app")
		case strings.Contains(listed, image):
			must(t, "--state", state, "rm", image)
		}
		if listed = must(t, "--state", state, "images", "--json"); strings.Contains(listed, image) || strings.Count(listed, "\n") != 1 {
			t.Fatalf("after the next rm: %s", listed)
		}
	}
	v.atStep("the name", "names/default/app")
	v.atStep("the manifest", "roots/r1/manifests/default")
	v.atMoments()
}
