package cache

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// guardByte is the byte of the lock file for the folder as a whole.
const guardByte = 0

// chunkByte is the byte of the lock file for one chunk. Two chunks on one byte
// only wait for each other.
func chunkByte(name chunk.Name) int64 {
	return 1 + int64(binary.BigEndian.Uint64(name[:])>>2)
}

// tryLock locks a byte of a file for this opening of it, which every caller has
// for itself, so it excludes goroutines and processes alike. The kernel lets go
// of it when the file is closed, also by SIGKILL. false: another has it.
func tryLock(file *os.File, kind int16, at int64) (bool, error) {
	for {
		l := unix.Flock_t{Type: kind, Start: at, Len: 1}
		err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &l)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, &os.PathError{Op: "lock", Path: file.Name(), Err: err}
		}
	}
}

// lockWithin polls for a lock until ctx ends: a waiting fcntl could not be
// ended. The pause doubles from first to lastPause.
func lockWithin(ctx context.Context, file *os.File, kind int16, at int64, first time.Duration) error {
	for pause := first; ; pause = min(2*pause, lastPause) {
		ok, err := tryLock(file, kind, at)
		if ok || err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// sleep waits, and gives the error of a ctx that ended before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
