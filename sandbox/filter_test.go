package sandbox

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The kept program filters as the compiled one does, and nothing but a whole one of root's is taken.
func TestFilter(t *testing.T) {
	eachRuntime(t, func(t *testing.T, r *rig) {
		c := r.config("look")
		c.Filters = filepath.Join(r.dir, "filters")
		annotation := func() bool {
			data, err := os.ReadFile(filepath.Join(c.Bundle, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			return strings.Contains(string(data), filterKey)
		}
		for i := range 3 {
			s := r.look(c)
			if s.Status["Seccomp"] != "2" || s.Unshare != "operation not permitted" {
				t.Errorf("start %d: %s %s", i, s.Status["Seccomp"], s.Unshare)
			}
			if want := i > 0 && r.supervisor.runtime.Name == "crun"; annotation() != want {
				t.Errorf("start %d: kept filter used: %v", i, !want)
			}
		}
		kept, _ := filepath.Glob(filepath.Join(c.Filters, "*"))
		if r.supervisor.runtime.Name != "crun" {
			if len(kept) != 0 {
				t.Errorf("%v", kept)
			}
			return
		}
		if len(kept) != 1 {
			t.Fatalf("%v", kept)
		}
		whole, err := os.ReadFile(kept[0])
		if err != nil || readFilter(kept[0]) == nil {
			t.Fatal(err)
		}
		for name, bad := range map[string][]byte{"empty": nil, "hash alone": whole[:32], "torn": whole[:len(whole)-8], "changed": append(bytes.Clone(whole[:len(whole)-1]), 1)} {
			if err := os.WriteFile(kept[0], bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if readFilter(kept[0]) != nil {
				t.Errorf("%s: taken", name)
			}
		}
		if err := os.WriteFile(kept[0], whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(kept[0], 0o644); err != nil || readFilter(kept[0]) != nil {
			t.Errorf("taken though others may read it: %v", err)
		}
		c.Filters = "/proc/none" // cannot be written
		if s := r.look(c); s.Status["Seccomp"] != "2" {
			t.Errorf("%+v", s)
		}
	})
}
