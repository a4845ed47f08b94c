package worker

import (
	"context"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"thaw/invokewire"
)

// maxTrace bounds what is taken of an agent, which could say anything: no trace
// has as many bytes.
const maxTrace = 1 << 20

// recording is that of what the first start on a mount of an image touches, which
// later starts have fetched ahead.
type recording struct {
	once sync.Once
	on   bool // the agent records
}

// initialised is told that a function is ready: its agent's recording ends now,
// if there is one, and is kept. It does not wait.
func (w *Worker) initialised(v *root, s *invokewire.Spec) {
	if !v.recording.on {
		return
	}
	v.recording.once.Do(func() {
		w.work.Go(func() {
			sealed, err := w.takeTrace(w.life, v)
			if err == nil {
				err = w.o.KeepTrace(w.life, s.Tenant, s.Image, s.Root, sealed)
			}
			if err != nil && w.life.Err() == nil {
				w.log.Warn("what a start touched is not kept for the next", "function", s.Function, "cause", err)
			}
		})
	})
}

// takeTrace has the agent seal the trace of what was touched until now.
func (w *Worker) takeTrace(ctx context.Context, v *root) ([]byte, error) {
	fd, err := unix.MemfdCreate("trace", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "trace")
	defer file.Close()
	conn, err := w.o.Host.Agent(ctx, v.image)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.Ready(file); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(file, 0, maxTrace))
}
