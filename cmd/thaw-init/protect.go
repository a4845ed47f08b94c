package main

import (
	"fmt"
	"math"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// defaultFiles is Lambda's limit of open files.
	defaultFiles = 1024
	// leastFiles is what thaw-init itself needs: connections, and pipes.
	leastFiles = 256
)

// protect keeps the function's processes from looking into this one, and from
// getting what it has open.
func protect() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming undumpable: %w", err)
	}
	if err := unix.CloseRange(socketFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		for fd := socketFD; fd < defaultFiles; fd++ { // an older kernel
			syscall.CloseOnExec(fd)
		}
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("no core dumps: %w", err)
	}
	_ = os.Chdir("/")
	return nil
}

// limitFiles bounds the open files of all processes, this one included: Go would
// give others the limit that it found itself, unless it is set.
func limitFiles(n int) error {
	if n == 0 {
		n = defaultFiles
	}
	if n < leastFiles {
		return fmt.Errorf("a limit of %d open files: at least %d are needed", n, leastFiles)
	}
	limit := syscall.Rlimit{Cur: uint64(n), Max: uint64(n)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limiting open files to %d: %w", n, err)
	}
	return nil
}
