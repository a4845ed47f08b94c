package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func contextOf() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), testPatience)
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if _, err := relock(path, unix.LOCK_EX); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a lock that is not there: %v", err)
	}
	one, err := lock(path, unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	two, err := relock(path, unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(path, unix.LOCK_EX); !errors.Is(err, errHeld) {
		t.Errorf("held by two: %v", err)
	}
	one.Close()
	if err := flock(two, unix.LOCK_EX); err != nil {
		t.Errorf("the last holder: %v", err)
	}
	if _, err := lock(path, unix.LOCK_SH); !errors.Is(err, errHeld) {
		t.Errorf("held alone: %v", err)
	}
	// Whoever holds it alone may remove it: what is opened then is another.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	three, err := lock(path, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	two.Close()
	three.Close()
	if _, err := lock(path+"/below", unix.LOCK_EX); err == nil {
		t.Error("a lock below a file")
	}
}

// A lock that is taken while its file goes away is not the lock.
func TestLockOfAnotherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 50 {
		held, err := lock(path, unix.LOCK_EX)
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan *os.File, 1)
		go func() {
			f, err := waitLock(t.Context(), path)
			if err != nil {
				t.Error(err)
			}
			got <- f
		}()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		held.Close()
		f := <-got
		var is, named unix.Stat_t
		if err := errors.Join(unix.Fstat(int(f.Fd()), &is), unix.Stat(path, &named)); err != nil || is.Ino != named.Ino {
			t.Fatalf("the lock has no name: %v", err)
		}
		f.Close()
	}
}

func TestWaitLockEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := lock(path, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := waitLock(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestRecords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	want := imageRecord{ID: "1", Name: "\x00\n\"", Process: process{1, 1 << 63, "boot"}, Mounted: true}
	var got imageRecord
	if err := readRecord(path, &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	for range 2 {
		if err := writeRecord(path, want); err != nil {
			t.Fatal(err)
		}
		if err := readRecord(path, &got); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"id":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readRecord(path, &got); err == nil {
		t.Error("half a record was read")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestHashKey(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"ab"}, {"a", "b"}, {"", "ab"}, {"1:a"}, {"a", "1:b"}} {
		key := hashKey(parts...)
		if seen[key] != nil || len(key) != 12 {
			t.Errorf("%q and %q have the key %s", parts, seen[key], key)
		}
		seen[key] = parts
	}
}

// A process is what it is, also when another gets its number.
func TestProcess(t *testing.T) {
	h := openTest(t)
	p := h.helper(t, "sleep")
	p.expect("asleep")
	its, err := identify(p.cmd.Process.Pid)
	if err != nil || !its.alive() {
		t.Fatalf("%+v, %v", its, err)
	}
	for _, another := range []process{{its.PID, its.Start + 1, its.Boot}, {its.PID, its.Start, "of yesterday"}, {its.PID, its.Start, ""}} {
		if another.alive() {
			t.Errorf("%+v is alive", another)
		}
		if f, err := another.open(); f != nil || err != nil {
			t.Errorf("another was opened: %v", err)
		}
		if err := another.signal(unix.SIGKILL); err != nil || !its.alive() {
			t.Errorf("another was killed: %v", err)
		}
		if err := another.end(t.Context(), time.Hour); err != nil || !its.alive() {
			t.Errorf("another was ended: %v", err)
		}
	}
	for _, none := range []process{{}, {-1, 0, its.Boot}, {1 << 30, 5, its.Boot}} {
		if f, err := none.open(); none.alive() || f != nil || err != nil {
			t.Errorf("%+v: %v, %v", none, f, err)
		}
	}
	f, err := its.open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if waitFd(t.Context(), int(f.Fd()), 0) {
		t.Error("it has ended")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if waitFd(ended, int(f.Fd()), time.Hour) {
		t.Error("it has ended")
	}
	// It does not end by itself. It is ours, so it is a zombie then, which is gone.
	if err := its.end(t.Context(), 0); err != nil || its.alive() || !waitFd(t.Context(), int(f.Fd()), 0) {
		t.Errorf("ended: %v", err)
	}
	if _, err := identify(its.PID); err == nil {
		t.Error("a zombie was identified")
	}
	p.kill()
	if err := its.signal(unix.SIGTERM); err != nil {
		t.Errorf("a signal for nobody: %v", err)
	}
}

func TestHiddenNames(t *testing.T) {
	h := openTest(t)
	path, err := h.hidden("0123456789ab")
	if err != nil {
		t.Fatal(err)
	}
	by, ok := hiddenBy(filepath.Base(path))
	if self, err := identify(os.Getpid()); !ok || err != nil || by != self {
		t.Errorf("%s: %+v, %v", path, by, err)
	}
	for _, name := range []string{"", ".", "0123456789ab", ".0123456789ab", ".a.b.c", ".a.1.2", ".a.1.-1.b", ".a.1.2.b.3", "x.a.1.2.b"} {
		if by, ok := hiddenBy(name); ok {
			t.Errorf("%q is by %+v", name, by)
		}
	}
}

// A lock that is given back is free, though a program that is just being started
// has its file; one whose holder has died is free once that has been executed.
func TestLockOfStarting(t *testing.T) {
	h := openTest(t)
	path := filepath.Join(t.TempDir(), "lock")
	starting := func(f *os.File) int {
		fd, err := unix.Dup(int(f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	held, err := lock(path, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(starting(held))
	if err := unlock(held); err != nil {
		t.Error(err)
	}
	again, err := lock(path, unix.LOCK_EX)
	if err != nil {
		t.Fatalf("given back: %v", err)
	}
	_ = unlock(again)

	const orphan, kept = "aaaaaaaaaaaa", "bbbbbbbbbbbb"
	h.leave(t, orphan, fmt.Sprintf(`{"kind":"run","keeper":%d}`, 1<<30))
	h.leave(t, kept, fmt.Sprintf(`{"kind":"run","keeper":%d}`, os.Getpid()))
	synctest.Test(t, func(t *testing.T) {
		for id, want := range map[string]time.Duration{orphan: orphanWait / 2, kept: 0} {
			held, err := relock(h.dir("instances", id, "lock"), unix.LOCK_EX)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				time.Sleep(orphanWait / 2)
				held.Close()
			}()
			began := time.Now()
			f, err := h.relockOrphan(t.Context(), id)
			if took := time.Since(began).Round(orphanWait / 2); took != want || (f == nil) != errors.Is(err, errHeld) || (f != nil) != (id == orphan) {
				t.Errorf("%s: %v, %v after %v", id, f, err, took)
			}
			f.Close()
			synctest.Wait()
			time.Sleep(orphanWait)
		}
	})
	if removed, err := h.Reap(t.Context()); err != nil || len(removed) != 2 {
		t.Errorf("reaped %v, %v", removed, err)
	}
}
