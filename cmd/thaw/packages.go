//go:build cloud

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"thaw/functions"
	"thaw/keys"
	"thaw/origin"
)

// packages keeps zip packages in the origin, under their tenant's key:
//
//	roots/<root>/packages/<tenant>/p:<function>:<random word>:<SHA-256 of the package>
//
// sealed by keys.Seal for its name. A package is handed out only if it has the digest that it is named by. Each time
// one is put it gets a name of its own: what no version refers to can be removed
// without asking who is about to.
type packages struct{ g *Globals }

// packageNames are the names of packages.
var packageNames = regexp.MustCompile(`^p:([a-zA-Z0-9_-]{1,64}):[0-9a-f]{16}:([0-9a-f]{64})$`)

// parsePackage gives the function and the digest of a package by its name.
func parsePackage(name string) (function, digest string, ok bool) {
	m := packageNames.FindStringSubmatch(name)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// Put implements frontend.Packages. The key is the root and the name.
func (p packages) Put(ctx context.Context, id functions.ID, digest string, data []byte) (string, error) {
	var word [8]byte
	rand.Read(word[:]) // never fails
	name := fmt.Sprintf("p:%s:%x:%s", id.Name, word, digest)
	if _, _, ok := parsePackage(name); !ok {
		return "", fmt.Errorf("a package of function %s with the digest %.80q: that is neither", id, digest)
	}
	g := p.g.forTenant(p.g.tenantOf(id.Account))
	s, err := g.open(ctx, true)
	if err != nil {
		return "", err
	}
	defer s.Close()
	root, err := s.Active(ctx)
	if err != nil {
		return "", err
	}
	sealed, err := keys.Seal(ctx, s.key, data, []byte(name))
	if err != nil {
		return "", err
	}
	_, err = s.Packages(root.Name, g.Tenant).Put(ctx, name, sealed)
	return root.Name + "/" + name, err
}

// remove removes a tenant's package by its key, if it is there.
func (p packages) remove(ctx context.Context, tenant, key string) error {
	root, name, _ := strings.Cut(key, "/")
	o, err := origin.Open(ctx, p.g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	if err := o.Packages(root, tenant).Remove(ctx, name); err != nil && !isNotFound(err) {
		return err
	}
	return nil
}

// open gives a package by its key.
func (p packages) open(ctx context.Context, account, key string) (io.ReadCloser, error) {
	g := p.g.forTenant(p.g.tenantOf(account))
	root, name, _ := strings.Cut(key, "/")
	_, digest, ok := parsePackage(name)
	if !ok {
		return nil, fmt.Errorf("%.200q is no package's key: %w", key, origin.ErrNotFound)
	}
	s, err := g.open(ctx, false)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	sealed, err := s.Packages(root, g.Tenant).Get(ctx, name)
	if err != nil {
		return nil, err
	}
	data, err := keys.Unseal(ctx, s.key, sealed, []byte(name))
	if err != nil && !errors.Is(err, keys.ErrRefused) {
		return nil, fmt.Errorf("package %s: %w", digest, err)
	}
	if sum := sha256.Sum256(data); err != nil || hex.EncodeToString(sum[:]) != digest {
		return nil, fmt.Errorf("package %s: %w", digest, errors.Join(origin.ErrCorrupt, err))
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}
