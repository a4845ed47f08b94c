package origin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// TestNamesThatAreNone: nothing gets to a driver that it could misread.
func TestNamesThatAreNone(t *testing.T) {
	o := open(t, "file://"+t.TempDir())
	ctx := t.Context()
	for _, bad := range []string{"", "..", "a/b", "../x", ".tmp", "A B", "x\x00", strings.Repeat("a", 300)} {
		m := []*Objects{o.Manifests(bad, "t"), o.Manifests("r1", bad), o.Manifests("r1", "t")}
		for i, name := range []string{"x", "x", bad} {
			if added, err := m[i].Put(ctx, name, nil); added || err == nil {
				t.Errorf("%q was put, case %d", bad, i)
			}
			if _, err := m[i].Get(ctx, name); err == nil || errors.Is(err, ErrNotFound) {
				t.Errorf("%q, case %d: %v", bad, i, err)
			}
		}
		for _, err := range o.Chunks(bad).List(ctx) {
			if err == nil {
				t.Errorf("%q was listed", bad)
			}
		}
		for _, err := range o.Manifests(bad, bad).List(ctx, "") {
			if err == nil {
				t.Errorf("%q was listed", bad)
			}
		}
		for _, err := range o.Tenants(ctx, bad) {
			if err == nil {
				t.Errorf("%q was listed", bad)
			}
		}
		if _, err := o.Chunks(bad).Get(ctx, chunk.Name{}); err == nil || errors.Is(err, chunk.ErrNotFound) {
			t.Errorf("%q: %v", bad, err)
		}
		if err := CheckTenant(bad); err == nil {
			t.Errorf("%q is a tenant", bad)
		}
	}
	for _, good := range []string{"default", "123456789012", "a", "a.b_c-d"} {
		if err := CheckTenant(good); err != nil {
			t.Error(err)
		}
	}
}

func TestURLs(t *testing.T) {
	for url, want := range map[string]string{
		"":                  "does not parse",
		"/var/lib/thaw":     "does not parse",
		"%zz://":            "does not parse",
		"ftp://host/dir":    "not supported",
		"s3://id:hunter2@b": "credentials",
		"s3://b?region=x&endpoint=http://id:hunter2@h": "credentials",
		"s3://b": "not supported",
	} {
		_, err := Open(t.Context(), url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v, want %q in it", url, err, want)
		}
	}
}

// slow counts how many operations are in it at once.
type slow struct {
	Bucket
	in, most atomic.Int64
	arrived  chan struct{}
	leave    chan struct{}
}

func (s *slow) Get(context.Context, string, int64) ([]byte, error) {
	n := s.in.Add(1)
	for most := s.most.Load(); n > most && !s.most.CompareAndSwap(most, n); most = s.most.Load() {
	}
	s.arrived <- struct{}{}
	<-s.leave
	s.in.Add(-1)
	return nil, nil
}

func TestParallel(t *testing.T) {
	o := open(t, "mem://", Parallel(3))
	s := &slow{Bucket: o.bucket, arrived: make(chan struct{}), leave: make(chan struct{})}
	o.bucket = Bucket{s, s}
	go func() {
		for range 3 {
			<-s.arrived
		}
		// All slots are taken: a fourth waits, until its context ends.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := o.Recipes("r1", "t").Get(ctx, "x"); !errors.Is(err, context.Canceled) {
			t.Errorf("waiting for a slot: %v", err)
		}
		for range 17 {
			s.leave <- struct{}{}
			<-s.arrived
		}
		for range 3 {
			s.leave <- struct{}{}
		}
	}()
	each(20, func(int) {
		if _, err := o.Recipes("r1", "t").Get(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	})
	if s.most.Load() != 3 {
		t.Errorf("%d at once", s.most.Load())
	}
	o.bucket = s.Bucket
	defer func() {
		if recover() == nil {
			t.Error("Parallel(0) did not panic")
		}
	}()
	Parallel(0)
}

func TestFree(t *testing.T) {
	free, ok, err := open(t, "file://"+t.TempDir()+"/not/there/yet").Free()
	if !ok || err != nil || free <= 0 {
		t.Errorf("%d, %v, %v", free, ok, err)
	}
	if _, ok, err := open(t, "mem://").Free(); ok || err != nil {
		t.Errorf("memory has %v, %v", ok, err)
	}
}

// benchPut puts chunks of noise, each under a name of its own, by so many
// callers at once.
func benchPut(b *testing.B, callers int, put func(key string, data []byte) error) {
	data := noise(1, chunk.DefaultSize)
	b.SetBytes(chunk.DefaultSize)
	b.SetParallelism((callers + 1) / 2) // times GOMAXPROCS, which is 2 where we measure
	var next atomic.Uint64
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			n := next.Add(1) * 0x9e3779b97f4a7c15 // spreads over the 256 folders
			if err := put(fmt.Sprintf("%02x/%064x", n>>56, n), data); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkPut compares ways to make a put durable, on the disk of the
// temporary folder. "no folder sync" is the ceiling: it loses names in a power
// cut.
func BenchmarkPut(b *testing.B) {
	for _, callers := range []int{1, 16, 32, 64} {
		ways := map[string]func(f *folder) func(string, []byte) error{
			"own sync": func(f *folder) func(string, []byte) error {
				return func(key string, data []byte) error {
					_, err := f.Create(b.Context(), key, data)
					return err
				}
			},
			"group commit": func(f *folder) func(string, []byte) error {
				return grouped(f, func(dirs map[string]struct{}) error {
					for dir := range dirs {
						if err := syncDir(dir); err != nil {
							return err
						}
					}
					return nil
				})
			},
			"group syncfs": func(f *folder) func(string, []byte) error {
				return grouped(f, func(map[string]struct{}) error { return syncfs(f.dir) })
			},
			"no folder sync": func(f *folder) func(string, []byte) error {
				return grouped(f, nil)
			},
		}
		for name, way := range ways {
			b.Run(fmt.Sprintf("%s/%d", name, callers), func(b *testing.B) {
				f := &folder{dir: b.TempDir(), ready: map[string]struct{}{}}
				benchPut(b, callers, way(f))
			})
		}
		b.Run(fmt.Sprintf("own sync, named/%d", callers), func(b *testing.B) {
			f := &folder{dir: b.TempDir(), ready: map[string]struct{}{}, named: true}
			benchPut(b, callers, func(key string, data []byte) error {
				_, err := f.Create(b.Context(), key, data)
				return err
			})
		})
	}
}

func syncfs(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
