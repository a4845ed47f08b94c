package worker

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/agent"
	"thaw/cache"
	"thaw/chunk"
	"thaw/host"
	"thaw/invokewire"
	"thaw/manifest"
)

// patience bounds every wait.
const patience = 3 * time.Minute

// What the test binary is when its first argument says so.
const (
	asFetcher = "thaw-worker-test-fetcher" // a fetcher that has nothing but the cache; the cache's folder follows
	asRemote  = "thaw-worker-test-remote"  // a fetcher whose origin is another cache's folder; both folders follow
	asWorker  = "thaw-worker-test-worker"  // a worker of its own, to be killed; a rig's folder and a runtime follow
)

func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == asFetcher:
		err = fetch(os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == asRemote:
		err = fetch(os.Args[2], cache.Upstream{Tier: cache.Origin, Source: func(string) (chunk.Source, error) { return chunksIn(os.Args[3]), nil }})
	case len(os.Args) == 4 && os.Args[1] == asWorker:
		err = work(os.Args[2], os.Args[3])
	default:
		code := m.Run()
		if parts != "" {
			_ = os.RemoveAll(parts)
		}
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// chunksIn is a cache's folder as a chunk.Source.
type chunksIn string

func (dir chunksIn) Get(_ context.Context, name chunk.Name) ([]byte, error) {
	return os.ReadFile(filepath.Join(string(dir), "chunks", name.String()[:2], name.String()))
}

func fetch(folder string, upstreams ...cache.Upstream) error {
	if _, err := os.NewFile(host.FetcherLeave, "leave").Read(make([]byte, 1)); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(host.FetcherListener, "listener"))
	if err != nil {
		return err
	}
	f, err := cache.OpenFolder(folder, 1<<30)
	if err != nil {
		return err
	}
	return cache.NewFetcher(cache.FetcherOptions{Folder: f, Upstreams: upstreams, Peers: []uint32{agent.UID}}).Serve(context.Background(), l)
}

var (
	partsOnce sync.Once
	parts     string // folder with the programs and the image that all tests share
	partsErr  error
)

// config is the image's.
const config = `{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/function"],"Env":["FROM_IMAGE=1"],"WorkingDir":"/"}}`

// openKeeper is a manifest.Wrapper that keeps nothing secret.
type openKeeper struct{}

func (openKeeper) Wrap(_ context.Context, p []byte) ([]byte, error)   { return bytes.Clone(p), nil }
func (openKeeper) Unwrap(_ context.Context, p []byte) ([]byte, error) { return bytes.Clone(p), nil }

// makeParts builds the programs, and an image of the sample function whose chunks
// are all in a cache.
func makeParts() error {
	dir, err := os.MkdirTemp("", "thaw-worker-test-")
	if err != nil {
		return err
	}
	parts = dir
	tree := filepath.Join(dir, "tree")
	for _, d := range []string{"tree", "tree/etc", "tree/var", "tree/var/task", "cache"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for to, from := range map[string]string{"thaw-agent": "../cmd/thaw-agent", "thaw-init": "../cmd/thaw-init", "tree/function": "../corpus/functions/go"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, to), from)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", from, err, out)
		}
	}
	device := filepath.Join(dir, "device")
	mkfs := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-d", tree, device, "32M")
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return sealDevice(dir, device)
}

func sealDevice(dir, name string) error {
	device, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	folder, err := cache.OpenFolder(filepath.Join(dir, "cache"), 1<<30)
	if err != nil {
		return err
	}
	m := &manifest.Manifest{Kind: manifest.Image, Tenant: "default", Layout: 1, Size: int64(len(device)), ChunkSize: chunk.MinSize, Config: []byte(config)}
	for i := 0; i*chunk.MinSize < len(device); i++ {
		plain := device[i*chunk.MinSize : (i+1)*chunk.MinSize]
		if len(bytes.Trim(plain, "\x00")) == 0 {
			continue
		}
		c := chunk.Seal(chunk.Salt{}, plain)
		if _, _, err := folder.Fill(context.Background(), c.Name, len(c.Data), func(context.Context) ([]byte, error) { return c.Data, nil }); err != nil {
			return err
		}
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(i), Size: uint32(len(c.Data)), Name: c.Name, Key: c.Key})
	}
	sealed, id, err := manifest.Seal(context.Background(), m, chunk.Salt{}, "test://key", openKeeper{})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, "manifest"), sealed, 0o600), os.WriteFile(filepath.Join(dir, "id"), []byte(id.String()), 0o600))
}

// imageOf finds the image that the tests share.
func imageOf(dir string) (host.Image, []byte, error) {
	id, err := os.ReadFile(filepath.Join(dir, "id"))
	if err != nil {
		return host.Image{}, nil, err
	}
	sealed, err := os.ReadFile(filepath.Join(dir, "manifest"))
	if err != nil {
		return host.Image{}, nil, err
	}
	parsed, err := manifest.Parse(bytes.Clone(sealed))
	if err != nil {
		return host.Image{}, nil, err
	}
	key, err := parsed.DataKey(context.Background(), openKeeper{})
	return host.Image{
		ID: string(id), Name: "function", Root: "r1",
		Deadline: patience, Manifest: sealed, DataKey: key,
	}, []byte(config), err
}

// options are those of a worker on a state folder.
func options(dir, state, runtime string) (Options, error) {
	self, err := os.Executable()
	if err != nil {
		return Options{}, err
	}
	h, err := host.Open(state)
	if err != nil {
		return Options{}, err
	}
	return Options{
		ID: "w1", Address: "127.0.0.1:1", State: state, Token: "token", Host: h, Init: filepath.Join(dir, "thaw-init"), Agent: filepath.Join(dir, "thaw-agent"), Runtime: runtime, Slots: 1,
		Fetcher: func(ctx context.Context) (*host.Use, error) {
			return h.UseFetcher(ctx, host.Fetcher{Origin: "none", Cache: filepath.Join(dir, "cache"), Args: []string{self, asFetcher, filepath.Join(dir, "cache")}})
		},
		Image: func(_ context.Context, _, id, _ string) (host.Image, []byte, error) {
			if id == "missing" {
				return host.Image{}, nil, ErrNoImage
			}
			return imageOf(dir)
		},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, nil
}

// rig is a worker that runs, and what asks it.
type rig struct {
	t      testing.TB
	state  string
	w      *Worker
	url    string
	client *http.Client
	stop   func() error // ends the worker; once
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: instances are run by root")
	}
	if _, err := os.Stat("../cmd/thaw-init"); err != nil {
		t.Skip("NOT TESTED: there is no thaw-init yet")
	}
	partsOnce.Do(func() { partsErr = makeParts() })
	if partsErr != nil {
		t.Fatal(partsErr)
	}
}

// newRig runs a worker for the time of a test, after which nothing of it may be
// left.
func newRig(t testing.TB, change func(*Options)) *rig {
	t.Helper()
	needRoot(t)
	state := filepath.Join(t.TempDir(), "state")
	o, err := options(parts, state, "")
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&o)
	}
	return runRig(t, state, o)
}

func runRig(t testing.TB, state string, o Options) *rig {
	t.Helper()
	w, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.limits = limits{init: patience, reset: patience, internal: patience, external: patience, stream: streamRate} // this machine may be slow
	server := httptest.NewServer(w.Handler())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	// As frontends have it: net/http reads trailers from one buffer, and the log's tail alone takes 5.5 KiB.
	client := &http.Client{Transport: &http.Transport{ReadBufferSize: 16 << 10}}
	r := &rig{t: t, state: state, w: w, url: server.URL, client: client}
	r.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ended
		server.Close()
		return err
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
		if err := o.Host.Remove(context.Background()); err != nil {
			t.Error(err)
		}
	})
	r.until("the worker takes starts", func() bool { return !r.w.state(false).Draining })
	return r
}

// until polls.
func (r *rig) until(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !is(); {
		if time.Now().After(end) {
			r.t.Fatalf("not in time: %s", what)
		}
		wait, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		<-wait.Done()
		cancel()
	}
}

// spec is a function's.
func spec(change func(*invokewire.Spec)) invokewire.Spec {
	s := invokewire.Spec{
		Account: "000000000000", Tenant: "default", Function: "f", Version: "$LATEST", ARN: "arn:aws:lambda:us-east-1:000000000000:function:f", Revision: "1",
		Image: "image", Root: "r1", Memory: 512, Tmp: slotTmp, Timeout: patience, LogGroup: "/aws/lambda/f", Region: "us-east-1",
		Env: map[string]string{},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func (r *rig) do(method, path string, body any) *http.Response {
	r.t.Helper()
	data, ok := body.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(body); err != nil {
			r.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(method, r.url+path, bytes.NewReader(data))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set(invokewire.HeaderToken, "token")
	return r.send(req)
}

func (r *rig) send(req *http.Request) *http.Response {
	r.t.Helper()
	resp, err := r.client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

// start has an instance started.
func (r *rig) start(id, force string, s invokewire.Spec) {
	r.t.Helper()
	resp := r.do("POST", "/instances", invokewire.Start{ID: id, Spec: s, Force: force})
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
		r.t.Fatalf("start: %s %s", resp.Status, text)
	}
}

// gate keeps a function that reads the file "/tmp/gate" of an instance that has
// started until the test opens it, which waits for the function to be there.
func (r *rig) gate(id string) (open func()) {
	r.t.Helper()
	i := r.w.find(id)
	<-i.ready
	if i.failed != nil {
		r.t.Fatal(i.failed)
	}
	name := filepath.Join(r.tmp(id), "gate")
	if err := errors.Join(unix.Mkfifo(name, 0o666), os.Chmod(name, 0o666)); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		r.t.Helper()
		r.until("the function is at the gate", func() bool {
			f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0) // nobody reads: ENXIO
			if err == nil {
				_ = f.Close()
			}
			return err == nil
		})
	}
}

// gated is what the function does that reads it.
const gated = `"files":["/tmp/gate"]`

// limit gives an idle instance's next invokes so much time.
func (r *rig) limit(id string, timeout time.Duration) {
	i := r.w.find(id)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.spec.Timeout = timeout
}

// said is an answer to an invoke, whole.
type said struct {
	status         int
	body, failed   string
	tail           string
	kind, stream   string
	billed         string
	trailingFailed string
	cut            error // of an answer that is none
}

// invoke calls an instance.
func (r *rig) invoke(id, request, event string) said {
	r.t.Helper()
	req, err := http.NewRequest("POST", r.url+"/instances/"+id+"/invoke", strings.NewReader(event))
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range map[string]string{
		invokewire.HeaderToken: "token", invokewire.HeaderRequestID: request, invokewire.HeaderLogType: "Tail",
		invokewire.HeaderARN: "arn:aws:lambda:us-east-1:000000000000:function:f:live",
	} {
		req.Header.Set(k, v)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return said{cut: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return said{cut: err}
	}
	tail, err := base64.StdEncoding.DecodeString(resp.Trailer.Get(invokewire.HeaderLogTail))
	if err != nil {
		r.t.Fatal(err)
	}
	return said{
		resp.StatusCode, string(body), resp.Header.Get(invokewire.HeaderFunctionError), string(tail), resp.Trailer.Get(invokewire.HeaderStart),
		resp.Trailer.Get(invokewire.HeaderStream), resp.Trailer.Get(invokewire.HeaderBilled), resp.Trailer.Get(invokewire.HeaderErrorBody), nil,
	}
}
