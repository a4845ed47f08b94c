package convert

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"thaw/catalog"
	"thaw/chunk"
	"thaw/internal/testleak"
	"thaw/internal/testoci"
	"thaw/keys"
	"thaw/manifest"
	"thaw/oci"
	"thaw/origin"
	"thaw/verify"
)

func TestMain(m *testing.M) { testleak.Main(m) }

// world is an origin in a folder and a tenant's converter to it.
type world struct {
	*Converter
	t   *testing.T
	dir string

	mu     sync.Mutex // guards warned
	warned []string
}

func newWorld(t *testing.T, dir, tenant string) *world {
	t.Helper()
	ctx := t.Context()
	o, err := origin.Open(ctx, "file://"+dir+"/origin")
	if err != nil {
		t.Fatal(err)
	}
	key, err := keys.Open(ctx, "file://"+dir+"/keys/"+tenant)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.Close(), key.Close()); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, dir: dir}
	w.Converter = &Converter{Origin: o, Tenant: tenant, Keeper: key, KeyURL: key.URL(), Warn: w.warn}
	return w
}

func (w *world) warn(format string, _ ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.warned = append(w.warned, format)
}

func (w *world) convert(opt Options) *Result {
	w.t.Helper()
	res, err := w.Convert(w.t.Context(), opt)
	if err != nil {
		w.t.Fatal(err)
	}
	if c := res.Chunks; c.Total != c.Zero+c.New+c.Stored {
		w.t.Fatalf("%+v: total is not the sum", c)
	}
	return res
}

// manifest opens the manifest of a result.
func (w *world) manifest(image string) (*manifest.Manifest, manifest.ID) {
	w.t.Helper()
	data, err := w.Origin.Manifests("r1", w.Tenant).Get(w.t.Context(), image)
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := manifest.Parse(data)
	if err != nil {
		w.t.Fatal(err)
	}
	id := s.ID()
	m, err := s.Open(w.t.Context(), w.Keeper)
	if err != nil {
		w.t.Fatal(err)
	}
	return m, id
}

type layersOf struct{ *oci.Image }

func (l layersOf) Len() int { return len(l.Layers()) }
func (l layersOf) Open(ctx context.Context, i int) (io.ReadCloser, error) {
	return l.OpenLayer(ctx, i, nil)
}

// check compares an image with its source.
func (w *world) check(image, source string) {
	w.t.Helper()
	m, _ := w.manifest(image)
	chunks := w.Origin.Chunks("r1")
	report, err := verify.Chunks(w.t.Context(), m, chunks, nil)
	if err != nil || len(report.Bad) > 0 {
		w.t.Fatal(err, report.Bad)
	}
	img, err := oci.Open(w.t.Context(), source, oci.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer img.Close()
	tree, err := verify.Tree(w.t.Context(), verify.Device(m, chunks), m.Size, layersOf{img})
	if err != nil || tree.Total > 0 {
		w.t.Fatal(err, tree.Differences)
	}
}

// files lists what lies under a folder of the origin.
func (w *world) files(under string) map[string]os.FileInfo {
	w.t.Helper()
	found := map[string]os.FileInfo{}
	err := filepath.WalkDir(filepath.Join(w.dir, "origin", under), func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && d.Type().IsRegular() {
			found[path], err = d.Info()
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// base and top are the layers of the sample image.
func sample(t *testing.T) (base, top []byte) {
	base = testoci.Tar(t, testoci.Dir("etc"), testoci.File("etc/os", []byte("small\n")),
		testoci.File("big", testoci.Noise(1, 3<<20)), testoci.File("etc/gone", []byte("x")))
	top = testoci.Tar(t, testoci.File("etc/.wh.gone", nil), testoci.File("etc/new", testoci.Noise(2, 70_000)))
	return base, top
}

func sampleImage(t *testing.T) string {
	base, top := sample(t)
	return testoci.Layout(t, filepath.Join(t.TempDir(), "sample"), []string{"SECRET=hunter2"}, base, top)
}

func TestConvertTwiceReadsOnce(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	if first.Chunks.New == 0 || first.Chunks.Stored != 0 || first.Layers.Reused != 0 || first.Bytes.Read == 0 || first.Name != "sample" {
		t.Fatalf("first: %+v", first)
	}
	w.check(first.Image, src)
	again := w.convert(Options{Source: src})
	if again.Image != first.Image || again.Chunks.New != 0 || again.Layers.Reused != 2 || again.Bytes.Read != 0 {
		t.Fatalf("again: %+v", again)
	}
	if n := len(w.files("names")); n != 1 {
		t.Fatalf("%d records of one name that never changed", n)
	}
}

func TestFreshStoresAgreeOnTheID(t *testing.T) {
	src := sampleImage(t)
	one := newWorld(t, t.TempDir(), "default").convert(Options{Source: src})
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	two := newWorld(t, t.TempDir(), "default").convert(Options{Source: src})
	if one.Image != two.Image {
		t.Fatalf("%s and %s", one.Image, two.Image)
	}
}

func TestChunkSizesCutOneDevice(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	var devices []int64
	for _, size := range []int{chunk.MinSize, chunk.DefaultSize, chunk.MaxSize} {
		res := w.convert(Options{Source: src, ChunkSize: size})
		w.check(res.Image, src)
		devices = append(devices, res.DeviceBytes)
	}
	if slices.Min(devices) != slices.Max(devices) {
		t.Fatalf("devices of %v bytes", devices)
	}
	if _, err := w.Convert(t.Context(), Options{Source: src, ChunkSize: 100_000}); err == nil {
		t.Fatal("a chunk size that is no power of two was taken")
	}
}

func TestTenantsShareChunksAndNothingElse(t *testing.T) {
	dir, src := t.TempDir(), sampleImage(t)
	a, b := newWorld(t, dir, "a"), newWorld(t, dir, "b")
	first := a.convert(Options{Source: src})
	before := len(a.files("roots/r1/chunks"))
	second := b.convert(Options{Source: src})
	if len(a.files("roots/r1/chunks")) != before {
		t.Fatal("the second tenant stored chunks that were there")
	}
	// To the second tenant all is new: what others have is not its to know.
	if second.Layers.Reused != 0 || second.Chunks.New != first.Chunks.New || second.Chunks.Stored != 0 {
		t.Fatalf("second tenant: %+v", second)
	}
	private := b.convert(Options{Source: src, Private: true, Name: "mine"})
	if private.Chunks.New != first.Chunks.New || private.Layers.Reused != 0 {
		t.Fatalf("private: %+v", private)
	}
	b.check(private.Image, src)
}

func TestAnotherSecretSharesNothing(t *testing.T) {
	dir, src := t.TempDir(), sampleImage(t)
	w := newWorld(t, dir, "a")
	first := w.convert(Options{Source: src})
	w.Secret = []byte("a deployment's own secret")
	second := w.convert(Options{Source: src})
	if second.Chunks.New != first.Chunks.New || second.Image == first.Image {
		t.Fatalf("%+v", second)
	}
}

func TestNewVersionReadsTheChangedLayerOnly(t *testing.T) {
	w := newWorld(t, t.TempDir(), "a")
	base, top := sample(t)
	w.convert(Options{Source: testoci.Layout(t, filepath.Join(t.TempDir(), "v1"), nil, base, top)})
	changed := testoci.Tar(t, testoci.File("etc/new", testoci.Noise(3, 70_000)))
	src := testoci.Layout(t, filepath.Join(t.TempDir(), "v2"), nil, base, changed)
	res := w.convert(Options{Source: src})
	if res.Layers.Reused != 1 || res.Chunks.New > 6 {
		t.Fatalf("%+v", res)
	}
	w.check(res.Image, src)
}

func TestInterruptedConversionIsContinued(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	// As if killed before recipes, manifest and name were written.
	for _, dir := range []string{"roots/r1/recipes", "roots/r1/manifests", "names"} {
		if err := os.RemoveAll(filepath.Join(w.dir, "origin", dir)); err != nil {
			t.Fatal(err)
		}
	}
	before := w.files("roots/r1/chunks")
	again := newWorld(t, w.dir, "a").convert(Options{Source: src})
	if again.Image != first.Image {
		t.Fatal("another image")
	}
	for path, info := range w.files("roots/r1/chunks") {
		if old := before[path]; old == nil || !os.SameFile(old, info) {
			t.Fatalf("%s was stored again", path)
		}
	}
}

func TestSameLayerTwiceAndNoLayers(t *testing.T) {
	w := newWorld(t, t.TempDir(), "a")
	base, top := sample(t)
	for i, layers := range [][][]byte{{base, top, base}, {}, {top}} {
		src := testoci.Layout(t, filepath.Join(t.TempDir(), "img"), nil, layers...)
		res := w.convert(Options{Source: src})
		if res.Layers.Total != len(layers) {
			t.Fatalf("%d: %+v", i, res)
		}
		w.check(res.Image, src)
	}
}

func TestDamagedRecipeIsMadeAgain(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	for path := range w.files("roots/r1/recipes") {
		spoil(t, path, 40)
	}
	again := w.convert(Options{Source: src})
	if again.Image != first.Image || again.Layers.Reused != 0 || len(w.warned) != 2 {
		t.Fatalf("%+v, warned %v", again, w.warned)
	}
	if third := w.convert(Options{Source: src}); third.Layers.Reused != 2 {
		t.Fatalf("the recipes were not replaced: %+v", third)
	}
}

// spoil flips a byte of a file.
func spoil(t *testing.T, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 1
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLostChunkIsStoredAgain(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	m, _ := w.manifest(first.Image)
	big := m.Chunks[len(m.Chunks)/2].Name
	if err := os.Remove(w.chunkFile(big)); err != nil {
		t.Fatal(err)
	}
	w.convert(Options{Source: src})
	w.check(first.Image, src)
}

func (w *world) chunkFile(name chunk.Name) string {
	s := name.String()
	return filepath.Join(w.dir, "origin/roots/r1/chunks", s[:2], s)
}

func TestDamagedManifestIsReplaced(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	first := w.convert(Options{Source: src})
	for path := range w.files("roots/r1/manifests") {
		spoil(t, path, 40)
	}
	if again := w.convert(Options{Source: src}); again.Image != first.Image || len(w.warned) == 0 {
		t.Fatalf("%+v", again)
	}
	w.check(first.Image, src)
}

func TestRepair(t *testing.T) {
	for _, private := range []bool{false, true} {
		w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
		res := w.convert(Options{Source: src, Private: private, Free: 3 << 30})
		m, id := w.manifest(res.Image)
		n := len(m.Chunks)
		spoil(t, w.chunkFile(m.Chunks[0].Name), 7)
		if err := os.Remove(w.chunkFile(m.Chunks[n-1].Name)); err != nil {
			t.Fatal(err)
		}
		short := w.chunkFile(m.Chunks[n/2].Name)
		if err := errors.Join(os.Chmod(short, 0o644), os.Truncate(short, 5)); err != nil {
			t.Fatal(err)
		}
		root, err := w.Origin.Active(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mended, err := w.Repair(t.Context(), m, id, root, Options{Source: src})
		if err != nil || mended != 3 {
			t.Fatalf("private %v: %d repaired, %v", private, mended, err)
		}
		w.check(res.Image, src)
		base, _ := sample(t)
		other := testoci.Layout(t, filepath.Join(t.TempDir(), "other"), nil, base)
		if _, err := w.Repair(t.Context(), m, id, root, Options{Source: other}); !errors.Is(err, ErrDiffers) {
			t.Fatalf("repair from another image: %v", err)
		}
	}
}

func TestCorruptLayerStoresNoImage(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	blobs, err := filepath.Glob(strings.TrimPrefix(src, "oci:") + "/blobs/sha256/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		if info, _ := os.Stat(b); info.Size() > 1<<20 {
			spoil(t, b, info.Size()/2)
		}
	}
	if _, err := w.Convert(t.Context(), Options{Source: src}); !errors.Is(err, oci.ErrCorrupt) || !strings.Contains(err.Error(), "sha256:") {
		t.Fatalf("got %v", err)
	}
	if n := len(w.files("roots/r1/manifests")) + len(w.files("names")); n != 0 {
		t.Fatalf("%d records of an image that failed", n)
	}
}

func TestWrongKeyIsRefused(t *testing.T) {
	dir, src := t.TempDir(), sampleImage(t)
	newWorld(t, dir, "a").convert(Options{Source: src})
	if err := os.Rename(dir+"/keys/a", dir+"/keys/old"); err != nil {
		t.Fatal(err)
	}
	_, err := newWorld(t, dir, "a").Convert(t.Context(), Options{Source: src})
	if !errors.Is(err, keys.ErrRefused) {
		t.Fatalf("got %v", err)
	}
}

func TestCancelEndsAll(t *testing.T) {
	w, src := newWorld(t, t.TempDir(), "a"), sampleImage(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.Convert(ctx, Options{Source: src, Progress: cancelling{cancel}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := catalog.New(w.Origin, "a", w.Keeper).Get(t.Context(), "sample"); !errors.Is(err, catalog.ErrNotFound) {
		t.Fatalf("a name was given: %v", err)
	}
}

// cancelling cancels at the first byte read.
type cancelling struct{ cancel context.CancelFunc }

func (c cancelling) Layers([]oci.Layer) {}
func (c cancelling) Read(int, int64)    { c.cancel() }
func (c cancelling) Done(int, bool)     {}
