package host

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/agent"
	"thaw/cache"
	"thaw/chunk"
	"thaw/manifest"
)

// asFetcher is the test binary's first argument when it is a fetcher that has
// nothing but the cache; the cache's folder follows.
const asFetcher = "fetcher"

func fetch(folder string) error {
	leave := os.NewFile(FetcherLeave, "leave")
	if _, err := leave.Read(make([]byte, 1)); err != nil {
		return err
	}
	l, err := net.FileListener(os.NewFile(FetcherListener, "listener"))
	if err != nil {
		return err
	}
	f, err := cache.OpenFolder(folder, 1<<30)
	if err != nil {
		return err
	}
	return cache.NewFetcher(cache.FetcherOptions{Folder: f, Peers: []uint32{agent.UID}}).Serve(context.Background(), l)
}

// openKeeper is a manifest.Wrapper that keeps nothing secret.
type openKeeper struct{}

func (openKeeper) Wrap(_ context.Context, p []byte) ([]byte, error)   { return bytes.Clone(p), nil }
func (openKeeper) Unwrap(_ context.Context, p []byte) ([]byte, error) { return bytes.Clone(p), nil }

// ext4Image makes an image of an ext4 file system with one file, all of it in a
// cache.
func ext4Image(t *testing.T) (Fetcher, Image) {
	t.Helper()
	dir := t.TempDir()
	path := os.Getenv("PATH") + ":/usr/sbin:/sbin"
	t.Setenv("PATH", path)
	if err := errors.Join(os.Mkdir(dir+"/tree", 0o755), os.WriteFile(dir+"/tree/file", []byte("text"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-d", dir+"/tree", dir+"/device", "8M").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	device, err := os.ReadFile(dir + "/device")
	if err != nil {
		t.Fatal(err)
	}
	folder, err := cache.OpenFolder(dir+"/cache", 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	m := &manifest.Manifest{Kind: manifest.Image, Tenant: "default", Layout: 1, Size: int64(len(device)), ChunkSize: chunk.MinSize}
	for i := 0; i*chunk.MinSize < len(device); i++ {
		plain := device[i*chunk.MinSize : (i+1)*chunk.MinSize]
		if len(bytes.Trim(plain, "\x00")) == 0 {
			continue
		}
		c := chunk.Seal(chunk.Salt{}, plain)
		if _, _, err := folder.Fill(t.Context(), c.Name, len(c.Data), func(context.Context) ([]byte, error) { return c.Data, nil }); err != nil {
			t.Fatal(err)
		}
		m.Chunks = append(m.Chunks, manifest.Entry{Index: uint32(i), Size: uint32(len(c.Data)), Name: c.Name, Key: c.Key})
	}
	sealed, id, err := manifest.Seal(t.Context(), m, chunk.Salt{}, "test://key", openKeeper{})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := manifest.Parse(bytes.Clone(sealed))
	if err != nil {
		t.Fatal(err)
	}
	key, err := parsed.DataKey(t.Context(), openKeeper{})
	if err != nil {
		t.Fatal(err)
	}
	program := dir + "/thaw-agent"
	build := exec.Command("go", "build", "-o", program, "../cmd/thaw-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Fetcher{Origin: "none", Cache: dir + "/cache", Args: []string{self, asFetcher, dir + "/cache"}},
		Image{ID: id.String(), Name: "app", Root: "r1", Agent: program, Deadline: testPatience, Manifest: sealed, DataKey: key}
}

// openImage gives a host, and an image whose fetcher is in use.
func openImage(t *testing.T) (*Host, *Use, Image) {
	t.Helper()
	h := openTest(t)
	f, i := ext4Image(t)
	fetcher, err := h.UseFetcher(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return h, fetcher, i
}

// holds checks a file's content.
func holds(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s: %q, %v; want %q", path, got, err, want)
	}
}

// An image from its first use to its last, and what instances make of it.
func TestImage(t *testing.T) {
	h, fetcher, i := openImage(t)
	ctx := t.Context()
	first, err := h.UseImage(ctx, fetcher, i)
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.UseImage(ctx, fetcher, i)
	if err != nil {
		t.Fatal(err)
	}
	if !first.Made() || second.Made() {
		t.Errorf("made %v, %v", first.Made(), second.Made())
	}
	holds(t, h.Rootfs(first, false)+"/file", "text")
	var plain, mapped unix.Stat_t
	if err := errors.Join(unix.Stat(h.Rootfs(first, false)+"/file", &plain), unix.Stat(h.Rootfs(first, true)+"/file", &mapped)); err != nil || mapped.Uid != plain.Uid+1<<30 {
		t.Errorf("owners %d and %d, %v", plain.Uid, mapped.Uid, err)
	}
	one, err := h.NewInstance(KindRun, first, fetcher)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.MountOverlay(first); err != nil {
		t.Fatal(err)
	}
	two, err := h.NewInstance(KindRun, first, fetcher)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.MountWritable(ctx, first, two.Dir("rootfs"), true); err != nil {
		t.Fatal(err)
	}
	three, err := h.NewInstance(KindMount, first, fetcher)
	if err != nil {
		t.Fatal(err)
	}
	three.Target = t.TempDir()
	if err := errors.Join(three.Save(), three.BindTo(first, three.Target)); err != nil {
		t.Fatal(err)
	}
	if !three.Mounted() || one.Mounted() {
		t.Error("what is mounted where?")
	}
	for n, file := range []string{one.Dir("rootfs", "file"), two.Dir("rootfs", "file")} {
		if err := os.WriteFile(file, []byte{byte('a' + n)}, 0o644); err != nil && n == 0 {
			t.Fatal(err)
		}
	}
	holds(t, one.Dir("rootfs", "file"), "a")
	holds(t, three.Target+"/file", "text")
	holds(t, h.Rootfs(first, true)+"/file", "text")
	if err := errors.Join(one.End(ctx), two.End(ctx), three.End(ctx)); err != nil {
		t.Error(err)
	}
	if err := h.ReleaseImage(ctx, first); err != nil {
		t.Error(err)
	}
	holds(t, h.Rootfs(second, false)+"/file", "text")
	if err := errors.Join(h.ReleaseImage(ctx, second), h.ReleaseFetcher(ctx, fetcher)); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// Who is asked to end while an image is read cuts off the reads of nobody else.
func TestInterruptible(t *testing.T) {
	h, fetcher, i := openImage(t)
	use := func() *Use {
		u, err := h.UseImage(t.Context(), fetcher, i)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	first, second := use(), use()
	failed := errors.New("failed")
	if err := h.Interruptible(t.Context(), first, func() error { return failed }); err != failed {
		t.Errorf("nobody asked: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := h.Interruptible(ctx, first, func() error {
		cancel()
		return failed
	})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, failed) {
		t.Errorf("asked: %v", err)
	}
	holds(t, h.Rootfs(second, false)+"/file", "text")
	if err := h.ReleaseImage(t.Context(), first); err != nil {
		t.Error(err)
	}
	control := h.dir("images", second.key, "control")
	err = h.Interruptible(ctx, second, func() error {
		conn, err := agent.Dial(t.Context(), control)
		if err != nil {
			return nil // it has ended already
		}
		defer conn.Close()
		conn.Events(func(string) {}) // until it ends, since its file system is cut off
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the last user is asked: %v", err)
	}
	if err := errors.Join(h.ReleaseImage(t.Context(), second), h.ReleaseFetcher(t.Context(), fetcher)); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// An agent that was killed is made anew by the next user, and a fetcher by its
// users.
func TestImageAgain(t *testing.T) {
	h, fetcher, i := openImage(t)
	ctx := t.Context()
	first, err := h.UseImage(ctx, fetcher, i)
	if err != nil {
		t.Fatal(err)
	}
	var r imageRecord
	if err := readRecord(h.dir("images", first.key, "image.json"), &r); err != nil || !r.Process.alive() {
		t.Fatalf("%+v, %v", r, err)
	}
	end, err := h.AgentEnd(first)
	if err != nil || end == nil {
		t.Fatalf("%v, %v", end, err)
	}
	defer end.Close()
	if err := r.Process.signal(unix.SIGKILL); err != nil || !waitFd(ctx, int(end.Fd()), testPatience) {
		t.Fatalf("it does not end: %v", err)
	}
	if conn, err := h.Agent(ctx, first); err == nil {
		conn.Close()
		t.Error("a dead agent answers")
	}
	if err := h.fault(ctx, first.key); err != nil {
		t.Error(err)
	}
	second, err := h.UseImage(ctx, fetcher, i)
	if err != nil || !second.Made() {
		t.Fatalf("%v", err)
	}
	if err := h.ReleaseImage(ctx, first); err != nil { // of the dead one
		t.Error(err)
	}
	holds(t, h.Rootfs(second, false)+"/file", "text")
	var fr fetcherRecord
	if err := readRecord(h.dir("fetchers", fetcher.key, "fetcher.json"), &fr); err != nil {
		t.Fatal(err)
	}
	if err := fr.Process.end(ctx, 0); err != nil {
		t.Fatal(err)
	}
	watch, err := h.ReviveFetcher(ctx, fetcher)
	if err != nil || watch == nil || waitFd(ctx, int(watch.Fd()), 0) {
		t.Fatalf("%v, %v", watch, err)
	}
	watch.Close()
	if err := errors.Join(h.ReleaseImage(ctx, second), h.ReleaseFetcher(ctx, fetcher)); err != nil {
		t.Error(err)
	}
	h.empty(t)
}

// fetcherEnds waits until a fetcher has gone: its pipe ends a moment before it does.
func (h *Host) fetcherEnds(t *testing.T, u *Use) {
	t.Helper()
	var r fetcherRecord
	if err := readRecord(h.dir("fetchers", u.key, "fetcher.json"), &r); err != nil {
		t.Fatal(err)
	}
	ends(t, r.Process)
}

// An image that cannot be mounted says why, and leaves nothing.
func TestImageFails(t *testing.T) {
	h, fetcher, good := openImage(t)
	ctx := t.Context()
	for name, c := range map[string]struct {
		change func(i *Image)
		want   string
	}{
		"a wrong key":   {func(i *Image) { i.DataKey = make([]byte, 32) }, `^mounting image app: starting the agent: manifest`},
		"no manifest":   {func(i *Image) { i.Manifest = nil }, `^mounting image app: starting the agent: manifest`},
		"no agent":      {func(i *Image) { i.Agent = "/no/agent" }, `^mounting image app: starting the agent: .*/no/agent`},
		"another agent": {func(i *Image) { i.Agent = "/bin/true" }, `^mounting image app: starting the agent: .*ended`},
	} {
		i := good
		i.Manifest, i.DataKey = bytes.Clone(i.Manifest), bytes.Clone(i.DataKey)
		c.change(&i)
		_, err := h.UseImage(ctx, fetcher, i)
		if err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) {
			t.Errorf("%s: %v", name, err)
		}
		if items, err := os.ReadDir(h.dir("images")); err != nil || len(items) > 0 {
			t.Errorf("%s: left %v, %v", name, items, err)
		}
	}
	fails, err := h.Fetcher(fetcher)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(fails.Cache, "chunks")); err != nil {
		t.Fatal(err)
	}
	none := fails
	none.Cache = "/no/cache"
	fails.Zone, fails.Args = "another", []string{"/bin/sh", "-c", "read word <&4; echo thaw: no luck today >&2"}
	ended, err := h.UseFetcher(ctx, fails)
	if err != nil {
		t.Fatal(err)
	}
	cacheless, err := h.UseFetcher(ctx, none)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.UseImage(ctx, cacheless, good); err == nil || !strings.HasPrefix(err.Error(), "mounting image app: starting the agent: entering the jail: ") || !strings.Contains(err.Error(), "/no/cache") {
		t.Errorf("no cache: %v", err)
	}
	if err := h.ReleaseFetcher(ctx, cacheless); err != nil {
		t.Error(err)
	}
	if _, err := h.UseImage(ctx, ended, good); !errors.Is(err, errFetcherEnded) || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("no fetcher: %v", err)
	}
	h.fetcherEnds(t, ended)
	if f, err := h.ReviveFetcher(ctx, ended); err == nil || !strings.Contains(err.Error(), "ended: no luck today") {
		t.Errorf("no fetcher again: %v, %v", f, err)
	} else if f != nil {
		_ = f.Close()
	}
	if err := h.ReleaseFetcher(ctx, ended); err != nil {
		t.Error(err)
	}
	good.Deadline = imageDeadline
	if _, err := h.UseImage(ctx, fetcher, good); err == nil || !strings.Contains(err.Error(), "image app: read of image: ") {
		t.Errorf("no chunks: %v", err)
	}
	if err := h.ReleaseFetcher(ctx, fetcher); err != nil {
		t.Error(err)
	}
	h.empty(t)
}
