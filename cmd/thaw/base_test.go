package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/internal/testoci"
)

// basesOf is what base add and base list say of each worker.
type basesOf struct {
	Base    struct{ Name, Image string }
	Zone    struct{ Put, Failed int }
	Workers map[string]struct {
		Pinned, Left int64
		Missing      int
		Error        string
	}
}

// A base image is in the zone and in the worker's cache before a function is on
// it, stays there while all else goes, and is forgotten
// when it is removed.
func TestBase(t *testing.T) {
	r := newRegion(t, "--nodes=5", "--zone-disk=150MiB", "--account=210987654321")
	r.zoneTakes(t, 4*gib/20, 150*mib)
	if !strings.Contains(r.screen, "up to 3.1 GiB for functions, 5 zone nodes with 204.8 MiB of memory and 150.0 MiB of disk, ") {
		t.Errorf("up says %s", r.screen)
	}
	base := testoci.Layout(t, filepath.Join(t.TempDir(), "base"), []string{"FROM=image"}, testoci.Tar(t, testoci.File("random", testoci.Noise(1, 3<<20))))
	var added basesOf
	if err := json.Unmarshal([]byte(r.must("base", "add", base, "--name", "ours", "--json")), &added); err != nil {
		t.Fatal(err)
	}
	if added.Base.Name != "ours" || added.Zone.Put < 6 || added.Zone.Failed != 0 || len(added.Workers) != 1 {
		t.Errorf("%+v", added)
	}
	for id, w := range added.Workers {
		if w.Pinned < 3<<20 || w.Left != 0 || w.Missing != 0 || w.Error != "" {
			t.Errorf("worker %s: %+v", id, w)
		}
	}
	sampleLayout(t)
	file := testoci.File("function", sample.data)
	file.Mode = 0o755
	over := testoci.Layout(t, filepath.Join(t.TempDir(), "over"), []string{"FROM=image"}, testoci.Tar(t, testoci.File("random", testoci.Noise(1, 3<<20))), testoci.Tar(t, file))
	args := []string{"bench", "coldstart", "--large", over, "--rows", "large", "--command", "/function", "--parallel", "1", "--hold", "0s", "--json"}
	if e := r.thawWithin(benchLife, args...); e.code != 1 || !strings.Contains(e.stderr, "thaw base rm") {
		t.Errorf("a start from nothing is measured with a base in the cache: %+v", e)
	}
	var m measuredColdstarts
	if err := json.Unmarshal([]byte(r.mustWithin(benchLife, append(args, "--pinned")...)), &m); err != nil {
		t.Fatal(err)
	}
	if row := m.Rows[0]; row.Cold != 1 || row.Left < 3<<20 {
		t.Errorf("%+v", row)
	}
	if out := r.must("base"); !strings.Contains(out, "ours") || strings.Count(out, "\n") != 2 {
		t.Errorf("base list: %s", out)
	}
	r.must("base", "rm", "ours")
	if e := r.thaw("base", "rm", "ours"); e.code != 1 || !strings.Contains(e.stderr, "no base image is called ours") {
		t.Errorf("%+v", e)
	}
	if out := r.must("base", "list", "--json"); out != "" {
		t.Errorf("base list: %s", out)
	}
}

// zone is where a platform's nodes were when it came up.
func (r *region) zone(t *testing.T) string {
	t.Helper()
	var record struct{ Zone string }
	data, err := os.ReadFile(filepath.Join(r.state, "fleet", "platform.json"))
	try(t, errors.Join(err, json.Unmarshal(data, &record)))
	return record.Zone
}

// zoneTakes looks at what the zone of a platform takes: at most so much memory and
// disk, and nearly that.
func (r *region) zoneTakes(t *testing.T, memory, disk int64) {
	t.Helper()
	var takes struct{ memory, disk int64 }
	for line := range strings.Lines(r.must("--zone="+r.zone(t), "zone", "status", "--json")) {
		var node struct {
			Stats struct{ Memory, Flash struct{ Limit int64 } }
		}
		try(t, json.Unmarshal([]byte(line), &node))
		takes.memory += node.Stats.Memory.Limit
		takes.disk += node.Stats.Flash.Limit
	}
	if takes.memory > memory || takes.memory < memory*9/10 || takes.disk > disk || takes.disk < disk*2/3 {
		t.Errorf("%+v, want %d and %d", takes, memory, disk)
	}
}
