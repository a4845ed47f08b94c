//go:build cloud

package main

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"thaw/origin"
)

// packages keeps zip packages in the origin, under their tenant's key:
//
//	roots/<root>/packages/<tenant>/<SHA-256 of the package>
//
//	0  2  length of the wrapped key, n, big-endian
//	2  n  a random key, wrapped by the tenant's
//	…     the package, AES-256-GCM under that key, used for nothing else: the nonce is zero
//
// A package is handed out only if it has the digest that it is named by.
type packages struct{ g *Globals }

// maxWrapped bounds a wrapped key in bytes: clouds' take some hundreds.
const maxWrapped = 8 << 10

// Put implements frontend.Packages. The key is the root and the digest.
func (p packages) Put(ctx context.Context, account, digest string, data []byte) (string, error) {
	g := p.g.forTenant(p.g.tenantOf(account))
	s, err := g.open(ctx, true)
	if err != nil {
		return "", err
	}
	defer s.Close()
	root, err := s.Active(ctx)
	if err != nil {
		return "", err
	}
	key := make([]byte, 32)
	rand.Read(key) // never fails
	wrapped, err := s.key.Wrap(ctx, key)
	if err != nil {
		return "", err
	}
	if len(wrapped) > maxWrapped {
		return "", fmt.Errorf("wrapping a package's key: %d bytes", len(wrapped))
	}
	sealed := binary.BigEndian.AppendUint16(nil, uint16(len(wrapped)))
	sealed = append(sealed, wrapped...)
	aead := packageAEAD(key)
	sealed = aead.Seal(sealed, make([]byte, aead.NonceSize()), data, []byte(digest))
	_, err = s.Packages(root.Name, g.Tenant).Put(ctx, digest, sealed)
	return root.Name + "/" + digest, err
}

// open gives a package by its key.
func (p packages) open(ctx context.Context, account, key string) (io.ReadCloser, error) {
	g := p.g.forTenant(p.g.tenantOf(account))
	root, digest, _ := strings.Cut(key, "/")
	s, err := g.open(ctx, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	sealed, err := s.Packages(root, g.Tenant).Get(ctx, digest)
	if err != nil {
		return nil, err
	}
	bad := fmt.Errorf("package %s: %w", digest, origin.ErrCorrupt)
	if len(sealed) < 2 || len(sealed) < 2+int(binary.BigEndian.Uint16(sealed)) {
		return nil, bad
	}
	n := 2 + int(binary.BigEndian.Uint16(sealed))
	dataKey, err := s.key.Unwrap(ctx, sealed[2:n])
	if err != nil {
		return nil, fmt.Errorf("package %s: %w", digest, err)
	}
	if len(dataKey) != 32 {
		return nil, bad
	}
	aead := packageAEAD(dataKey)
	data, err := aead.Open(nil, make([]byte, aead.NonceSize()), sealed[n:], []byte(digest))
	if sum := sha256.Sum256(data); err != nil || hex.EncodeToString(sum[:]) != digest {
		return nil, errors.Join(bad, err)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func packageAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic("thaw: " + err.Error()) // the length is right
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic("thaw: " + err.Error())
	}
	return aead
}
