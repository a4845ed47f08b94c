package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
