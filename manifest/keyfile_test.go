package manifest

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"thaw/keys"
)

// TestGoldenWithKeyFile opens the golden manifests by the real file driver.
func TestGoldenWithKeyFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	key := goldenKeeper().key
	path := filepath.Join(dir, "acme")
	if err := os.WriteFile(path, []byte(hex.EncodeToString(key[:])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tenant, err := keys.Open(t.Context(), "file://"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer tenant.Close()
	for name, m := range goldenManifests() {
		if got, err := mustParse(t, goldenSeal(m)).Open(t.Context(), tenant); err != nil || !equal(got, m) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	_, err = mustParse(t, goldenSeal(sample(1))).Open(t.Context(), other())
	if !errors.Is(err, errRefused) {
		t.Errorf("another key: %v", err)
	}
	data, _ := mustSeal(t, sample(1)) // wrapped by another key
	if _, err := mustParse(t, data).Open(t.Context(), tenant); !errors.Is(err, keys.ErrRefused) || errors.Is(err, ErrCorrupt) {
		t.Errorf("another tenant's manifest: %v, want keys.ErrRefused", err)
	}
}
