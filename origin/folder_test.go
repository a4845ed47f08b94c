package origin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

// writerEnv makes the test binary a writer that never ends: its value is the
// folder's URL, and with a "+" in front it writes files with names.
const writerEnv = "THAW_TEST_WRITER"

func TestMain(m *testing.M) {
	if url := os.Getenv(writerEnv); url != "" {
		fmt.Fprintln(os.Stderr, endlessWriter(url))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writerChunk is the i-th chunk of every writer, so that writers race for it.
func writerChunk(i int) chunk.Sealed {
	plain := make([]byte, chunk.MinSize)
	binary.BigEndian.PutUint64(plain[1:], uint64(i)|1<<63)
	return chunk.Seal(chunk.Salt{}, plain)
}

// endlessWriter puts chunk after chunk with four hands, repairs some, and
// prints the names it was told to have added.
func endlessWriter(url string) error {
	useNamed := strings.HasPrefix(url, "+")
	ctx := context.Background()
	o, err := Open(ctx, strings.TrimPrefix(url, "+"))
	if err != nil {
		return err
	}
	if useNamed {
		named(o)
	}
	chunks, failed := o.Chunks("r1"), make(chan error)
	for hand := range 4 {
		go func() {
			for i := hand; ; i += 4 {
				c := writerChunk(i)
				added, err := chunks.Put(ctx, c.Name, c.Data)
				if err == nil && i%5 == 0 {
					err = chunks.Repair(ctx, c.Name, c.Data)
				}
				if err != nil {
					failed <- err
				}
				if added {
					fmt.Printf("%s\n", c.Name)
				}
			}
		}()
	}
	return <-failed
}

// TestKilledWriters kills writers at many moments. What they leave under final
// names is whole, each name has one winner, and the next Open finds nothing to
// do or does it.
func TestKilledWriters(t *testing.T) {
	for name, prefix := range map[string]string{"unnamed": "", "named": "+"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			winners, killed := map[string]int{}, 0
			draw := rand.New(rand.NewPCG(1, 2))
			for range 25 {
				// Kill after a number of additions that differs each time, and
				// a little later, so that it can hit any step.
				lines := runWriters(t, prefix+"file://"+dir, 1+draw.IntN(12), time.Duration(draw.IntN(3000))*time.Microsecond)
				killed += 2
				for _, line := range lines {
					winners[line]++
				}
			}
			for name, n := range winners {
				if n != 1 {
					t.Errorf("%d processes were told to have added %s", n, name)
				}
			}
			open(t, "file://"+dir)
			found := checkWhole(t, dir)
			t.Logf("%d writers killed, %d chunks whole, %d reported", killed, found, len(winners))
			if found < len(winners) {
				t.Errorf("%d chunks found, %d were reported as durable", found, len(winners))
			}
		})
	}
}

// runWriters runs two writers until one has added so many, waits, kills both,
// and gives what they reported.
func runWriters(t *testing.T, url string, additions int, wait time.Duration) (lines []string) {
	t.Helper()
	got := make(chan string)
	var cmds []*exec.Cmd
	var done []chan struct{}
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+url)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for s := bufio.NewScanner(out); s.Scan(); {
				got <- s.Text()
			}
			_ = cmd.Wait()
			if stderr.Len() > 0 {
				t.Errorf("a writer failed: %s", stderr.String())
			}
		}()
		cmds, done = append(cmds, cmd), append(done, ended)
	}
	go func() {
		for _, d := range done {
			<-d
		}
		close(got)
	}()
	var timer <-chan time.Time
	for {
		select {
		case <-timer:
			for _, cmd := range cmds {
				_ = cmd.Process.Kill()
			}
			timer = nil
		case line, ok := <-got:
			if !ok {
				return lines
			}
			if lines = append(lines, line); len(lines) == additions {
				timer = time.After(wait)
			}
		}
	}
}

// checkWhole checks every file of a folder and counts the chunks.
func checkWhole(t *testing.T, dir string) (chunks int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := chunk.ParseName(d.Name())
		if err != nil {
			return fmt.Errorf("a leftover: %s", path)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		chunks++
		return chunk.Check(data, name)
	})
	if err != nil {
		t.Error(err)
	}
	return chunks
}

// TestOpenLeavesLiveWritersAlone opens a folder while another writer is between
// the steps of a put.
func TestOpenLeavesLiveWritersAlone(t *testing.T) {
	dir := t.TempDir()
	f := open(t, "file://"+dir).bucket.Writer.(*folder)
	seen := false
	err := f.writeNamed([]byte("x"), func(temp string) error {
		open(t, "file://"+dir)
		_, err := os.Stat(temp)
		seen = true
		return err
	})
	if err != nil || !seen {
		t.Errorf("a live writer's file was removed: %v", err)
	}
	checkEmpty(t, dir)
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	f := open(t, "file://"+dir).bucket.Writer.(*folder)
	if err := f.ensure(filepath.Join(dir, tempDir)); err != nil {
		t.Fatal(err)
	}
	file, err := f.createTemp()
	if err != nil {
		t.Fatal(err)
	}
	open(t, "file://"+dir)
	if _, err := os.Stat(file.Name()); err != nil {
		t.Errorf("while it is held: %v", err)
	}
	if err := file.Close(); err != nil { // as the kernel does at the end of a process
		t.Fatal(err)
	}
	open(t, "file://"+dir)
	checkEmpty(t, dir)
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	items, err := os.ReadDir(filepath.Join(dir, tempDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) || len(items) > 0 {
		t.Errorf("%d leftovers, %v", len(items), err)
	}
}

// TestCreateTempAfterTheft takes the file away between its creation and its
// lock, as an Open at that moment would.
func TestCreateTempAfterTheft(t *testing.T) {
	dir := t.TempDir()
	f := open(t, "file://"+dir).bucket.Writer.(*folder)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				f.clean()
			}
		}
	}()
	for i := range 300 {
		key := fmt.Sprintf("a/%d", i)
		if err := f.Replace(t.Context(), key, []byte("x")); err != nil {
			t.Errorf("replace: %v", err)
		}
		checkHolds(t, Bucket{f, f}, key, []byte("x"))
	}
	close(stop)
	<-done
}

// TestFullDisk fills a small file system: no name may be left without its bytes.
// Read-only is tried on the same one.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a full disk needs root, to mount a small tmpfs; CI runs this as root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIPPED: mounting a tmpfs is not allowed here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	for name, o := range map[string]*Origin{"unnamed": open(t, "file://"+dir), "named": named(open(t, "file://"+dir))} {
		free, ok, err := o.Free()
		if !ok || err != nil || free <= 0 || free > 1<<20 {
			t.Errorf("%s: free %d, %v, %v", name, free, ok, err)
		}
		for i := range 20 {
			c := writerChunk(i)
			if _, err = o.Chunks("r1").Put(t.Context(), c.Name, c.Data); err != nil {
				break
			}
		}
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "make room on the disk of "+dir) {
			t.Errorf("%s: %v", name, err)
		}
		checkWhole(t, dir)
		for i := range 8 { // makes room for the other, and leaves a few
			c := writerChunk(i)
			if err := o.bucket.Remove(t.Context(), chunkKey(c)); err != nil && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	o, c := open(t, "file://"+dir), writerChunk(99)
	_, err := o.Chunks("r1").Put(t.Context(), c.Name, c.Data)
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "mounted read-only") {
		t.Errorf("read-only: %v", err)
	}
	for info, err := range o.Chunks("r1").List(t.Context()) {
		name, _ := chunk.ParseName(info.Name)
		if err == nil {
			_, err = o.Chunks("r1").Get(t.Context(), name)
		}
		if err != nil {
			t.Errorf("reading from a read-only folder: %v", err)
		}
	}
}

func chunkKey(c chunk.Sealed) string {
	s := c.Name.String()
	return "roots/r1/chunks/" + s[:2] + "/" + s
}

// TestForbiddenFolder tries a real folder as a plain user, and the words as
// root, whom permissions do not stop.
func TestForbiddenFolder(t *testing.T) {
	f := &folder{dir: "/dir"}
	err := f.explain(&os.PathError{Op: "open", Path: "/dir/x", Err: syscall.EACCES})
	checkFailure(t, "explain", fmt.Errorf("origin: %w", err), ErrRefused, []string{"permission", "/dir/x"})
	if os.Geteuid() == 0 {
		t.Skip("SKIPPED: as root nothing is forbidden; the rest runs as a plain user")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	c := chunktest.Sample(1, chunk.MinSize)
	_, err = open(t, "file://"+dir).Chunks("r1").Put(t.Context(), c.Name, c.Data)
	checkFailure(t, "put", err, ErrRefused, []string{"permission", dir})
}

// TestUnaligned puts bytes that direct I/O does not take, and has a file refuse
// them that was opened for it.
func TestUnaligned(t *testing.T) {
	data := noise(1, 64<<10)
	for _, dir := range []string{t.TempDir(), sharedMemory(t)} {
		b := open(t, "file://"+dir).bucket
		for i, part := range [][]byte{data, data[1:], data[:len(data)-1], data[512:], data[:1]} {
			key := fmt.Sprintf("a/%d", i)
			mustCreate(t, b, key, part)
			checkHolds(t, b, key, part)
		}
		path := filepath.Join(dir, "direct")
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_DIRECT, 0o600)
		if errors.Is(err, syscall.EINVAL) {
			continue // no direct I/O here, which openUnnamed notices
		}
		if err == nil {
			err = errors.Join(writeSynced(file, data[1:]), file.Close())
		}
		got, rerr := os.ReadFile(path)
		if err != nil || rerr != nil || !bytes.Equal(got, data[1:]) {
			t.Errorf("%s: %d bytes, %v, %v", dir, len(got), err, rerr)
		}
	}
}

func TestFolderPaths(t *testing.T) {
	f := &folder{dir: "/dir"}
	for _, key := range []string{"", "/a", "a//b", "a/../b", "..", "a/.", ".tmp/x", "a/b\x00"} {
		if path, err := f.path(key); err == nil {
			t.Errorf("%q gave %s", key, path)
		}
	}
	if path, err := f.path("roots/r1/state/1"); err != nil || path != "/dir/roots/r1/state/1" {
		t.Errorf("%s, %v", path, err)
	}
}

func TestFolderURLs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"file://relative", "file:relative", "file:///a?b=c", "file:///a#b", "file://" + file, "file://host/dir"} {
		if _, err := Open(t.Context(), url); err == nil {
			t.Errorf("%s was opened", url)
		}
	}
}

// TestThingsThatAreNoObjects: what else lies in a folder does no harm.
func TestThingsThatAreNoObjects(t *testing.T) {
	dir := t.TempDir()
	o := open(t, "file://"+dir)
	c := chunktest.Sample(1, chunk.MinSize)
	if _, err := o.Chunks("r1").Put(t.Context(), c.Name, c.Data); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "roots/r1/chunks")
	other := chunktest.Sample(2, chunk.MinSize).Name.String()
	for _, err := range []error{
		os.WriteFile(filepath.Join(base, "README"), nil, 0o600),
		os.WriteFile(filepath.Join(base, ".hidden"), nil, 0o600),
		os.MkdirAll(filepath.Join(base, other[:2]), 0o700),
		unix.Mkfifo(filepath.Join(base, other[:2], other), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for info, err := range o.Chunks("r1").List(t.Context()) {
		if err != nil || info.Name != c.Name.String() {
			t.Errorf("%+v, %v", info, err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d chunks", n)
	}
	name, _ := chunk.ParseName(other)
	if _, err := o.Chunks("r1").Get(t.Context(), name); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a FIFO: %v", err)
	}
	if _, err := o.Chunks("r1").Stat(t.Context(), name); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a FIFO: %v", err)
	}
}

// TestSettle: a chunk that another process has linked counts as stored only
// once the folder was synced, so a Put that adds nothing syncs too.
func TestSettle(t *testing.T) {
	dir := t.TempDir()
	c := chunktest.Sample(1, chunk.MinSize)
	o := open(t, "file://"+dir)
	if _, err := o.Chunks("r1").Put(t.Context(), c.Name, c.Data); err != nil {
		t.Fatal(err)
	}
	again := open(t, "file://"+dir)
	f := again.bucket.Writer.(*folder)
	if added, err := again.Chunks("r1").Put(t.Context(), c.Name, c.Data); added || err != nil {
		t.Fatalf("added %v, %v", added, err)
	}
	s := c.Name.String()
	if _, ok := f.ready[filepath.Join(dir, "roots/r1/chunks", s[:2])]; !ok {
		t.Errorf("the folder was not synced: %v", f.ready)
	}
	if err := os.RemoveAll(filepath.Join(dir, "roots")); err != nil {
		t.Fatal(err)
	}
	if err := f.settle(chunkKey(c)); err == nil {
		t.Error("a folder that has gone was settled")
	}
}

func checkFailure(t *testing.T, verb string, err, is error, want []string) {
	t.Helper()
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, chunk.ErrNotFound) {
		t.Fatalf("%s: %v", verb, err)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("%s: %v is not %v", verb, err, is)
	}
	for _, w := range append(want, "origin: ") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q does not say %q", verb, err, w)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\t") {
		t.Errorf("%s: more than one line: %q", verb, err)
	}
}
