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
