package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"thaw/mount"
	"thaw/sandbox"
)

const (
	// scratchSlack is what a scratch file system is larger than its content: bitmaps, tables of inodes, what the kernel keeps back
	// for itself (2 %, 16 MiB at most), and a filler that leaves exactly the content's size.
	scratchSlack = 32 << 20
	// scratchMore is left free beyond the size, for the blocks that say where a large file lies.
	scratchMore = 128 << 10
	// scratchData is the folder that is shown; beside it lies the filler.
	scratchData = "data"
)

// MountRoot gives an instance of KindRoot its root file system, which is only
// read: the image, and above it the folder skeleton, whose owners are those of
// containers.
func (i *Instance) MountRoot(image *Use, skeleton string) (string, error) {
	at := i.Dir("rootfs")
	return at, mount.MountOverlay(at, mount.Overlay{Lower: []string{skeleton, i.host.Rootfs(image, true)}})
}

// WithBareRoot calls f with a root file system of nothing but the folder
// skeleton, which is only read, and is there until f returns.
func (i *Instance) WithBareRoot(skeleton string, f func(root string) error) error {
	at, empty := i.Dir("rootfs"), i.Dir("empty")
	if err := makeDir(empty, searchOnly); err != nil {
		return err
	}
	if err := mount.MountOverlay(at, mount.Overlay{Lower: []string{skeleton, empty}}); err != nil {
		return err
	}
	return errors.Join(f(at), mount.Unmount(at))
}

// MountScratch gives the instance a file system of its own on disk, into which
// size bytes of files fit and no more, and gives the folder that is its root,
// open to all users. Nothing of it is kept: it ends with the instance. What is
// never written takes no disk.
func (i *Instance) MountScratch(ctx context.Context, size int64) (string, error) {
	template, err := i.host.scratchTemplate(ctx, size)
	if err != nil {
		return "", fmt.Errorf("a file system for /tmp: %w", err)
	}
	dir := filepath.Join(i.host.overlays(), i.ID)
	if err := makeDir(dir, 0o700); err != nil {
		return "", err
	}
	file := filepath.Join(dir, "scratch")
	if err := copySparse(file, template); err != nil {
		return "", fmt.Errorf("a file system for /tmp: %w", err)
	}
	at := i.Dir("scratch")
	if err := makeDir(at, searchOnly); err != nil {
		return "", err
	}
	if err := mountFile(file, at); err != nil {
		return "", err
	}
	i.scratchSize = size
	if i.scratch, err = os.Open(file); err != nil {
		return "", err
	}
	// The mount keeps the file, which needs no name: a worker that is killed leaves nothing on disk once the mount has gone.
	return filepath.Join(at, scratchData), os.Remove(file)
}

// ScratchSize is how many bytes of disk the file system of MountScratch takes, or
// is about to: what was written may be in memory still. What was removed stays.
func (i *Instance) ScratchSize() (int64, error) {
	if i.scratch == nil {
		return 0, nil
	}
	var inside unix.Statfs_t
	if err := unix.Statfs(i.Dir("scratch"), &inside); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: i.Dir("scratch"), Err: err}
	}
	info, err := i.scratch.Stat()
	if err != nil {
		return 0, err
	}
	taken := info.Sys().(*syscall.Stat_t).Blocks * 512 // stat(2): always of 512 bytes
	return max(taken, i.scratchSize+scratchMore-int64(inside.Bavail)*inside.Bsize), nil
}

// mountFile mounts the ext4 file system in a file, to be written.
func mountFile(file, at string) error {
	loop, err := mount.AttachLoop(file, false)
	if err != nil {
		return err
	}
	defer loop.Close() // the mount keeps it
	// What is written need not last. Tables of inodes that were never written are not written in the background.
	const flags, options = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME, "noinit_itable,nobarrier,errors=remount-ro"
	if err := unix.Mount(loop.Device, at, "ext4", flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", loop.Device, at, err)
	}
	return nil
}

// scratchTemplate gives a file with an empty file system of that size, and
// makes it if it is the first time. Templates last as long as the state does.
func (h *Host) scratchTemplate(ctx context.Context, size int64) (string, error) {
	name := filepath.Join(h.state, "templates", fmt.Sprintf("scratch-%d", size))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return "", err
	}
	held, err := waitLock(ctx, name+".lock")
	if err != nil {
		return "", err
	}
	defer held.Close()
	if _, err := os.Stat(name); err == nil {
		return name, nil // another has made it meanwhile
	}
	if err := makeScratch(ctx, name+".new", size); err != nil {
		return "", errors.Join(err, os.Remove(name+".new"))
	}
	return name, os.Rename(name+".new", name)
}

func makeScratch(ctx context.Context, name string, size int64) error {
	at := name + ".at"
	// One that was killed has left its own, which its file system may write to.
	if err := errors.Join(mount.Unmount(at), os.RemoveAll(name)); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size + size/50 + scratchSlack); err != nil {
		return err
	}
	// Without a journal: nothing of it outlives a crash. Inode tables are not written: they read as zeros.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 (apt-get install e2fsprogs): %w: %s", err, bytes.TrimSpace(out))
	}
	if err := makeDir(at, 0o700); err != nil {
		return err
	}
	defer os.Remove(at)
	if err := mountFile(name, at); err != nil {
		return err
	}
	return errors.Join(fillScratch(at, size), mount.Unmount(at), f.Sync()) // it is to outlive a crash, whole
}

// fillScratch makes the folder to be shown and leaves the size free. What it has
// made is in the file system's file, to which nothing more is written.
func fillScratch(at string, size int64) error {
	data := filepath.Join(at, scratchData)
	err := os.Mkdir(data, 0o700)
	if err == nil {
		err = os.Chown(data, sandbox.IDBase, sandbox.IDBase)
	}
	if err == nil {
		err = unix.Chmod(data, 0o1777)
	}
	if err != nil {
		return err
	}
	filler, err := os.OpenFile(filepath.Join(at, "filler"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(leave(filler, size), filler.Close()); err != nil {
		return err
	}
	id, _, err := mount.At(at)
	if err != nil {
		return err
	}
	return mount.Mount{Dir: at, ID: id}.Settle()
}

// leave makes a file so large that size bytes are free beside it.
func leave(filler *os.File, size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(filler.Fd()), &st); err != nil {
		return err
	}
	over := int64(st.Bavail)*st.Bsize - size - scratchMore
	if over < 0 {
		return fmt.Errorf("%d bytes short of %d", -over, size)
	}
	return unix.Fallocate(int(filler.Fd()), 0, 0, over&^4095)
}

// copySparse copies a file without its holes.
func copySparse(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		start, err := in.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // no more data
		}
		if err != nil {
			return err
		}
		if at, err = in.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, at-start)); err != nil {
			return err
		}
	}
}

// MakeSkeleton makes the folder of an instance of KindRoot that goes above the
// image: folders, whose names end with "/", and files, all of containers' root.
// Each needs its parent listed; paths are relative. links are files that
// KeepProgram gave, by their names above the image.
func (i *Instance) MakeSkeleton(entries, links map[string]string) (string, error) {
	top := i.Dir("skeleton")
	err := ownDir(top)
	for _, name := range slices.Sorted(maps.Keys(entries)) { // a folder before what is in it
		at := filepath.Join(top, name)
		switch {
		case err != nil:
		case strings.HasSuffix(name, "/"):
			err = ownDir(at)
		default:
			err = ownFile(at, strings.NewReader(entries[name]), 0o644)
		}
	}
	for name, program := range links {
		if err == nil {
			err = os.Link(program, filepath.Join(top, name))
		}
	}
	return top, err
}

// KeepProgram copies a program of this machine to where skeletons link it from:
// however many do, it is in memory once. It lasts as long as the instance.
func (i *Instance) KeepProgram(program string) (string, error) {
	f, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	at := i.Dir(filepath.Base(program))
	return at, ownFile(at, f, 0o755)
}

func ownDir(at string) error {
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	return own(at, 0o755)
}

func own(at string, mode uint32) error {
	return errors.Join(os.Chown(at, sandbox.IDBase, sandbox.IDBase), unix.Chmod(at, mode))
}

func ownFile(at string, content io.Reader, mode uint32) error {
	f, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close(), own(at, mode))
}
