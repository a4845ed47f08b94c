package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fake is a registry that serves a fixture and can misbehave.
type fake struct {
	*fixture
	// intercept answers in place of the registry if it returns true.
	intercept func(w http.ResponseWriter, r *http.Request) bool
	requests  atomic.Int64
}

// serve starts the fake and gives its host:port.
func (f *fake) serve(t *testing.T) string {
	t.Helper()
	hermetic(t)
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.requests.Add(1)
	if f.intercept != nil && f.intercept(w, r) {
		return
	}
	dir, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/lib/app/"), "/")
	switch {
	case r.URL.Path == "/v2/":
	case dir == "manifests" && id == "latest":
		id = f.manifestDesc.Digest.String()
		w.Header().Set("Content-Type", string(f.manifestDesc.MediaType))
		fallthrough
	case f.blobs[id] != nil:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blobs[id]))
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"no\nsuch"}]}`)
	}
}

// oneLayer is a fake with an image whose layer takes several reads.
func oneLayer(t *testing.T) *fake {
	t.Helper()
	return &fake{fixture: newFixture(t, gzipLayer(t, tarOf(t, file{name: "f", body: noise(9, 700_000)})))}
}

// plainHTTP is how tests talk to a fake: quickly again, too.
func plainHTTP() Options { return Options{PlainHTTP: true, retryDelay: time.Millisecond} }

func isBlob(r *http.Request, f *fake) bool {
	return strings.HasSuffix(r.URL.Path, f.manifest.Layers[0].Digest.String())
}

func status(code int) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(code)
		fmt.Fprint(w, "<html>\n<body>secret-token")
		return true
	}
}

func TestRegistryRefusals(t *testing.T) {
	bearer := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	basic := func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	noToken := func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			fmt.Fprint(w, `{"refresh_token":"secret-token"}`)
			return true
		}
		return bearer(w, r)
	}
	for _, c := range []struct {
		name      string
		intercept func(http.ResponseWriter, *http.Request) bool
		want      error
		says      string
	}{
		{"basic", basic, ErrUnauthorized, "401 Unauthorized for lib/app"},
		{"bearer", bearer, ErrUnauthorized, "docker login"},
		{"forbidden", status(http.StatusForbidden), ErrUnauthorized, "403 Forbidden"},
		{"no token", noToken, nil, "no token"},
		{"teapot", status(http.StatusTeapot), nil, "418"},
		{"always busy", status(http.StatusServiceUnavailable), nil, "503"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := oneLayer(t)
			f.intercept = c.intercept
			host := f.serve(t)
			_, err := Open(t.Context(), host+"/lib/app", plainHTTP())
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), host) {
				t.Errorf("got %v", err)
			}
			if strings.Contains(fmt.Sprint(err), "secret") || strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("error tells too much: %q", err)
			}
			if n := f.requests.Load(); n > 3*(maxRetries+1) {
				t.Errorf("%d requests", n)
			}
		})
	}
	f := oneLayer(t)
	host := f.serve(t)
	for _, ref := range []string{"/lib/app:none", "/lib/none", "/lib/app@" + digestOf(nil)} {
		if _, err := Open(t.Context(), host+ref, plainHTTP()); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

// TestCredentials takes them from the docker config, and sends them to no one
// else.
func TestCredentials(t *testing.T) {
	f := oneLayer(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("credentials went to another host")
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.blobs[f.manifest.Layers[0].Digest.String()]))
	}))
	defer elsewhere.Close()
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if isBlob(r, f) {
			http.Redirect(w, r, elsewhere.URL+"/signed?by=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	host := f.serve(t)
	if _, err := Open(t.Context(), host+"/lib/app", plainHTTP()); !errors.Is(err, ErrUnauthorized) {
		t.Fatalf("without credentials: %v", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	check(t, os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600))
	got, err := readLayer(open(t, host+"/lib/app", plainHTTP()), 0, nil)
	if err != nil || !bytes.Equal(got, f.layers[0].tar) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// TestLogin takes the caller's credentials in place of the docker config's.
func TestLogin(t *testing.T) {
	f := oneLayer(t)
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user != "tenant" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	}
	host := f.serve(t)
	auth := base64.StdEncoding.EncodeToString([]byte("tenant:secret"))
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)
	check(t, os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(config), 0o600))
	opt := plainHTTP()
	for _, c := range []struct {
		user, password string
		err, want      error
	}{
		{"tenant", "secret", nil, nil},
		{"tenant", "wrong", nil, ErrUnauthorized},
		{"", "", nil, ErrUnauthorized}, // the docker config's owner is somebody else
		{"", "", context.Canceled, context.Canceled},
	} {
		opt.Login = func(_ context.Context, registry string) (string, string, error) {
			if registry != host {
				t.Errorf("asked for %s", registry)
			}
			return c.user, c.password, c.err
		}
		img, err := Open(t.Context(), host+"/lib/app", opt)
		if !errors.Is(err, c.want) || strings.Contains(fmt.Sprint(err), "docker") || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%q: %v", c.user, err)
		}
		if err == nil {
			img.Close()
		}
	}
}

// TestDigest is what a tag means, and what finds the same image again.
func TestDigest(t *testing.T) {
	f := oneLayer(t)
	host := f.serve(t)
	img := open(t, host+"/lib/app", plainHTTP())
	if img.Digest() != f.manifestDesc.Digest.String() {
		t.Errorf("digest %s, want %s", img.Digest(), f.manifestDesc.Digest)
	}
	if again := open(t, host+"/lib/app@"+img.Digest(), plainHTTP()); again.Digest() != img.Digest() {
		t.Errorf("by digest: %s", again.Digest())
	}
	if img := open(t, "docker-archive:"+f.modernArchive(t), Options{}); img.Digest() != "" {
		t.Errorf("docker archive: %s", img.Digest())
	}
}

func TestPlainHTTPIsAskedFor(t *testing.T) {
	f := oneLayer(t)
	host := f.serve(t)
	_, err := Open(t.Context(), "docker://"+host+"/lib/app", Options{retryDelay: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "--plain-http") {
		t.Errorf("got %v", err)
	}
	if f.requests.Load() != 0 {
		t.Error("a request went out without TLS")
	}
	tls := httptest.NewUnstartedServer(f)
	tls.Config.ErrorLog = log.New(io.Discard, "", 0)
	tls.StartTLS()
	defer tls.Close()
	_, err = Open(t.Context(), strings.TrimPrefix(tls.URL, "https://")+"/lib/app", Options{retryDelay: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: %v", err)
	}
}

// TestRetries lets everything fail once, in a way that passes.
func TestRetries(t *testing.T) {
	f := oneLayer(t)
	var mu sync.Mutex
	seen := map[string]int{}
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		seen[r.URL.Path]++
		n := seen[r.URL.Path]
		mu.Unlock()
		switch n {
		case 1:
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		case 2:
			panic(http.ErrAbortHandler)
		}
		return false
	}
	got, err := readLayer(open(t, f.serve(t)+"/lib/app", plainHTTP()), 0, nil)
	if err != nil || !bytes.Equal(got, f.layers[0].tar) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// breakAfter cuts the layer's connection after n bytes, so many times.
// Without ranges it starts over each time.
func breakAfter(f *fake, n, times int, ranges bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !ranges {
			r.Header.Del("Range")
			n = 60_000 * (maxRetries + 1 - times)
		}
		if !isBlob(r, f) || times == 0 {
			return false
		}
		times--
		http.ServeContent(cutWriter{w, &n}, r, "", time.Time{}, bytes.NewReader(f.layers[0].stored))
		return true
	}
}

// cutWriter aborts the connection when its bytes are spent.
type cutWriter struct {
	http.ResponseWriter
	left *int
}

func (c cutWriter) Write(p []byte) (int, error) {
	if len(p) > *c.left {
		c.ResponseWriter.Write(p[:*c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		*c.left = 50_000
		panic(http.ErrAbortHandler)
	}
	*c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func TestResume(t *testing.T) {
	for _, times := range []int{1, maxRetries, maxRetries + 1, -1, -maxRetries} {
		f := oneLayer(t)
		ranges := times > 0
		times = max(times, -times)
		ok := times <= maxRetries
		f.intercept = breakAfter(f, 60_000, times, ranges)
		told := int64(0)
		got, err := readLayer(open(t, f.serve(t)+"/lib/app", plainHTTP()), 0, func(n int64) { told += n })
		if ok && (err != nil || !bytes.Equal(got, f.layers[0].tar) || told != f.manifest.Layers[0].Size) {
			t.Errorf("broken %d times: %d bytes, %d told, %v", times, len(got), told, err)
		}
		if !ok && (err == nil || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "broke 5 times")) {
			t.Errorf("broken %d times: %v", times, err)
		}
	}
}

// TestWrongAnswers has a registry that serves the layer badly.
func TestWrongAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, stored []byte)
		want   error
		says   string
	}{
		{"missing", func(w http.ResponseWriter, r *http.Request, _ []byte) { w.WriteHeader(http.StatusNotFound) }, ErrNotFound, ""},
		{"other bytes", func(w http.ResponseWriter, r *http.Request, b []byte) {
			b = bytes.Clone(b)
			b[len(b)/2]++
			w.Write(b)
		}, ErrCorrupt, ""},
		{"short", func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(b[:100]) }, ErrCorrupt, "offers 100 bytes"},
		{"short, unannounced", func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Write(b[:100])
			w.(http.Flusher).Flush()
		}, ErrCorrupt, "ends after 100 of"},
		{"long, unannounced", func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Write(b)
			w.(http.Flusher).Flush()
			w.Write(b)
		}, ErrCorrupt, "more than"},
		{"metadata service", func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, "http://169.254.169.254/latest", http.StatusFound)
		}, nil, "link-local"},
		{"file", func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, nil, "redirect to file:"},
		{"circle", func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, nil, "redirects"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := oneLayer(t)
			f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if isBlob(r, f) {
					c.answer(w, r, f.layers[0].stored)
					return true
				}
				return false
			}
			_, err := readLayer(open(t, f.serve(t)+"/lib/app", plainHTTP()), 0, nil)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) ||
				!strings.Contains(err.Error(), f.manifest.Layers[0].Digest.String()) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestWrongManifest has a registry that answers a digest with something else,
// or with too much.
func TestWrongManifest(t *testing.T) {
	f := oneLayer(t)
	body := []byte(`{"schemaVersion":2}`)
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Write(body)
		return true
	}
	host := f.serve(t)
	if _, err := Open(t.Context(), host+"/lib/app@"+f.manifestDesc.Digest.String(), plainHTTP()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other manifest: %v", err)
	}
	body = bytes.Repeat([]byte(" "), maxDocument+1)
	if _, err := Open(t.Context(), host+"/lib/app", plainHTTP()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("huge manifest: %v", err)
	}
}

// TestCancelDownload cancels while a layer's connection is silent; TestMain
// sees to it that nothing stays behind.
func TestCancelDownload(t *testing.T) {
	f := oneLayer(t)
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		if !isBlob(r, f) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(f.layers[0].stored)))
		w.Write(f.layers[0].stored[:1000])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	img := open(t, f.serve(t)+"/lib/app", plainHTTP())
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan struct{}, 1)
	r, err := img.OpenLayer(ctx, 0, func(int64) { got <- struct{}{} })
	check(t, err)
	defer r.Close()
	<-got
	cancel()
	if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	r, err = img.OpenLayer(t.Context(), 0, func(int64) { got <- struct{}{} })
	check(t, err)
	<-got
	check(t, r.Close()) // must not wait for the silent connection
	if _, err := Open(ctx, img.DefaultName(), plainHTTP()); !errors.Is(err, context.Canceled) {
		t.Errorf("open under a cancelled context: %v", err)
	}
}

// TestCancelRetry cancels while the pause before a repetition lasts.
func TestCancelRetry(t *testing.T) {
	f := oneLayer(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.intercept = func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		time.AfterFunc(time.Millisecond, cancel)
		return true
	}
	opt := plainHTTP()
	opt.retryDelay = time.Hour
	if _, err := Open(ctx, f.serve(t)+"/lib/app", opt); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
