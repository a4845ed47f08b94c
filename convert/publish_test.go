package convert

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/keys"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
)

func TestNameIsCheckedFirst(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	if _, err := w.Convert(t.Context(), Options{Source: src, Name: "no spaces"}); err == nil || !strings.Contains(err.Error(), "no spaces") {
		t.Fatalf("got %v", err)
	}
	if n := len(w.files("")); n != 0 {
		t.Fatalf("%d files of a conversion that could not be", n)
	}
}

func TestNameOfAnotherKeyIsNotTaken(t *testing.T) {
	dir := t.TempDir()
	newWorld(t, dir, "a").convert(Options{Source: sampleImage(t), Name: "app"})
	if err := os.Rename(dir+"/keys/a", dir+"/keys/old"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, dir, "a")
	before := len(w.files(""))
	if _, err := w.Convert(t.Context(), Options{Source: sampleImage(t), Name: "app"}); !errors.Is(err, keys.ErrRefused) {
		t.Fatalf("got %v", err)
	}
	if n := len(w.files("")); n != before {
		t.Fatalf("%d files more", n-before)
	}
}

func TestDamagedNameIsSetAnew(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	for path := range w.files("names") {
		spoil(t, path, 30)
	}
	w.convert(Options{Source: src})
	if ref, err := w.names().Get(t.Context(), "sample"); err != nil || ref.Image != first.Image || ref.Seq != 2 {
		t.Fatalf("%+v, %v", ref, err)
	}
}

// huge is a registry with an image that has one layer twice, which is announced
// with a pebibyte and not there.
type huge struct {
	config, manifest string
	asked            []string
}

func newHuge() *huge {
	h := &huge{}
	diff := digest("layer")
	h.config = fmt.Sprintf(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q,%q]}}`, diff, diff)
	layer := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}`, digest("blob"), int64(1)<<50)
	h.manifest = fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[%s,%s]}`,
		digest(h.config), len(h.config), layer, layer)
	return h
}

func digest(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func (h *huge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/v2/":
	case strings.HasPrefix(r.URL.Path, "/v2/huge/manifests/"):
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write([]byte(h.manifest))
	case strings.HasSuffix(r.URL.Path, digest(h.config)):
		_, _ = w.Write([]byte(h.config))
	default:
		h.asked = append(h.asked, r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
	}
}

func TestSpaceIsCheckedFirst(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	h := newHuge()
	server := httptest.NewServer(h)
	defer server.Close()
	w := newWorld(t, t.TempDir(), "a")
	opt := Options{Source: "docker://" + strings.TrimPrefix(server.URL, "http://") + "/huge", Name: "huge", Image: oci.Options{PlainHTTP: true}}
	_, err := w.Convert(t.Context(), opt)
	// One layer that stands in the image twice is stored once.
	if !errors.Is(err, origin.ErrFull) || !strings.Contains(err.Error(), " 1073741888.0 MiB are needed at least (layers of 1073741824.0 MiB, compressed, and 64 MiB to spare)") {
		t.Fatalf("got %v", err)
	}
	if n := len(w.files("roots/r1/chunks")); n != 0 || len(h.asked) != 0 {
		t.Fatalf("%d chunks, asked for %v", n, h.asked)
	}
	opt.IgnoreSpace = true
	if _, err := w.Convert(t.Context(), opt); err == nil || errors.Is(err, origin.ErrFull) || len(h.asked) == 0 {
		t.Fatalf("asked for %v, got %v", h.asked, err)
	}
}

// hooked is a key that lets others act while it works.
type hooked struct {
	manifest.Wrapper
	before func()
}

func (h hooked) Wrap(ctx context.Context, plain []byte) ([]byte, error) {
	h.before()
	return h.Wrapper.Wrap(ctx, plain)
}

// The last value to be wrapped is the name's seal: by then the manifest is
// stored, and whoever removes the image has seen no name yet.
func TestManifestRemovedWhileNamedIsPutAgain(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	removed := 0
	w.Keeper = hooked{w.Keeper, func() {
		for path := range w.files("roots/r1/manifests") {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
			removed++
		}
	}}
	res := w.convert(Options{Source: src})
	if removed != 1 {
		t.Fatalf("%d manifests removed", removed)
	}
	w.check(res.Image, src)
}

func TestManifestOfAnotherKeyIsNotReplaced(t *testing.T) {
	dir, src := t.TempDir(), sampleImage(t)
	first := newWorld(t, dir, "a").convert(Options{Source: src})
	// Only the manifest is left of what the old key wrapped.
	for _, gone := range []string{"origin/names", "origin/roots/r1/recipes"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(dir+"/keys/a", dir+"/keys/old"); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, dir, "a")
	_, err := w.Convert(t.Context(), Options{Source: src})
	if !errors.Is(err, keys.ErrRefused) || !strings.Contains(err.Error(), first.Image) {
		t.Fatalf("got %v", err)
	}
	if n := len(w.files("names")); n != 0 {
		t.Fatalf("%d names of an image that nobody can open", n)
	}
}

func TestConversionsAtOnceAgree(t *testing.T) {
	dir, src := t.TempDir(), sampleImage(t)
	const n = 4
	worlds := make([]*world, n)
	for i := range worlds {
		worlds[i] = newWorld(t, dir, "a")
	}
	results := make([]*Result, n)
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, w := range worlds {
		all.Go(func() {
			results[i], errs[i] = w.Convert(t.Context(), Options{Source: src, Name: fmt.Sprintf("app%d", i)})
		})
	}
	all.Wait()
	for i := range n {
		if errs[i] != nil || results[i].Image != results[0].Image {
			t.Fatalf("%d: %+v, %v", i, results[i], errs[i])
		}
	}
	worlds[0].check(results[0].Image, src)
	refs, err := worlds[0].names().List(t.Context())
	if err != nil || len(refs) != n {
		t.Fatalf("names %v, %v", refs, err)
	}
}

// recorded is a Progress that adds up.
type recorded struct {
	mu     sync.Mutex
	layers []oci.Layer
	read   map[int]int64
	done   map[int]bool // whether it was reused
}

func (r *recorded) Layers(l []oci.Layer) { r.layers = append(r.layers, l...) }

func (r *recorded) Read(i int, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read[i] += n
}

func (r *recorded) Done(i int, reused bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done[i] = reused
}

func TestProgressTellsAll(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	for _, reused := range []bool{false, true} {
		p := &recorded{read: map[int]int64{}, done: map[int]bool{}}
		res := w.convert(Options{Source: src, Progress: p})
		if len(p.layers) != 2 || len(p.done) != 2 {
			t.Fatalf("%+v", p)
		}
		sum := int64(0)
		for i, l := range p.layers {
			sum += p.read[i]
			if p.done[i] != reused || !reused && p.read[i] != l.Size {
				t.Fatalf("layer %d of %d bytes: %+v", i, l.Size, p)
			}
		}
		if sum != res.Bytes.Read {
			t.Fatalf("%d bytes told, %d counted", sum, res.Bytes.Read)
		}
	}
}

func TestCancelledLookReportsNoRecipe(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	m, _ := w.manifest(w.convert(Options{Source: src}).Image)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := &run{c: w.Converter, store: w.Origin.Chunks("r1")}
	if whole, err := r.stored(ctx, m.Chunks); whole || !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, %v", whole, err)
	}
	m.Chunks[0].Name = chunk.Name{}
	if whole, err := r.stored(t.Context(), m.Chunks); whole || err != nil {
		t.Fatalf("%v, %v", whole, err)
	}
}

func TestUnknownNameStaysUnknown(t *testing.T) {
	w := newWorld(t, t.TempDir(), "a")
	_, err := w.Convert(t.Context(), Options{Source: "oci:" + t.TempDir(), Name: "app"})
	if err == nil {
		t.Fatal("an empty folder was converted")
	}
	if _, err := w.names().Get(t.Context(), "app"); !errors.Is(err, catalog.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}
