package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// loopTries bounds the search for a free device: each try is lost only to another process that took the device just found, and more
// than a few hundred of those at once are a fault.
const loopTries = 1000

// loopBlock is the logical block size: ext4's own and the page's, so that no request is smaller.
const loopBlock = 4096

// Loop is a block device over a file. The kernel frees it when it has no more openers: mount it, then Close it.
type Loop struct {
	Device string // as "/dev/loop7"
	file   *os.File
}

// AttachLoop makes a file, whose size is a multiple of 4096 bytes, a block device. Reads and writes go to the file directly, past the
// page cache: what is cached belongs to the file system on the device. Any number of processes may attach at once.
func AttachLoop(path string, readOnly bool) (Loop, error) {
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	fail := func(err error) (Loop, error) { return Loop{}, fmt.Errorf("mount: loop device for %s: %w", path, err) }
	backing, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return fail(err)
	}
	defer backing.Close() // the device keeps the file open
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fail(err)
	}
	defer control.Close()
	config := loopConfig(backing, readOnly)
	for range loopTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fail(err)
		}
		l := Loop{Device: fmt.Sprintf("/dev/loop%d", number)}
		l.file, err = os.OpenFile(l.Device, mode, 0)
		if errors.Is(err, unix.ENXIO) { // removed meanwhile
			continue
		}
		if err != nil {
			return fail(err)
		}
		err = unix.IoctlLoopConfigure(int(l.file.Fd()), &config)
		if err == nil {
			return l, nil
		}
		_ = l.file.Close()
		if !errors.Is(err, unix.EBUSY) {
			return fail(err)
		}
	}
	return fail(fmt.Errorf("each of %d free devices was taken by somebody else: %w", loopTries, unix.EBUSY))
}

func loopConfig(backing *os.File, readOnly bool) unix.LoopConfig {
	c := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: loopBlock}
	c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	if readOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	copy(c.Info.File_name[:len(c.Info.File_name)-1], backing.Name()) // for people, and for Loops
	return c
}

// SetReadAhead sets how far the kernel reads ahead, in KiB. Files take it over when they are opened.
func (l Loop) SetReadAhead(kib int) error {
	if err := unix.IoctlSetInt(int(l.file.Fd()), unix.BLKRASET, kib*2); err != nil { // in sectors of 512 bytes
		return fmt.Errorf("mount: set read-ahead of %s: %w", l.Device, err)
	}
	return nil
}

// Close lets go of the device; it is freed now or when the last mount of it ends.
func (l Loop) Close() error { return l.file.Close() }

// Loops lists the loop devices, as "/dev/loop7", whose file is or was at or below a path. It needs no access to the files.
func Loops(prefix string) ([]string, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	prefix = strings.TrimSuffix(filepath.Clean(prefix), "/") + "/"
	var devices []string
	for _, dir := range dirs {
		device := "/dev/" + filepath.Base(filepath.Dir(dir))
		file, err := os.ReadFile(filepath.Join(dir, "backing_file"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue // freed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("mount: list loop devices: %w", err)
		}
		path := strings.TrimSuffix(strings.TrimSuffix(string(file), "\n"), " (deleted)")
		if strings.HasPrefix(path+"/", prefix) || strings.HasPrefix(loopName(device)+"/", prefix) {
			devices = append(devices, device)
		}
	}
	return devices, nil
}

// loopName is the path that a loop device was attached with, cut to 63 bytes. The kernel's own path of a file loses its beginning when
// the file's mount is detached.
func loopName(device string) string {
	f, err := os.Open(device)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.File_name[:])
}
