package origin

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"thaw/chunk"
)

// A folder that is missing or empty is one that is not mounted: nothing in it
// is said to be missing, and it comes back as it was.
func TestFolderNotMounted(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "origin")
	o := open(t, "file://"+dir)
	check := func(when string, want error) {
		t.Helper()
		if err := o.Absent(); !errors.Is(err, want) {
			t.Errorf("%s: Absent gives %v", when, err)
		}
		_, err := o.Chunks("r1").Get(ctx, chunk.Name{1})
		if want == nil {
			want = chunk.ErrNotFound
		}
		if !errors.Is(err, want) || errors.Is(err, chunk.ErrNotFound) != (want == chunk.ErrNotFound) {
			t.Errorf("%s: get of a chunk: %v", when, err)
		}
		if roots, err := o.Roots(ctx); err != nil || (len(roots) > 0) != (want == chunk.ErrNotFound) {
			t.Errorf("%s: roots %v, %v", when, roots, err)
		}
	}
	check("fresh", ErrAbsent)
	if _, err := o.Active(ctx); err != nil {
		t.Fatal(err)
	}
	check("made", nil)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	check("missing", ErrAbsent)
	if err := os.MkdirAll(filepath.Join(dir, "lost+found"), 0o755); err != nil {
		t.Fatal(err)
	}
	check("empty", ErrAbsent)
	if _, err := o.Manifests("r1", "t").Get(ctx, "x"); !errors.Is(err, ErrAbsent) || errors.Is(err, ErrNotFound) {
		t.Errorf("get of a manifest: %v", err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	check("back", nil)
}
