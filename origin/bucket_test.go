package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// drivers are all there are; each gives an empty origin.
func drivers(t *testing.T) map[string]func(t *testing.T) *Origin {
	t.Helper()
	server := startS3(t)
	return map[string]func(t *testing.T) *Origin{
		"folder":       func(t *testing.T) *Origin { return open(t, "file://"+t.TempDir()) },
		"folder named": func(t *testing.T) *Origin { return named(open(t, "file://"+t.TempDir())) },
		"folder tmpfs": func(t *testing.T) *Origin { return open(t, "file://"+sharedMemory(t)) },
		"folder new":   func(t *testing.T) *Origin { return open(t, "file://"+t.TempDir()+"/not/yet there") },
		"mem":          func(t *testing.T) *Origin { return open(t, "mem://") },
		"s3":           func(t *testing.T) *Origin { return open(t, server.bucket(t)) },
		"s3 prefix": func(t *testing.T) *Origin {
			return open(t, strings.Replace(server.bucket(t), "?", "/some/prefix?", 1))
		},
	}
}

func open(t *testing.T, url string, opts ...Option) *Origin {
	t.Helper()
	o, err := Open(t.Context(), url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// named makes a folder write as where there is no O_TMPFILE.
func named(o *Origin) *Origin {
	o.bucket.writer.(*folder).named = true
	return o
}

// sharedMemory gives a folder on tmpfs, another file system than most have in
// their temporary folder.
func sharedMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "thaw")
	if err != nil {
		t.Skipf("SKIPPED: no tmpfs at /dev/shm to try a folder on: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestBucket(t *testing.T) {
	for name, setup := range drivers(t) {
		t.Run(name, func(t *testing.T) {
			for _, c := range bucketSuite {
				t.Run(c.name, func(t *testing.T) { c.test(t, setup(t).bucket) })
			}
		})
	}
}

// bucketSuite holds a driver to the bucket's contract.
var bucketSuite = []struct {
	name string
	test func(t *testing.T, b bucket)
}{
	{"what is missing", testMissing},
	{"create and read", testCreate},
	{"create twice", testCreateTwice},
	{"create at once", testCreateAtOnce},
	{"replace", testReplace},
	{"replace at once", testReplaceAtOnce},
	{"remove", testRemove},
	{"too long", testTooLong},
	{"large", testLarge},
	{"list", testList},
	{"list more than a page", testPages},
	{"list shallow", testShallow},
	{"list and stop", testListStops},
	{"cancelled", testCancelled},
}

func testMissing(t *testing.T, b bucket) {
	ctx := t.Context()
	if _, err := b.get(ctx, "a/b", 10); !errors.Is(err, ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.stat(ctx, "a/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("stat: %v", err)
	}
	if err := b.remove(ctx, "a/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove: %v", err)
	}
	checkList(t, b, "a/", false)
	checkList(t, b, "a/", true)
}

func testCreate(t *testing.T, b bucket) {
	for _, data := range [][]byte{{}, []byte("x"), noise(1, 300<<10)} {
		key := fmt.Sprintf("dir/sub/%d", len(data))
		mustCreate(t, b, key, data)
		checkHolds(t, b, key, data)
	}
}

func testCreateTwice(t *testing.T, b bucket) {
	mustCreate(t, b, "a/k", []byte("first"))
	if added, err := b.create(t.Context(), "a/k", []byte("second one")); added || err != nil {
		t.Fatalf("second create: added %v, %v", added, err)
	}
	checkHolds(t, b, "a/k", []byte("first"))
}

func testCreateAtOnce(t *testing.T, b bucket) {
	var winners atomic.Int64
	var won atomic.Int64
	each(16, func(i int) {
		added, err := b.create(t.Context(), "a/k", noise(byte(i), 100<<10))
		if err != nil {
			t.Errorf("create: %v", err)
		}
		if added {
			winners.Add(1)
			won.Store(int64(i))
		}
	})
	if winners.Load() != 1 {
		t.Fatalf("%d winners", winners.Load())
	}
	checkHolds(t, b, "a/k", noise(byte(won.Load()), 100<<10))
}

func testReplace(t *testing.T, b bucket) {
	ctx := t.Context()
	for _, data := range []string{"new", "another", ""} {
		if err := b.replace(ctx, "a/k", []byte(data)); err != nil {
			t.Fatal(err)
		}
		checkHolds(t, b, "a/k", []byte(data))
	}
}

func testReplaceAtOnce(t *testing.T, b bucket) {
	data := noise(1, 100<<10)
	each(8, func(i int) {
		if err := b.replace(t.Context(), "a/k", data); err != nil {
			t.Errorf("replace: %v", err)
		}
		checkHolds(t, b, "a/k", data)
	})
}

func testRemove(t *testing.T, b bucket) {
	ctx := t.Context()
	mustCreate(t, b, "a/k", []byte("x"))
	if err := b.remove(ctx, "a/k"); err != nil {
		t.Fatal(err)
	}
	testMissing(t, b)
	if err := b.remove(ctx, "a/k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	mustCreate(t, b, "a/k", []byte("again"))
	checkHolds(t, b, "a/k", []byte("again"))
}

func testTooLong(t *testing.T, b bucket) {
	mustCreate(t, b, "a/k", make([]byte, 11))
	if _, err := b.get(t.Context(), "a/k", 10); !errors.Is(err, errTooLong) {
		t.Errorf("get of 11 bytes at most 10: %v", err)
	}
	if data, err := b.get(t.Context(), "a/k", 11); err != nil || len(data) != 11 {
		t.Errorf("get of 11 bytes at most 11: %d, %v", len(data), err)
	}
}

// testLarge stores more than partSize.
func testLarge(t *testing.T, b bucket) {
	data := noise(3, partSize+1)
	mustCreate(t, b, "a/k", data)
	checkHolds(t, b, "a/k", data)
	if added, err := b.create(t.Context(), "a/k", noise(4, partSize+1)); added || err != nil {
		t.Fatalf("second create: added %v, %v", added, err)
	}
	checkHolds(t, b, "a/k", data)
}

func testList(t *testing.T, b bucket) {
	keys := []string{"a/b/1", "a/b/2", "a/b/22", "a/c/1", "ab/1"}
	for i, key := range slices.Backward(keys) {
		mustCreate(t, b, key, make([]byte, i))
	}
	checkList(t, b, "a/", false, keys[:4]...)
	checkList(t, b, "a/b/", false, keys[:3]...)
	checkList(t, b, "a/b/2", false, keys[1:3]...)
	checkList(t, b, "a/b/3", false)
	for e, err := range b.list(t.Context(), "a/b/22", false) {
		if err != nil || e.size != 2 || e.modTime.IsZero() || e.dir {
			t.Errorf("entry %+v, %v", e, err)
		}
	}
}

func testPages(t *testing.T, b bucket) {
	var keys []string
	for i := range 1005 { // a page of S3's is 1,000
		keys = append(keys, fmt.Sprintf("a/%02x/%04d", i/100, i))
	}
	each(16, func(w int) {
		for i := w; i < len(keys); i += 16 {
			mustCreate(t, b, keys[i], nil)
		}
	})
	checkList(t, b, "a/", false, keys...)
}

func testShallow(t *testing.T, b bucket) {
	for _, key := range []string{"a/b/1", "a/b/2", "a/c/d/e", "a/f", "g/1"} {
		mustCreate(t, b, key, nil)
	}
	checkList(t, b, "a/", true, "a/b/", "a/c/", "a/f")
	if err := b.remove(t.Context(), "a/c/d/e"); err != nil {
		t.Fatal(err)
	}
	checkList(t, b, "a/", true, "a/b/", "a/f")
}

func testListStops(t *testing.T, b bucket) {
	for i := range 4 {
		mustCreate(t, b, fmt.Sprintf("a/%d/x", i), nil)
	}
	for range b.list(t.Context(), "a/", false) {
		break
	}
	for range b.list(t.Context(), "a/", true) {
		break
	}
}

func testCancelled(t *testing.T, b bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustCreate(t, b, "a/k", nil)
	for _, err := range b.list(ctx, "a/", false) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("list: %v", err)
		}
	}
	o := &Origin{bucket: b, slots: make(chan struct{}, 1)}
	if _, err := o.Manifests("r1", "t").Get(ctx, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("get: %v", err)
	}
}

func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

func noise(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // never fails
	return data
}

func mustCreate(t *testing.T, b bucket, key string, data []byte) {
	t.Helper()
	if added, err := b.create(t.Context(), key, data); !added || err != nil {
		t.Errorf("create %s: added %v, %v", key, added, err)
	}
}

func checkHolds(t *testing.T, b bucket, key string, want []byte) {
	t.Helper()
	got, err := b.get(t.Context(), key, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("get %s: %d bytes, %v; want %d", key, len(got), err, len(want))
	}
	e, err := b.stat(t.Context(), key)
	if err != nil || e.size != int64(len(want)) || e.modTime.IsZero() {
		t.Errorf("stat %s: %+v, %v; want %d bytes", key, e, err, len(want))
	}
}

func checkList(t *testing.T, b bucket, prefix string, shallow bool, want ...string) {
	t.Helper()
	var got []string
	for e, err := range b.list(t.Context(), prefix, shallow) {
		if err != nil {
			t.Errorf("list %s: %v", prefix, err)
		}
		if e.dir != strings.HasSuffix(e.key, "/") {
			t.Errorf("list %s: %+v", prefix, e)
		}
		got = append(got, e.key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("list %s, shallow %v: %q, want %q", prefix, shallow, got, want)
	}
}

// planter damages chunks for the suite of package chunk.
type planter struct{ *Chunks }

func (p planter) Plant(ctx context.Context, name chunk.Name, data []byte) error {
	return p.do(ctx, "plant", name, func(key string) error { return p.o.bucket.replace(ctx, key, data) })
}

func TestChunks(t *testing.T) {
	for name, setup := range drivers(t) {
		t.Run(name, func(t *testing.T) {
			chunktest.Store(t, func(t *testing.T) chunk.Store { return planter{setup(t).Chunks("r1")} })
		})
	}
}
