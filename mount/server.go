package mount

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"runtime/debug"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Device is what a file's bytes come from. ReadAt fills p or fails; it is not asked for bytes beyond Size, which never changes. It is
// used by many goroutines at once. A ctx ends when the reader was interrupted or the mount is gone, and is not to be kept beyond the call.
type Device interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// WritableDevice can be written as well, within its size. It may be a Flusher and a Discarder.
type WritableDevice interface {
	Device
	WriteAt(ctx context.Context, p []byte, off int64) error
}

// Flusher is a WritableDevice that has something to do before what was written lasts.
type Flusher interface {
	Flush(ctx context.Context) error
}

// Discarder is a WritableDevice that can forget: the n bytes at off read as zeros then.
type Discarder interface {
	Discard(ctx context.Context, off, n int64) error
}

// Fault is a request that failed, told by a Server.
type Fault struct {
	Op     string // read, write, discard, flush
	File   string // "image" or "rw/NAME"
	Off, N int64  // the bytes asked for; 0, 0 of flush
	Err    error  // as the Device gave it
}

// Server answers the kernel's requests for one FUSE mount: a directory with the file "image", which can only be read, and the directory
// "rw", whose files come and go. Its methods are safe for concurrent use.
type Server struct {
	files *files
	fuse  *fuse.Server
}

// maxBackground is how many asynchronous requests the kernel has under way at once, which is most of those of loop devices: as many as
// one loop device can have (its queue depth).
const maxBackground = 128

// maxRequestBytes bounds the memory of requests under way, of which those that write carry their data: as many as maxBackground, and
// some for others.
const maxRequestBytes = (maxBackground + 32) * (maxTransfer + 1<<16)

// NewServer takes over the descriptor that OpenFUSE gave, and shakes hands with the kernel. onError, which may be nil, is told of each
// failed request before the kernel is; it must return soon. Interrupted ones are no faults.
func NewServer(descriptor *os.File, image Device, onError func(Fault)) (*Server, error) {
	// The library opens the descriptor by number, and closes it when served.
	fd, err := unix.FcntlInt(descriptor.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount: take over the FUSE descriptor: %w", err)
	}
	_ = descriptor.Close()
	if onError == nil {
		onError = func(Fault) {}
	}
	f := newFiles(image, onError)
	server, err := fuse.NewServer(f, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		Name:          "thaw",
		MaxWrite:      maxTransfer,
		MaxReadAhead:  maxTransfer,
		MaxBackground: maxBackground,
		// Without it a loop device would wait for each of its requests before it sends the next.
		ExtraCapabilities:       fuse.CAP_ASYNC_DIO,
		MaxInflightRequestBytes: maxRequestBytes,
		DisableXAttrs:           true,
		DisableReadDirPlus:      true,
		DisableSplice:           true, // it fills a pipe for nothing when data is in memory
		Logger:                  log.New(io.Discard, "", 0),
		PanicHandler: func(what any) fuse.Status {
			onError(Fault{Op: "serve", Err: fmt.Errorf("mount: panic: %v at %q", what, debug.Stack())})
			return fuse.EIO
		},
	})
	if err != nil { // it has closed fd
		return nil, fmt.Errorf("mount: first FUSE message: %w", err)
	}
	return &Server{files: f, fuse: server}, nil
}

// Serve answers requests until the mount is gone and those under way have ended. It must be called once. To end sooner, end the
// process: the kernel then aborts the mount.
func (s *Server) Serve() { s.fuse.Serve() }

// AddFile adds the file "rw/NAME". A name is not empty, not "." or "..", and has no slash; it must not be taken.
func (s *Server) AddFile(name string, d WritableDevice) error {
	if name == "" || name == "." || name == ".." || len(name) > nameBytes || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("mount: %q cannot be the name of a file", name)
	}
	if !s.files.add(name, d) {
		return fmt.Errorf("mount: file rw/%s: %w", name, os.ErrExist)
	}
	return nil
}

// RemoveFile removes a file. When it returns, the file's device is not in use any more; whoever still has the file open gets errors.
func (s *Server) RemoveFile(name string) error {
	if !s.files.remove(name) {
		return fmt.Errorf("mount: file rw/%s: %w", name, os.ErrNotExist)
	}
	return nil
}
