package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

const (
	// window is the address space in the arena's file that a slot has: the
	// longest payload. What is not written takes no memory.
	window = chunk.MaxSize
	// page is what a payload is rounded up to.
	page = 4096
	// overhead is the number of bytes counted for a stripe besides its payload:
	// the kernel's tree of pages takes 700, the tables of memory and lru 400.
	overhead = 1100
)

// arena is the file that holds payloads in memory. Its slots are used by one at
// a time, which is for the caller to see to.
type arena struct {
	fd int
	// shares tells whether pages may be lent to sockets. They may not where the
	// kernel keeps files like this in huge pages: a hole in such a page is
	// written as zeros, also into what a socket has yet to send.
	shares bool
}

func newArena() (*arena, error) {
	fd, err := unix.MemfdCreate("thaw-zone", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("node: memory: %w", os.NewSyscallError("memfd_create", err))
	}
	return &arena{fd, smallPages("/sys/kernel/mm/transparent_hugepage")}, nil
}

// smallPages tells whether files in memory are sure to have pages of 4 KiB, by
// the kernel's settings below dir. A kernel without the settings has no others.
func smallPages(dir string) bool {
	files, _ := filepath.Glob(filepath.Join(dir, "hugepages-*", "shmem_enabled")) // the pattern is right
	for _, f := range append(files, filepath.Join(dir, "shmem_enabled")) {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, value, _ := strings.Cut(string(b), "[")
		value, _, _ = strings.Cut(value, "]")
		switch value {
		case "never", "deny", "advise", "inherit": // nobody advises; what is inherited is looked at too
		default:
			return false
		}
	}
	return true
}

func (a *arena) close() error { return os.NewSyscallError("close", unix.Close(a.fd)) }

// write puts a payload into a slot whose pages nobody has been lent.
func (a *arena) write(slot uint32, b []byte) error {
	for at := int64(slot) * window; len(b) > 0; {
		n, err := quick(unix.SYS_PWRITE64, a.fd, unsafe.Pointer(&b[0]), len(b), int(at))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("node: memory: %w", os.NewSyscallError("pwrite", err))
		}
		at, b = at+int64(n), b[n:]
	}
	return nil
}

// read fills b from a slot, starting at an offset.
func (a *arena) read(slot uint32, b []byte, off int) error {
	for at := int64(slot)*window + int64(off); len(b) > 0; {
		n, err := unix.Pread(a.fd, b, at)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return fmt.Errorf("node: memory: %w", os.NewSyscallError("pread", err))
		}
		at, b = at+int64(n), b[n:]
	}
	return nil
}

// free gives a slot's pages back.
func (a *arena) free(slot uint32, size int) error {
	for {
		_, _, err := unix.RawSyscall6(unix.SYS_FALLOCATE, uintptr(a.fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			uintptr(slot)*window, uintptr(rounded(size)), 0, 0)
		switch err {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("node: memory: %w", os.NewSyscallError("fallocate", err))
		}
	}
}

// rounded is the memory of a payload.
func rounded(size int) int64 { return (int64(size) + page - 1) &^ (page - 1) }
