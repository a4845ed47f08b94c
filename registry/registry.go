// Package registry is a small OCI registry over a folder: what docker, skopeo,
// crane and podman push to and pull from, by the distribution specification's
// version 1.1. It has no token service, and clients delete tags and manifests, not
// blobs.
//
//	DIR/blobs/<64 hex>                           contents, by their SHA-256; manifests too
//	DIR/repositories/<name>/blobs/<64 hex>       empty: this repository has that blob
//	DIR/repositories/<name>/manifests/<64 hex>   media type of that manifest
//	DIR/repositories/<name>/tags/<tag>           "sha256:" and 64 hex digits
//	DIR/uploads/<id>                             what is on its way; of no use to the next process
//
// Slashes of names are written as %. A file gets its name only once it is whole
// and synced, and contents come before what names them: whoever kills the
// process loses what was not answered yet, and nothing else. A blob is served
// from a repository only if it was pushed or mounted there.
//
// Tags stay until they are deleted or moved. A manifest that no tag and no other
// manifest of its repository names, a blob that no manifest there names, and a
// content that is in no repository, are removed once nobody has pushed, mounted
// or asked for them for a day (Registry.Run). Files' times say since when: what
// a client is told is there stays for about a day from then on.
package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults and fixed bounds.
const (
	// DefaultMaxBlob is more than any layer of an image that a function may have.
	DefaultMaxBlob = 12 << 30
	// DefaultMaxUploads is five layers at a time, as clients push, of several clients.
	DefaultMaxUploads = 64
	// maxManifest is the specification's word for what a registry must take.
	maxManifest = 4 << 20
	// maxName leaves room for a file's name of 255 bytes.
	maxName = 200
	// maxListed is the longest page of tags or repositories.
	maxListed = 1000
	// uploadIdle ends uploads that nobody goes on with.
	uploadIdle = time.Hour
	// bodyIdle ends requests whose body stands still.
	bodyIdle = time.Minute
)

var (
	names   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tags    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digests = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Options bound a registry, and say who may use it.
type Options struct {
	MaxBlob    int64 // bytes of one blob; 0: DefaultMaxBlob
	MaxBytes   int64 // of all contents; 0: what the disk takes
	MaxUploads int   // uploads at a time; 0: DefaultMaxUploads
	// Allow says whether who gave these (empty: nobody) may use a repository. If
	// it refuses, clients are asked for a user and a password. nil: everybody may.
	Allow func(user, password, repository string, push bool) bool
	// Needed gives digests of manifests that stay though no tag names them. Where
	// it fails, nothing is removed. nil: none.
	Needed func(context.Context) (map[string]bool, error)
	Logger *slog.Logger // nil: none
}

// Registry is the handler. It is safe for concurrent use.
type Registry struct {
	dir string
	o   Options
	log *slog.Logger

	used atomic.Int64 // bytes of contents and uploads

	// gate is held to remove what nothing refers to. It is held for reading from a
	// look at what is there until something refers to it, or until it is open: not
	// while clients send or receive.
	gate sync.RWMutex

	mu      sync.Mutex
	uploads map[string]*upload // by id
}

// New opens or makes the registry in dir, which no other process may serve
// meanwhile, and drops the uploads of a former one.
func New(dir string, o Options) (*Registry, error) {
	if o.MaxBlob == 0 {
		o.MaxBlob = DefaultMaxBlob
	}
	if o.MaxUploads == 0 {
		o.MaxUploads = DefaultMaxUploads
	}
	g := &Registry{dir: dir, o: o, log: o.Logger, uploads: map[string]*upload{}}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	if err := os.RemoveAll(g.path("uploads")); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	for _, sub := range []string{"blobs", "repositories", "uploads"} {
		if err := os.MkdirAll(g.path(sub), 0o700); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	if err := g.measure(); err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return g, nil
}

// measure sums what is there, and drops temporary files of a killed process.
func (g *Registry) measure() error {
	return filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if strings.HasPrefix(d.Name(), temporary) {
			return os.Remove(path)
		}
		if filepath.Dir(path) != g.path("blobs") {
			return nil
		}
		info, err := d.Info()
		if err == nil {
			g.used.Add(info.Size())
		}
		return err
	})
}

func (g *Registry) path(parts ...string) string {
	return filepath.Join(append([]string{g.dir}, parts...)...)
}

// refusal is an answer of the specification's form.
type refusal struct {
	status        int
	code, message string
}

// Error gives code and message.
func (r *refusal) Error() string { return r.code + ": " + r.message }

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status, code, fmt.Sprintf(format, args...)}
}

func unknownBlob(digest string) error {
	return refuse(http.StatusNotFound, "BLOB_UNKNOWN", "no blob %s in this repository", digest)
}

func badMethod() error {
	return refuse(http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry does not do that")
}

// ServeHTTP answers /v2/ and below.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	err := g.serve(w, r)
	if err == nil {
		return
	}
	var no *refusal
	if !errors.As(err, &no) {
		g.log.Error("registry", "method", r.Method, "path", r.URL.Path, "error", err)
		no = &refusal{http.StatusInternalServerError, "UNKNOWN", "the registry cannot do this now: its log says why"}
	}
	if no.status == http.StatusUnauthorized {
		w.Header().Set("Www-Authenticate", `Basic realm="thaw"`)
	}
	writeJSON(w, no.status, map[string]any{"errors": []map[string]string{{"code": no.code, "message": no.message}}})
}

// request is what a path asks for.
type request struct {
	w    http.ResponseWriter
	r    *http.Request
	repo string
	what string // "", _catalog, tags, manifests, blobs, uploads
	ref  string // tag, digest or upload's id
}

// parse takes a path below /v2/ apart. Names may hold the words that stand
// between name and reference: the last one counts.
func parse(path string) (repo, what, ref string, ok bool) {
	if path == "" || path == "_catalog" {
		return "", path, "", true
	}
	if repo, ok := strings.CutSuffix(path, "/tags/list"); ok {
		return repo, "tags", "", true
	}
	for _, p := range []struct{ between, what string }{
		{"/blobs/uploads/", "uploads"}, {"/manifests/", "manifests"}, {"/blobs/", "blobs"},
	} {
		if i := strings.LastIndex(path, p.between); i > 0 && !strings.Contains(path[i+len(p.between):], "/") {
			return path[:i], p.what, path[i+len(p.between):], true
		}
	}
	if repo, ok := strings.CutSuffix(path, "/blobs/uploads"); ok {
		return repo, "uploads", "", true
	}
	return "", "", "", false
}

func (g *Registry) serve(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2")
	if !ok || path != "" && path[0] != '/' {
		return refuse(http.StatusNotFound, "UNSUPPORTED", "this is a registry: its paths begin with /v2/")
	}
	q := request{w: w, r: r}
	q.repo, q.what, q.ref, ok = parse(strings.TrimPrefix(path, "/"))
	if !ok {
		return refuse(http.StatusNotFound, "UNSUPPORTED", "there is no such path")
	}
	if q.repo != "" && (len(q.repo) > maxName || !names.MatchString(q.repo)) {
		return refuse(http.StatusBadRequest, "NAME_INVALID", "a repository's name has lower-case letters, digits and . _ - / and at most %d of them", maxName)
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	if err := g.allow(r, q.repo, !read); err != nil {
		return err
	}
	switch q.what {
	case "manifests":
		return g.manifests(q, read)
	case "blobs":
		return g.blobs(q, read)
	case "uploads":
		return g.serveUpload(q)
	}
	if !read {
		return badMethod()
	}
	switch q.what {
	case "tags":
		return g.listTags(q)
	case "_catalog":
		return g.catalog(q)
	}
	writeJSON(w, http.StatusOK, map[string]any{})
	return nil
}

// allow asks Options.Allow. The bare /v2/ and the catalog belong to no
// repository: for them the name is empty.
func (g *Registry) allow(r *http.Request, repo string, push bool) error {
	if g.o.Allow == nil {
		return nil
	}
	user, password, _ := r.BasicAuth()
	if g.o.Allow(user, password, repo, push) {
		return nil
	}
	return refuse(http.StatusUnauthorized, "UNAUTHORIZED", "log in first: docker login %s", r.Host)
}

// blobs serves a blob of a repository.
func (g *Registry) blobs(q request, read bool) error {
	if !read {
		return badMethod()
	}
	if !digests.MatchString(q.ref) {
		return refuse(http.StatusBadRequest, "DIGEST_INVALID", "digests are sha256: and 64 hex digits")
	}
	return g.content(q, func() (string, error) {
		if !g.has(q.repo, q.ref) {
			return "", unknownBlob(q.ref)
		}
		q.w.Header().Set("Content-Type", "application/octet-stream")
		return q.ref, nil
	})
}

// content serves what find finds, in parts if asked.
func (g *Registry) content(q request, find func() (digest string, err error)) error {
	g.gate.RLock()
	digest, err := find()
	var f *os.File
	if err == nil {
		f, err = os.Open(g.blobPath(digest))
	}
	g.gate.RUnlock()
	if errors.Is(err, fs.ErrNotExist) {
		return unknownBlob(digest)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	q.w.Header().Set("Docker-Content-Digest", digest)
	q.w.Header().Set("Etag", `"`+digest+`"`)
	http.ServeContent(q.w, q.r, "", time.Time{}, f)
	return nil
}

func (g *Registry) blobPath(digest string) string {
	return g.path("blobs", strings.TrimPrefix(digest, "sha256:"))
}

// repoPath is a file of a repository.
func (g *Registry) repoPath(repo, kind, name string) string {
	return g.path("repositories", strings.ReplaceAll(repo, "/", "%"), kind, strings.TrimPrefix(name, "sha256:"))
}

// has tells whether a repository has a blob. Whoever is told so may rely on it.
func (g *Registry) has(repo, digest string) bool {
	_, err := os.Stat(g.blobPath(digest))
	return err == nil && g.use(g.repoPath(repo, "blobs", digest))
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// readBounded reads a body of at most limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "SIZE_INVALID", "the body ended early")
	}
	if int64(len(b)) > limit {
		return nil, refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "more than %d bytes", limit)
	}
	return b, nil
}
