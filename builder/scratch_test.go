package builder

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// What killed builders have left goes, and nothing of those that build.
func TestScratch(t *testing.T) {
	parent := t.TempDir()
	left := filepath.Join(parent, scratchPrefix+"1")
	if err := errors.Join(os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "package.zip"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	dir, remove, err := scratch(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a killed builder left is there: %v", err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				dir, remove, err := scratch(parent)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(dir, "layer"), nil, 0o600); err != nil {
					t.Error(err)
				}
				remove()
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the folder of one that builds: %v", err)
	}
	remove()
	if rest, err := os.ReadDir(parent); err != nil || len(rest) > 0 {
		t.Errorf("left: %v, %v", rest, err)
	}
	if _, _, err := scratch(filepath.Join(parent, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no folder: %v", err)
	}
}
