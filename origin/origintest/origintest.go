// Package origintest is the conformance suite of origin's drivers.
package origintest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/origin"
)

// largeSize is more than any driver of ours sends or buffers in one part, in
// bytes.
const largeSize = 8<<20 + 1

// Driver holds a driver to its contract, and an Origin on it to its own. setup
// gives an empty bucket, and another one each time.
func Driver(t *testing.T, setup func(t *testing.T) origin.Bucket) {
	t.Helper()
	for _, c := range slices.Concat(bucketSuite, originSuite) {
		t.Run(c.name, func(t *testing.T) { c.test(t, setup(t)) })
	}
	t.Run("chunks", func(t *testing.T) {
		chunktest.Store(t, func(t *testing.T) chunk.Store {
			b := setup(t)
			return planter{on(t, b).Chunks("r1"), b}
		})
	})
}

// on gives an Origin on a bucket, which whoever made it closes.
func on(t *testing.T, b origin.Bucket) *origin.Origin {
	t.Helper()
	o, err := origin.Open(t.Context(), "test://bucket", origin.WithDriver("test",
		func(context.Context, *url.URL, int) (origin.Bucket, error) { return b, nil }))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// check is one test of a driver on an empty bucket.
type check struct {
	name string
	test func(t *testing.T, b origin.Bucket)
}

// bucketSuite holds a driver to the contract of origin.Bucket.
var bucketSuite = []check{
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

func testMissing(t *testing.T, b origin.Bucket) {
	ctx := t.Context()
	if _, err := b.Get(ctx, "a/b", 10); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if _, err := b.Stat(ctx, "a/b"); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("stat: %v", err)
	}
	if err := b.Remove(ctx, "a/b"); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("remove: %v", err)
	}
	checkList(t, b, "a/", false)
	checkList(t, b, "a/", true)
}

func testCreate(t *testing.T, b origin.Bucket) {
	for _, data := range [][]byte{{}, []byte("x"), noise(1, 300<<10)} {
		key := fmt.Sprintf("dir/sub/%d", len(data))
		mustCreate(t, b, key, data)
		checkHolds(t, b, key, data)
	}
}

func testCreateTwice(t *testing.T, b origin.Bucket) {
	mustCreate(t, b, "a/k", []byte("first"))
	if added, err := b.Create(t.Context(), "a/k", []byte("second one")); added || err != nil {
		t.Fatalf("second create: added %v, %v", added, err)
	}
	checkHolds(t, b, "a/k", []byte("first"))
}

func testCreateAtOnce(t *testing.T, b origin.Bucket) {
	var winners atomic.Int64
	var won atomic.Int64
	each(16, func(i int) {
		added, err := b.Create(t.Context(), "a/k", noise(byte(i), 100<<10))
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

func testReplace(t *testing.T, b origin.Bucket) {
	ctx := t.Context()
	for _, data := range []string{"new", "another", ""} {
		if err := b.Replace(ctx, "a/k", []byte(data)); err != nil {
			t.Fatal(err)
		}
		checkHolds(t, b, "a/k", []byte(data))
	}
}

func testReplaceAtOnce(t *testing.T, b origin.Bucket) {
	data := noise(1, 100<<10)
	each(8, func(i int) {
		if err := b.Replace(t.Context(), "a/k", data); err != nil {
			t.Errorf("replace: %v", err)
		}
		checkHolds(t, b, "a/k", data)
	})
}

func testRemove(t *testing.T, b origin.Bucket) {
	ctx := t.Context()
	mustCreate(t, b, "a/k", []byte("x"))
	if err := b.Remove(ctx, "a/k"); err != nil {
		t.Fatal(err)
	}
	testMissing(t, b)
	if err := b.Remove(ctx, "a/k"); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("second remove: %v", err)
	}
	mustCreate(t, b, "a/k", []byte("again"))
	checkHolds(t, b, "a/k", []byte("again"))
}

func testTooLong(t *testing.T, b origin.Bucket) {
	mustCreate(t, b, "a/k", make([]byte, 11))
	if _, err := b.Get(t.Context(), "a/k", 10); !errors.Is(err, origin.ErrCorrupt) {
		t.Errorf("get of 11 bytes at most 10: %v", err)
	}
	if data, err := b.Get(t.Context(), "a/k", 11); err != nil || len(data) != 11 {
		t.Errorf("get of 11 bytes at most 11: %d, %v", len(data), err)
	}
}

// testLarge stores more than drivers send in one part.
func testLarge(t *testing.T, b origin.Bucket) {
	data := noise(3, largeSize)
	mustCreate(t, b, "a/k", data)
	checkHolds(t, b, "a/k", data)
	if added, err := b.Create(t.Context(), "a/k", noise(4, largeSize)); added || err != nil {
		t.Fatalf("second create: added %v, %v", added, err)
	}
	checkHolds(t, b, "a/k", data)
}

func testList(t *testing.T, b origin.Bucket) {
	keys := []string{"a/b/1", "a/b/2", "a/b/22", "a/c/1", "ab/1"}
	for i, key := range slices.Backward(keys) {
		mustCreate(t, b, key, make([]byte, i))
	}
	checkList(t, b, "a/", false, keys[:4]...)
	checkList(t, b, "a/b/", false, keys[:3]...)
	checkList(t, b, "a/b/2", false, keys[1:3]...)
	checkList(t, b, "a/b/3", false)
	for e, err := range b.List(t.Context(), "a/b/22", false) {
		if err != nil || e.Size != 2 || e.ModTime.IsZero() || e.Dir {
			t.Errorf("entry %+v, %v", e, err)
		}
	}
}

func testPages(t *testing.T, b origin.Bucket) {
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

func testShallow(t *testing.T, b origin.Bucket) {
	for _, key := range []string{"a/b/1", "a/b/2", "a/c/d/e", "a/f", "g/1"} {
		mustCreate(t, b, key, nil)
	}
	checkList(t, b, "a/", true, "a/b/", "a/c/", "a/f")
	if err := b.Remove(t.Context(), "a/c/d/e"); err != nil {
		t.Fatal(err)
	}
	checkList(t, b, "a/", true, "a/b/", "a/f")
}

func testListStops(t *testing.T, b origin.Bucket) {
	for i := range 4 {
		mustCreate(t, b, fmt.Sprintf("a/%d/x", i), nil)
	}
	for range b.List(t.Context(), "a/", false) {
		break
	}
	for range b.List(t.Context(), "a/", true) {
		break
	}
}

func testCancelled(t *testing.T, b origin.Bucket) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustCreate(t, b, "a/k", nil)
	for _, err := range b.List(ctx, "a/", false) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("list: %v", err)
		}
	}
	o := on(t, b)
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

func mustCreate(t *testing.T, b origin.Bucket, key string, data []byte) {
	t.Helper()
	if added, err := b.Create(t.Context(), key, data); !added || err != nil {
		t.Errorf("create %s: added %v, %v", key, added, err)
	}
}

func checkHolds(t *testing.T, b origin.Bucket, key string, want []byte) {
	t.Helper()
	got, err := b.Get(t.Context(), key, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("get %s: %d bytes, %v; want %d", key, len(got), err, len(want))
	}
	e, err := b.Stat(t.Context(), key)
	if err != nil || e.Size != int64(len(want)) || e.ModTime.IsZero() {
		t.Errorf("stat %s: %+v, %v; want %d bytes", key, e, err, len(want))
	}
}

func checkList(t *testing.T, b origin.Bucket, prefix string, shallow bool, want ...string) {
	t.Helper()
	var got []string
	for e, err := range b.List(t.Context(), prefix, shallow) {
		if err != nil {
			t.Errorf("list %s: %v", prefix, err)
		}
		if e.Dir != strings.HasSuffix(e.Key, "/") {
			t.Errorf("list %s: %+v", prefix, e)
		}
		got = append(got, e.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("list %s, shallow %v: %q, want %q", prefix, shallow, got, want)
	}
}
