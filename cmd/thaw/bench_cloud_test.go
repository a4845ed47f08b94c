//go:build cloud

package main

import (
	"context"
	"crypto/sha256"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/aws/aws-sdk-go-v2/aws"
	logtypes "github.com/aws/aws-sdk-go-v2/service/cloudwatchlogs/types"
	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/internal/testoci"
)

// What coldstarts and bench coldstart say of many values: ranks are the nearest,
// so that each is a value that was measured.
func TestSummarize(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, c := range []struct {
		values []float64
		want   summary
	}{
		{nil, summary{}},
		{[]float64{7}, summary{1, 7, 7, 7, 7, 7}},
		{[]float64{3, 1}, summary{2, 1, 3, 2, 1, 3}},
		{[]float64{9, 1, 2}, summary{3, 1, 9, 4, 2, 9}},
		{[]float64{4, 1, 3, 8}, summary{4, 1, 8, 4, 3, 8}},
		{hundred[:20], summary{20, 81, 100, 90.5, 90, 99}},
		{hundred[79:], summary{21, 1, 21, 11, 11, 20}},
		{hundred, summary{100, 1, 100, 50.5, 50, 95}},
	} {
		got := summarize(slices.Clone(c.values))
		got.Mean = math.Round(got.Mean*1e6) / 1e6 // a sum of many parts
		if got != c.want {
			t.Errorf("%v: %+v, want %+v", c.values, got, c.want)
		}
	}
}

// An invoke is cold if it is the first of its log stream and tells of an init;
// what others have sent counts for nothing.
func TestReportsTellColdFromWarm(t *testing.T) {
	sent := time.UnixMilli(1_000_000)
	r := reports{open: map[string]sentEvent{"late": {at: sent}}, seen: map[string]bool{}}
	for _, id := range []string{"a", "b", "c", "d"} {
		r.open[id] = sentEvent{id: id, at: sent}
	}
	r.open["c"] = sentEvent{id: "c", at: sent, total: 70}
	tell := func(stream, id, more string) {
		t.Helper()
		line := "REPORT RequestId: " + id + "\tDuration: 5.50 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 9 MB\t" + more + "\n"
		if err := r.take(logtypes.FilteredLogEvent{LogStreamName: &stream, Message: &line, Timestamp: aws.Int64(1_000_042)}); err != nil {
			t.Error(err)
		}
	}
	tell("one", "a", "Init Duration: 14.25 ms\t")
	tell("one", "a", "Init Duration: 14.25 ms\t") // read again
	tell("one", "b", "")
	tell("one", "c", "Init Duration: 9.00 ms\t") // its init failed in between, and was run again
	tell("two", "d", "")                         // this instance has been there before
	tell("three", "another's", "Init Duration: 1.00 ms\t")
	want := []coldSample{
		{stream: "one", total: 42, init: 14.25, duration: 5.5, cold: true},
		{stream: "one", total: 42, duration: 5.5},
		{stream: "one", total: 70, duration: 5.5},
		{stream: "two", total: 42, duration: 5.5},
	}
	if !slices.Equal(r.samples, want) || len(r.open) != 1 {
		t.Errorf("%+v, want %+v; open %v", r.samples, want, r.open)
	}
	row := coldRow{}
	row.take(r.samples, 5)
	if row.Cold != 1 || row.Warm != 3 || row.Failed != 1 || !slices.Equal(row.platforms, []float64{42 - 14.25 - 5.5}) {
		t.Errorf("%+v", row)
	}
}

// Reports of both formats are read, and nothing else is.
func TestParseReport(t *testing.T) {
	for line, want := range map[string]invokeReport{
		"REPORT RequestId: a\tDuration: 5.50 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 9 MB\tInit Duration: 14.25 ms\t\n":                                              {"a", 5.5, 14.25, true},
		"REPORT RequestId: a\tDuration: 5.50 ms\tBilled Duration: 6 ms\tMemory Size: 128 MB\tMax Memory Used: 9 MB\tStatus: timeout":                                                           {"a", 5.5, 0, false},
		`{"time":"2026-01-01T00:00:00.000Z","type":"platform.report","record":{"metrics":{"billedDurationMs":20,"durationMs":5.5,"initDurationMs":14.25},"requestId":"a","status":"success"}}`: {"a", 5.5, 14.25, true},
		`{"type":"platform.report","record":{"metrics":{"durationMs":5.5},"requestId":"a"}}`:                                                                                                   {"a", 5.5, 0, false},
	} {
		if got, ok := parseReport(line); !ok || got != want {
			t.Errorf("%s: %+v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "REPORT of mine", `{"type":"platform.runtimeDone","record":{"requestId":"a"}}`, `"platform.report"`} {
		if got, ok := parseReport(line); ok {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

// Of a group that functions share, each has its own streams.
func TestStreamsOfALog(t *testing.T) {
	l := functionLog{"/my/group", "f"}
	for stream, want := range map[string]bool{
		"2026/01/01/f[$LATEST]00ff": true, "2026/01/01/[3]00ff": true, "2026/01/01/g[$LATEST]00ff": false, "2026/01/01/ff[1]00ff": false,
	} {
		if l.has(stream) != want {
			t.Errorf("%s: %v", stream, !want)
		}
	}
	for _, name := range []string{"f", "f:live", "arn:aws:lambda:us-east-1:000000000000:function:f:3", "000000000000:function:f"} {
		if got := usualLog(name); got != (functionLog{"/aws/lambda/f", "f"}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A start from nothing finds no chunk in the worker's cache but what is pinned,
// and no page of any file in memory, neither of what was read nor of what was
// written a moment ago.
func TestEmptyCache(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root may drop the page cache")
	}
	dir := t.TempDir()
	folder, err := cache.OpenFolder(dir, 64<<20)
	try(t, err)
	var names []chunk.Name
	for seed := range uint64(2) {
		data := testoci.Noise(seed, 512<<10)
		names = append(names, sha256.Sum256(data))
		_, _, err := folder.Fill(t.Context(), names[seed], len(data), func(context.Context) ([]byte, error) { return data, nil })
		try(t, err)
	}
	try(t, folder.Pin("base", names[:1]))
	var files []string // the chunks', and one of neither: a node's of the zone
	try(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && info.Size() == 512<<10 {
			files = append(files, path)
		}
		return err
	}))
	files = append(files, filepath.Join(t.TempDir(), "stripe"))
	try(t, os.WriteFile(files[len(files)-1], testoci.Noise(2, 1<<20), 0o600))
	if len(files) != 3 {
		t.Fatalf("the cache has %q", files)
	}
	for _, file := range files {
		if n := inMemory(t, file); n == 0 {
			t.Errorf("%s was just written, and is not in memory", file)
		}
	}
	b := &coldBench{benchColdstartCmd: &benchColdstartCmd{Pinned: true}}
	row := &coldRow{}
	try(t, b.emptyCache(t.Context(), folder, row))
	if row.CacheLeft < 512<<10 || row.CacheLeft >= 1<<20 {
		t.Errorf("%d bytes are left, want the pinned chunk", row.CacheLeft)
	}
	there := 0
	for _, file := range files {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		there++
		if n := inMemory(t, file); n > 0 {
			t.Errorf("%d pages of %s are in memory", n, strings.TrimPrefix(file, dir))
		}
	}
	if there != 2 {
		t.Errorf("%d of three files are there, want the pinned chunk and the stripe", there)
	}
}

// inMemory counts the pages of a file in the page cache.
func inMemory(t *testing.T, path string) (n int) {
	t.Helper()
	f, err := os.Open(path)
	try(t, err)
	defer f.Close()
	info, err := f.Stat()
	try(t, err)
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	try(t, err)
	defer func() { try(t, unix.Munmap(data)) }()
	pages := make([]byte, (len(data)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)), uintptr(unsafe.Pointer(&pages[0]))); e != 0 {
		t.Fatal(e)
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n
}
