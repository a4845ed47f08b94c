// Package catalog keeps references: a tenant's names for images. A name is a
// numbered record in the origin, names/<tenant>/<name>/<seq>, and the highest
// number counts. A slash in a name is "!" in the key, which no name holds.
//
// A record is one line of JSON in exactly this form, without white space:
//
//	{"version":1,"image":"<64 hex>","root":"r1","removed":false,
//	 "time":"2006-01-02T15:04:05Z","seal":"<base64>"}
//
// The seal is the tenant's key wrapped around the SHA-256 of
//
//	"thaw reference v1\x00" tenant name seq image root removed time
//
// where seq is 8 bytes and removed 1, time is as written, and each string has
// its length in 4 bytes in front, all big-endian. So a record cannot be made
// without the key, nor moved to another tenant, name or number. Who can write
// to the origin can still delete the highest record and so bring back the one
// before: the origin's permissions have to prevent that.
//
// A removed name is a record too, with removed set and no image and root, so
// that numbers never start again.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"thaw/origin"
)

var (
	// ErrNotFound says that no image is called that.
	ErrNotFound = errors.New("no such image")
	// ErrAmbiguous says that several ids start with the prefix.
	ErrAmbiguous = errors.New("more than one image id starts with this")
	// ErrCorrupt says that a record is damaged, or was made for another place.
	ErrCorrupt = errors.New("corrupt reference")
)

// Keeper wraps small secrets with the tenant's key, so that no other key and no
// changed value unwraps. Safe for concurrent use.
type Keeper interface {
	Wrap(ctx context.Context, plain []byte) ([]byte, error)
	Unwrap(ctx context.Context, wrapped []byte) ([]byte, error)
}

// Catalog is one tenant's references. It is safe for concurrent use, also by
// several processes on one origin.
type Catalog struct {
	origin *origin.Origin
	tenant string
	keeper Keeper
}

// New gives the catalog of a tenant. A name that no tenant can have fails at
// use.
func New(o *origin.Origin, tenant string, k Keeper) *Catalog { return &Catalog{o, tenant, k} }

// Reference says which image a name means.
type Reference struct {
	Name  string // empty if it was found by id
	Image string // id: 64 lower-case hex digits
	Root  string
	Seq   uint64    // number of the record; 0 if it was found by id
	Time  time.Time // when it was set, to the second
}

const (
	letters    = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	nameSize   = 255 // bytes at most
	idSize     = 64  // hex digits
	prefixSize = 4   // at least: a shorter one is a typing error
)

// isHex tells whether s is of lower-case hex digits.
func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

func isID(s string) bool { return len(s) == idSize && isHex(s) }

// Check refuses what cannot be an image's name: 1 to 255 letters, digits and
// "._/:@-", starting with a letter or digit.
func Check(name string) error {
	if name == "" || len(name) > nameSize || !strings.Contains(letters, name[:1]) || strings.Trim(name, letters+"._/:@-") != "" {
		return fmt.Errorf("catalog: %.80q cannot be an image's name (1 to %d letters, digits and ._/:@-, starting with a letter or digit)", name, nameSize)
	}
	return nil
}

func (c *Catalog) key(name string) (string, error) {
	if err := origin.CheckTenant(c.tenant); err != nil {
		return "", err
	}
	return c.prefix() + "/" + strings.ReplaceAll(name, "/", "!"), Check(name)
}

func (c *Catalog) prefix() string { return "names/" + c.tenant }

// Set makes name mean an image of a root, whatever it meant before. Of Sets at
// once all succeed, and the highest number counts. The image's manifest is
// durable before.
func (c *Catalog) Set(ctx context.Context, name, image, root string) (Reference, error) {
	if !isID(image) || root == "" {
		return Reference{}, fmt.Errorf("catalog: %s cannot mean image %.80q in root %q", name, image, root)
	}
	return c.put(ctx, name, record{Image: image, Root: root})
}

// Remove makes name mean nothing, or gives ErrNotFound if it does already. The
// image stays. A corrupt record does not keep its name from being removed.
func (c *Catalog) Remove(ctx context.Context, name string) error {
	if _, err := c.Get(ctx, name); err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	_, err := c.put(ctx, name, record{Removed: true})
	return err
}

// Forget is Remove for a name that is never set again: it leaves nothing of it.
// That there is nothing is no error. Killed in between, the name means nothing.
func (c *Catalog) Forget(ctx context.Context, name string) error {
	key, err := c.key(name)
	if err != nil {
		return err
	}
	if err := c.Remove(ctx, name); err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := c.origin.Forget(ctx, key); err != nil {
		return fmt.Errorf("catalog: name %s: %w", name, err)
	}
	return nil
}

func (c *Catalog) put(ctx context.Context, name string, r record) (Reference, error) {
	key, err := c.key(name)
	if err != nil {
		return Reference{}, err
	}
	r.Version, r.Time = version, time.Now().UTC().Format(time.RFC3339)
	seq, err := c.origin.PutNext(ctx, key, func(seq uint64) ([]byte, error) {
		return c.seal(ctx, place{c.tenant, name, seq}, r)
	})
	if err != nil {
		return Reference{}, fmt.Errorf("catalog: name %s: %w", name, err)
	}
	return r.reference(name, seq)
}

// Get gives what name means, or ErrNotFound. A record that does not verify
// gives ErrCorrupt; one whose seal the Keeper refuses gives the Keeper's error:
// it cannot tell a damaged seal from another tenant's key.
func (c *Catalog) Get(ctx context.Context, name string) (Reference, error) {
	key, err := c.key(name)
	if err != nil {
		return Reference{}, err
	}
	data, seq, err := c.origin.Latest(ctx, key)
	if errors.Is(err, origin.ErrNotFound) {
		return Reference{}, fmt.Errorf("catalog: %w: %s", ErrNotFound, name)
	}
	if err != nil {
		return Reference{}, fmt.Errorf("catalog: name %s: %w", name, err)
	}
	r, err := c.open(ctx, place{c.tenant, name, seq}, data)
	if err != nil {
		return Reference{}, fmt.Errorf("catalog: record %d of name %s: %w", seq, name, err)
	}
	if r.Removed {
		return Reference{}, fmt.Errorf("catalog: %w: %s", ErrNotFound, name)
	}
	return r.reference(name, seq)
}

// List gives what all names mean, sorted by name as a key has it. It unwraps
// one seal for each. If some cannot be read, the error is the first one's, and
// the others are given all the same.
func (c *Catalog) List(ctx context.Context) (refs []Reference, err error) {
	if err := origin.CheckTenant(c.tenant); err != nil {
		return nil, err
	}
	var first error
	for escaped, err := range c.origin.Children(ctx, c.prefix()) {
		if err != nil {
			return nil, fmt.Errorf("catalog: names of %s: %w", c.tenant, err)
		}
		name := strings.ReplaceAll(escaped, "!", "/")
		if Check(name) != nil {
			continue // not a name's folder
		}
		ref, err := c.Get(ctx, name)
		switch {
		case err == nil:
			refs = append(refs, ref)
		case !errors.Is(err, ErrNotFound) && first == nil:
			first = err
		}
	}
	return refs, first
}

// Resolve finds an image by its name, its id, or a prefix of its id of at least
// four digits that no other of the tenant's images has. A name comes before an
// id of the same spelling. It gives ErrNotFound or ErrAmbiguous. An image that
// several roots have is taken from the latest.
func (c *Catalog) Resolve(ctx context.Context, what string) (Reference, error) {
	mayBeID := len(what) >= prefixSize && len(what) <= idSize && isHex(what)
	if err := Check(what); err != nil && !mayBeID {
		return Reference{}, err
	}
	ref, err := c.Get(ctx, what)
	if !errors.Is(err, ErrNotFound) || !mayBeID {
		return ref, err
	}
	roots, err := c.origin.Roots(ctx)
	if err != nil {
		return Reference{}, fmt.Errorf("catalog: %w", err)
	}
	var found Reference
	for _, root := range roots {
		for info, err := range c.origin.Manifests(root.Name, c.tenant).List(ctx, what) {
			switch {
			case err != nil:
				return Reference{}, fmt.Errorf("catalog: %w", err)
			case !isID(info.Name):
				continue // not a manifest
			case found.Image != "" && found.Image != info.Name:
				return Reference{}, fmt.Errorf("catalog: %w: %s: %.16s… and %.16s…", ErrAmbiguous, what, found.Image, info.Name)
			}
			found = Reference{Image: info.Name, Root: root.Name, Time: info.Time}
		}
	}
	if found.Image == "" {
		return Reference{}, fmt.Errorf("catalog: %w: %s", ErrNotFound, what)
	}
	return found, nil
}
