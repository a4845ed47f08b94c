package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/internal/testoci"
)

// largeLayout makes the image of sampleLayout with one more layer, of noise.
func largeLayout(t *testing.T, seed uint64, size int) string {
	t.Helper()
	sampleLayout(t) // builds the sample
	file := testoci.File("function", sample.data)
	file.Mode = 0o755
	return testoci.Layout(t, t.TempDir(), []string{"FROM=image"}, testoci.Tar(t, file), testoci.Tar(t, testoci.File("random", testoci.Noise(seed, size))))
}

// sampleZip packages the sample function.
func sampleZip(t *testing.T) string {
	t.Helper()
	sampleLayout(t)
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	h := &zip.FileHeader{Name: "bootstrap", Method: zip.Deflate}
	h.SetMode(0o755)
	f, err := w.CreateHeader(h)
	if err == nil {
		_, err = f.Write(sample.data)
	}
	if err == nil {
		err = w.Close()
	}
	path := filepath.Join(t.TempDir(), "f.zip")
	if err == nil {
		err = os.WriteFile(path, b.Bytes(), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// measuredColdstarts is what bench coldstart --json says.
type measuredColdstarts struct {
	Parallel int
	By       string
	Rows     []struct {
		Name               string
		MemoryMB           int `json:"memory_mb"`
		Cold, Warm, Failed int
		Init, Total        struct {
			Count  int
			Min    float64 `json:"min_ms"`
			Median float64 `json:"median_ms"`
			P95    float64 `json:"p95_ms"`
		}
		Platform struct {
			Count  int
			Median float64 `json:"median_ms"`
		}
		Starts  map[string]int
		Stages  map[string]float64 `json:"stages_ms"`
		Touched struct{ Cache, Zone, Origin struct{ Chunks, Bytes int64 } }
		Fetched struct{ Zone, Origin struct{ Chunks, Bytes int64 } }
		Left    int64 `json:"cache_left_bytes"`
	}
}

// benchLife bounds one experiment, of many deployments and starts.
const benchLife = 10 * time.Minute

func (r *region) benchColdstart(args ...string) (m measuredColdstarts) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.mustWithin(benchLife, append([]string{"bench", "coldstart", "--json"}, args...)...)), &m); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// apart calls try with how long each invoke is to hold its instance, longer each
// time, until it says that each invoke had its own: one whose start takes longer
// than another's start and hold gets that one's instance.
func apart(t *testing.T, try func(hold time.Duration) bool) {
	t.Helper()
	for hold := 2 * time.Second; !try(hold); hold *= 2 {
		if hold > time.Minute {
			t.Fatalf("held for %v, instances are used twice", hold)
		}
		t.Logf("held for %v, an instance was used twice", hold)
	}
}

// The experiment over all rows: each event has an instance of its own, each
// start is from nothing, and what it reads comes from the zone.
func TestBenchColdstart(t *testing.T) {
	r := newRegion(t, "--nodes=5")
	small, large, svg := sampleLayout(t), largeLayout(t, 1, 4<<20), filepath.Join(t.TempDir(), "cold.svg")
	zip := sampleZip(t)
	var m measuredColdstarts
	apart(t, func(hold time.Duration) bool {
		m = r.benchColdstart("--small", small, "--large", large, "--zip", zip, "--command", "/function", "--parallel", "2", "--memory", "192", "--hold", hold.String(), "--svg", svg)
		warm := 0
		for _, row := range m.Rows {
			warm += row.Warm
		}
		return warm == 0
	})
	if len(m.Rows) != 4 || m.By != "events" {
		t.Fatalf("%+v", m)
	}
	for i, name := range []string{"small", "large", "large-memory", "zip"} {
		row := m.Rows[i]
		if row.Name != name || row.Cold != 2 || row.Warm != 0 || row.Failed != 0 || row.Init.Count != 2 || row.Total.Count != 2 || row.Init.Min <= 0 || row.Total.Min < 2000 || row.Platform.Median <= 0 {
			t.Errorf("%+v", row)
		}
		if row.Starts["full"] < 1 || row.Starts["full"]+row.Starts["partial"] != 2 || row.Stages["init"] <= 0 || row.Stages["sandbox"] <= 0 {
			t.Errorf("starts %v, stages %v", row.Starts, row.Stages)
		}
		if row.Fetched.Zone.Bytes == 0 || row.Touched.Zone.Chunks+row.Touched.Cache.Chunks == 0 || row.Left != 0 {
			t.Errorf("%s: nothing came from the zone, or something was there: %+v", name, row)
		}
		if large := name == "large-memory"; large && row.MemoryMB < 1000 || !large && row.MemoryMB != 192 {
			t.Errorf("%s has %d MB", name, row.MemoryMB)
		}
		if said := holding(t, r.state, fmt.Sprintf("\tMemory Size: %d MB\t", row.MemoryMB)); len(said) == 0 {
			t.Errorf("%s: no log tells of an instance of %d MB", name, row.MemoryMB)
		}
	}
	drawing, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(bytes.NewReader(drawing))
	for err == nil {
		_, err = d.Token()
	}
	if err != io.EOF || strings.Count(string(drawing), "192 MB") != 6 || strings.Count(string(drawing), "<path d=\"M0 300H") != 8 {
		t.Errorf("%v: %s", err, drawing)
	}
	if out := r.must("functions", "--json"); out != "" {
		t.Errorf("left: %s", out)
	}
}

// Somebody waits for each invoke; a hold of nothing lets instances be used twice;
// partial starts find the image mounted and a slot prepared.
func TestBenchColdstartInvokes(t *testing.T) {
	r := newRegion(t)
	small := sampleLayout(t)
	var out string
	apart(t, func(hold time.Duration) bool {
		out = r.mustWithin(benchLife, "bench", "coldstart", "--small", small, "--command", "/function", "--parallel", "3", "--hold", hold.String(), "--by", "invokes")
		return strings.Contains(out, "\nsmall  128 MB  init      3 ")
	})
	for _, want := range []string{"ROW    MEMORY  MS        COUNT", "\nsmall  128 MB  platform  3 ", "full"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	m := r.benchColdstart("--small", small, "--command", "/function", "--parallel", "1", "--rounds", "3", "--hold", "0s", "--by", "invokes", "--start", "partial")
	if row := m.Rows[0]; row.Cold != 3 || row.Starts["partial"] != 3 || row.Fetched.Origin.Chunks != 0 || row.Platform.Median <= 0 || row.Platform.Median >= row.Total.Median {
		t.Errorf("%+v", row)
	}
	for _, bad := range [][]string{{}, {"--small", small, "--rows", "large"}, {"--small", small, "--rows", "none"}, {"--small", small, "--parallel", "0"}, {"--small", small, "--hold", "1h"}, {"--zip", "/x"}} {
		if e := r.thaw(append([]string{"bench", "coldstart"}, bad...)...); e.code != 1 || e.stderr == "" {
			t.Errorf("%q: %+v", bad, e)
		}
	}
}
