package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"thaw/mount"
)

// role is the environment variable that makes the test binary the server to
// compare with.
const role = "THAW_BENCH_ROLE"

func TestMain(m *testing.M) {
	roles := map[string]func() error{"plain": servePlain, "load": zoneLoad, "echo": serveEcho}
	play, ok := roles[os.Getenv(role)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// plain is as little as go-fuse needs to serve one file, as "image".
type plain struct {
	fuse.RawFileSystem
	file *os.File
	size int64
}

const forever = 1 << 30 // s, that the kernel may keep attributes

func (p *plain) attr(node uint64) fuse.Attr {
	if node == 1 {
		return fuse.Attr{Ino: 1, Mode: unix.S_IFDIR | 0o700, Nlink: 2}
	}
	return fuse.Attr{Ino: 2, Mode: unix.S_IFREG | 0o400, Nlink: 1, Size: uint64(p.size)}
}

// Lookup is the file system's.
func (p *plain) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "image" {
		return fuse.ENOENT
	}
	out.NodeId, out.Generation, out.AttrValid, out.EntryValid, out.Attr = 2, 1, forever, forever, p.attr(2)
	return fuse.OK
}

// GetAttr is the file system's.
func (p *plain) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.AttrValid, out.Attr = forever, p.attr(in.NodeId)
	return fuse.OK
}

// Open is the file system's.
func (p *plain) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO // as the agent has it
	return fuse.OK
}

// Read is the file system's.
func (p *plain) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := p.file.ReadAt(buf, int64(in.Offset))
	if n == 0 && err != nil {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// servePlain is the process: descriptor 3 is the mount's, 4 the file.
func servePlain() error {
	p := &plain{RawFileSystem: fuse.NewDefaultRawFileSystem(), file: os.NewFile(4, "image")}
	info, err := p.file.Stat()
	if err != nil {
		return err
	}
	p.size = info.Size()
	server, err := fuse.NewServer(p, "/dev/fd/3", &fuse.MountOptions{
		Name: "plain", MaxWrite: mib, MaxReadAhead: mib, MaxBackground: 128, DisableSplice: true, ExtraCapabilities: fuse.CAP_ASYNC_DIO,
	})
	if err != nil {
		return err
	}
	server.Serve()
	return nil
}

// plainFile serves a copy of a device by FUSE, from the page cache, and gives
// the path of what is served.
func plainFile(b testing.TB, device string) string {
	b.Helper()
	file := filepath.Join(b.TempDir(), "device")
	timed(b, "cp", "--sparse=always", device, file)
	dir := b.TempDir()
	descriptor, err := mount.OpenFUSE(dir)
	try(b, err)
	data, err := os.Open(file)
	try(b, err)
	defer data.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), role+"=plain")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{descriptor, data}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	try(b, cmd.Start(), descriptor.Close())
	b.Cleanup(func() {
		try(b, mount.Unmount(dir), cmd.Wait())
	})
	return filepath.Join(dir, "image")
}

// loopReadAhead is that of the devices of mounted images, in KiB.
const loopReadAhead = 128

// overLoop mounts the ext4 in a file by way of a loop device until the function
// it gives is called.
func overLoop(b testing.TB, file string) (dir string, release func()) {
	b.Helper()
	dir = b.TempDir()
	l, err := mount.AttachLoop(file, true)
	try(b, err, l.SetReadAhead(loopReadAhead), mount.MountExt4(l.Device, dir, true), l.Close())
	released := false
	release = func() {
		if !released {
			released = true
			try(b, mount.Unmount(dir))
		}
	}
	b.Cleanup(release)
	return dir, release
}
