package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// age has all that is there be used last longer ago than grace.
func age(t *testing.T, dir string, to time.Time) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chtimes(path, to, to)
	}); err != nil {
		t.Fatal(err)
	}
}

func longAgo() time.Time { return time.Now().Add(-grace - time.Minute) }

// swept sweeps until there is nothing more to remove.
func swept(t *testing.T, g *Registry) (sum removed) {
	t.Helper()
	for range 10 {
		n, err := g.sweep(t.Context())
		if err != nil {
			t.Error(err)
		}
		if n == (removed{}) {
			return sum
		}
		sum.manifests, sum.blobs, sum.contents, sum.bytes = sum.manifests+n.manifests, sum.blobs+n.blobs, sum.contents+n.contents, sum.bytes+n.bytes
	}
	t.Fatal("it removes without an end")
	return sum
}

func push(t *testing.T, where string, img v1.Image) {
	t.Helper()
	if err := remote.Write(ref(t, where), img); err != nil {
		t.Fatal(err)
	}
}

// gone wants no such manifest.
func gone(t *testing.T, where string) {
	t.Helper()
	if _, err := remote.Head(ref(t, where)); err == nil {
		t.Errorf("%s is still there", where)
	}
}

// What no tag names goes after a while, with the blobs that nothing else has, and
// no sooner; what a tag names, also by an index, or another repository has, stays.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	host, g := serve(t, dir, Options{})
	kept, old, shared := sampleImage(t), sampleImage(t), sampleImage(t)
	push(t, host+"/app:v1", old)
	push(t, host+"/app:v1", kept)
	push(t, host+"/other:v1", shared)
	index := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: shared})
	if err := remote.WriteIndex(ref(t, host+"/multi:latest"), index); err != nil {
		t.Fatal(err)
	}
	c := client{t, host}
	c.want(201, "", "POST /v2/app/blobs/uploads/?digest="+digestOf([]byte("x")), "x") // never in a manifest
	if n := swept(t, g); n != (removed{}) {
		t.Errorf("removed while it was young: %+v", n)
	}
	age(t, dir, longAgo())
	before := g.used.Load()
	if n := swept(t, g); n.manifests != 1 || n.blobs != 5 || n.contents != 6 || n.bytes != before-g.used.Load() || n.bytes < 900_000 {
		t.Errorf("removed %+v of %d bytes", n, before)
	}
	gone(t, host+"/app@"+digestOfImage(t, old).String())
	same(t, host+"/app:v1", kept)
	same(t, host+"/other:v1", shared)
	same(t, host+"/multi@"+digestOfImage(t, shared).String(), shared)

	// Tags that are deleted, alone or with their manifest, in repositories that end so.
	c.want(202, "", "DELETE /v2/other/manifests/v1", "")
	c.want(404, "MANIFEST_UNKNOWN", "DELETE /v2/other/manifests/v1", "")
	same(t, host+"/other@"+digestOfImage(t, shared).String(), shared)
	push(t, host+"/app:v2", kept)
	if err := remote.Delete(ref(t, host+"/app@"+digestOfImage(t, kept).String())); err != nil {
		t.Fatal(err)
	}
	gone(t, host+"/app:v1")
	gone(t, host+"/app:v2")
	age(t, dir, longAgo())
	swept(t, g)
	gone(t, host+"/other@"+digestOfImage(t, shared).String())
	same(t, host+"/multi@"+digestOfImage(t, shared).String(), shared)
	registry, err := name.NewRegistry(host)
	if err != nil {
		t.Fatal(err)
	}
	if repos, err := remote.Catalog(t.Context(), registry); err != nil || fmt.Sprint(repos) != "[multi]" {
		t.Errorf("repositories %v, %v", repos, err)
	}
	c.want(202, "", "DELETE /v2/multi/manifests/latest", "")
	age(t, dir, longAgo())
	swept(t, g)
	if g.used.Load() != 0 {
		t.Errorf("%d bytes in use, and nothing is there", g.used.Load())
	}
	push(t, host+"/app:v1", kept) // as in an empty registry
	same(t, host+"/app:v1", kept)
}

// around does an operation between a sweep's look at all and its removals.
func around(t *testing.T, g *Registry, op func()) {
	t.Helper()
	repos, err := list(g.path("repositories"))
	if err != nil {
		t.Fatal(err)
	}
	dead := map[string][2][]string{}
	for _, repo := range repos {
		m, b, err := g.unreferenced(repo, nil)
		if err != nil {
			t.Fatal(err)
		}
		dead[repo] = [2][]string{m, b}
	}
	loose, err := g.loose(repos)
	if err != nil {
		t.Fatal(err)
	}
	op()
	for repo, d := range dead {
		if err := g.removeFrom(t.Context(), repo, d[0], d[1], new(removed)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := g.remove(t.Context(), loose); err != nil {
		t.Fatal(err)
	}
}

// world is a registry with an image that was of no use for long.
type world struct {
	t      *testing.T
	host   string
	g      *Registry
	img    v1.Image
	digest string
}

// ask asks for the image's blobs, as who then finds that they need not be sent.
func (w world) ask() {
	for _, d := range blobsOf(w.t, w.img) {
		client{w.t, w.host}.want(200, "", "HEAD /v2/app/blobs/"+d, "")
	}
}

// tag puts the image's manifest alone.
func (w world) tag() {
	raw, err := w.img.RawManifest()
	if err != nil {
		w.t.Fatal(err)
	}
	client{w.t, w.host}.want(201, "", "PUT /v2/app/manifests/v2", string(raw), "Content-Type", "application/vnd.docker.distribution.manifest.v2+json")
}

// reuse is a way in which the image is used again.
type reuse struct {
	what        string
	manifest    bool        // there is an untagged manifest already
	meant, then func(world) // then: after the sweep's end
}

func reuses() []reuse {
	return []reuse{
		{"pushed again", true, func(w world) { push(w.t, w.host+"/app:v2", w.img) }, nil},
		{"tagged", true, world.tag, nil},
		{"tagged, without a manifest before", false, world.tag, nil},
		{"asked for before it is tagged", false, world.ask, world.tag},
		{"got by digest before it is tagged", true, func(w world) {
			client{w.t, w.host}.want(200, "", "GET /v2/app/manifests/"+w.digest, "")
		}, world.tag},
		{"named by an index", true, func(w world) {
			body := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.docker.distribution.manifest.v2+json","size":1,"digest":"` + w.digest + `"}]}`
			client{w.t, w.host}.want(201, "", "PUT /v2/app/manifests/v3", body, "Content-Type", "application/vnd.oci.image.index.v1+json")
		}, nil},
		{"sent again", false, func(w world) { push(w.t, w.host+"/new:v2", w.img) }, nil},
		{"sent again, when only contents are left", false, func(w world) {
			if err := os.RemoveAll(w.g.path("repositories", "app")); err != nil {
				w.t.Fatal(err)
			}
			around(w.t, w.g, func() { push(w.t, w.host+"/new:v2", w.img) })
		}, nil},
		{"mounted", true, func(w world) {
			for _, d := range blobsOf(w.t, w.img) {
				client{w.t, w.host}.want(201, "", "POST /v2/new/blobs/uploads/?from=app&mount="+d, "")
			}
		}, func(w world) { push(w.t, w.host+"/new:v2", w.img) }},
	}
}

// What is used between a sweep's look at it and its removal, in each way there
// is, stays: an image that was of no use for long is whole in the end.
func TestSweepAndPush(t *testing.T) {
	for _, c := range reuses() {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			host, g := serve(t, dir, Options{})
			w := world{t, host, g, sampleImage(t), ""}
			w.digest = digestOfImage(t, w.img).String()
			push(t, host+"/app:v1", w.img)
			if err := os.Remove(g.repoPath("app", "tags", "v1")); err != nil {
				t.Fatal(err)
			}
			if !c.manifest {
				if err := os.Remove(g.repoPath("app", "manifests", w.digest)); err != nil {
					t.Fatal(err)
				}
			}
			age(t, dir, longAgo())
			around(t, g, func() { c.meant(w) })
			swept(t, g)
			if c.then != nil {
				c.then(w)
			}
			age(t, dir, longAgo())
			swept(t, g)
			where := host + "/app@" + w.digest
			if _, err := os.Stat(g.path("repositories", "new")); err == nil {
				where = host + "/new:v2"
			}
			same(t, where, w.img)
			checkWhole(t, dir)
		})
	}
}

func blobsOf(t *testing.T, img v1.Image) (all []string) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	all = append(all, m.Config.Digest.String())
	for _, l := range m.Layers {
		all = append(all, l.Digest.String())
	}
	return all
}

// sweepAtEnd is a body at whose end the registry sweeps.
type sweepAtEnd struct {
	io.Reader
	sweep func()
}

func (b *sweepAtEnd) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.sweep()
	}
	return n, err
}

// A content that is removed while the same is being sent is there afterwards.
func TestSweepInAnUpload(t *testing.T) {
	dir := t.TempDir()
	_, g := serve(t, dir, Options{})
	digest := digestOf([]byte("hello"))
	if err := put(g.blobPath(digest), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	age(t, dir, longAgo())
	g.used.Store(5)
	removed := 0
	body := &sweepAtEnd{strings.NewReader("hello"), func() { removed += swept(t, g).contents }}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest, body)
	if err != nil {
		t.Fatal(err)
	}
	w := answer{header: http.Header{}}
	g.ServeHTTP(&w, r)
	if w.status != 201 || removed != 1 || !g.has("app", digest) || g.used.Load() != 5 {
		t.Errorf("%d; %d removed; there: %t; %d bytes in use", w.status, removed, g.has("app", digest), g.used.Load())
	}
}

// answer is a http.ResponseWriter for what has no body.
type answer struct {
	header http.Header
	status int
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return len(b), nil }

// Where something cannot be read, nothing goes of what it may refer to.
func TestSweepInDoubt(t *testing.T) {
	for what, harm := range map[string]func(g *Registry, digest string) error{
		"manifest": func(g *Registry, digest string) error {
			_ = os.Remove(g.blobPath(digest))
			return put(g.blobPath(digest), []byte("{}"))
		},
		"lost manifest": func(g *Registry, digest string) error { return os.Remove(g.blobPath(digest)) },
		"tag":           func(g *Registry, _ string) error { return put(g.repoPath("app", "tags", "v1"), []byte("sha256:")) },
		"list of tags": func(g *Registry, _ string) error {
			return errors.Join(os.RemoveAll(g.repoPath("app", "tags", "")), os.WriteFile(g.repoPath("app", "tags", ""), nil, 0o600))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			host, g := serve(t, dir, Options{})
			first, second := sampleImage(t), sampleImage(t)
			push(t, host+"/app:v1", first)
			push(t, host+"/app:v1", second)
			push(t, host+"/other:v1", sampleImage(t))
			client{t, host}.want(202, "", "DELETE /v2/other/manifests/v1", "")
			if err := harm(g, digestOfImage(t, first).String()); err != nil {
				t.Fatal(err)
			}
			age(t, dir, longAgo())
			n, err := g.sweep(t.Context())
			if err == nil || !strings.Contains(err.Error(), "repository app") || n.manifests != 1 {
				t.Errorf("removed %+v, %v", n, err)
			}
			_, _ = g.sweep(t.Context())
			_, _ = g.sweep(t.Context())
			for _, d := range append(blobsOf(t, first), blobsOf(t, second)...) {
				client{t, host}.want(200, "", "HEAD /v2/app/blobs/"+d, "")
			}
			gone(t, host+"/other@"+digestOfImage(t, first).String())
		})
	}
	t.Run("list of blobs", func(t *testing.T) { // then nobody knows which contents are in use
		dir := t.TempDir()
		host, g := serve(t, dir, Options{})
		client{t, host}.want(201, "", "POST /v2/app/blobs/uploads/?digest="+digestOf([]byte("x")), "x")
		if err := errors.Join(os.RemoveAll(g.repoPath("app", "blobs", "")), os.WriteFile(g.repoPath("app", "blobs", ""), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		age(t, dir, longAgo())
		if n, err := g.sweep(t.Context()); err == nil || n != (removed{}) {
			t.Errorf("removed %+v, %v", n, err)
		}
	})
}

// What is needed stays without a tag; while that cannot be told, all does.
func TestSweepNeeded(t *testing.T) {
	dir := t.TempDir()
	needed, failed := map[string]bool{}, error(nil)
	host, g := serve(t, dir, Options{Needed: func(context.Context) (map[string]bool, error) { return needed, failed }})
	img := sampleImage(t)
	digest := digestOfImage(t, img).String()
	push(t, host+"/app:v1", img)
	client{t, host}.want(202, "", "DELETE /v2/app/manifests/v1", "")
	age(t, dir, longAgo())
	needed[digest] = true
	if n := swept(t, g); n != (removed{}) {
		t.Errorf("removed %+v of what is needed", n)
	}
	delete(needed, digest)
	failed = errors.New("nobody answers")
	if n, err := g.sweep(t.Context()); !errors.Is(err, failed) || n != (removed{}) {
		t.Errorf("removed %+v, %v", n, err)
	}
	failed = nil
	if n := swept(t, g); n.manifests != 1 || n.contents != 5 {
		t.Errorf("removed %+v", n)
	}
}

// An upload that nobody goes on with ends with a sweep, but not one on which a
// request is at work, or was until just now, however long it took.
func TestSweepUploads(t *testing.T) {
	host, g := serve(t, t.TempDir(), Options{})
	c := client{t, host}
	at := c.want(202, "", "POST /v2/app/blobs/uploads/", "").Header.Get("Location")
	id := filepath.Base(at)
	long := time.Now().Add(-2 * uploadIdle)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, at, &sweepAtEnd{strings.NewReader("hello"), func() {
		g.uploads[id].touched = long
		if n, err := g.sweep(t.Context()); n.uploads != 0 || err != nil {
			t.Errorf("an upload under way: %+v, %v", n, err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	w := answer{header: http.Header{}}
	g.ServeHTTP(&w, r)
	if n, err := g.sweep(t.Context()); w.status != 202 || n.uploads != 0 || err != nil {
		t.Errorf("%d; an upload that has just got on: %+v, %v", w.status, n, err)
	}
	g.uploads[id].touched = long
	if n, err := g.sweep(t.Context()); n.uploads != 1 || err != nil || g.used.Load() != 0 {
		t.Errorf("an upload left alone: %+v, %v; %d bytes in use", n, err, g.used.Load())
	}
	c.want(404, "BLOB_UPLOAD_UNKNOWN", "GET "+at, "")
}

// dying ends after so many looks at it.
type dying struct {
	context.Context
	looks int
}

func (d *dying) Err() error {
	if d.looks--; d.looks < 0 {
		return context.Canceled
	}
	return nil
}

// A sweep that ends anywhere leaves what the next process can go on with.
func TestSweepEnds(t *testing.T) {
	dir := t.TempDir()
	host, g := serve(t, dir, Options{})
	kept, old := sampleImage(t), sampleImage(t)
	push(t, host+"/app:v1", old)
	push(t, host+"/app:v1", kept)
	age(t, dir, longAgo())
	steps := 0
	for ; steps < 100; steps++ {
		ctx := &dying{t.Context(), steps % 3}
		n, err := g.sweep(ctx)
		if err == nil && n == (removed{}) {
			break
		}
		checkWhole(t, dir)
		host, g = serve(t, dir, Options{})
		same(t, host+"/app:v1", kept)
		age(t, dir, longAgo())
	}
	if steps < 4 || steps == 100 {
		t.Errorf("%d sweeps", steps)
	}
	gone(t, host+"/app@"+digestOfImage(t, old).String())
}

// Run sweeps at once, then every hour, until it is ended.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		g, err := New(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		litter := func() string {
			name := g.blobPath(digestOf([]byte("hello")))
			if err := put(name, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			age(t, dir, longAgo())
			return name
		}
		there := func(name string) bool { _, err := os.Stat(name); return err == nil }
		name := litter()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- g.Run(ctx) }()
		synctest.Wait()
		if there(name) {
			t.Error("nothing is removed at first")
		}
		for range 2 {
			litter()
			time.Sleep(sweepEvery - time.Minute)
			synctest.Wait()
			if !there(name) {
				t.Error("removed before the hour")
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if there(name) {
				t.Error("not removed after an hour")
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A manifest's references are found wherever they stand, and however they are written.
func TestReferences(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("b", 64)
	for body, want := range map[string]int{
		`{"layers":[{"digest":"sha256:` + a + `"}],"config":{"digest":"sha256:` + b + `"}}`: 2,
		`{"subject":{"digest":"sha256:` + a + `"}}`:                                         1,
		`{"blobs":[{"digest":"sha256:\u0061` + a[1:] + `"}]}`:                               1,
		`{"digest":"sha256:` + a + `","digest":"sha256:` + b + `"}`:                         2,
		`sha256:` + a[1:]: 0,
	} {
		if found := references([]byte(body)); len(found) != want {
			t.Errorf("%s: %v", body, found)
		}
	}
}

// Pushes, pulls and deletions go on beside sweeps, and lose nothing by them.
func TestSweepBeside(t *testing.T) {
	dir := t.TempDir()
	host, g := serve(t, dir, Options{})
	old := sampleImage(t)
	push(t, host+"/old:v1", old)
	age(t, dir, longAgo())
	ctx, cancel := context.WithCancel(t.Context())
	var sweeps, clients sync.WaitGroup
	sweeps.Go(func() {
		for ctx.Err() == nil {
			if _, err := g.sweep(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	images := []v1.Image{sampleImage(t), sampleImage(t), sampleImage(t)}
	for i, img := range images {
		clients.Go(func() {
			for range 3 { // each time of no use, and of use again
				where, err := name.ParseReference(fmt.Sprintf("%s/app:v%d", host, i))
				if err == nil {
					err = errors.Join(remote.Write(where, img), remote.Delete(where), remote.Write(where, img))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	cancel()
	sweeps.Wait()
	for i, img := range images {
		same(t, fmt.Sprintf("%s/app:v%d", host, i), img)
	}
	same(t, host+"/old:v1", old)
	checkWhole(t, dir)
}
