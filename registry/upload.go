package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

// upload is a blob on its way.
type upload struct {
	repo string
	mu   sync.Mutex // held by the request that works on it
	file *os.File   // nil once it has ended
	hash hash.Hash
	size int64

	touched time.Time // when a request for it came or ended last; guarded by Registry.mu
}

// serveUpload does what a client asks of uploads.
func (g *Registry) serveUpload(q request) error {
	if q.r.Method == http.MethodPost && q.ref == "" {
		return g.begin(q)
	}
	if q.ref == "" {
		return badMethod()
	}
	u := g.find(q.ref, q.repo)
	if u == nil {
		return refuse(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload: begin again")
	}
	if !u.mu.TryLock() {
		return refuse(http.StatusConflict, "BLOB_UPLOAD_INVALID", "another request is at work on this upload")
	}
	defer u.mu.Unlock()
	defer g.touch(u)
	if u.file == nil {
		return refuse(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "this upload has ended")
	}
	switch q.r.Method {
	case http.MethodGet:
		g.position(q, q.ref, u, http.StatusNoContent)
		return nil
	case http.MethodDelete:
		g.drop(q.ref, u)
		q.w.WriteHeader(http.StatusNoContent)
		return nil
	case http.MethodPatch:
		if err := g.receive(q, q.ref, u); err != nil {
			return err
		}
		g.position(q, q.ref, u, http.StatusAccepted)
		return nil
	case http.MethodPut:
		if err := g.receive(q, q.ref, u); err != nil {
			return err
		}
		return g.finish(q, q.ref, u)
	}
	return badMethod()
}

// begin mounts a blob from another repository, or starts an upload, and ends it
// if the body is the whole blob.
func (g *Registry) begin(q request) error {
	ask := q.r.URL.Query()
	if from, digest := ask.Get("from"), ask.Get("mount"); digest != "" && digests.MatchString(digest) {
		if names.MatchString(from) && g.allow(q.r, from, false) == nil {
			if there, err := g.mount(q, from, digest); there || err != nil {
				return err
			}
		}
	}
	id, u, err := g.newUpload(q.repo)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	defer g.touch(u)
	if ask.Get("digest") == "" {
		g.position(q, id, u, http.StatusAccepted)
		return nil
	}
	if err := g.receive(q, id, u); err != nil {
		return err
	}
	return g.finish(q, id, u)
}

// mount takes a blob over from another repository, if that has it.
func (g *Registry) mount(q request, from, digest string) (there bool, err error) {
	g.gate.RLock()
	defer g.gate.RUnlock()
	if !g.has(from, digest) {
		return false, nil
	}
	return true, g.created(q, digest)
}

// newUpload starts one, after it has ended those that nobody goes on with.
func (g *Registry) newUpload(repo string) (string, *upload, error) {
	g.expire()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.uploads) >= g.o.MaxUploads {
		return "", nil, refuse(http.StatusTooManyRequests, "TOOMANYREQUESTS", "%d uploads are under way: try again later", len(g.uploads))
	}
	id := rand.Text()
	f, err := os.OpenFile(g.path("uploads", id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", nil, err
	}
	u := &upload{repo: repo, file: f, hash: sha256.New(), touched: time.Now()}
	g.uploads[id] = u
	return id, u, nil
}

// expire drops uploads that stand still, and gives how many.
func (g *Registry) expire() (ended int) {
	g.mu.Lock()
	idle := maps.Clone(g.uploads)
	maps.DeleteFunc(idle, func(_ string, u *upload) bool { return !u.idle() })
	g.mu.Unlock()
	for id, u := range idle {
		if !u.mu.TryLock() {
			continue // a request is at work on it
		}
		g.mu.Lock()
		still := u.file != nil && u.idle()
		g.mu.Unlock()
		if still {
			g.drop(id, u)
			ended++
		}
		u.mu.Unlock()
	}
	return ended
}

// idle tells whether nobody goes on with an upload. Registry.mu is held.
func (u *upload) idle() bool { return time.Since(u.touched) > uploadIdle }

// touch notes that an upload does not stand still.
func (g *Registry) touch(u *upload) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u.touched = time.Now()
}

// find gives an upload of that repository.
func (g *Registry) find(id, repo string) *upload {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := g.uploads[id]
	if u == nil || u.repo != repo {
		return nil
	}
	u.touched = time.Now()
	return u
}

// drop ends an upload, whose lock is held.
func (g *Registry) drop(id string, u *upload) {
	g.mu.Lock()
	delete(g.uploads, id)
	g.mu.Unlock()
	if u.file == nil {
		return
	}
	u.file.Close()
	u.file = nil
	g.used.Add(-u.size)
	if err := os.Remove(g.path("uploads", id)); err != nil {
		g.log.Warn("registry: an upload stays behind until the next start", "error", err)
	}
}

// position says how far an upload is.
func (g *Registry) position(q request, id string, u *upload, status int) {
	h := q.w.Header()
	h.Set("Location", path.Join("/v2", u.repo, "blobs/uploads", id))
	h.Set("Docker-Upload-Uuid", id)
	h.Set("Range", fmt.Sprintf("0-%d", max(u.size-1, 0)))
	h.Set("Content-Length", "0")
	q.w.WriteHeader(status)
}

// receive appends a request's body. A body that ends early leaves what came, so
// that the client can ask how far it is; a disk that fails ends the upload.
func (g *Registry) receive(q request, id string, u *upload) error {
	if first, _, ok := strings.Cut(q.r.Header.Get("Content-Range"), "-"); ok {
		if n, err := strconv.ParseInt(strings.TrimPrefix(first, "bytes "), 10, 64); err != nil || n != u.size {
			return refuse(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the next byte is number %d", u.size)
		}
	}
	err := g.append(q, u)
	var failed *writeError
	var no *refusal
	switch {
	case errors.As(err, &no):
		g.drop(id, u)
		return err
	case errors.As(err, &failed):
		g.drop(id, u)
		g.log.Error("registry: an upload cannot be stored", "error", failed.error)
		return refuse(http.StatusInsufficientStorage, "DENIED", "the registry's disk does not take it")
	case err != nil:
		return refuse(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the body ended early")
	}
	return nil
}

// writeError is one of the disk, to be told from one of the client.
type writeError struct{ error }

// append copies a body to file and hash, which never differ.
func (g *Registry) append(q request, u *upload) error {
	control := http.NewResponseController(q.w)
	defer control.SetReadDeadline(time.Time{}) //nolint:errcheck // tests' recorders have no deadlines
	buf := make([]byte, 256<<10)
	for {
		_ = control.SetReadDeadline(time.Now().Add(bodyIdle)) // likewise
		n, err := q.r.Body.Read(buf)
		if n > 0 {
			if failed := g.take(u, buf[:n]); failed != nil {
				return failed
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// take writes a piece, within the bounds.
func (g *Registry) take(u *upload, b []byte) error {
	n := int64(len(b))
	if u.size+n > g.o.MaxBlob {
		return refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "a blob has at most %d bytes here", g.o.MaxBlob)
	}
	if used := g.used.Add(n); g.o.MaxBytes > 0 && used > g.o.MaxBytes {
		g.used.Add(-n)
		return refuse(http.StatusInsufficientStorage, "DENIED", "the registry is full: it holds at most %d bytes", g.o.MaxBytes)
	}
	u.size += n
	if _, err := u.file.Write(b); err != nil {
		return &writeError{err}
	}
	u.hash.Write(b)
	return nil
}

// finish checks the digest and gives the blob its name.
func (g *Registry) finish(q request, id string, u *upload) error {
	digest := q.r.URL.Query().Get("digest")
	got := "sha256:" + hex.EncodeToString(u.hash.Sum(nil))
	if digest != got {
		g.drop(id, u)
		return refuse(http.StatusBadRequest, "DIGEST_INVALID", "what came has digest %s", got)
	}
	err := u.file.Chmod(0o400)
	if err == nil {
		err = u.file.Sync()
	}
	if err == nil {
		err = g.keep(q, id, u, digest)
	}
	g.drop(id, u)
	return err
}

// keep moves a whole upload, which is synced, to its place. One that is there
// already is the same.
func (g *Registry) keep(q request, id string, u *upload, digest string) error {
	g.gate.RLock()
	defer g.gate.RUnlock()
	err := os.Link(g.path("uploads", id), g.blobPath(digest))
	switch {
	case err == nil:
		g.used.Add(u.size) // drop takes the upload's share back
		err = syncDir(g.path("blobs"))
	case errors.Is(err, os.ErrExist):
		err = nil
	}
	if err != nil {
		return err
	}
	return g.created(q, digest)
}

// created links a stored blob into the repository and says so. The gate is held.
func (g *Registry) created(q request, digest string) error {
	g.use(g.blobPath(digest))
	if err := put(g.repoPath(q.repo, "blobs", digest), nil); err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Location", path.Join("/v2", q.repo, "blobs", digest))
	h.Set("Docker-Content-Digest", digest)
	h.Set("Content-Length", "0")
	q.w.WriteHeader(http.StatusCreated)
	return nil
}
