package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"thaw/convert"
	"thaw/functions"
	"thaw/internal/testoci"
	"thaw/keys"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
	"thaw/registry"
)

func digestOfBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// world is Images over an origin in a folder.
type world struct {
	*Images
	t    *testing.T
	conv *convert.Converter
	zips map[string][]byte

	mu   sync.Mutex // guards last
	last *convert.Result
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	o, err := origin.Open(t.Context(), "file://"+dir+"/origin")
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Open(t.Context(), "file://"+dir+"/keys/default")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.Close(), key.Close()); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, zips: map[string][]byte{}, conv: &convert.Converter{Origin: o, Tenant: "default", Keeper: key, KeyURL: key.URL()}}
	w.Images = &Images{
		Scratch: t.TempDir(),
		Local:   func(a string) bool { return a == account },
		Convert: func(ctx context.Context, _ string, o convert.Options) (*convert.Result, error) {
			res, err := w.conv.Convert(ctx, o)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.last = res
			return res, err
		},
		Zip: func(_ context.Context, _, key string) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(w.zips[key])), nil
		},
	}
	return w
}

func job(change func(*functions.Version)) *Job {
	j := &Job{ID: functions.ID{Account: account, Name: "f"}, Build: "b"}
	change(&j.Version)
	return j
}

func image(uri string) *Job {
	return job(func(v *functions.Version) { v.Package.ImageURI = uri })
}

// config opens the manifest of a device and gives the image's config.
func (w *world) config(image string) (c struct {
	Config struct {
		Entrypoint, Cmd, Env []string
		WorkingDir           string
	}
}) {
	w.t.Helper()
	data, err := w.conv.Origin.Manifests("r1", "default").Get(w.t.Context(), image)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := manifest.Parse(data)
	if err != nil {
		w.t.Fatal(err)
	}
	m, err := s.Open(w.t.Context(), w.conv.Keeper)
	if err == nil {
		err = json.Unmarshal(m.Config, &c)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) refused(j *Job, code, says string) {
	w.t.Helper()
	_, err := w.Build(w.t.Context(), j)
	var no *Refusal
	if !errors.As(err, &no) || no.Code != code || !strings.Contains(no.Reason, says) || strings.Contains(no.Reason, "\n") {
		w.t.Errorf("%+v: %v, want %s with %q", j.Version.Package, err, code, says)
	}
}

// forHere makes a random image one of this machine's platform.
func forHere(t *testing.T, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(10_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", arch
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// tarImage is an image whose layers can be flattened, for random ones cannot.
func tarImage(t *testing.T, arch string) v1.Image {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(testoci.Tar(t, testoci.File("f", testoci.Noise(7, 5000))))), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(forHere(t, arch), l)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// inside starts the registry of thaw up, and pushes images to it.
func inside(t *testing.T, o registry.Options, images map[string]v1.Image) (host string) {
	t.Helper()
	h, err := registry.New(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	for repo, img := range images {
		ref, err := name.ParseReference(s.Listener.Addr().String() + "/" + repo)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	if o.Allow == nil {
		return s.Listener.Addr().String()
	}
	guarded := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); !o.Allow(user, password, "", false) {
			w.Header().Set("Www-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(guarded.Close)
	return guarded.Listener.Addr().String()
}

func TestImageOfTheRegistryInside(t *testing.T) {
	w := newWorld(t)
	img, other := tarImage(t, runtime.GOARCH), tarImage(t, "arm64")
	host := inside(t, registry.Options{}, map[string]v1.Image{"team/app:v1": img, "other:v1": other})
	_, port, err := net.SplitHostPort(host)
	if err != nil {
		t.Fatal(err)
	}
	w.PlainHTTP = []string{host}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	j := image("localhost:" + port + "/team/app:v1")
	var said []string
	r, err := w.Build(t.Context(), j)
	if err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	said = append(said, j.said)
	j.mu.Unlock()
	if r.CodeSha256 != digest.Hex || r.CodeSize < 20_000 || r.Root != "r1" || len(r.Image) != 64 ||
		r.ResolvedURI != "localhost:"+port+"/team/app@"+digest.String() || w.last.Name != j.Reference(j.Build) {
		t.Errorf("got %+v", r)
	}
	if !strings.HasPrefix(said[0], "Converting the image: 100 %, layer 3 of 3") {
		t.Errorf("said %q", said)
	}
	// Who goes on keeps to what the tag meant.
	again := image("localhost:" + port + "/team/app:gone")
	again.Version.Package.ResolvedURI = r.ResolvedURI
	if r2, err := w.Build(t.Context(), again); err != nil || r2.Image != r.Image {
		t.Errorf("%+v, %v", r2, err)
	}
	w.refused(image(host+"/other:v1"), InvalidImage, "no image for linux/amd64, there is one for linux/arm64")
	w.refused(image(host+"/team/app:v9"), ImageDeleted, "team/app")
	w.refused(image(host+"/none:v1"), ImageDeleted, "none")
	w.refused(job(func(v *functions.Version) { v.Architecture, v.Package.ImageURI = "arm64", host+"/team/app:v1" }), InvalidImage, "this region's workers are x86_64")
	w.refused(job(func(*functions.Version) {}), InvalidImage, "neither")
	// No try more would help.
	w.refused(image("/srv/images/app"), InvalidImage, "is a path")
	w.refused(image("user:password@"+host+"/team/app:v1"), InvalidImage, "does not take a user")
	w.refused(image("No Such Thing"), InvalidImage, "no reference such as")
}

// TestConfigurationAlone converts nothing.
func TestConfigurationAlone(t *testing.T) {
	w := newWorld(t)
	j := image("registry.test/never/asked:v1")
	j.Version.Package.Image, j.Version.Package.Root = "id", "r7"
	if r, err := w.Build(t.Context(), j); err != nil || r.Image != "id" || r.Root != "r7" || r.CodeSha256 != "" {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestCredentialsOfTheAccount(t *testing.T) {
	w := newWorld(t)
	host := inside(t, registry.Options{Allow: func(user, password, _ string, _ bool) bool { return user == "u" && password == "secret" }},
		map[string]v1.Image{"app:v1": tarImage(t, runtime.GOARCH)})
	w.PlainHTTP = []string{host}
	w.refused(image(host+"/app:v1"), AccessDenied, host)
	w.Login = func(_ context.Context, a, registry string) (string, string, error) {
		if a != account || registry != host {
			t.Errorf("asked for %s of %s", registry, a)
		}
		return "u", "secret", nil
	}
	if _, err := w.Build(t.Context(), image(host+"/app:v1")); err != nil {
		t.Error(err)
	}
}

func TestLocalImages(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "layout")
	source := testoci.Layout(t, dir, nil, testoci.Tar(t, testoci.File("f", []byte("x"))))
	r, err := w.Build(t.Context(), image(source))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(r.ResolvedURI, source+"@sha256:") {
		t.Errorf("got %+v", r)
	}
	again := image(source)
	again.Version.Package.ResolvedURI = r.ResolvedURI
	if r2, err := w.Build(t.Context(), again); err != nil || r2.Image != r.Image {
		t.Errorf("%+v, %v", r2, err)
	}
	w.refused(image("oci:relative"), InvalidImage, "absolute")
	w.refused(image("oci:"+dir+"/nothing"), ImageDeleted, "nothing")
	stranger := image(source)
	stranger.Account = "111111111111"
	w.refused(stranger, AccessDenied, "are not for account 111111111111")
	left, err := os.ReadDir(w.Scratch)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDockerDaemon has a daemon's socket that gives what docker save gives.
func TestDockerDaemon(t *testing.T) {
	w := newWorld(t)
	w.DockerSocket = filepath.Join(t.TempDir(), "docker.sock")
	w.refused(image("docker-daemon:app:v1"), ImageDeleted, "No docker daemon listens")
	l, err := net.Listen("unix", w.DockerSocket)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("app:v1")
	if err != nil {
		t.Fatal(err)
	}
	img := tarImage(t, runtime.GOARCH)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/images/app:v1/get":
			if err := tarball.Write(tag, img, w); err != nil {
				t.Error(err)
			}
		case "/images/broken/get":
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, `{"message":"no\nspace"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	defer func() {
		s.Close()
		<-served
	}()
	r, err := w.Build(t.Context(), image("docker-daemon:app:v1"))
	if err != nil {
		t.Fatal(err)
	}
	if config, err := img.ConfigName(); err != nil || r.ResolvedURI != "docker-daemon:app:v1@"+config.String() || r.CodeSha256 != config.Hex {
		t.Errorf("got %+v, %v", r, err)
	}
	w.refused(image("docker-daemon:other"), ImageDeleted, `no image "other"`)
	if _, err := w.Build(t.Context(), image("docker-daemon:broken")); err == nil || !strings.Contains(err.Error(), "500") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
}

func pkg(key, runtime string) *Job {
	return job(func(v *functions.Version) { v.Package.Zip, v.Runtime, v.Handler = key, runtime, "app.handler" })
}

func TestZipPackages(t *testing.T) {
	w := newWorld(t)
	base := testoci.Layout(t, filepath.Join(t.TempDir(), "python"), []string{"PATH=/python", "X=y"}, testoci.Tar(t, testoci.File("python", testoci.Noise(1, 100_000))))
	w.Runtimes = Runtimes{"python3.13": base, "python3.12": "oci:/nowhere"}
	w.zips["go"] = zipped(t, "bootstrap", "program")
	w.zips["py"] = zipped(t, "app.py", "def handler")
	w.zips["bad"] = []byte("PK")

	r, err := w.Build(t.Context(), pkg("go", "provided.al2023"))
	if err != nil {
		t.Fatal(err)
	}
	c := w.config(r.Image).Config
	if fmt.Sprint(c.Entrypoint) != "[/var/task/bootstrap]" || c.Cmd != nil || c.WorkingDir != "/var/task" || !slices.Contains(c.Env, "LAMBDA_TASK_ROOT=/var/task") {
		t.Errorf("config %+v", c)
	}
	if r.CodeSha256 != "" || r.ResolvedURI != "" {
		t.Errorf("got %+v", r)
	}
	r, err = w.Build(t.Context(), pkg("py", "python3.13"))
	if err != nil {
		t.Fatal(err)
	}
	c = w.config(r.Image).Config
	if c.Entrypoint != nil || fmt.Sprint(c.Cmd) != "[app.handler]" || !slices.Contains(c.Env, "PATH=/python") || !slices.Contains(c.Env, "X=y") {
		t.Errorf("config %+v", c)
	}
	w.refused(pkg("py", "ruby3.4"), InvalidImage, `"ruby3.4" is not mapped to a base image (runtimes.toml; there are python3.12, python3.13)`)
	w.refused(pkg("py", "provided.al2023"), InvalidImage, "no file bootstrap")
	w.refused(pkg("bad", "python3.13"), InvalidImage, "no whole zip")
	w.refused(pkg("py", "python3.12"), InternalError, "the base image of runtime python3.12 (runtimes.toml): oci: oci:/nowhere: no such folder") // the operator's mistake, and no user's
}

// TestZipsShareChunks is the measured answer to "are zips cached the same way?":
// two packages that differ in one file of many.
func TestZipsShareChunks(t *testing.T) {
	w := newWorld(t)
	files := []string{"bootstrap", string(testoci.Noise(1, 6<<20))}
	for i := range 200 {
		files = append(files, fmt.Sprintf("lib/dependency%03d", i), string(testoci.Noise(uint64(2+i), 40_000)))
	}
	w.zips["v1"] = zipped(t, append(slices.Clone(files), "app.py", "first")...)
	files[81] = string(testoci.Noise(999, 40_500)) // one dependency is another
	w.zips["v2"] = zipped(t, append(slices.Clone(files), "app.py", "second", "more.py", "third")...)
	if _, err := w.Build(t.Context(), pkg("v1", "provided.al2023")); err != nil {
		t.Fatal(err)
	}
	first := *w.last
	if _, err := w.Build(t.Context(), pkg("v2", "provided.al2023")); err != nil {
		t.Fatal(err)
	}
	second := *w.last
	t.Logf("a package of %d MB has %d chunks with data; of the next version's %d, %d are shared, %.0f %%",
		len(w.zips["v1"])/1_000_000, first.Chunks.New+first.Chunks.Stored, second.Chunks.New+second.Chunks.Stored, second.Chunks.Stored,
		100*float64(second.Chunks.Stored)/float64(second.Chunks.New+second.Chunks.Stored))
	if second.Chunks.Stored < 3*second.Chunks.New {
		t.Errorf("%d chunks are new and %d shared", second.Chunks.New, second.Chunks.Stored)
	}
	// The same files in a package made otherwise are the same device.
	w.zips["v3"] = append([]byte(nil), w.zips["v2"]...)
	if r, err := w.Build(t.Context(), pkg("v3", "provided.al2023")); err != nil || r.Image != second.Image || w.last.Bytes.Read != 0 {
		t.Errorf("%+v, %v, read %d", r, err, w.last.Bytes.Read)
	}
}

func TestWithDigest(t *testing.T) {
	for uri, want := range map[string]string{
		"app": "app@D", "app:v1": "app@D", "host:5000/app": "host:5000/app@D", "host:5000/team/app:v1": "host:5000/team/app@D",
		"host/app:v1@sha256:00": "host/app@D", "oci:/dir:v1": "oci:/dir:v1@D", "docker-daemon:app:v1": "docker-daemon:app:v1@D",
	} {
		if got := withDigest(uri, "D"); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}

func TestPlainHTTPIsForKnownRegistries(t *testing.T) {
	m := &Images{PlainHTTP: []string{"127.0.0.1:5000", "registry.test:80"}}
	for uri, want := range map[string]bool{
		"localhost:5000/app": true, "127.0.0.1:5000/app:v1": true, "docker://[::1]:5000/app": true, "registry.test:80/x": true,
		"localhost:5001/app": false, "app:v1": false, "registry.test/x": false, "10.0.0.1:5000/x": false, "localhost.evil:5000/x": false,
	} {
		if got := m.plainHTTP(uri); got != want {
			t.Errorf("%s: %v", uri, got)
		}
	}
}

func TestProgress(t *testing.T) {
	var said []string
	p := &progress{report: func(s string) { said = append(said, s) }}
	p.Layers([]oci.Layer{{Size: 100}, {Size: 300}, {Size: -1}})
	p.Read(0, 50)
	p.Read(0, 1)
	p.Done(0, false)
	p.Done(1, true)
	p.Done(2, true)
	want := []string{"0 %, layer 1 of 3", "12 %, layer 1 of 3", "25 %, layer 2 of 3", "100 %, layer 3 of 3", "100 %, layer 3 of 3"}
	if len(said) != len(want) {
		t.Fatalf("said %q", said)
	}
	for i := range want {
		if said[i] != "Converting the image: "+want[i]+"." {
			t.Errorf("said %q, want %q", said[i], want[i])
		}
	}
}

func TestLoadRuntimes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "runtimes.toml")
	if r, err := LoadRuntimes(file); r != nil || err != nil {
		t.Errorf("%v, %v", r, err)
	}
	for text, want := range map[string]string{
		"":                                   "map[]",
		"[runtimes]\n\"python3.13\" = \"a\"": "map[python3.13:a]",
		"[runtimes]\n\"ours-2.x\" = \"a\"":   "map[ours-2.x:a]",
		"[runtimes]\n\"our own\" = \"a\"":    "",
		"[runtimes]\n\".x\" = \"a\"":         "",
		"[runtimes]\nx = 1":                  "",
		"[runtimes]\nx = \"\"":               "",
		"[other]\nx = \"y\"":                 "",
		"x":                                  "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := LoadRuntimes(file)
		if (err != nil) != (want == "") || want != "" && fmt.Sprint(r) != want || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%q: %v, %v", text, r, err)
		}
	}
}

// Bases that are to be on this machine are looked for; a registry is not asked.
func TestCheckRuntimes(t *testing.T) {
	there := testoci.Layout(t, filepath.Join(t.TempDir(), "base"), nil, testoci.Tar(t, testoci.File("a", []byte("x"))))
	for _, c := range []struct {
		runtimes Runtimes
		want     string // in the error; "": none
	}{
		{nil, ""},
		{Runtimes{"a": there, "b": "docker://registry.invalid/base:1"}, ""},
		{Runtimes{"a": there, "b": "oci:/nowhere"}, "the base image of runtime b (runtimes.toml): oci: oci:/nowhere: no such folder"},
		{Runtimes{"a": "oci-archive:/nowhere.tar"}, "the base image of runtime a"},
	} {
		if err := c.runtimes.Check(t.Context()); (err == nil) != (c.want == "") || err != nil && (!strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%v: %v", c.runtimes, err)
		}
	}
}

// An image that is larger than this region takes is refused, whether its layers
// are read or known already.
func TestMaxImage(t *testing.T) {
	w := newWorld(t)
	layout := testoci.Layout(t, t.TempDir(), nil, testoci.Tar(t, testoci.File("a", testoci.Noise(1, 200_000))), testoci.Tar(t, testoci.File("b", testoci.Noise(2, 200_000))))
	w.MaxImage = 300_000
	w.refused(image(layout), InvalidImage, "more than 300000 bytes uncompressed")
	w.MaxImage = 0
	if _, err := w.Build(t.Context(), image(layout)); err != nil {
		t.Fatal(err)
	}
	w.MaxImage = 300_000
	w.refused(image(layout), InvalidImage, "--max-image")
	w.MaxImage = 500_000
	if _, err := w.Build(t.Context(), image(layout)); err != nil {
		t.Error(err)
	}
}
