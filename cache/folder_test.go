package cache

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"thaw/chunk"
)

func TestFill(t *testing.T) {
	for _, named := range []bool{false, true} {
		f := newFolder(t, 1<<20)
		f.named = named
		c := sample(1, small)
		for i := range 2 {
			got, hit, err := f.Fill(t.Context(), c.Name, small, giving(c))
			if err != nil || !bytes.Equal(got, c.Data) || hit != (i == 1) {
				t.Fatalf("Fill %d: %d bytes, hit %v, %v", i, len(got), hit, err)
			}
		}
		if n := checkFolder(t, f); n != 1 {
			t.Errorf("%d chunks stored, want 1", n)
		}
		if s := f.Stats(); s.Used != small || s.Limit != 1<<20 || s.Failures != 0 {
			t.Errorf("stats %+v", s)
		}
	}
}

func TestFillFails(t *testing.T) {
	f := newFolder(t, 1<<20)
	c, broken := sample(1, small), errors.New("broken")
	if _, _, err := f.Fill(t.Context(), c.Name, small, func(context.Context) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("Fill: %v, want the source's error", err)
	}
	filled(t, f, c) // and the chunk's lock is free again
}

// TestReplace damages a file in all ways that a length or a hash can tell.
func TestReplace(t *testing.T) {
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { b[100] ^= 1; return b },
		func(b []byte) []byte { return b[:len(b)-1] },
		func(b []byte) []byte { return append(b, 0) },
		func([]byte) []byte { return nil },
	} {
		f := newFolder(t, 1<<20)
		c := sample(1, small)
		filled(t, f, c)
		rewrite(t, chunkPath(f.dir, c.Name), damage)
		filled(t, f, c)
		checkFolder(t, f)
		if s := f.Stats(); s.Corrupt != 1 {
			t.Errorf("stats %+v, want one corrupt", s)
		}
	}
}

// rewrite changes a file in place, as a bad disk would.
func rewrite(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err == nil {
		err = os.WriteFile(path, change(data), 0o600)
	}
	if err == nil {
		err = os.Chmod(path, filePerm)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFolderModel holds the folder to a map that evicts by the same rule.
func TestFolderModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		limit := rapid.Int64Range(1, 10*small).Draw(rt, "limit")
		f, err := OpenFolder(dir, limit)
		if err != nil {
			rt.Fatal(err)
		}
		clock := time.Now()
		f.now = func() time.Time { return clock }
		rt.Repeat(map[string]func(*rapid.T){
			"fill": func(rt *rapid.T) {
				c := sample(rapid.IntRange(0, 20).Draw(rt, "chunk"), rapid.IntRange(1, 2*small).Draw(rt, "size"))
				before, total, err := f.scan()
				if err != nil {
					rt.Fatal(err)
				}
				want := model(before, total, limit, c)
				filled(t, f, c)
				clock = clock.Add(2 * touchEvery)
				checkModel(rt, f, want)
			},
			"use": func(rt *rapid.T) {
				f.Touch(sample(rapid.IntRange(0, 20).Draw(rt, "chunk"), rapid.IntRange(1, 2*small).Draw(rt, "size")).Name)
				clock = clock.Add(rapid.SampledFrom([]time.Duration{1, touchEvery}).Draw(rt, "later"))
			},
			"forget": func(*rapid.T) { _ = os.Remove(f.path(pastName)) },
			"lose": func(rt *rapid.T) {
				chunks, _, _ := f.scan()
				if len(chunks) > 0 {
					_ = os.Remove(chunkPath(dir, rapid.SampledFrom(chunks).Draw(rt, "chunk").name))
				}
			},
			"lose the counter": func(*rapid.T) { _ = os.Remove(f.path(usedName)) },
			"reopen": func(rt *rapid.T) {
				f, _ = OpenFolder(dir, limit)
				f.now = func() time.Time { return clock }
			},
			"": func(*rapid.T) { checkFolder(t, f) },
		})
	})
}

// model gives the names that must be left after a chunk was added: all, if
// they fit, and else at least those that the rule keeps. A counter that is too
// high may start eviction early, which then finds that all fit.
func model(before []stored, total, limit int64, c chunk.Sealed) (must map[chunk.Name]bool) {
	must = map[chunk.Name]bool{}
	size, there := int64(len(c.Data)), false
	for _, s := range before {
		must[s.name] = true
		there = there || s.name == c.Name
	}
	if there || size > limit {
		return must
	}
	if total+size > limit {
		target := min(limit-size, limit/10*9)
		slices.SortStableFunc(before, func(a, b stored) int {
			return cmp.Or(a.uses.before.Compare(b.uses.before), a.uses.last.Compare(b.uses.last))
		})
		for _, s := range before {
			if total > target {
				total -= s.size
				delete(must, s.name)
			}
		}
	}
	must[c.Name] = true
	return must
}

func checkModel(rt *rapid.T, f *Folder, want map[chunk.Name]bool) {
	after, _, err := f.scan()
	if err != nil || len(after) != len(want) {
		rt.Fatalf("%d chunks, want %d (%v)", len(after), len(want), err)
	}
	for _, s := range after {
		if !want[s.name] {
			rt.Fatalf("chunk %s should have gone", s.name)
		}
	}
}

func TestLargerThanLimit(t *testing.T) {
	f := newFolder(t, small-1)
	filled(t, f, sample(1, small))
	if n := checkFolder(t, f); n != 0 || f.Stats().Failures != 0 {
		t.Errorf("%d chunks, stats %+v; want none and no failure", n, f.Stats())
	}
}

func TestTouch(t *testing.T) {
	f := newFolder(t, 1<<20)
	c := sample(1, small)
	filled(t, f, c)
	path := chunkPath(f.dir, c.Name)
	for _, use := range []func(){
		func() { f.Touch(c.Name) },
		func() { filled(t, f, c) },
	} {
		for _, age := range []time.Duration{2 * touchEvery, touchEvery / 2} {
			old := time.Now().Add(-age).Truncate(time.Second)
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
			use()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			u := usesOf(info)
			if noted := u.last.After(old); noted != (age > touchEvery) || !u.before.Equal(old) {
				t.Errorf("after %v a use was noted: %v; uses %v, the first at %v", age, noted, u, old)
			}
		}
	}
	f.Touch(sample(2, small).Name) // missing: nothing
}

// TestOneGets lets many ask for one chunk, half of them through another Folder
// on the same folder, as another process would.
func TestOneGets(t *testing.T) {
	f := newFolder(t, 1<<20)
	g := open(t, f.dir, f.limit)
	c := sample(1, small)
	var gets atomic.Int64
	begun, goOn := make(chan struct{}), make(chan struct{})
	get := func(ctx context.Context) ([]byte, error) {
		if gets.Add(1) == 1 {
			close(begun)
		}
		<-goOn
		return bytes.Clone(c.Data), nil
	}
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			if i > 0 {
				<-begun
			}
			if got, _, err := []*Folder{f, g}[i%2].Fill(t.Context(), c.Name, small, get); err != nil || !bytes.Equal(got, c.Data) {
				t.Errorf("Fill: %v", err)
			}
		})
	}
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := g.Fill(ctx, c.Name, small, get); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one whose context ended: %v", err)
	}
	close(goOn)
	all.Wait()
	if n := gets.Load(); n != 1 {
		t.Errorf("%d gets, want 1", n)
	}
	checkFolder(t, f)
}

// TestFolderGone removes the folder between fills: it comes again.
func TestFolderGone(t *testing.T) {
	f := newFolder(t, 1<<20)
	for i := range 3 {
		filled(t, f, sample(i, small))
		if !f.has(sample(i, small).Name) {
			t.Errorf("chunk %d was not kept", i)
		}
		checkFolder(t, f)
		if err := os.RemoveAll(f.dir); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFolderBroken puts a file where the folder was: chunks are given all the
// same, one warning, and kept again when they can be.
func TestFolderBroken(t *testing.T) {
	f := newFolder(t, 1<<20)
	var warned []string
	f.Warn = func(err error) { warned = append(warned, err.Error()) }
	for range 2 {
		if err := os.RemoveAll(f.dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			filled(t, f, sample(i, small))
		}
		if err := os.Remove(f.dir); err != nil {
			t.Fatal(err)
		}
		filled(t, f, sample(1, small))
		if !f.has(sample(1, small).Name) {
			t.Error("a folder that works again was not used")
		}
	}
	if len(warned) != 2 || f.Stats().Failures != 6 || !strings.Contains(warned[0], f.dir) {
		t.Errorf("%d failures, warnings %q; want 6, and 2 that name the folder", f.Stats().Failures, warned)
	}
}

// What is no file is replaced like a file that is bad, and was never counted.
func TestFolderReplacesWhatIsNoFile(t *testing.T) {
	for name, plant := range map[string]func(path string) error{
		"FIFO":   func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"link":   func(path string) error { return os.Symlink("/dev/null", path) },
		"long":   func(path string) error { return os.Symlink(strings.Repeat("x", 100), path) },
		"socket": func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o644, 0) },
		"folder": func(path string) error { return os.Mkdir(path, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFolder(t, 10*small)
			c := sample(1, 100)
			path := chunkPath(f.dir, c.Name)
			filled(t, f, sample(2, small)) // the counter is of this one
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), plant(path)); err != nil {
				t.Fatal(err)
			}
			filled(t, f, c)
			if size, there := f.stat(c.Name); !there || size != 100 {
				t.Errorf("%d bytes, %v", size, there)
			}
			checkFolder(t, f)
			if s := f.Stats(); s.Corrupt != 1 || s.Used != small+100 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestOpenFolderRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, limit := range map[string]int64{"relative": 1, t.TempDir(): 0, file: 1} {
		if _, err := OpenFolder(dir, limit); err == nil {
			t.Errorf("OpenFolder(%q, %d) worked", dir, limit)
		}
	}
}

// TestDistrust opens a folder whose counter is from before the machine
// started, and too low.
func TestDistrust(t *testing.T) {
	f := newFolder(t, 3*small)
	for i := range 3 {
		filled(t, f, sample(i, small))
	}
	used := f.path(usedName)
	if err := os.WriteFile(used, make([]byte, 8), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(used, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	f = open(t, f.dir, f.limit)
	filled(t, f, sample(4, small))
	checkFolder(t, f)
}

// TestCrowd fills a small folder from many goroutines, through two Folders as
// two processes would: nobody waits in vain for a lock, and the limit holds.
func TestCrowd(t *testing.T) {
	f := newFolder(t, 5*small)
	g := open(t, f.dir, f.limit)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for j := range 20 {
				filled(t, []*Folder{f, g}[i%2], sample((i*7+j*3)%40, small))
			}
		})
	}
	all.Wait()
	if n := f.Stats().Failures + g.Stats().Failures; n != 0 {
		t.Errorf("%d chunks were not kept", n)
	}
	checkFolder(t, f)
}
