package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// serve starts a registry over dir and gives its host:port and handler.
func serve(t *testing.T, dir string, o Options) (string, *Registry) {
	t.Helper()
	g, err := New(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), g
}

func sampleImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(300_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func ref(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// same tells whether a registry has an image whole: every blob is read and checked.
func same(t *testing.T, where string, want v1.Image) {
	t.Helper()
	got, err := remote.Image(ref(t, where))
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	if g, w := digestOfImage(t, got), digestOfImage(t, want); g != w {
		t.Errorf("%s: %s, want %s", where, g, w)
	}
	layers, err := got.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		rc, err := l.Uncompressed() // verifies
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		rc.Close()
	}
}

func digestOfImage(t *testing.T, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPushAndPull(t *testing.T) {
	dir := t.TempDir()
	host, _ := serve(t, dir, Options{})
	img := sampleImage(t)
	digest := digestOfImage(t, img)
	if err := remote.Write(ref(t, host+"/team/app:v1"), img); err != nil {
		t.Fatal(err)
	}
	same(t, host+"/team/app:v1", img)
	same(t, host+"/team/app@"+digest.String(), img)

	t.Run("a moved tag", func(t *testing.T) {
		other := sampleImage(t)
		if err := remote.Write(ref(t, host+"/team/app:v1"), other); err != nil {
			t.Fatal(err)
		}
		same(t, host+"/team/app:v1", other)
		same(t, host+"/team/app@"+digest.String(), img)
	})
	t.Run("an index", func(t *testing.T) {
		index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
		if err := remote.WriteIndex(ref(t, host+"/multi:latest"), index); err != nil {
			t.Fatal(err)
		}
		if got, err := remote.Index(ref(t, host+"/multi")); err != nil {
			t.Error(err)
		} else if h, _ := got.Digest(); h.String() == "" {
			t.Error("no digest")
		}
	})
	t.Run("the next process", func(t *testing.T) {
		host, g := serve(t, dir, Options{})
		same(t, host+"/team/app@"+digest.String(), img)
		if g.used.Load() < 900_000 {
			t.Errorf("%d bytes in use", g.used.Load())
		}
		list, err := remote.List(ref(t, host+"/team/app").Context())
		if err != nil || len(list) != 1 || list[0] != "v1" {
			t.Errorf("tags %v, %v", list, err)
		}
		registry, err := name.NewRegistry(host)
		if err != nil {
			t.Fatal(err)
		}
		if repos, err := remote.Catalog(t.Context(), registry); err != nil || fmt.Sprint(repos) != "[multi team/app]" {
			t.Errorf("repositories %v, %v", repos, err)
		}
	})
}

func TestMountedBlobsAreNotSentAgain(t *testing.T) {
	host, g := serve(t, t.TempDir(), Options{})
	img := sampleImage(t)
	if err := remote.Write(ref(t, host+"/a:1"), img); err != nil {
		t.Fatal(err)
	}
	before := g.used.Load()
	base, err := remote.Image(ref(t, host+"/a:1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref(t, host+"/b:1"), base); err != nil {
		t.Fatal(err)
	}
	same(t, host+"/b:1", img)
	if g.used.Load() != before {
		t.Errorf("%d bytes in use, %d before", g.used.Load(), before)
	}
}

// client speaks plain HTTP to a registry.
type client struct {
	t    *testing.T
	host string
}

func (c client) do(method, path, body string, header ...string) (*http.Response, string) {
	c.t.Helper()
	r, err := http.NewRequest(method, "http://"+c.host+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(b)
}

// want does a request, "METHOD PATH", that must get this status and, if it fails, this code.
func (c client) want(status int, code, line, body string, header ...string) *http.Response {
	c.t.Helper()
	method, path, _ := strings.Cut(line, " ")
	resp, got := c.do(method, path, body, header...)
	if resp.StatusCode != status || !strings.Contains(got, code) {
		c.t.Errorf("%s %s: %d %s, want %d %s", method, path, resp.StatusCode, got, status, code)
	}
	if status >= 400 && method != http.MethodHead {
		var e struct {
			Errors []struct{ Code, Message string }
		}
		if err := json.Unmarshal([]byte(got), &e); err != nil || len(e.Errors) != 1 || e.Errors[0].Message == "" {
			c.t.Errorf("%s %s: no error of the specification: %s", method, path, got)
		}
	}
	return resp
}

func TestUploadInPieces(t *testing.T) {
	host, g := serve(t, t.TempDir(), Options{})
	c := client{t, host}
	digest := digestOf([]byte("hello world"))
	at := c.want(202, "", "POST /v2/app/blobs/uploads/", "").Header.Get("Location")
	if got := c.want(202, "", "PATCH "+at, "hello ", "Content-Range", "0-5").Header.Get("Range"); got != "0-5" {
		t.Errorf("range %s", got)
	}
	c.want(416, "BLOB_UPLOAD_INVALID", "PATCH "+at, "lo", "Content-Range", "3-4")
	c.want(204, "", "GET "+at, "")
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET "+strings.Replace(at, "/app/", "/other/", 1), "")
	c.want(201, "", "PUT "+at+"?digest="+digest, "world")
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET "+at, "")
	if _, got := c.do("GET", "/v2/app/blobs/"+digest, ""); got != "hello world" {
		t.Errorf("got %q", got)
	}
	if resp, got := c.do("GET", "/v2/app/blobs/"+digest, "", "Range", "bytes=6-8"); got != "wor" || resp.StatusCode != 206 {
		t.Errorf("a part: %d %q", resp.StatusCode, got)
	}
	c.want(201, "", "POST /v2/app/blobs/uploads/?digest="+digest, "hello world") // in one request, and again
	c.want(404, "BLOB_UNKNOWN", "GET /v2/other/blobs/"+digest, "")               // which never was pushed there
	c.want(201, "", "POST /v2/other/blobs/uploads/?mount="+digest+"&from=app", "")
	c.want(200, "", "HEAD /v2/other/blobs/"+digest, "")
	c.want(202, "", "POST /v2/third/blobs/uploads/?mount="+digestOf(nil)+"&from=app", "")
	if g.used.Load() != 11 {
		t.Errorf("%d bytes in use", g.used.Load())
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	host, g := serve(t, dir, Options{MaxBlob: 100, MaxBytes: 200, MaxUploads: 2})
	c := client{t, host}
	post := "/v2/app/blobs/uploads/"
	digest := digestOf([]byte("x"))
	c.want(201, "", "POST "+post+"?digest="+digest, "x")
	manifest := `{"schemaVersion":2,"config":{"digest":"` + digest + `"},"layers":[]}`
	const kind = "application/vnd.oci.image.manifest.v1+json"
	for _, r := range []struct {
		status             int
		code, method, path string
		body               string
	}{
		{404, "UNSUPPORTED", "GET", "/", ""},
		{404, "UNSUPPORTED", "GET", "/v2/app", ""},
		{200, "", "GET", "/v2/", ""},
		{400, "NAME_INVALID", "GET", "/v2/App/tags/list", ""},
		{400, "NAME_INVALID", "GET", "/v2/..%2f..%2fetc/tags/list", ""},
		{400, "NAME_INVALID", "GET", "/v2/" + strings.Repeat("a", 300) + "/tags/list", ""},
		{404, "NAME_UNKNOWN", "GET", "/v2/none/tags/list", ""},
		{400, "DIGEST_INVALID", "GET", "/v2/app/blobs/sha256:short", ""},
		{400, "DIGEST_INVALID", "POST", post + "?digest=" + digestOf(nil), "x"},
		{413, "SIZE_INVALID", "POST", post + "?digest=" + digest, strings.Repeat("x", 101)},
		{405, "UNSUPPORTED", "DELETE", "/v2/app/blobs/" + digest, ""},
		{404, "MANIFEST_UNKNOWN", "DELETE", "/v2/app/manifests/v1", ""},
		{404, "MANIFEST_UNKNOWN", "DELETE", "/v2/app/manifests/" + digest, ""},
		{405, "UNSUPPORTED", "PUT", post, ""},
		{405, "UNSUPPORTED", "POST", "/v2/_catalog", ""},
		{404, "MANIFEST_UNKNOWN", "GET", "/v2/app/manifests/v1", ""},
		{404, "MANIFEST_UNKNOWN", "GET", "/v2/app/manifests/" + digest, ""}, // a blob is no manifest
		{400, "MANIFEST_INVALID", "GET", "/v2/app/manifests/a%20b", ""},
		{400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v1", "{"},
		{400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v1", `{"schemaVersion":1}`},
		{400, "MANIFEST_INVALID", "PUT", "/v2/app/manifests/v1", `{"schemaVersion":2,"layers":[{"digest":"../x"}]}`},
		{400, "MANIFEST_BLOB_UNKNOWN", "PUT", "/v2/app/manifests/v1", strings.ReplaceAll(manifest, digest, digestOf(nil))},
		{400, "DIGEST_INVALID", "PUT", "/v2/app/manifests/" + digest, manifest},
		{201, "", "PUT", "/v2/app/manifests/v1", manifest},
		{507, "DENIED", "POST", post + "?digest=" + digest, strings.Repeat("y", 99) + "."},
	} {
		header := []string{}
		if r.method == "PUT" {
			header = []string{"Content-Type", kind}
		}
		c.want(r.status, r.code, r.method+" "+r.path, r.body, header...)
	}
	c.want(400, "MANIFEST_INVALID", "PUT /v2/app/manifests/v1", manifest) // of what kind?
	c.want(413, "SIZE_INVALID", "PUT /v2/app/manifests/v1", strings.Repeat(" ", maxManifest+1), "Content-Type", kind)
	first := c.want(202, "", "POST "+post, "").Header.Get("Location")
	c.want(202, "", "POST "+post, "")
	c.want(429, "TOOMANYREQUESTS", "POST "+post, "")
	c.want(204, "", "DELETE "+first, "")
	c.want(202, "", "POST "+post, "")
	for _, u := range g.uploads { // nobody goes on with them
		u.touched = time.Now().Add(-2 * uploadIdle)
	}
	c.want(202, "", "POST "+post, "")
	if left, err := os.ReadDir(filepath.Join(dir, "uploads")); err != nil || len(left) != 1 {
		t.Errorf("%d uploads, %v", len(left), err)
	}
}

func TestBrokenUploadGoesOn(t *testing.T) {
	host, g := serve(t, t.TempDir(), Options{})
	c := client{t, host}
	at := c.want(202, "", "POST /v2/app/blobs/uploads/", "").Header.Get("Location")
	body, w := io.Pipe()
	go func() {
		_, _ = w.Write([]byte("hello"))
		w.CloseWithError(io.ErrUnexpectedEOF)
	}()
	r, err := http.NewRequest("PATCH", "http://"+host+at, body)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := http.DefaultClient.Do(r); err == nil {
		resp.Body.Close()
	}
	// The server may still be at it: the upload is busy, then it says how far it is.
	deadline := time.Now().Add(3 * time.Minute)
	for {
		resp, _ := c.do("GET", at, "")
		if resp.StatusCode == 204 && resp.Header.Get("Range") == "0-4" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d, range %s", resp.StatusCode, resp.Header.Get("Range"))
		}
	}
	digest := digestOf([]byte("hello world"))
	c.want(201, "", "PUT "+at+"?digest="+digest, " world", "Content-Range", "5-10")
	if b, err := os.ReadFile(g.blobPath(digest)); err != nil || !bytes.Equal(b, []byte("hello world")) {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAllow(t *testing.T) {
	host, _ := serve(t, t.TempDir(), Options{Allow: func(user, password, repository string, push bool) bool {
		known := password == "secret"
		return known && (repository == "" || strings.HasPrefix(repository, user+"/") || repository == "shared" && !push)
	}})
	img := sampleImage(t)
	as := func(user, password string) remote.Option {
		return remote.WithAuth(&authn.Basic{Username: user, Password: password})
	}
	if err := remote.Write(ref(t, host+"/one/app"), img, as("one", "secret")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ user, password string }{{"two", "secret"}, {"one", "wrong"}} {
		if _, err := remote.Image(ref(t, host+"/one/app"), as(c.user, c.password)); err == nil {
			t.Errorf("%s/%s may pull", c.user, c.password)
		}
		if err := remote.Write(ref(t, host+"/one/app"), img, as(c.user, c.password)); err == nil {
			t.Errorf("%s/%s may push", c.user, c.password)
		}
	}
	c := client{t, host}
	resp := c.want(401, "UNAUTHORIZED", "GET /v2/", "")
	if resp.Header.Get("Www-Authenticate") == "" {
		t.Error("nobody is asked for a password")
	}
	// What another tenant has is not had by its digest.
	digest := digestOfImage(t, img)
	two := "Basic dHdvOnNlY3JldA=="
	c.want(202, "", "POST /v2/two/app/blobs/uploads/?from=one/app&mount="+digest.String(), "", "Authorization", two)
	if resp, got := c.do("GET", "/v2/_catalog", "", "Authorization", two); resp.StatusCode != 200 || strings.Contains(got, "one") {
		t.Errorf("catalog: %s", got)
	}
}

func TestPages(t *testing.T) {
	host, _ := serve(t, t.TempDir(), Options{})
	img := sampleImage(t)
	for i := range 5 {
		if err := remote.Write(ref(t, fmt.Sprintf("%s/app:v%d", host, i)), img); err != nil {
			t.Fatal(err)
		}
	}
	c := client{t, host}
	at, all := "/v2/app/tags/list?n=2", ""
	for at != "" {
		resp, got := c.do("GET", at, "")
		all += got
		at, _, _ = strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">")
	}
	if want := `{"name":"app","tags":["v0","v1"]}{"name":"app","tags":["v2","v3"]}{"name":"app","tags":["v4"]}`; all != want {
		t.Errorf("got %s", all)
	}
	if list, err := remote.List(ref(t, host+"/app").Context(), remote.WithPageSize(2)); err != nil || len(list) != 5 {
		t.Errorf("%v, %v", list, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "_catalog", "a/b/tags/list", "a/manifests/v1", "a/blobs/uploads/", "a/blobs/uploads/x", "a/blobs/sha256:00", "//", "/blobs/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		repo, what, ref, ok := parse(path)
		if !ok {
			return
		}
		if strings.Contains(ref, "/") || len(repo)+len(ref) > len(path) {
			t.Errorf("%q: repository %q, %s %q", path, repo, what, ref)
		}
	})
}
