package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// These tests call what the library calls, without a kernel.

func within(node uint64) fuse.InHeader { return fuse.InHeader{NodeId: node} }

// TestStatus holds the table of error numbers, and who is told.
func TestStatus(t *testing.T) {
	cancelled := make(chan struct{})
	close(cancelled)
	for _, c := range []struct {
		err    error
		cancel chan struct{}
		want   fuse.Status
		told   bool
	}{
		{nil, nil, fuse.OK, false},
		{nil, cancelled, fuse.OK, false},
		{errDevice, nil, fuse.EIO, true},
		{fmt.Errorf("overlay: %w", unix.ENOSPC), nil, fuse.Status(unix.ENOSPC), true},
		{&os.PathError{Err: unix.EROFS}, nil, fuse.EROFS, true},
		{unix.EINTR, nil, fuse.EIO, true},
		{context.DeadlineExceeded, nil, fuse.EIO, true},
		{context.Canceled, nil, fuse.EIO, true}, // not by the one who reads
		{context.Canceled, cancelled, fuse.EINTR, false},
		{errDevice, cancelled, fuse.EINTR, false},
	} {
		var told []Fault
		f := newFiles(&memory{}, func(f Fault) { told = append(told, f) })
		fault := Fault{Op: "read", File: "image", Off: 1, N: 2, Err: c.err}
		if got := f.status(&fuse.Context{Cancel: c.cancel}, fault); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if c.told != (len(told) == 1) || c.told && told[0] != fault {
			t.Errorf("%v: told %+v", c.err, told)
		}
	}
}

// TestReadsAtTheEnd reads at and beyond the end of a device, at offsets that do not fit an int64 too.
func TestReadsAtTheEnd(t *testing.T) {
	f := newFiles(&memory{data: bytes.Repeat([]byte{7}, 10000)}, nil)
	for _, c := range []struct {
		off  uint64
		n    int
		want int
	}{{0, 4096, 4096}, {8192, 4096, 1808}, {10000, 1, 0}, {20000, 4096, 0}, {1 << 63, 4096, 0}, {^uint64(0), 4096, 0}, {9999, 0, 0}} {
		p := make([]byte, c.n)
		result, status := f.Read(nil, &fuse.ReadIn{InHeader: within(imageNode), Offset: c.off, Size: uint32(c.n)}, p)
		if status != fuse.OK || result.Size() != c.want {
			t.Errorf("%d bytes at %d: %v, %v", c.n, c.off, result, status)
		}
	}
}

// TestImageIsReadOnly tries every way to change the image.
func TestImageIsReadOnly(t *testing.T) {
	f := newFiles(&memory{data: make([]byte, 8192)}, nil)
	image := within(imageNode)
	if s := f.Open(nil, &fuse.OpenIn{InHeader: image, Flags: unix.O_WRONLY}, &fuse.OpenOut{}); s != fuse.EROFS {
		t.Errorf("open: %v", s)
	}
	if _, s := f.Write(nil, &fuse.WriteIn{InHeader: image}, make([]byte, 1)); s != fuse.EROFS {
		t.Errorf("write: %v", s)
	}
	if s := f.Fallocate(nil, &fuse.FallocateIn{InHeader: image, Length: 4096, Mode: unix.FALLOC_FL_ZERO_RANGE}); s != fuse.EROFS {
		t.Errorf("fallocate: %v", s)
	}
	if s := f.Fsync(nil, &fuse.FsyncIn{InHeader: image}); s != fuse.OK {
		t.Errorf("fsync: %v", s)
	}
}

// onlyWritable is a device that can neither flush nor discard.
type onlyWritable struct{ WritableDevice }

// TestFallocate zeros ranges, and leaves alone what it was not asked to zero.
func TestFallocate(t *testing.T) {
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	for _, c := range []struct {
		mode     uint32
		off, n   uint64
		from, to int // zeros after
		want     fuse.Status
	}{
		{punch | keep, 4096, 4096, 4096, 8192, fuse.OK},
		{zero, 0, 100, 0, 100, fuse.OK},
		{zero | keep, 8000, 100000, 8000, 10000, fuse.OK},
		{punch | keep, 20000, 1, 0, 0, fuse.OK},
		{0, 0, 10, 0, 0, fuse.Status(unix.EOPNOTSUPP)},
		{unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096, 0, 0, fuse.Status(unix.EOPNOTSUPP)},
		{keep, 0, 10, 0, 0, fuse.Status(unix.EOPNOTSUPP)},
	} {
		f := newFiles(&memory{}, nil)
		d := &memory{data: bytes.Repeat([]byte{7}, 10000)}
		f.add("a", d)
		in := &fuse.FallocateIn{InHeader: within(firstNode), Offset: c.off, Length: c.n, Mode: c.mode}
		want := bytes.Repeat([]byte{7}, 10000)
		clear(want[c.from:c.to])
		if got := f.Fallocate(nil, in); got != c.want || !bytes.Equal(d.data, want) {
			t.Errorf("%+v: %v", c, got)
		}
		f.add("b", onlyWritable{d})
		if got := f.Fallocate(nil, &fuse.FallocateIn{InHeader: within(firstNode + 1), Length: 1, Mode: zero}); got != fuse.Status(unix.EOPNOTSUPP) {
			t.Errorf("without a Discarder: %v", got)
		}
		if got := f.Fsync(nil, &fuse.FsyncIn{InHeader: within(firstNode + 1)}); got != fuse.OK {
			t.Errorf("without a Flusher: %v", got)
		}
	}
}

// TestRemoveWaits finds that a device is not in use when RemoveFile returns.
func TestRemoveWaits(t *testing.T) {
	s := &Server{files: newFiles(&memory{}, nil)}
	d := &memory{data: make([]byte, 4096), hang: make(chan struct{})}
	try(t, s.AddFile("a", d))
	cancel, read, removed := make(chan struct{}), make(chan fuse.Status), make(chan error)
	go func() {
		_, status := s.files.Read(cancel, &fuse.ReadIn{InHeader: within(firstNode), Size: 10}, make([]byte, 10))
		read <- status
	}()
	for file := s.files.byNode[firstNode]; file.use.TryLock(); { // until the reader is inside
		file.use.Unlock()
	}
	go func() { removed <- s.RemoveFile("a") }()
	select {
	case <-removed:
		t.Error("removed while it was read")
	default:
	}
	close(cancel)
	if status := <-read; status != fuse.EINTR {
		t.Errorf("read: %v", status)
	}
	try(t, <-removed)
	if err := s.RemoveFile("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove again: %v", err)
	}
}

// TestNames refuses what cannot be a file's name.
func TestNames(t *testing.T) {
	s := &Server{files: newFiles(&memory{}, nil)}
	for _, name := range []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("a", 256)} {
		if err := s.AddFile(name, &memory{}); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	for _, name := range []string{"a", "...", "ü b\n", strings.Repeat("a", 255)} {
		try(t, s.AddFile(name, &memory{}))
		if err := s.AddFile(name, &memory{}); !errors.Is(err, os.ErrExist) {
			t.Errorf("%q twice: %v", name, err)
		}
		var out fuse.EntryOut
		in := within(rwNode)
		if status := s.files.Lookup(nil, &in, name, &out); status != fuse.OK || out.EntryValid != 0 {
			t.Errorf("look-up of %q: %v", name, status)
		}
	}
	in := within(rootNode)
	if status := s.files.Lookup(nil, &in, "a", &fuse.EntryOut{}); status != fuse.ENOENT {
		t.Errorf("look-up of a in the root: %v", status)
	}
	if status := s.files.attr(999, &fuse.Attr{}); status != fuse.Status(unix.ESTALE) {
		t.Errorf("attributes of nothing: %v", status)
	}
}

// TestWithoutMounts asks about places where nothing is mounted, which needs no privilege.
func TestWithoutMounts(t *testing.T) {
	dir := t.TempDir()
	if mounts, err := Under(dir); err != nil || len(mounts) != 0 {
		t.Errorf("mounts: %v, %v", mounts, err)
	}
	if loops, err := Loops(dir); err != nil || len(loops) != 0 {
		t.Errorf("loops: %v, %v", loops, err)
	}
	if loops, err := Loops("/"); err != nil {
		t.Errorf("all loops: %v, %v", loops, err)
	}
	try(t, AbortFUSE(dir), DetachAll(dir), clearLoops(dir))
	if mounts, err := Under("/"); err != nil || len(mounts) == 0 || depth(mounts[0].Dir) < depth(mounts[len(mounts)-1].Dir) {
		t.Errorf("all mounts: %v, %v", mounts, err)
	}
	if _, err := AttachLoop(dir+"/none", true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("loop device of nothing: %v", err)
	}
}

// TestPanic finds that a device that panics does not keep its file in use.
func TestPanic(t *testing.T) {
	f := newFiles(panicking{}, nil)
	func() {
		defer func() { _ = recover() }() // as the library does
		_, _ = f.Read(nil, &fuse.ReadIn{InHeader: within(imageNode), Size: 1}, make([]byte, 1))
	}()
	if !f.byNode[imageNode].use.TryLock() {
		t.Error("the file is in use for ever")
	}
}

type panicking struct{}

func (panicking) Size() int64                                 { return 1 }
func (panicking) ReadAt(context.Context, []byte, int64) error { panic("oh") }
