package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

func TestRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root; run the tests as root to try this")
	}
	h, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.dir("images", "0123456789ab.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(h.run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is there still: %v", h.run, err)
	}
	if err := h.Remove(t.Context()); err == nil {
		t.Error("removed twice")
	}
}

// The last to close a state's host leaves nothing, unless something is left over.
func TestClose(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root; run the tests as root to try this")
	}
	base, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	open := func() *Host {
		t.Helper()
		h, err := openIn(base, state)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	is := func(when string, want bool) {
		t.Helper()
		if found, err := filepath.Glob(base + "/*"); err != nil || len(found) > 0 != want {
			t.Errorf("%s: there is %q, %v", when, found, err)
		}
	}
	one, two := open(), open()
	one.Close()
	is("one has closed", true)
	two.Close()
	is("both have closed", false)
	h := open()
	h.leave(t, "aaaaaaaaaaaa", `{"kind":"mount"}`)
	h.Close()
	is("something was left", true)
	h = open()
	if _, err := h.Reap(t.Context()); err != nil {
		t.Error(err)
	}
	h.Close()
	is("it is reaped", false)
}

// Who opens a state's host that others are just leaving has it.
func TestCloseAndOpen(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root; run the tests as root to try this")
	}
	base, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 50 {
				h, err := openIn(base, state)
				if err != nil {
					t.Error(err)
					return
				}
				i, err := h.NewInstance(KindMount, nil, nil)
				if err == nil {
					err = i.End(t.Context())
				}
				if h.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Go(func() {
		for range 50 {
			if _, err := reapOthers(t.Context(), base); err != nil {
				t.Error(err)
			}
		}
	})
	work.Wait()
	if found, err := filepath.Glob(base + "/*"); err != nil || len(found) > 0 {
		t.Errorf("left: %q, %v", found, err)
	}
}

// What a state folder that is gone has left goes, and nothing of those that are
// there, or are in use.
func TestReapOthers(t *testing.T) {
	base := t.TempDir() // with others' folders in it, others' tests would be disturbed
	there, busy := openTestIn(t, base), openTestIn(t, base)
	gone, err := openIn(base, filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	gone.leave(t, "aaaaaaaaaaaa", "{")
	tmpfs(t, gone.dir("instances", "aaaaaaaaaaaa", "rootfs"))
	gone.Close()
	there.leave(t, "bbbbbbbbbbbb", `{"kind":"run"}`)
	p := busy.helper(t, "instance", KindRun)
	if _, err := p.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.RemoveAll(gone.state), os.RemoveAll(busy.state)); err != nil {
		t.Fatal(err)
	}
	removed, err := reapOthers(t.Context(), base)
	if err != nil || !slices.Contains(removed, "instance aaaaaaaaaaaa") || !slices.Contains(removed, "runtime folder of "+gone.state) ||
		slices.Contains(removed, "instance bbbbbbbbbbbb") || slices.Contains(removed, "runtime folder of "+busy.state) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, err := os.Stat(gone.run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", gone.run, err)
	}
	if all, err := busy.Instances(); err != nil || len(all) != 1 || !all[0].Kept() {
		t.Errorf("what runs: %+v, %v", all, err)
	}
	p.leave()
	if err := unlock(busy.open); err != nil {
		t.Error(err)
	}
	if _, err := reapOthers(t.Context(), base); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(busy.run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", busy.run, err)
	}
	if _, err := openIn(base, busy.state); err != nil { // for the end of the test
		t.Error(err)
	}
}

// Several may do so at once, and none fails for what another is just removing.
func TestReapOthersAtOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root; run the tests as root to try this")
	}
	base := t.TempDir()
	for range 20 {
		gone, err := openIn(base, filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		gone.leave(t, "aaaaaaaaaaaa", "{")
		gone.Close()
		if err := os.RemoveAll(gone.state); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := reapOthers(t.Context(), base); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if items, err := os.ReadDir(base); err != nil || len(items) > 0 {
		t.Errorf("left %v, %v", items, err)
	}
}

// Processes that open a state for the first time do so at once.
func TestOpenAtOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root; run the tests as root to try this")
	}
	for range 10 {
		base, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if _, err := openIn(base, state); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
}
