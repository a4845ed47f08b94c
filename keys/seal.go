package keys

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
)

// Seal encrypts a secret of any size under a random key that it uses for nothing
// else, and that k wraps:
//
//	0  2  length of the wrapped key, n, big-endian
//	2  n  the wrapped key
//	…     AES-256-GCM(key, nonce zero, secret, bound) with its tag of 16 bytes
//
// Bound says what the secret is and where it belongs: it opens for that alone.
func Seal(ctx context.Context, k Keeper, secret, bound []byte) ([]byte, error) {
	key := make([]byte, keySize)
	_, _ = rand.Read(key) // never fails
	defer clear(key)
	wrapped, err := k.Wrap(ctx, key)
	if err != nil {
		return nil, err
	}
	if len(wrapped) > maxWrapped {
		return nil, fmt.Errorf("keys: wrapped value has %d bytes: at most %d", len(wrapped), maxWrapped)
	}
	box, err := newBox(key)
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, 0, 2+len(wrapped)+len(secret)+box.Overhead())
	sealed = append(binary.BigEndian.AppendUint16(sealed, uint16(len(wrapped))), wrapped...)
	return box.Seal(sealed, make([]byte, box.NonceSize()), secret, bound), nil
}

// Unseal is Seal's inverse. It gives ErrRefused for what another key has sealed,
// what is bound to something else, and what was changed; any other error is one
// of the key's place and may pass.
func Unseal(ctx context.Context, k Keeper, sealed, bound []byte) ([]byte, error) {
	if len(sealed) < 2 || len(sealed)-2 < int(binary.BigEndian.Uint16(sealed)) {
		return nil, ErrRefused
	}
	n := 2 + int(binary.BigEndian.Uint16(sealed))
	key, err := k.Unwrap(ctx, sealed[2:n])
	if err != nil {
		return nil, err
	}
	defer clear(key)
	if len(key) != keySize {
		return nil, ErrRefused
	}
	box, err := newBox(key)
	if err != nil {
		return nil, err
	}
	secret, err := box.Open(nil, make([]byte, box.NonceSize()), sealed[n:], bound)
	if err != nil {
		return nil, ErrRefused
	}
	return secret, nil
}

func newBox(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
