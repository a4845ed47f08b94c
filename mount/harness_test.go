package mount

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// role is the environment variable that makes the test binary another process: a server of a mount or a program in a container.
const role = "THAW_MOUNT_TEST_ROLE"

func TestMain(m *testing.M) {
	roles := map[string]func() error{"server": serveCommands, "plain": servePlain(fuse.FOPEN_DIRECT_IO), "cached": servePlain(fuse.FOPEN_KEEP_CACHE), "container": probe}
	if run := roles[os.Getenv(role)]; run != nil {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// memory is a device in memory that can be told to fail or hang.
type memory struct {
	mu      sync.RWMutex
	data    []byte
	failing int           // the next so many requests fail
	hang    chan struct{} // not nil: requests wait until it is closed or they are cancelled
	syncs   int
}

var errDevice = errors.New("the device is on fire")

func (m *memory) Size() int64 { return int64(len(m.data)) }

// trouble fails or hangs, as told.
func (m *memory) trouble(ctx context.Context) error {
	m.mu.Lock()
	hang, fail := m.hang, m.failing > 0
	if fail {
		m.failing--
	}
	m.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fail {
		return errDevice
	}
	return nil
}

func (m *memory) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := m.trouble(ctx); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	copy(p, m.data[off:off+int64(len(p))])
	return nil
}

func (m *memory) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := m.trouble(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(m.data[off:off+int64(len(p))], p)
	return nil
}

func (m *memory) Discard(ctx context.Context, off, n int64) error {
	if err := m.trouble(ctx); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[off : off+n])
	return nil
}

func (m *memory) Flush(ctx context.Context) error {
	m.mu.Lock()
	m.syncs++
	m.mu.Unlock()
	return m.trouble(ctx)
}

// serveCommands is the server process: descriptor 3 is the mount's, 4 the image to serve from memory. A line of standard input is a
// command, answered by a line.
func serveCommands() error {
	data, err := io.ReadAll(os.NewFile(4, "image"))
	if err != nil {
		return err
	}
	s := &commanded{image: &memory{data: data}, rw: map[string]*memory{}}
	s.server, err = NewServer(os.NewFile(3, "fuse"), s.image, func(f Fault) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = append(s.faults, fmt.Sprintf("%s %s: %v", f.Op, f.File, f.Err))
	})
	if err != nil {
		return err
	}
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			answer, err := s.obey(strings.Split(lines.Text(), "\t"))
			if err != nil {
				answer = "error: " + err.Error()
			}
			fmt.Println(answer)
		}
	}()
	s.server.Serve()
	return nil
}

type commanded struct {
	server *Server
	image  *memory
	rw     map[string]*memory // of the one goroutine that obeys

	mu     sync.Mutex
	faults []string
}

func (s *commanded) obey(words []string) (string, error) {
	number := func() int {
		n, _ := strconv.Atoi(words[len(words)-1])
		return n
	}
	switch words[0] {
	case "add": // name, size
		s.rw[words[1]] = &memory{data: make([]byte, number())}
		return "ok", s.server.AddFile(words[1], s.rw[words[1]])
	case "addimage": // name: a file that begins as a copy of the image
		s.rw[words[1]] = &memory{data: bytes.Clone(s.image.data)}
		return "ok", s.server.AddFile(words[1], s.rw[words[1]])
	case "remove":
		return "ok", s.server.RemoveFile(words[1])
	case "fail": // count
		s.image.mu.Lock()
		defer s.image.mu.Unlock()
		s.image.failing = number()
		return "ok", nil
	case "hang":
		s.image.mu.Lock()
		defer s.image.mu.Unlock()
		s.image.hang = make(chan struct{})
		return "ok", nil
	case "faults":
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Join(s.faults, "; "), nil
	case "syncs":
		s.rw[words[1]].mu.Lock()
		defer s.rw[words[1]].mu.Unlock()
		return strconv.Itoa(s.rw[words[1]].syncs), nil
	}
	return "", fmt.Errorf("no command %q", words[0])
}

// asRoot skips a test that mounts if that is not possible here.
func asRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting needs root; run the tests as root to try this")
	}
	for _, need := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(need); err != nil {
			t.Skipf("SKIPPED: no %s on this machine: %v", need, err)
		}
	}
	for _, tool := range []string{"mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: e2fsprogs is not installed: %v", err)
		}
	}
}

// place gives a directory that anyone may enter and in which, when the test ends, nothing may be mounted or attached any more.
func place(t testing.TB) string {
	t.Helper()
	asRoot(t)
	dir, err := os.MkdirTemp("", "thaw mount, a:b \"ü\"\\")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, err := Under(dir)
		if len(mounts) > 0 || err != nil {
			t.Errorf("left over: %v, %v", mounts, err)
			_ = DetachAll(dir)
		}
		if !awaitLoops(t, dir, 0) {
			_ = clearLoops(dir)
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

// patience is how long others may have copies of what a test has unmounted: each new mount namespace has for a moment.
const patience = 3 * time.Minute

// awaitLoops waits until so many loop devices have a file below a path.
func awaitLoops(t testing.TB, dir string, want int) bool {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for late := time.Now().Add(patience); ; <-tick.C {
		loops, err := Loops(dir)
		if err == nil && len(loops) == want {
			return true
		}
		if err != nil || time.Now().After(late) {
			t.Errorf("loop devices: %v, %v; want %d", loops, err, want)
			return false
		}
	}
}

func mkdir(t testing.TB, elements ...string) string {
	t.Helper()
	dir := filepath.Join(elements...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func try(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// tree makes a directory of small and large files.
func tree(t testing.TB, dir string) string {
	t.Helper()
	mkdir(t, dir, "bin")
	for i := range 40 {
		data := bytes.Repeat([]byte{byte(i), 'x', byte(i >> 3)}, 1+i*i*97)
		try(t, os.WriteFile(filepath.Join(dir, "bin", fmt.Sprintf("file-%02d", i)), data, 0o755))
	}
	try(t, os.Symlink("bin/file-03", filepath.Join(dir, "link")), os.WriteFile(filepath.Join(dir, "owned"), []byte("mine\n"), 0o640))
	try(t, os.Chown(filepath.Join(dir, "owned"), 1000, 1000))
	return dir
}

// makeImage makes an ext4 image of so many bytes from a directory.
func makeImage(t testing.TB, source, file string, size int64) {
	t.Helper()
	f, err := os.Create(file)
	try(t, err)
	try(t, f.Truncate(size), f.Close())
	run(t, "mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "^has_journal", "-d", source, file)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// served is a mount with its server process.
type served struct {
	t       testing.TB
	dir     string
	process *exec.Cmd
	in      io.Writer
	out     *bufio.Scanner
}

// serve mounts FUSE on dir and starts an unprivileged server of an image in it.
func serve(t testing.TB, dir, image, as string) *served {
	t.Helper()
	descriptor, err := OpenFUSE(dir)
	try(t, err)
	data, err := os.Open(image)
	try(t, err)
	defer data.Close()
	s := &served{t: t, dir: dir, process: exec.Command("/proc/self/exe")}
	s.process.Env = append(os.Environ(), role+"="+as)
	s.process.ExtraFiles = []*os.File{descriptor, data}
	s.process.Stderr = os.Stderr
	s.process.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	s.in, err = s.process.StdinPipe()
	try(t, err)
	out, err := s.process.StdoutPipe()
	try(t, err)
	s.out = bufio.NewScanner(out)
	try(t, s.process.Start(), descriptor.Close())
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
		s.ends()
	})
	return s
}

// ends waits for the server process, which ends because its mount is gone. Calling it again does nothing.
func (s *served) ends() {
	s.t.Helper()
	if s.process.ProcessState != nil {
		return
	}
	stop := time.AfterFunc(patience, func() {
		s.t.Error("the server does not end")
		_ = s.process.Process.Kill()
	})
	defer stop.Stop()
	_ = s.process.Wait()
}

func (s *served) tell(words ...string) string {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, strings.Join(words, "\t")); err != nil {
		s.t.Fatal(err)
	}
	if !s.out.Scan() {
		s.t.Fatalf("%q: the server is gone: %v", words, s.out.Err())
	}
	if answer := s.out.Text(); !strings.HasPrefix(answer, "error: ") {
		return answer
	}
	s.t.Fatalf("%q: %s", words, s.out.Text())
	return ""
}

func (s *served) image() string         { return filepath.Join(s.dir, "image") }
func (s *served) rw(name string) string { return filepath.Join(s.dir, "rw", name) }

// mountLoop mounts a file's ext4 on dir by way of a loop device, which lasts as long as the mount.
func mountLoop(t testing.TB, file, dir string, readOnly bool) string {
	t.Helper()
	l, err := AttachLoop(file, readOnly)
	try(t, err)
	err = MountExt4(l.Device, dir, readOnly)
	try(t, errors.Join(err, l.Close()))
	return l.Device
}

// copied keeps a copy of a mount until the test ends, as a mount namespace does that was made meanwhile.
func copied(t testing.TB, dir string) {
	t.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	try(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
}

// sameTree compares two directories by what diff says.
func sameTree(t testing.TB, want, got string) {
	t.Helper()
	_ = os.Remove(filepath.Join(want, "lost+found"))
	run(t, "diff", "--no-dereference", "-r", "--exclude=lost+found", want, got)
}

// clearLoops frees the loop devices whose file is or was at or below a path; those in use are freed with their last user.
func clearLoops(prefix string) error {
	devices, err := Loops(prefix)
	if err != nil {
		return err
	}
	var errs []error
	for _, device := range devices {
		if err := clearLoop(device); err != nil {
			errs = append(errs, fmt.Errorf("mount: free %s: %w", device, err))
		}
	}
	return errors.Join(errs...)
}

func clearLoop(device string) error {
	f, err := os.Open(device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); errors.Is(err, unix.ENXIO) {
		return nil // it is free
	}
	return err
}
