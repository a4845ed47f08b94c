package keys

import (
	"bytes"
	"context"
	"errors"
	"testing"
)

// odd is a Keeper that gives what it is told.
type odd struct {
	wrapped, plain []byte
	err            error
}

func (o odd) Wrap(context.Context, []byte) ([]byte, error)   { return o.wrapped, o.err }
func (o odd) Unwrap(context.Context, []byte) ([]byte, error) { return o.plain, o.err }

// What was sealed opens with the same key and for the same thing only, and no
// byte of it can be changed.
func TestSeal(t *testing.T) {
	ctx := t.Context()
	k, another := mustOpen(t, "file://"+t.TempDir()+"/k"), mustOpen(t, "file://"+t.TempDir()+"/k")
	for _, secret := range [][]byte{nil, []byte("hush"), bytes.Repeat([]byte("long"), 100_000)} {
		sealed, err := Seal(ctx, k, secret, []byte("mine"))
		if err != nil || len(secret) > 0 && bytes.Contains(sealed, secret[:4]) {
			t.Fatalf("%d bytes: %v", len(secret), err)
		}
		if got, err := Unseal(ctx, k, sealed, []byte("mine")); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%d bytes: %v", len(secret), err)
		}
		if _, err := Unseal(ctx, k, sealed, []byte("yours")); !errors.Is(err, ErrRefused) {
			t.Errorf("bound to something else: %v", err)
		}
		if _, err := Unseal(ctx, another, sealed, []byte("mine")); !errors.Is(err, ErrRefused) {
			t.Errorf("another key: %v", err)
		}
	}
	sealed, err := Seal(ctx, k, []byte("hush"), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := Unseal(ctx, k, bad, nil); !errors.Is(err, ErrRefused) {
			t.Errorf("byte %d changed: %v", i, err)
		}
		if _, err := Unseal(ctx, k, sealed[:i], nil); !errors.Is(err, ErrRefused) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	away := errors.New("away")
	if _, err := Seal(ctx, odd{err: away}, nil, nil); !errors.Is(err, away) {
		t.Errorf("a key that is away: %v", err)
	}
	if _, err := Unseal(ctx, odd{err: away}, sealed, nil); !errors.Is(err, away) {
		t.Errorf("a key that is away: %v", err)
	}
	if _, err := Seal(ctx, odd{wrapped: make([]byte, maxWrapped+1)}, nil, nil); err == nil {
		t.Error("a wrapped key that is too long")
	}
	if _, err := Unseal(ctx, odd{plain: []byte("short")}, sealed, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("a key of another length: %v", err)
	}
}

// What an earlier build has sealed opens.
func TestSealOfOld(t *testing.T) {
	sealed := []byte("\x00\x07wrapped\x93\x0b\x93\xdb\xa2\xdb\x18\x29\x55\x08\x9c\x83\x29\x13\x8f\xa5\x14\x1f\xdc\x7e\xce\x03")
	if got, err := Unseal(t.Context(), odd{plain: bytes.Repeat([]byte("k"), keySize)}, sealed, []byte("mine")); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}
