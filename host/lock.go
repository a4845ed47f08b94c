package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how often a lock that another process holds is asked for again.
// It is short against a start and long against a system call.
const lockWait = 2 * time.Millisecond

// errHeld says that another process holds a lock.
var errHeld = errors.New("held by another process")

// A lock is a file under flock(2). The kernel releases it with its last holder,
// also at SIGKILL: what nobody holds is left over. Whoever holds a lock alone
// may remove its file; so one that was opened before and locked after is not
// the lock any more, and is opened again.
func lock(path string, how int) (*os.File, error) { return openLock(path, os.O_CREATE|os.O_RDWR, how) }

// relock takes a lock whose file must be there already.
func relock(path string, how int) (*os.File, error) { return openLock(path, os.O_RDWR, how) }

// lockDir takes a lock that is a folder, which must be there.
func lockDir(path string, how int) (*os.File, error) { return openLock(path, unix.O_DIRECTORY, how) }

func openLock(path string, flags, how int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err = flock(f, how); err == nil {
			var held, named unix.Stat_t
			if err = unix.Fstat(int(f.Fd()), &held); err == nil {
				if unix.Stat(path, &named) == nil && named.Ino == held.Ino && named.Dev == held.Dev {
					return f, nil
				}
			}
		}
		_ = f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// flock changes the lock of an open file, without waiting.
func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return errHeld
		case !errors.Is(err, unix.EINTR):
			return &os.PathError{Op: "lock", Path: f.Name(), Err: err}
		}
	}
}

// unlock gives a lock back, at once: a program that another thread is just
// starting has the file too, until it is executed.
func unlock(f *os.File) error {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // closing does it too
	return f.Close()
}

// waitLock takes a lock alone, when it is free.
func waitLock(ctx context.Context, path string) (f *os.File, err error) {
	err = untilFree(ctx, path, func() error {
		f, err = lock(path, unix.LOCK_EX)
		return err
	})
	return f, err
}

// untilFree goes on taking a lock until nobody else holds it.
func untilFree(ctx context.Context, path string, take func() error) error {
	tick := time.NewTicker(lockWait)
	defer tick.Stop()
	for {
		if err := take(); !errors.Is(err, errHeld) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", filepath.Base(path), context.Cause(ctx))
		}
	}
}

// inherit lets a file pass through an exec(2).
func inherit(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFD, flags&^unix.FD_CLOEXEC)
	}
	return err
}
