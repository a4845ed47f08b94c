package verify

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"thaw/internal/testmount"
)

// manyFiles is a layer of n files in folders of 1000, written while it is read.
type manyFiles int

func (manyFiles) Len() int { return 1 }

func (l manyFiles) Open(ctx context.Context, _ int) (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.write(ctx, w)) }() // ends when r is closed
	return r, nil
}

func (l manyFiles) write(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(w)
	for n := range int(l) {
		if n%1000 == 0 {
			h := tar.Header{Typeflag: tar.TypeDir, Name: l.name(n)[:22], Mode: 0o755, ModTime: time.Unix(stamp, 0), Uid: os.Getuid(), Gid: os.Getgid()}
			if err := out.WriteHeader(&h); err != nil {
				return err
			}
		}
		h := tar.Header{Name: l.name(n), Mode: 0o644, Size: 6, ModTime: time.Unix(stamp, 0), Uid: os.Getuid(), Gid: os.Getgid()}
		if err := out.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%06d", n); err != nil {
			return err
		}
	}
	return out.Close()
}

// name gives a path as long as they are in images, in folders of 1000.
func (manyFiles) name(n int) string {
	return fmt.Sprintf("folder-with-a-name-%03d/some-file-of-it-%06d.js", n/1000, n)
}

// heapPeak runs f and gives the most memory in use that was seen meanwhile, in
// bytes above what was in use before.
func heapPeak(f func()) int64 {
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
			}
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse+now.StackInuse))
		}
	}()
	f()
	close(stop)
	<-done
	return int64(peak.Load()) - int64(before.HeapInuse+before.StackInuse)
}

// TestMemory holds 50,000 entries to 150 MB for 200,000, garbage included. (The
// whole 200,000 took 106 MB and most of a minute for the kernel to write.)
func TestMemory(t *testing.T) {
	needRoot(t) // the kernel makes the device: mke2fs takes longer
	const entries, limit = 50_000, 150 << 20 / 4
	layer := manyFiles(entries)
	image := mkfs(t, "", "300M", "-O", plainFeatures, "-N", "52000")
	folder, unmount := testmount.Ext4(t, image, "rw")
	source, err := layer.Open(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	in := tar.NewReader(source)
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(folder, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(h.Name[len(h.Name)-9:len(h.Name)-3]), 0o644)
		}
		if err == nil {
			err = os.Chtimes(path, h.ModTime, h.ModTime)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	peak := heapPeak(func() {
		r := compare(t, image, layer)
		if r.Entries != entries+1+entries/1000 || r.Bytes != 6*entries {
			t.Errorf("%d entries, %d bytes", r.Entries, r.Bytes)
		}
		for _, d := range r.Differences {
			if d.What != "mtime" { // of the folders
				t.Fatal(d)
			}
		}
	})
	t.Logf("peak of %d MB for %d entries", peak>>20, entries)
	if peak > limit {
		t.Errorf("peak of %d bytes, the limit is %d", peak, limit)
	}
}
