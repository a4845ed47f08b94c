//go:build cloud

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"regexp"
	"strings"

	"thaw/builder"
	"thaw/functions"
	"thaw/keys"
	"thaw/origin"
)

// packages keeps zip packages in the origin, under their tenant's key, in pieces:
//
//	roots/<root>/packages/<tenant>/p:<function>:<random word>:<SHA-256 of the package>
//	…:01                                                      its second piece, and so on
//
// each sealed by keys.Seal for its name. A package that has not the digest that it
// is named by cannot be read. Each time one is put it gets a name of its own, which
// nobody knows before all of it is there: what no version refers to can be removed
// without asking who is about to.
type packages struct{ g *Globals }

// pieceSize is how much of a package is in memory at a time, twice: in clear, and
// sealed. Pieces of this size go into a bucket in one request. (Packages had one
// piece once, of up to 50 MiB.)
const pieceSize = 8 << 20

// pieceNames are the names of pieces.
var pieceNames = regexp.MustCompile(`^(p:([a-zA-Z0-9_-]{1,64}):[0-9a-f]{16}:([0-9a-f]{64}))(:[0-9]{2})?$`)

// packageName is the name of a package, which its first piece has, and what is in it.
type packageName struct{ name, function, digest string }

// parsePackage gives the package of a piece.
func parsePackage(piece string) (p packageName, ok bool) {
	m := pieceNames.FindStringSubmatch(piece)
	if m == nil {
		return p, false
	}
	return packageName{m[1], m[2], m[3]}, true
}

// piece gives the name of a piece, counted from 0.
func (p packageName) piece(i int) string {
	if i == 0 {
		return p.name
	}
	return fmt.Sprintf("%s:%02d", p.name, i)
}

// Put implements frontend.Packages. The key is the root and the name.
func (p packages) Put(ctx context.Context, id functions.ID, digest string, data *io.SectionReader) (string, error) {
	var word [8]byte
	rand.Read(word[:]) // never fails
	pack, ok := parsePackage(fmt.Sprintf("p:%s:%x:%s", id.Name, word, digest))
	if !ok || data.Size() > builder.MaxZipped {
		return "", fmt.Errorf("a package of function %s, %d bytes with the digest %.80q: that cannot be", id, data.Size(), digest)
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
	buf := make([]byte, min(data.Size(), pieceSize))
	for i, at := 0, int64(0); i == 0 || at < data.Size(); i++ {
		piece := buf[:min(data.Size()-at, pieceSize)]
		if _, err := io.ReadFull(io.NewSectionReader(data, at, int64(len(piece))), piece); err != nil {
			return "", err
		}
		sealed, err := keys.Seal(ctx, s.key, piece, []byte(pack.piece(i)))
		if err != nil {
			return "", err
		}
		if _, err := s.Packages(root.Name, g.Tenant).Put(ctx, pack.piece(i), sealed); err != nil {
			return "", err
		}
		at += int64(len(piece))
	}
	return root.Name + "/" + pack.name, nil
}

// remove removes what is there of a tenant's package, by its key.
func (p packages) remove(ctx context.Context, tenant, key string) error {
	root, name, _ := strings.Cut(key, "/")
	pack, ok := parsePackage(name)
	if !ok {
		return fmt.Errorf("%.200q is no package's key", key)
	}
	o, err := origin.Open(ctx, p.g.Origin, originDrivers()...)
	if err != nil {
		return err
	}
	defer o.Close()
	all := o.Packages(root, tenant)
	for info, err := range all.List(ctx, pack.name) {
		if err != nil {
			return err
		}
		if err := all.Remove(ctx, info.Name); err != nil && !isNotFound(err) {
			return err
		}
	}
	return nil
}

// open gives a package by its key. The reader is for one goroutine; ctx ends its
// reading.
func (p packages) open(ctx context.Context, account, key string) (io.ReadCloser, error) {
	g := p.g.forTenant(p.g.tenantOf(account))
	root, name, _ := strings.Cut(key, "/")
	pack, ok := parsePackage(name)
	if !ok {
		return nil, fmt.Errorf("%.200q is no package's key: %w", key, origin.ErrNotFound)
	}
	s, err := g.open(ctx, false)
	if err != nil {
		return nil, err
	}
	r := &pieces{digest: pack.digest, sum: sha256.New(), close: s.Close}
	r.get = func(i int) ([]byte, error) {
		sealed, err := s.Packages(root, g.Tenant).Get(ctx, pack.piece(i))
		if err != nil {
			return nil, err
		}
		data, err := keys.Unseal(ctx, s.key, sealed, []byte(pack.piece(i)))
		if errors.Is(err, keys.ErrRefused) {
			err = errors.Join(origin.ErrCorrupt, err)
		}
		return data, err
	}
	if err := r.next(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return r, nil
}

// pieces reads a package, one piece in memory at a time. At its end it fails
// with origin.ErrCorrupt unless it has been what it is named by.
type pieces struct {
	get    func(i int) ([]byte, error)
	close  func() error
	digest string
	sum    hash.Hash
	n      int    // that were got
	left   []byte // of the last
}

// next gets a piece, or gives io.EOF behind the last.
func (r *pieces) next() error {
	data, err := r.get(r.n)
	if r.n > 0 && errors.Is(err, origin.ErrNotFound) {
		if hex.EncodeToString(r.sum.Sum(nil)) == r.digest {
			return io.EOF
		}
		err = origin.ErrCorrupt
	}
	if err != nil {
		return fmt.Errorf("package %s: %w", r.digest, err)
	}
	r.sum.Write(data) // never fails
	r.n, r.left = r.n+1, data
	return nil
}

// Read implements io.Reader.
func (r *pieces) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *pieces) Close() error { return r.close() }
