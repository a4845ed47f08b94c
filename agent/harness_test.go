package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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

// program gives the agent's program, built as for users: what it does for all
// of its threads works without C only.
func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "thaw-agent")
	cmd := exec.Command("go", "build", "-o", path, "../cmd/thaw-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	return path
}

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
	log   *os.File
	ended sync.Once
	ready string
}

// startAgent starts an agent and waits for its word.
func startAgent(t *testing.T, setup func(w io.Writer, dir string) error) *jailed {
	t.Helper()
	a := &jailed{dir: t.TempDir()}
	for _, sub := range []string{"fuse", "jail", "cache", "fetch"} {
		if err := os.Mkdir(filepath.Join(a.dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fuse, err := mount.OpenFUSE(filepath.Join(a.dir, "fuse"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.end(t)
		if err := mount.DetachAll(a.dir); err != nil {
			t.Error(err)
		}
	})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(a.dir, "control"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	control, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	setupR, setupW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	readyR, readyW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if a.log, err = os.Create(filepath.Join(a.dir, "log")); err != nil {
		t.Fatal(err)
	}
	a.cmd = &exec.Cmd{
		Path: program(t), Args: []string{"thaw-agent", "test"}, Env: []string{}, Dir: "/", Stdout: a.log, Stderr: a.log,
		ExtraFiles: []*os.File{setupR, fuse, control, readyW},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid:     true,
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWPID,
		},
	}
	err = a.cmd.Start()
	for _, f := range []*os.File{setupR, fuse, control, readyW} {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(setupW, a.dir); err != nil {
		t.Error(err)
	}
	setupW.Close()
	a.ready, _ = bufio.NewReader(readyR).ReadString('\n')
	readyR.Close()
	return a
}

// end kills the agent.
func (a *jailed) end(t *testing.T) {
	a.ended.Do(func() {
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait() // the signal says it
		a.log.Close()
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
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: an agent is started by root")
	}
	a := startAgent(t, func(w io.Writer, dir string) error {
		s.fetch(t, dir+"/fetch", dir+"/cache")
		setup := &Setup{Image: "app", Root: "r1", Jail: dir + "/jail", Cache: dir + "/cache", Fetcher: dir + "/fetch", Deadline: patience, DataKey: bytes.Clone(s.dataKey), Manifest: s.sealed}
		change(setup)
		return setup.Send(w)
	})
	if a.ready != "ok\n" {
		log, _ := os.ReadFile(a.dir + "/log")
		t.Fatalf("the agent said %q; its log: %s", a.ready, log)
	}
	return a
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
