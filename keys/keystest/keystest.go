// Package keystest is the conformance suite of keys' drivers.
package keystest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"thaw/keys"
)

// The bounds that package keys promises, in bytes.
const (
	maxPlain   = 2048
	maxWrapped = 65535
)

// Keeper holds a driver's Keepers, as package keys opens them, to their
// contract. open opens the key of a name: the same one each time.
func Keeper(t *testing.T, open func(t *testing.T, name string) *keys.Tenant) {
	t.Helper()
	one, again, other := open(t, "one"), open(t, "one"), open(t, "other")
	value := []byte("a data key and two hashes")
	wrapped, err := one.Wrap(t.Context(), value)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("round trip", func(t *testing.T) { testRoundTrip(t, one, again) })
	t.Run("the same key does it, another does not", func(t *testing.T) {
		if got, err := again.Unwrap(t.Context(), wrapped); err != nil || !bytes.Equal(got, value) {
			t.Errorf("%q, %v", got, err)
		}
		CheckRefused(t, "another key", other, wrapped)
	})
	t.Run("damage", func(t *testing.T) { testDamage(t, one, wrapped) })
	t.Run("no two are equal", func(t *testing.T) {
		next, err := one.Wrap(t.Context(), value)
		if err != nil || bytes.Equal(next, wrapped) || bytes.Contains(next, value) {
			t.Errorf("wrapped to %x and %x, %v", wrapped, next, err)
		}
	})
	t.Run("bounds", func(t *testing.T) {
		if _, err := one.Wrap(t.Context(), make([]byte, maxPlain+1)); err == nil {
			t.Error("wrapped more than the bound")
		}
	})
	t.Run("ended context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err1 := one.Wrap(ctx, value)
		_, err2 := one.Unwrap(ctx, wrapped)
		if !errors.Is(err1, context.Canceled) || !errors.Is(err2, context.Canceled) || errors.Is(err2, keys.ErrRefused) {
			t.Errorf("%v, %v; want context.Canceled", err1, err2)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { testRoundTrip(t, one, one) })
		}
		wg.Wait()
	})
}

func testRoundTrip(t *testing.T, wrap, unwrap *keys.Tenant) {
	for _, n := range []int{0, 1, 32, 96, maxPlain} {
		value := bytes.Repeat([]byte{byte(n)}, n)
		wrapped, err := wrap.Wrap(t.Context(), value)
		if err != nil || len(wrapped) > maxWrapped {
			t.Errorf("%d bytes: wrapped to %d, %v", n, len(wrapped), err)
			continue
		}
		kept := bytes.Clone(wrapped)
		got, err := unwrap.Unwrap(t.Context(), wrapped)
		if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(n)}, n)) {
			t.Errorf("%d bytes: unwrapped to %d, %v", n, len(got), err)
		}
		if !bytes.Equal(wrapped, kept) || !bytes.Equal(value, bytes.Repeat([]byte{byte(n)}, n)) {
			t.Errorf("%d bytes: the caller's bytes were changed", n)
		}
	}
}

// testDamage flips every bit, and cuts and grows the value.
func testDamage(t *testing.T, k *keys.Tenant, wrapped []byte) {
	for i := range wrapped {
		for bit := range 8 {
			bad := bytes.Clone(wrapped)
			bad[i] ^= 1 << bit
			CheckRefused(t, fmt.Sprintf("bit %d of byte %d", bit, i), k, bad)
		}
	}
	for _, bad := range [][]byte{nil, {}, {0}, wrapped[:1], wrapped[:12], wrapped[:len(wrapped)-1], wrapped[1:],
		append(bytes.Clone(wrapped), 0), append(bytes.Clone(wrapped), '\n'), append(bytes.Clone(wrapped), wrapped...),
		make([]byte, maxWrapped), make([]byte, maxWrapped+1)} {
		CheckRefused(t, fmt.Sprintf("%d bytes", len(bad)), k, bad)
	}
}

// CheckRefused wants the one text of all refusals.
func CheckRefused(t *testing.T, about string, k keys.Keeper, wrapped []byte) {
	t.Helper()
	got, err := k.Unwrap(t.Context(), wrapped)
	if got != nil || !errors.Is(err, keys.ErrRefused) || err.Error() != "keys: the tenant's key does not open this" {
		t.Errorf("%s: %q, %v; want ErrRefused and nothing more", about, got, err)
	}
}
