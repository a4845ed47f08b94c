package origin

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
)

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
	o.bucket.Writer.(*folder).named = true
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

// BucketOf opens an origin for tests outside of the package, and gives its
// driver. A URL with a "+" in front is a folder's, to be written as where there
// is no O_TMPFILE.
func BucketOf(t *testing.T, url string) Bucket {
	t.Helper()
	folder, useNamed := strings.CutPrefix(url, "+")
	o := open(t, folder)
	if useNamed {
		named(o)
	}
	return o.bucket
}

// SharedMemory is sharedMemory for tests outside of the package.
func SharedMemory(t *testing.T) string { return sharedMemory(t) }

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

func mustCreate(t *testing.T, b Bucket, key string, data []byte) {
	t.Helper()
	if added, err := b.Create(t.Context(), key, data); !added || err != nil {
		t.Errorf("create %s: added %v, %v", key, added, err)
	}
}

func checkHolds(t *testing.T, b Bucket, key string, want []byte) {
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
