package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
)

// temporary begins the names of files that are not whole; no tag, digest or id
// begins so.
const temporary = ".tmp-"

// manifests serves a manifest by tag or digest, takes or deletes one.
func (g *Registry) manifests(q request, read bool) error {
	byDigest := digests.MatchString(q.ref)
	if !byDigest && !tags.MatchString(q.ref) {
		return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "neither a tag nor a sha256 digest")
	}
	switch {
	case q.r.Method == http.MethodPut:
		return g.putManifest(q, byDigest)
	case q.r.Method == http.MethodDelete:
		return g.deleteManifest(q, byDigest)
	case !read:
		return badMethod()
	}
	return g.content(q, func() (string, error) {
		digest := q.ref
		if !byDigest {
			b, err := os.ReadFile(g.repoPath(q.repo, "tags", q.ref))
			if err != nil {
				return "", missing(err, q.ref)
			}
			digest = string(b)
		}
		link := g.repoPath(q.repo, "manifests", digest)
		mediaType, err := os.ReadFile(link)
		if err != nil {
			return "", missing(err, q.ref)
		}
		g.use(link)
		q.w.Header().Set("Content-Type", string(mediaType))
		return digest, nil
	})
}

func missing(err error, ref string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "no manifest %s in this repository", ref)
	}
	return err
}

// putManifest stores a manifest, then its media type, then its tag.
func (g *Registry) putManifest(q request, byDigest bool) error {
	body, err := readBounded(q.r.Body, maxManifest)
	if err != nil {
		return err
	}
	digest := digestOf(body)
	if byDigest && q.ref != digest {
		return refuse(http.StatusBadRequest, "DIGEST_INVALID", "what came has digest %s", digest)
	}
	g.gate.RLock()
	defer g.gate.RUnlock()
	mediaType, err := g.checkManifest(q, body)
	if err != nil {
		return err
	}
	for hex := range references(body) { // those that are there stay
		g.use(g.repoPath(q.repo, "blobs", hex))
		g.use(g.repoPath(q.repo, "manifests", hex))
	}
	if g.o.MaxBytes > 0 && g.used.Load()+int64(len(body)) > g.o.MaxBytes {
		return refuse(http.StatusInsufficientStorage, "DENIED", "the registry is full: it holds at most %d bytes", g.o.MaxBytes)
	}
	if !g.use(g.blobPath(digest)) {
		if err := put(g.blobPath(digest), body); err != nil {
			return err
		}
		g.used.Add(int64(len(body)))
	}
	if err := put(g.repoPath(q.repo, "manifests", digest), []byte(mediaType)); err != nil {
		return err
	}
	if !byDigest {
		g.untag(q.repo, q.ref)
		if err := put(g.repoPath(q.repo, "tags", q.ref), []byte(digest)); err != nil {
			return err
		}
	}
	h := q.w.Header()
	h.Set("Location", path.Join("/v2", q.repo, "manifests", digest))
	h.Set("Docker-Content-Digest", digest)
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}

// untag has the manifest that a tag names stay for a while without it.
func (g *Registry) untag(repo, tag string) {
	if b, err := os.ReadFile(g.repoPath(repo, "tags", tag)); err == nil && digests.Match(b) {
		g.use(g.repoPath(repo, "manifests", string(b)))
	}
}

// deleteManifest deletes a tag, or a manifest with its tags. What nothing refers
// to then is removed later.
func (g *Registry) deleteManifest(q request, byDigest bool) error {
	g.gate.Lock()
	defer g.gate.Unlock()
	name, doomed := g.repoPath(q.repo, "tags", q.ref), []string{q.ref}
	if byDigest {
		name = g.repoPath(q.repo, "manifests", q.ref)
	}
	if _, err := os.Stat(name); err != nil {
		return missing(err, q.ref)
	}
	if byDigest {
		var err error
		if doomed, err = g.tagsOf(q.repo, q.ref); err != nil {
			return err
		}
	}
	for _, tag := range doomed {
		g.untag(q.repo, tag)
		if err := removeDurably(g.repoPath(q.repo, "tags", tag)); err != nil {
			return err
		}
	}
	if byDigest {
		if err := removeDurably(name); err != nil {
			return err
		}
	}
	q.w.WriteHeader(http.StatusAccepted)
	return nil
}

// tagsOf gives the tags of a manifest.
func (g *Registry) tagsOf(repo, digest string) ([]string, error) {
	all, err := list(filepath.Dir(g.repoPath(repo, "tags", "x")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var of []string
	for _, tag := range all {
		if b, err := os.ReadFile(g.repoPath(repo, "tags", tag)); err != nil {
			return nil, err
		} else if string(b) == digest {
			of = append(of, tag)
		}
	}
	return of, err
}

func removeDurably(name string) error {
	if err := os.Remove(name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// descriptor is what a manifest says of a blob.
type descriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	URLs      []string `json:"urls"`
}

// checkManifest gives the media type. A manifest's blobs must be there; an
// index may name images that are nowhere, as clients that push one platform
// leave it.
func (g *Registry) checkManifest(q request, body []byte) (string, error) {
	var m struct {
		MediaType     string       `json:"mediaType"`
		SchemaVersion int          `json:"schemaVersion"`
		Config        *descriptor  `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	if err := json.Unmarshal(body, &m); err != nil || m.SchemaVersion != 2 {
		return "", refuse(http.StatusBadRequest, "MANIFEST_INVALID", "no manifest of schema 2")
	}
	mediaType, _, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil || !strings.HasPrefix(mediaType, "application/vnd.") {
		mediaType = m.MediaType
	}
	if !strings.HasPrefix(mediaType, "application/vnd.") || len(mediaType) > maxName || mime.FormatMediaType(mediaType, nil) == "" {
		return "", refuse(http.StatusBadRequest, "MANIFEST_INVALID", "say by Content-Type what this manifest is")
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, d := range blobs {
		if !digests.MatchString(d.Digest) {
			return "", refuse(http.StatusBadRequest, "MANIFEST_INVALID", "it names a blob by no sha256 digest")
		}
		if len(d.URLs) == 0 && !g.has(q.repo, d.Digest) {
			return "", refuse(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "its blob %s is not in this repository", d.Digest)
		}
	}
	return mediaType, nil
}

// listTags is a page of a repository's tags.
func (g *Registry) listTags(q request) error {
	list, err := list(filepath.Dir(g.repoPath(q.repo, "tags", "x")))
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(http.StatusNotFound, "NAME_UNKNOWN", "no repository %s", q.repo)
	}
	if err != nil {
		return err
	}
	writeJSON(q.w, http.StatusOK, map[string]any{"name": q.repo, "tags": page(q, list)})
	return nil
}

// catalog is a page of the repositories that whoever asks may pull from.
func (g *Registry) catalog(q request) error {
	all, err := list(g.path("repositories"))
	if err != nil {
		return err
	}
	allowed := []string{}
	for _, escaped := range all {
		name := strings.ReplaceAll(escaped, "%", "/")
		if g.allow(q.r, name, false) == nil {
			allowed = append(allowed, name)
		}
	}
	sort.Strings(allowed)
	writeJSON(q.w, http.StatusOK, map[string]any{"repositories": page(q, allowed)})
	return nil
}

// list gives the names in a folder, sorted, without temporary files.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	found := []string{}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporary) {
			found = append(found, e.Name())
		}
	}
	return found, err
}

// page cuts a list as the client asks (n, last) and says where the next begins.
func page(q request, all []string) []string {
	ask := q.r.URL.Query()
	if last := ask.Get("last"); last != "" {
		all = all[sort.Search(len(all), func(i int) bool { return all[i] > last }):]
	}
	n := maxListed
	if asked, err := strconv.Atoi(ask.Get("n")); err == nil && asked >= 0 {
		n = min(n, asked)
	}
	if len(all) <= n {
		return all
	}
	if n > 0 {
		next := url.URL{Path: q.r.URL.Path, RawQuery: url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}}.Encode()}
		q.w.Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, &next))
	}
	return all[:n]
}

// put gives a file its contents at once, and durably. Folders are made.
func put(name string, data []byte) error {
	dir := filepath.Dir(name)
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, temporary)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // best effort: the next start does it
		return err
	}
	return syncDir(dir)
}

// makeDir makes a folder and those above it, each durably. Only a repository's
// are ever missing: two levels.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o700)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("registry: answer that JSON cannot hold: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone
}
