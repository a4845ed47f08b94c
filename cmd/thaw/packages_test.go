//go:build cloud

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"thaw/functions"
	"thaw/keys"
	"thaw/origin"
)

// A package comes back as it was, for its own tenant alone, and is not there in
// clear.
func TestPackages(t *testing.T) {
	state := t.TempDir()
	p := packages{&Globals{State: state, Origin: fileURL(state, "origin"), Tenant: "default", Key: fileURL(state, "keys", "default"), stderr: io.Discard}}
	data := bytes.Repeat([]byte("what is in the package "), 1000)
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	id := functions.ID{Account: usualAccount, Name: "-f"}
	key, err := p.Put(t.Context(), id, digest, data)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.Put(t.Context(), id, digest, data); err != nil || again == key {
		t.Errorf("put again: %q, %v", again, err)
	}
	read := func(account, key string) ([]byte, error) {
		r, err := p.open(t.Context(), account, key)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(r)
	}
	if got, err := read(usualAccount, key); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := read("111111111111", key); err == nil {
		t.Error("another account has read it")
	}
	if _, err := read(usualAccount, "r1/p:f:0000000000000000:"+hex.EncodeToString(make([]byte, 32))); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	path := filepath.Join(state, "origin", "roots", "r1", "packages", "default", strings.TrimPrefix(key, "r1/"))
	stored, err := os.ReadFile(path)
	if err != nil || bytes.Contains(stored, []byte("in the package")) {
		t.Fatalf("%d bytes in clear, %v", len(stored), err)
	}
	for _, at := range []int{0, 1, 2, len(stored) / 2, len(stored) - 1} {
		bad := bytes.Clone(stored)
		bad[at] ^= 0x40
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(usualAccount, key); !errors.Is(err, origin.ErrCorrupt) && !errors.Is(err, keys.ErrRefused) {
			t.Errorf("byte %d of %d changed: %v", at, len(stored), err)
		}
	}
	if err := os.WriteFile(path, stored[:1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := read(usualAccount, key); !errors.Is(err, origin.ErrCorrupt) {
		t.Errorf("cut: %v", err)
	}
}
