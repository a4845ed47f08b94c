package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thaw/chunk"
)

// startNumbers is what --stats-json writes.
type startNumbers struct {
	Image   string
	Bytes   map[string]int64
	Chunks  map[string]int64
	Corrupt map[string]int64
	StartMS map[string]float64 `json:"start_ms"`
}

// numbersOf reads what --stats-json wrote.
func numbersOf(t *testing.T, path string) (n startNumbers) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// chunkFiles lists the chunks below a folder.
func chunkFiles(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filesBelow(dir)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(path string) bool {
		_, err := chunk.ParseName(filepath.Base(path))
		return err != nil
	})
}

// spoilAll changes each file in place, though it is read-only.
func spoilAll(t *testing.T, files []string, spoil func(f *os.File, size int64) error) {
	t.Helper()
	if len(files) == 0 {
		t.Fatal("nothing to spoil")
	}
	for _, path := range files {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err == nil {
			err = spoil(f, info.Size())
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

func flip(f *os.File, size int64) error {
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, size/2); err != nil {
		return err
	}
	b[0] ^= 1
	_, err := f.WriteAt(b, size/2)
	return err
}

func cut(f *os.File, size int64) error { return f.Truncate(size / 2) }

// A bad chunk in the cache is fetched again, and counted.
func TestBadCache(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	stats := filepath.Join(t.TempDir(), "stats.json")
	warm := func() {
		r := m.serve("app")
		for i := range dataFiles {
			r.reads(1, i)
		}
		m.settled(t, false)
		if e := r.end(); e.code != 0 {
			t.Fatal(e)
		}
	}
	warm()
	for name, spoil := range map[string]func(path string) error{
		"changed":   func(path string) error { spoilAll(t, []string{path}, flip); return nil },
		"truncated": func(path string) error { spoilAll(t, []string{path}, cut); return nil },
		"missing":   os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			files := chunkFiles(t, m.state+"/cache/chunks")
			for _, path := range files {
				if err := spoil(path); err != nil {
					t.Fatal(err)
				}
			}
			r := m.serve("--stats-json", stats, "app")
			for i := range dataFiles {
				r.reads(1, i)
			}
			m.settled(t, false)
			if e := r.end(); e.code != 0 || strings.Contains(e.stderr, "image app:") {
				t.Fatal(e)
			}
			n := numbersOf(t, stats)
			if n.Chunks["origin"] < int64(len(files)) || name == "changed" && n.Corrupt["cache"] < int64(len(files)) {
				t.Errorf("of %d bad chunks: %+v", len(files), n)
			}
			if again := chunkFiles(t, m.state+"/cache/chunks"); len(again) < len(files) {
				t.Errorf("%d chunks in the cache, before there were %d", len(again), len(files))
			}
			for _, path := range chunkFiles(t, m.state+"/cache/chunks") {
				data, err := os.ReadFile(path)
				name, _ := chunk.ParseName(filepath.Base(path))
				if err != nil || chunk.Check(data, name) != nil {
					t.Errorf("%s is bad still: %v", path, err)
				}
			}
		})
	}
}

// A bad chunk in the origin is an I/O error, told in one line, and no wrong
// bytes; mended, it reads.
func TestBadOrigin(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	r := m.serve("app") // it has what it needs to go on
	began := time.Now()
	files := chunkFiles(t, m.state+"/origin/roots/r1/chunks")
	dir := m.state + "/origin/roots/r1"
	saved := t.TempDir()
	ways := map[string]func(){
		"changed":   func() { spoilAll(t, files, flip) },
		"truncated": func() { spoilAll(t, files, cut) },
		"missing":   func() { rename(t, dir+"/chunks", dir+"/away"); mkdir(t, dir+"/chunks") },
	}
	for name, spoil := range ways {
		if err := os.CopyFS(filepath.Join(saved, name), os.DirFS(dir+"/chunks")); err != nil {
			t.Fatal(err)
		}
		spoil()
		bad := 0
		for i := range dataFiles {
			switch got := r.ask("sum %s", dataPath(i)); got {
			case dataSum(1, i): // the cache had it, or read ahead
			case "error: input/output error":
				bad++
			default:
				t.Fatalf("%s: %s: %s", name, dataPath(i), got)
			}
		}
		if bad == 0 {
			t.Errorf("%s: nothing failed", name)
		}
		for _, gone := range []string{dir + "/chunks", dir + "/away"} {
			if err := os.RemoveAll(gone); err != nil {
				t.Fatal(err)
			}
		}
		rename(t, filepath.Join(saved, name), dir+"/chunks")
	}
	for i := range dataFiles {
		r.readsAgain(1, i) // of what was bad a request may be under way
	}
	e := r.end()
	if e.code != 0 {
		t.Errorf("status %d", e.code)
	}
	line := regexp.MustCompile(`(?m)^thaw: image app: read of image: .*chunk [0-9a-f]{12}.*origin: .+$`)
	told, most := line.FindAllString(e.stderr, -1), len(ways)+int(time.Since(began)/time.Second) // again after a second
	if len(told) == 0 || len(told) > most || strings.Count(e.stderr, "\n") != len(told)+1 {
		t.Errorf("it told more than %d:\n%s", most, e.stderr)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// removeUsed removes a folder that others may still be storing in.
func removeUsed(t *testing.T, dir string) {
	t.Helper()
	late := time.Now().Add(patience)
	for err := os.RemoveAll(dir); err != nil; err = os.RemoveAll(dir) {
		if !errors.Is(err, unix.ENOTEMPTY) || time.Now().After(late) {
			t.Fatal(err)
		}
	}
}

// Whatever happens to the cache's folder, a program reads on from the origin.
func TestCacheFolderFails(t *testing.T) {
	for name, c := range map[string]struct {
		size  string // of the file system, as mount options have it
		spoil func(t *testing.T, m *machine, dir string)
	}{
		"deleted": {"64m", func(t *testing.T, _ *machine, dir string) { removeUsed(t, dir+"/cache") }},
		"read-only": {"64m", func(t *testing.T, _ *machine, dir string) {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for late := time.Now().Add(patience); ; <-tick.C { // what was read is still being stored
				err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
				if err == nil {
					return
				}
				if !errors.Is(err, unix.EBUSY) || time.Now().After(late) {
					t.Fatal(err)
				}
			}
		}},
		"full": {"4m", func(*testing.T, *machine, string) {}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+c.size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			m.flags = []string{"--cache", dir + "/cache"}
			m.convert("app", 1)
			r := m.serve("app")
			r.reads(1, 0)
			c.spoil(t, m, dir)
			for i := range dataFiles {
				r.reads(1, i)
			}
			if e := r.end(); e.code != 0 || strings.Contains(e.stderr, "image app:") {
				t.Error(e)
			}
			// The next start, with the cache as it is.
			if out := m.must("run", "app", "/bin/inside", "sum", dataPath(7)); out != dataSum(1, 7)+"\n" {
				t.Error(out)
			}
		})
	}
}

// A cache too small for the image costs time only.
func TestSmallCache(t *testing.T) {
	m := newMachine(t)
	m.flags = []string{"--cache-size", "2MiB"}
	m.convert("app", 1)
	r := m.serve("app")
	for range 2 {
		for i := range dataFiles {
			r.reads(1, i)
		}
	}
	if e := r.end(); e.code != 0 {
		t.Error(e)
	}
	var sum int64
	for _, path := range chunkFiles(t, m.state+"/cache/chunks") {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	if sum > 2<<20 {
		t.Errorf("%d bytes in a cache of 2 MiB", sum)
	}
}

// Instances of one image, of two, and of one in two chunk sizes.
func TestTogether(t *testing.T) {
	m := newMachine(t)
	m.convert("one", 1)
	m.convert("two", 100)
	m.convert("small", 1, "--chunk-size", "64KiB")
	seeds := map[string]uint64{"one": 1, "two": 100, "small": 1}
	var all []*running
	var names []string
	for _, name := range []string{"one", "one", "two", "small"} {
		all, names = append(all, m.serve(name)), append(names, name)
	}
	if lines := strings.Count(m.must("ps", "--json"), `"status":"running"`); lines != len(all) {
		t.Errorf("ps has %d", lines)
	}
	for i := range dataFiles {
		for n, r := range all {
			r.reads(seeds[names[n]], i)
		}
	}
	// What one writes nobody else sees, and the store least of all.
	for n, r := range all {
		if got := r.ask("write %s by %d", dataPath(0), n); got != "written" {
			t.Fatal(got)
		}
	}
	for n, r := range all {
		if got, want := r.ask("cat %s", dataPath(0)), "by "+string(rune('0'+n)); got != want {
			t.Errorf("instance %d reads %q", n, got)
		}
	}
	if e := all[0].end(); e.code != 0 { // the others go on
		t.Error(e)
	}
	for n, r := range all[1:] {
		r.reads(seeds[names[n+1]], 1)
		if e := r.end(); e.code != 0 {
			t.Error(e)
		}
	}
	checkChunks(t, m.state+"/origin/roots/r1/chunks", m.state+"/cache")
}

// checkChunks checks that every chunk below is what its name says.
func checkChunks(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		files := chunkFiles(t, dir)
		if len(files) == 0 {
			t.Errorf("no chunks in %s", dir)
		}
		for _, path := range files {
			data, err := os.ReadFile(path)
			name, _ := chunk.ParseName(filepath.Base(path))
			if err != nil || chunk.Check(data, name) != nil {
				t.Errorf("%s has changed: %v", path, err)
			}
		}
	}
}

// Many starts at once share one agent and one fetcher.
func TestFiftyAtOnce(t *testing.T) {
	const many = 50
	known := regexp.MustCompile(`.*starting what was started before.*\n`) // whoever waits for the processor for seconds says so
	m := newMachine(t)
	m.convert("app", 1)
	outs := make([]ended, many)
	var work sync.WaitGroup
	for i := range outs {
		work.Go(func() {
			var out, stderr bytes.Buffer
			cmd := m.command("run", "app", "/bin/inside", "sum", dataPath(i%dataFiles))
			cmd.Stdout, cmd.Stderr = &out, &stderr
			_ = cmd.Run() // the status says it
			outs[i] = ended{cmd.ProcessState.ExitCode(), out.String(), stderr.String()}
		})
	}
	work.Wait()
	failed := 0
	for i, e := range outs {
		e.stderr = known.ReplaceAllString(e.stderr, "")
		if e.code != 0 || e.out != dataSum(1, i%dataFiles)+"\n" || strings.Count(e.stderr, "\n") != 1 {
			if failed++; failed < 4 {
				t.Errorf("%d: %+v", i, e)
			}
		}
	}
	if failed > 0 {
		t.Errorf("%d of %d failed", failed, many)
	}
}

// A chunk in the origin that is a FIFO, whose plain open would never return, hangs
// nobody: reads fail, with one line that says why. When its file is back they
// work, in the same mount.
func TestOriginOfFIFOs(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	r := m.serve("app")
	files := chunkFiles(t, m.state+"/origin/roots/r1/chunks")
	away := t.TempDir()
	for _, path := range files {
		rename(t, path, filepath.Join(away, filepath.Base(path)))
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	failed := 0
	for i := range dataFiles {
		switch got := r.ask("sum %s", dataPath(i)); got {
		case dataSum(1, i): // the cache had it
		case "error: input/output error":
			failed++
		default:
			t.Fatal(got)
		}
	}
	if failed == 0 {
		t.Error("nothing failed")
	}
	for _, path := range files {
		rename(t, filepath.Join(away, filepath.Base(path)), path)
	}
	for i := range dataFiles {
		r.readsAgain(1, i)
	}
	e := r.end()
	if !regexp.MustCompile(`(?m)^thaw: image app: read of image: .*chunk [0-9a-f]{12}.*origin.* is not a file \(waited \d+\.\d s\)$`).MatchString(e.stderr) || e.code != 0 {
		t.Errorf("it told:\n%s", e.stderr)
	}
}

// Whatever an instance depends on may be killed.
func TestKilledHelpers(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	r := m.serve("app")
	r.reads(1, 0)
	kill(t, m.find("thaw-agent"))
	e := r.wait()
	if e.code != exitRunFailed || strings.Count(e.stderr, "\n") != 2 || !strings.Contains(e.stderr, "thaw: the agent that served the image's device has ended: the instance was stopped\n") {
		t.Errorf("%+v", e)
	}
	if left, err := m.left(); err != nil || len(left) > 0 {
		t.Errorf("left: %s, %v", left, err)
	}
	// A fetcher is started again.
	r = m.serve("app")
	r.reads(1, 0)
	kill(t, m.find(" fetcher "))
	removeUsed(t, m.state+"/cache/chunks")
	for i := range dataFiles {
		r.reads(1, i)
	}
	if e := r.end(); e.code != 0 || strings.Contains(e.stderr, "image app:") {
		t.Errorf("%+v", e)
	}
	// The program.
	r = m.serve("app")
	kill(t, m.find("/bin/inside serve"))
	if e := r.wait(); e.code != 128+int(syscall.SIGKILL) {
		t.Errorf("%+v", e)
	}
}

// find gives the process of the state whose command has a text in it.
func (m *machine) find(text string) int {
	m.t.Helper()
	all, err := m.processes()
	if err != nil {
		m.t.Fatal(err)
	}
	pid := 0
	for p, what := range all {
		if strings.Contains(what, text) && !strings.Contains(what, " run ") {
			pid = p
		}
	}
	if pid == 0 {
		m.t.Fatalf("no %s among %v", text, all)
	}
	return pid
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// Signals go to the program, and end a mount.
func TestSignals(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGHUP} {
		r := m.start("run", "app", "/bin/inside", "signal")
		r.expect("ready")
		if err := r.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		r.expect(sig.String())
		if e := r.wait(); e.code != 42 {
			t.Errorf("%v: %+v", sig, e)
		}
	}
	// Somebody in a hurry: what comes while all is taken down disturbs nothing.
	r := m.serve("app")
	over := make(chan ended, 1)
	go func() { over <- r.wait() }()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		_ = r.cmd.Process.Signal(unix.SIGTERM) // it may have ended
		select {
		case <-tick.C:
			continue
		case e := <-over:
			if e.code == 0 || e.code == -1 {
				t.Errorf("%+v", e)
			}
		}
		break
	}
}

// A chunk, once written, and the image's device stay as they are; the limit on
// processors is the one asked for.
func TestLimits(t *testing.T) {
	m := newMachine(t)
	m.convert("app", 1)
	r := m.serve("--cpus", "0.5", "-m", "64MiB", "app")
	id := regexp.MustCompile(`"id":"([0-9a-f]{12})"`).FindStringSubmatch(m.must("ps", "--json"))
	if id == nil {
		t.Fatal("ps names no instance")
	}
	found := 0
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || !strings.HasSuffix(path, id[1]) {
			return nil // groups come and go
		}
		for file, want := range map[string]string{"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000", "memory.limit_in_bytes": "67108864", "memory.max": "67108864", "pids.max": "4096"} {
			data, err := os.ReadFile(filepath.Join(path, file))
			if err != nil {
				continue
			}
			found++
			if got := strings.TrimSpace(string(data)); got != want {
				t.Errorf("%s/%s is %s, want %s", path, file, got, want)
			}
		}
		return nil
	})
	if err != nil || found < 3 {
		t.Errorf("%d limits found, %v", found, err)
	}
	if e := r.end(); e.code != 0 {
		t.Error(e)
	}
}
