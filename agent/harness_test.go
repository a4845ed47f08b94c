package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/manifest"
	"thaw/mount"
)

// folder is where the agent's program is, for all tests.
var folder string

func TestMain(m *testing.M) {
	var err error
	if folder, err = os.MkdirTemp("", "thaw-agent-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(code)
}

// program gives the agent's program, built as for users: what it does for all
// of its threads works without C only.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(folder, "thaw-agent")
	cmd := exec.Command("go", "build", "-o", path, "../cmd/thaw-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the agent: %w\n%s", err, out)
	}
	return path, nil
})

// patience bounds every wait.
const patience = 3 * time.Minute

// keeper is a manifest.Wrapper that keeps nothing secret.
type keeper struct{}

func (keeper) Wrap(_ context.Context, p []byte) ([]byte, error)   { return bytes.Clone(p), nil }
func (keeper) Unwrap(_ context.Context, p []byte) ([]byte, error) { return bytes.Clone(p), nil }

// sample is an image of a few chunks.
type sample struct {
	manifest *manifest.Manifest
	bytes    []byte // of the device
	store    *chunktest.Memory
	sealed   []byte
	dataKey  []byte
}

func newSample(t *testing.T) *sample {
	t.Helper()
	const chunks = 4
	s := &sample{store: new(chunktest.Memory), manifest: &manifest.Manifest{
		Kind: manifest.Image, Tenant: "default", Layout: 1, Size: (chunks + 1) * chunk.MinSize, ChunkSize: chunk.MinSize,
	}}
	s.bytes = make([]byte, s.manifest.Size)
	for i := range chunks {
		plain := s.bytes[i*chunk.MinSize : (i+1)*chunk.MinSize]
		for j := range plain {
			plain[j] = byte(i + 1 + j/100)
		}
		c := chunk.Seal(chunk.Salt{}, bytes.Clone(plain)) // it seals in place
		if _, err := s.store.Put(t.Context(), c.Name, c.Data); err != nil {
			t.Fatal(err)
		}
		s.manifest.Chunks = append(s.manifest.Chunks, manifest.Entry{Index: uint32(i), Size: uint32(len(c.Data)), Name: c.Name, Key: c.Key})
	}
	var err error
	s.sealed, _, err = manifest.Seal(t.Context(), s.manifest, chunk.Salt{}, "test://key", keeper{})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(bytes.Clone(s.sealed))
	if err == nil {
		s.dataKey, err = parsed.DataKey(t.Context(), keeper{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fetch serves the sample's chunks at a socket in dir, until the test ends.
func (s *sample) fetch(t *testing.T, dir, folder string) {
	t.Helper()
	f, err := cache.OpenFolder(folder, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err == nil {
		err = os.Chmod(filepath.Join(dir, SocketName), 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	fetcher := cache.NewFetcher(cache.FetcherOptions{Folder: f, Peers: []uint32{UID}, Upstreams: []cache.Upstream{
		{Tier: cache.Origin, Source: func(string) (chunk.Source, error) { return s.store, nil }},
	}})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() {
		if err := fetcher.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); work.Wait() })
}

// jailed is an agent that runs, as package host starts it.
type jailed struct {
	dir   string // fuse/, control
	cmd   *exec.Cmd
	link  *Link
	files Files // until it has them
	ended sync.Once
}

// startAgent starts an agent on a folder and its caches, and gives it with what
// keeps it from its jail.
func startAgent(t *testing.T, dir, cache, fetcher string) (*jailed, error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: an agent is started by root")
	}
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	link, theirs, err := NewLink()
	if err != nil {
		t.Fatal(err)
	}
	a := &jailed{dir: dir, link: link, cmd: &exec.Cmd{
		Path: path, Args: []string{"thaw-agent", dir + "/jail", cache, fetcher}, Env: []string{}, Dir: "/", ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		},
	}}
	t.Cleanup(func() {
		a.end()
		if err := mount.DetachAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, sub := range []string{"fuse", "jail", "cache", "fetch"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err = a.cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	return a, link.Jailed(t.Context())
}

// blank starts an agent and makes the files of an image.
func blank(t *testing.T) *jailed {
	t.Helper()
	dir := t.TempDir()
	a, err := startAgent(t, dir, dir+"/cache", dir+"/fetch")
	if err != nil {
		t.Fatal(err)
	}
	if a.files.FUSE, err = mount.OpenFUSE(filepath.Join(a.dir, "fuse")); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(a.dir, "control"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	if a.files.Control, err = l.File(); err != nil {
		t.Fatal(err)
	}
	if a.files.Log, err = os.Create(filepath.Join(a.dir, "log")); err != nil {
		t.Fatal(err)
	}
	return a
}

// give makes it an image's.
func (a *jailed) give(t *testing.T, setup *Setup) error {
	defer a.files.close()
	return a.link.Give(t.Context(), a.files, setup)
}

func (f *Files) close() {
	for _, f := range []*os.File{f.FUSE, f.Control, f.Log} {
		_ = f.Close() // twice does nothing
	}
}

// end kills the agent.
func (a *jailed) end() {
	a.ended.Do(func() {
		_ = a.link.Close()
		a.files.close()
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait() // the signal says it
	})
}

// serves starts an agent that serves the sample.
func serves(t *testing.T, s *sample, deadline time.Duration) *jailed {
	t.Helper()
	return servesWith(t, s, func(setup *Setup) { setup.Deadline = deadline })
}

// servesWith is serves with a setup that is changed.
func servesWith(t *testing.T, s *sample, change func(*Setup)) *jailed {
	t.Helper()
	a := blank(t)
	s.fetch(t, a.dir+"/fetch", a.dir+"/cache")
	setup := s.setup()
	change(setup)
	if err := a.give(t, setup); err != nil {
		log, _ := os.ReadFile(a.dir + "/log")
		t.Fatalf("%v; its log: %s", err, log)
	}
	return a
}

func (s *sample) setup() *Setup {
	return &Setup{Image: "app", Root: "r1", Deadline: patience, DataKey: bytes.Clone(s.dataKey), Manifest: bytes.Clone(s.sealed)}
}

func (a *jailed) proc(name string) string { return fmt.Sprintf("/proc/%d/%s", a.cmd.Process.Pid, name) }

func (a *jailed) dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), a.dir+"/control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}
