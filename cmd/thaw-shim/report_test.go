package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thaw/cache"
	"thaw/host"
	"thaw/latency"
)

// told gives what f writes to standard error.
func told(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	was := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = was }()
	f()
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func counts(cacheN, zone, origin int64) cache.Stats {
	count := func(n int64) cache.Count { return cache.Count{Chunks: n, Bytes: n << 20, Corrupt: n % 3} }
	return cache.Stats{Cache: count(cacheN), Zone: count(zone), Origin: count(origin)}
}

// What the agent had read for others is not this instance's.
func TestReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stats")
	k := &keeper{instance: &host.Instance{ImageID: "abc"}, Order: host.Order{
		StatsFile: file, DeviceBytes: 1 << 30, ImageBytes: 200 << 20, Stages: map[string]float64{"total": 41.5, "mount": 3},
		Before: counts(1, 2, 3),
	}}
	got := told(t, func() {
		if err := k.report(counts(6, 4, 16)); err != nil {
			t.Error(err)
		}
	})
	if want := "thaw: read 20.0 MiB of 200.0 MiB (10.0 %): 13 chunks from the origin, 2 from the zone, 5 from the cache; started in 42 ms\n"; got != want {
		t.Errorf("told\n%s, want\n%s", got, want)
	}
	line, err := os.ReadFile(file)
	want := `{"image":"abc","device_bytes":1073741824,"image_bytes":209715200,"bytes":{"cache":5242880,"zone":2097152,"origin":13631488},` +
		`"chunks":{"cache":5,"zone":2,"origin":13},"corrupt":{"cache":-1,"zone":-1,"origin":1},"prefetch":{"chunks":0,"bytes":0,"used":0},"start_ms":{"mount":3,"total":41.5}}` + "\n"
	if err != nil || string(line) != want {
		t.Errorf("wrote\n%s, want\n%s%v", line, want, err)
	}
}

// Times are those of this instance, in the unit that the name says.
func TestLatencies(t *testing.T) {
	var h latency.Histogram
	h.Observe(time.Second)
	before := cache.Stats{Zone: cache.Count{Latency: h.Snapshot()}, Hash: h.Snapshot()}
	for range 3 {
		h.Observe(time.Millisecond)
	}
	got := latencies(before, cache.Stats{Zone: cache.Count{Latency: h.Snapshot()}, Hash: before.Hash})
	zone := got["zone"]
	if len(got) != 1 || zone.Count != 3 || zone.P50 < 800 || zone.P50 > 1500 || zone.P99 != zone.P50 {
		t.Errorf("got %+v, want three of the zone of 1 ms", got)
	}
}

// An agent that has ended has no numbers, and what it had read before is none
// either.
func TestReportWithoutAgent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "stats")
	k := &keeper{instance: &host.Instance{}, Order: host.Order{StatsFile: file, ImageBytes: 1 << 20, Stages: map[string]float64{"total": 1}, Before: counts(7, 8, 9)}}
	got := told(t, func() {
		if err := k.report(cache.Stats{}); err != nil {
			t.Error(err)
		}
	})
	if !strings.HasPrefix(got, "thaw: read 0 B of 1.0 MiB (0.0 %): 0 chunks from the origin, 0 from the cache;") {
		t.Errorf("told %s", got)
	}
	var n numbers
	data, err := os.ReadFile(file)
	if err = errors.Join(err, json.Unmarshal(data, &n)); err != nil || n.Bytes != (tiers{}) || n.Chunks != (tiers{}) || n.Corrupt != (tiers{}) {
		t.Errorf("%s, %v", data, err)
	}
}

// What did not start has no time of its start, and an image of zeros no chunks
// to divide by.
func TestReportOfNothing(t *testing.T) {
	k := &keeper{instance: &host.Instance{}}
	got := told(t, func() {
		if err := k.report(cache.Stats{}); err != nil {
			t.Error(err)
		}
	})
	if want := "thaw: read 0 B of 0 B (0.0 %): 0 chunks from the origin, 0 from the cache\n"; got != want {
		t.Errorf("told %q, want %q", got, want)
	}
	k.StatsFile = filepath.Join(t.TempDir(), "missing", "stats")
	told(t, func() {
		if err := k.report(cache.Stats{}); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "--stats-json: ") {
			t.Errorf("got %v", err)
		}
	})
}

// What others make us say is one line, and cannot move a terminal's cursor.
func TestSay(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                              "plain",
		"ümlaut \U0001F9CA":                  "ümlaut \U0001F9CA",
		" one\ntwo\r\nthree\n":               "one; two; three",
		"\x1b[2Jgone\x07\t\x00\x7f\u009b31m": "?[2Jgone?????31m",
		"bad \xff utf-8":                     "bad \ufffd utf-8",
		"":                                   "",
	} {
		if got := told(t, func() { say("%s", text) }); got != "thaw: "+want+"\n" {
			t.Errorf("%q is said as %q, want %q", text, got, want)
		}
	}
}

// What the fetcher says of its zone, if it has one, in whatever form.
func TestUnheardOf(t *testing.T) {
	for more, want := range map[string]string{
		"": "", "null": "", "7": "", `{"zone":null}`: "", `{"zone":{"hits":1}}`: "",
		`{"zone":{"unheard":"10.0.0.5:7070: EOF"}}`: "10.0.0.5:7070: EOF",
	} {
		if got := unheardOf(json.RawMessage(more)); got != want {
			t.Errorf("%s: %q, want %q", more, got, want)
		}
	}
}
