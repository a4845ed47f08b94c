package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thaw/internal/faults"
	"thaw/internal/testoci"
	"thaw/internal/tests3"
)

const (
	stormImages  = 20
	stormStarts  = 100
	stormWorkers = 3
	// stormLimit is each worker's --origin-requests: few, so that it is reached.
	stormLimit = 8
	// stormTime bounds all starts together: 100 programs at once, on two cores.
	stormTime = 10 * time.Minute
)

// BenchmarkStorm starts a crowd on workers whose caches, and the zone they
// share, are empty, before an origin of 36 ms in the median and 175 ms at 99.9 %
// (the paper's). For comparison, it does so without a zone too.
func BenchmarkStorm(b *testing.B) {
	asRoot(b)
	s := newStorm(b)
	nodes, end := s.zone(b)
	zoned := s.run(b, "--zone", nodes)
	end()
	zoned.say("with a zone")
	if most := float64(zoned.distinct) * 1.2; float64(zoned.gets) > most {
		b.Errorf("%d GETs of %d chunks, want at most %.0f", zoned.gets, zoned.distinct, most)
	}
	s.run(b).say("without a zone")
	b.ReportMetric(float64(zoned.gets)/float64(zoned.distinct), "GETs/chunk")
}

// storm is a fleet before its starts.
type storm struct {
	workers []*stormWorker
	images  []stormImage
	scratch string
}

// stormWorker is a worker with its own way to the origin.
type stormWorker struct {
	*place
	front *tests3.Front
	flags []string
}

// stormImage is an image with a program that prints the hash of the image's own
// file.
type stormImage struct {
	name, hash string
	argv       []string
}

func newStorm(b *testing.B) *storm {
	server := tests3.Start(b)
	bucket := server.Bucket(b, "")
	s := &storm{scratch: b.TempDir()}
	key := "file://" + filepath.Join(b.TempDir(), "key")
	slow := faults.LogNormal(36*time.Millisecond, 175*time.Millisecond)
	for i := range stormWorkers {
		w := &stormWorker{place: newPlace(b), front: server.Front(b, faults.Slow(uint64(i), slow), "/chunks/")}
		origin := strings.Replace(bucket, url.QueryEscape(server.URL), url.QueryEscape(w.front.URL), 1)
		w.flags = w.args("--origin", origin, "--key", key, "--origin-requests", fmt.Sprint(stormLimit))
		s.workers = append(s.workers, w)
	}
	programs := map[string][]string{
		"base":   {"sha256sum", "/own/data"},
		"python": {"python3", "-c", `import hashlib; print(hashlib.sha256(open("/own/data", "rb").read()).hexdigest())`},
		"node":   {"node", "-e", `console.log(require("crypto").createHash("sha256").update(require("fs").readFileSync("/own/data")).digest("hex"))`},
	}
	first := s.workers[0]
	for i := range stormImages {
		base := []string{"base", "python", "node"}[i%3]
		data := testoci.Noise(uint64(i), 3*mib)
		sum := sha256.Sum256(data)
		layout := stack(b, corpus(b, base), testoci.Tar(b, testoci.Dir("own"), testoci.File("own/data", data)))
		image := stormImage{fmt.Sprintf("storm-%d", i), hex.EncodeToString(sum[:]), programs[base]}
		timed(b, first.thaw, first.args("--origin", bucket, "--key", key, "convert", "oci:"+layout, "--name", image.name)...)
		try(b, os.RemoveAll(layout))
		s.images = append(s.images, image)
	}
	return s
}

// zone starts five nodes, until end is called.
func (s *storm) zone(b *testing.B) (nodes string, end func()) {
	first := s.workers[0]
	r := begin(b, first.thaw, "--state", filepath.Join(s.scratch, "zone"), "zone", "--dev", "5", "--memory", "256MiB")
	return strings.TrimSpace(r.line), func() {
		try(b, r.cmd.Process.Signal(syscall.SIGTERM))
		if err := r.cmd.Wait(); err != nil {
			b.Errorf("zone: %v\n%s", err, r.stderr())
		}
	}
}

// stormed is what a storm took.
type stormed struct {
	gets, distinct, most, requests int // of and at the origin; most: GETs of one worker at once
	took                           milliseconds
	all                            time.Duration
}

func (r *stormed) say(how string) {
	slices.Sort(r.took)
	say("storm, %s: %d starts of %d images at once over %d workers: all done in %.1f s, half in %.1f; %d GETs of %d chunks (%.2f each), at most %d at once a worker (limit %d); %d other requests",
		how, stormStarts, stormImages, stormWorkers, r.all.Seconds(), r.took.median()/1000,
		r.gets, r.distinct, float64(r.gets)/float64(r.distinct), r.most, stormLimit, r.requests-r.gets)
}

// run empties the workers, starts all programs at once and checks what each
// says.
func (s *storm) run(b *testing.B, flags ...string) *stormed {
	b.Helper()
	for _, w := range s.workers {
		if out, err := exec.Command(w.thaw, w.args("prune")...).CombinedOutput(); err != nil {
			b.Fatalf("prune: %v\n%s", err, out)
		}
		w.forget(b)
		w.front.Forget()
	}
	r := &stormed{took: make(milliseconds, stormStarts)}
	failed := make([]error, stormStarts)
	ctx, cancel := context.WithTimeout(b.Context(), stormTime)
	defer cancel()
	begin := time.Now()
	var work sync.WaitGroup
	for i := range stormStarts {
		work.Go(func() {
			failed[i] = s.start(ctx, i, flags)
			r.took[i] = float64(time.Since(begin).Milliseconds())
		})
	}
	work.Wait()
	r.all = time.Since(begin)
	try(b, failed...)
	asked := map[string]bool{}
	for i, w := range s.workers {
		seen := w.front.Seen()
		r.gets += seen.Gets
		r.requests += seen.Requests
		r.most = max(r.most, seen.MostGetsAtOnce)
		if seen.MostGetsAtOnce > stormLimit {
			b.Errorf("worker %d had %d GETs at once, limit %d", i, seen.MostGetsAtOnce, stormLimit)
		}
		for _, path := range seen.Asked {
			asked[path] = true
		}
	}
	r.distinct = len(asked)
	return r
}

// start runs the i-th program to its end.
func (s *storm) start(ctx context.Context, i int, flags []string) error {
	w, image := s.workers[i%len(s.workers)], s.images[i%len(s.images)]
	cmd := exec.CommandContext(ctx, w.thaw, slices.Concat(w.flags, flags, []string{"run", image.name}, image.argv)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err == nil && !strings.HasPrefix(out.String(), image.hash) {
		err = errors.New("it read other bytes than are in the image")
	}
	if err != nil {
		return fmt.Errorf("start %d of %s: %w\n%s%s", i, image.name, err, &out, &errs)
	}
	return nil
}

// stack gives a layout like another, with one layer more, a tar.
func stack(b testing.TB, base string, layer []byte) (dir string) {
	b.Helper()
	dir = b.TempDir()
	try(b, os.CopyFS(dir, os.DirFS(base)))
	type object = map[string]any
	put := func(data []byte) object {
		sum := sha256.Sum256(data)
		digest := "sha256:" + hex.EncodeToString(sum[:])
		try(b, os.WriteFile(blob(dir, digest), data, 0o644))
		return object{"digest": digest, "size": len(data)}
	}
	putJSON := func(v any) object {
		data, err := json.Marshal(v)
		try(b, err)
		return put(data)
	}
	with := func(d object, mediaType any) object {
		d["mediaType"] = mediaType
		return d
	}
	var index, manifest, config object
	readJSON(b, filepath.Join(dir, "index.json"), &index)
	top := index["manifests"].([]any)[0].(object)
	readJSON(b, blob(dir, top["digest"].(string)), &manifest)
	old := manifest["config"].(object)
	readJSON(b, blob(dir, old["digest"].(string)), &config)

	added := with(put(layer), "application/vnd.oci.image.layer.v1.tar")
	manifest["layers"] = append(manifest["layers"].([]any), added)
	root := config["rootfs"].(object)
	root["diff_ids"] = append(root["diff_ids"].([]any), added["digest"])
	delete(config, "history") // it would lack an entry
	manifest["config"] = with(putJSON(config), old["mediaType"])
	index["manifests"] = []any{with(putJSON(manifest), top["mediaType"])}
	data, err := json.Marshal(index)
	try(b, err, os.WriteFile(filepath.Join(dir, "index.json"), data, 0o644))
	return dir
}

// TestStack: the image is the base's with one file more.
func TestStack(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base")
	testoci.Layout(t, base, []string{"A=b"}, testoci.Tar(t, testoci.File("f", []byte("base"))))
	dir := stack(t, base, testoci.Tar(t, testoci.File("g", []byte("own"))))
	layers := layerBlobs(t, dir)
	if len(layers) != 2 {
		t.Fatalf("%d layers", len(layers))
	}
	top, err := os.ReadFile(layers[1])
	if err != nil || !bytes.Equal(top, testoci.Tar(t, testoci.File("g", []byte("own")))) {
		t.Errorf("the layer: %d bytes, %v", len(top), err)
	}
	if _, err := os.Stat(layers[0]); err != nil {
		t.Error(err)
	}
}
