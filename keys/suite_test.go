package keys_test

import (
	"path/filepath"
	"testing"

	"thaw/keys"
	"thaw/keys/keystest"
)

// TestFileKeeper runs the suite over key files; package kms runs it over the
// services.
func TestFileKeeper(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	keystest.Keeper(t, func(t *testing.T, name string) *keys.Tenant {
		k, err := keys.Open(t.Context(), "file://"+filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = k.Close() })
		return k
	})
}
