package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// unmountWatch tells when the instance's folder is no mount any more.
type unmountWatch struct {
	done chan struct{}
	stop *os.File // write end: closing it ends the watch
	work sync.WaitGroup
}

// unmounted watches the mount table: proc_pid_mountinfo(5) is told by poll(2)
// as an exceptional condition when the table has changed.
func (k *keeper) unmounted() (*unmountWatch, error) {
	const path = "/proc/self/mountinfo"
	// A change is told to one who asks: os.Open would have Go's own poller ask
	// too, and get now and then what is meant for us.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	table := os.NewFile(uintptr(fd), path)
	stopR, stopW, err := os.Pipe()
	if err != nil {
		_ = table.Close()
		return nil, err
	}
	w := &unmountWatch{done: make(chan struct{}), stop: stopW}
	w.work.Go(func() {
		defer table.Close()
		defer stopR.Close()
		for k.instance.Mounted() {
			fds := []unix.PollFd{{Fd: int32(table.Fd()), Events: unix.POLLPRI}, {Fd: int32(stopR.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
			if fds[1].Revents != 0 {
				return
			}
		}
		close(w.done)
	})
	return w, nil
}

func (w *unmountWatch) close() {
	_ = w.stop.Close()
	w.work.Wait()
}
