package bench

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"thaw/internal/faults"
	"thaw/internal/tests3"
)

const (
	// randomMiB is the large image's file; THAW_BENCH_MIB is another size, for a
	// try.
	randomMiB = 9000
	// coldPairs is how often the large image is compared with the small one, and
	// coldEvents the instances that start at once, each time from nothing.
	coldPairs, coldEvents = 5, 10
	// partialStarts are lone starts with all prepared.
	partialStarts = 20
)

// zeros is a reader without end.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// withRandom makes an image: another, and a layer with one file that neither
// compression nor deduplication makes smaller.
func withRandom(b testing.TB, below string, mibs int64) string {
	b.Helper()
	image := imageAt(b, below)
	block, err := aes.NewCipher([]byte("thaw bench: cold starts, 32 byte"))
	try(b, err)
	open := func() (io.ReadCloser, error) {
		var head bytes.Buffer
		if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Name: "srv/random", Mode: 0o644, Size: mibs * mib}); err != nil {
			return nil, err
		}
		random := cipher.StreamReader{S: cipher.NewCTR(block, make([]byte, aes.BlockSize)), R: zeros{}}
		return io.NopCloser(io.MultiReader(&head, io.LimitReader(random, mibs*mib), io.LimitReader(zeros{}, 1024))), nil
	}
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(gzip.NoCompression))
	try(b, err)
	image, err = mutate.AppendLayers(image, layer)
	try(b, err)
	return layoutOf(b, image)
}

// imageAt reads a layout of one image.
func imageAt(b testing.TB, dir string) v1.Image {
	b.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	try(b, err)
	m, err := index.IndexManifest()
	try(b, err)
	image, err := index.Image(m.Manifests[0].Digest)
	try(b, err)
	return image
}

// layoutOf writes one.
func layoutOf(b testing.TB, image v1.Image) string {
	b.Helper()
	dir := filepath.Join(b.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	try(b, err)
	try(b, path.AppendImage(image))
	return dir
}

// over makes an image: the layers of one above those of another, with the
// configuration of the upper.
func over(b testing.TB, below, above string) string {
	b.Helper()
	lower, upper := imageAt(b, below), imageAt(b, above)
	layers, err := upper.Layers()
	try(b, err)
	config, err := upper.ConfigFile()
	try(b, err)
	image, err := mutate.AppendLayers(lower, layers...)
	try(b, err)
	image, err = mutate.Config(image, config.Config)
	try(b, err)
	return layoutOf(b, image)
}

// platform brings a platform up in the place, until the benchmark's end.
func (p *place) platform(b testing.TB, flags ...string) {
	b.Helper()
	up := begin(b, p.thaw, p.args(append([]string{"up", "--listen=127.0.0.1:0", "--registry=127.0.0.1:0"}, flags...)...)...)
	b.Cleanup(func() {
		_ = up.cmd.Process.Signal(syscall.SIGINT) // it may have ended
		err := up.cmd.Wait()
		if e := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &e) || e.ExitCode() != 130) {
			b.Errorf("thaw up: %v\n%s", err, up.stderr())
		}
	})
	if !strings.HasPrefix(up.line, "Thaw is up") {
		b.Fatalf("thaw up: %s", up.line)
	}
}

// coldRow is one of bench coldstart --json.
type coldRow struct {
	Name                  string
	MemoryMB              int `json:"memory_mb"`
	Cold, Warm, Failed    int
	Init, Total, Platform struct {
		Median float64 `json:"median_ms"`
		P95    float64 `json:"p95_ms"`
		Max    float64 `json:"max_ms"`
	}
	CPU     float64 `json:"cpu_ms"` // of all processors, for one start
	Starts  map[string]int
	Stages  map[string]float64 `json:"stages_ms"`
	Touched struct {
		Cache, Zone, Origin struct{ Chunks, Bytes int64 }
	}
}

// start is what a client waits besides the handler.
func (r *coldRow) start() float64 { return r.Init.Median + r.Platform.Median }

func (r *coldRow) stages() string {
	var parts []string
	for _, stage := range slices.SortedFunc(maps.Keys(r.Stages), func(x, y string) int { return cmp.Compare(r.Stages[y], r.Stages[x]) }) {
		parts = append(parts, fmt.Sprintf("%s %.1f", stage, r.Stages[stage]))
	}
	return strings.Join(parts, ", ")
}

func (p *place) coldstarts(b testing.TB, args ...string) []coldRow {
	b.Helper()
	var out struct{ Rows []coldRow }
	try(b, json.Unmarshal(timed(b, p.thaw, p.args(append([]string{"bench", "coldstart", "--json"}, args...)...)...).stdout, &out))
	for _, r := range out.Rows {
		if r.Failed > 0 || r.Warm > 0 {
			b.Errorf("%s: %d invokes failed, and %d were warm", r.Name, r.Failed, r.Warm)
		}
	}
	return out.Rows
}

// BenchmarkColdstart compares cold starts of a function with those of the same
// with a big file beside it, in turns, each time from nothing on the worker; and
// says what the platform takes of a start with all prepared.
func BenchmarkColdstart(b *testing.B) {
	asRoot(b)
	mibs := int64(randomMiB)
	if text := os.Getenv("THAW_BENCH_MIB"); text != "" {
		var err error
		mibs, err = strconv.ParseInt(text, 10, 64)
		try(b, err)
	}
	p := newPlace(b)
	small := corpus(b, "fn-go")
	large := withRandom(b, small, mibs)
	p.platform(b)
	rows := strings.Repeat("small,large,", coldPairs) + "large-memory"
	measured := p.coldstarts(b, "--small", "oci:"+small, "--large", "oci:"+large, "--rows", rows, "--parallel", strconv.Itoa(coldEvents))
	var inits, whole Ratios
	for pair := range slices.Chunk(measured[:2*coldPairs], 2) {
		inits = append(inits, pair[1].Init.Median/pair[0].Init.Median)
		whole = append(whole, pair[1].start()/pair[0].start())
	}
	say("cold start, %d at once, %d MiB more in the image: median of init %v ×, of the client's total without the handler %v × (at most 1.1)", coldEvents, mibs, inits, whole)
	for _, r := range measured[2*coldPairs-2:] {
		say("cold start, %s, %d MB: init %.1f ms, platform %.1f ms; first touches from cache %d, zone %d, origin %d; stages in ms, medians: %s",
			r.Name, r.MemoryMB, r.Init.Median, r.Platform.Median, r.Touched.Cache.Chunks, r.Touched.Zone.Chunks, r.Touched.Origin.Chunks, r.stages())
	}
	alone := p.coldstarts(b, "--small", "oci:"+small, "--large", "oci:"+large, "--rows", strings.TrimSuffix(strings.Repeat("small,large-memory,", coldPairs), ","), "--parallel", "1", "--large-memory", "10240")
	var most Ratios
	for pair := range slices.Chunk(alone, 2) {
		most = append(most, pair[1].start()/pair[0].start())
	}
	say("cold start alone, %d MiB more in the image and %d MB of memory for %d: the client's total without the handler %v ×", mibs, alone[1].MemoryMB, alone[0].MemoryMB, most)
	partial := p.coldstarts(b, "--small", "oci:"+small, "--rows", "small", "--start", "partial", "--by", "invokes", "--hold", "0s", "--parallel", "1", "--rounds", strconv.Itoa(partialStarts))[0]
	if partial.Starts["partial"] != partialStarts {
		b.Errorf("starts: %v, want %d partial ones", partial.Starts, partialStarts)
	}
	say("partial cold start, cache warm: the platform takes %.1f ms in the median, %.1f at p95 (at most 60); init %.1f; stages in ms, medians: %s",
		partial.Platform.Median, partial.Platform.P95, partial.Init.Median, partial.stages())
	b.ReportMetric(whole.median(), "large/small")
	b.ReportMetric(partial.Platform.Median, "ms-platform")
}

// BenchmarkBase compares cold starts of a function on a base image that workers
// keep with those of the same function in a small image that was never seen, in
// turns. There is no zone: what a worker has not, the origin gives: a folder of
// this machine, of which the base has the least to win, or a bucket whose GETs of
// chunks take as long as those of S3 (paper, section 4: 36 ms in the median).
func BenchmarkBase(b *testing.B) {
	asRoot(b)
	b.Run("folder", func(b *testing.B) { newPlace(b).onBase(b, "a folder") })
	b.Run("bucket", func(b *testing.B) {
		server, p := tests3.Start(b), newPlace(b)
		front := server.Front(b, faults.Slow(1, faults.LogNormal(36*time.Millisecond, 175*time.Millisecond)), "/chunks/")
		p.flags = []string{"--origin", server.Bucket(b, front.URL), "--key", "file://" + filepath.Join(b.TempDir(), "key")}
		p.onBase(b, "a bucket as slow as S3")
	})
}

func (p *place) onBase(b *testing.B, origin string) {
	base, function := corpus(b, "python"), corpus(b, "fn-go")
	p.platform(b, "--nodes=0")
	timed(b, p.thaw, p.args("base", "add", "oci:"+base, "--name", "python")...)
	rows := strings.TrimSuffix(strings.Repeat("small,large,", 2*coldPairs), ",")
	measured := p.coldstarts(b, "--small", "oci:"+withRandom(b, function, 4), "--large", "oci:"+over(b, base, function), "--rows", rows,
		"--parallel", "1", "--by", "invokes", "--hold", "0s", "--pinned")
	var whole Ratios
	for pair := range slices.Chunk(measured, 2) {
		whole = append(whole, pair[1].start()/pair[0].start())
	}
	say("cold start on a base image that the worker keeps, above a small image that was never seen, from %s: %v × (less than 1)", origin, whole)
	for _, r := range measured[len(measured)-2:] {
		say("%s: init %.1f ms, platform %.1f ms; first touches from cache %d, origin %d", r.Name, r.Init.Median, r.Platform.Median, r.Touched.Cache.Chunks, r.Touched.Origin.Chunks)
	}
	b.ReportMetric(whole.median(), "base/unseen")
}
