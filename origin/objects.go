package origin

import (
	"context"
	"errors"
	"iter"
	"strings"
)

// maxObject bounds in bytes what Get of a manifest or recipe takes into
// memory: the largest recipe holds 1 GiB of entries beside its chunk list.
const maxObject = 1<<30 + 1<<28

// Objects are one tenant's manifests, recipes or packages in one root, as bytes. It is
// safe for concurrent use.
type Objects struct {
	o                  *Origin
	kind, root, tenant string
}

// Manifests gives a tenant's manifests in a root; their names are image ids.
// Names that no root or tenant can have fail at use.
func (o *Origin) Manifests(root, tenant string) *Objects {
	return &Objects{o, "manifests", root, tenant}
}

// Recipes gives a tenant's layer recipes in a root; the caller names them.
func (o *Origin) Recipes(root, tenant string) *Objects {
	return &Objects{o, "recipes", root, tenant}
}

// Packages gives a tenant's packages of functions in a root: what devices are
// made of that was handed to us and is nowhere else. The caller seals them, and
// names them by the digest of what is inside.
func (o *Origin) Packages(root, tenant string) *Objects {
	return &Objects{o, "packages", root, tenant}
}

// Condemned gives copies of a tenant's manifests in a root that are being
// removed, by the same names: whoever is killed meanwhile leaves one, from which
// the manifest can be put back.
func (o *Origin) Condemned(root, tenant string) *Objects {
	return &Objects{o, "condemned", root, tenant}
}

func (m *Objects) prefix() (string, error) {
	return "roots/" + m.root + "/" + m.kind + "/" + m.tenant + "/",
		errors.Join(check(rootRule, "root", m.root), CheckTenant(m.tenant))
}

func (m *Objects) do(ctx context.Context, verb, name string, f func(key string) error) error {
	prefix, err := m.prefix()
	if err == nil {
		err = check(objectRule, "object", name)
	}
	if err != nil {
		return err
	}
	return m.o.do(ctx, verb, prefix+name, func() error { return f(prefix + name) })
}

// Put stores an object unless there is one of this name, which is left as it
// is: equal names mean equal contents. Either way it is durable once Put
// returns nil.
func (m *Objects) Put(ctx context.Context, name string, data []byte) (added bool, err error) {
	err = m.do(ctx, "put", name, func(key string) error {
		added, err = m.o.bucket.Create(ctx, key, data)
		return err
	})
	return added, err
}

// Replace stores an object whether or not there is one, in one step: a reader
// sees the old or the new. It is for rewrapped envelopes and repairs.
func (m *Objects) Replace(ctx context.Context, name string, data []byte) error {
	return m.do(ctx, "replace", name, func(key string) error {
		return m.o.bucket.Replace(ctx, key, data)
	})
}

// Get gives a whole object, unverified, as the caller's bytes; ErrNotFound, or
// ErrCorrupt for one of over 1.25 GiB.
func (m *Objects) Get(ctx context.Context, name string) (data []byte, err error) {
	err = m.do(ctx, "get", name, func(key string) error {
		data, err = m.o.bucket.Get(ctx, key, maxObject)
		return err
	})
	return data, err
}

// Stat gives size and time of an object, or ErrNotFound.
func (m *Objects) Stat(ctx context.Context, name string) (info Info, err error) {
	err = m.do(ctx, "look up", name, func(key string) error {
		e, err := m.o.bucket.Stat(ctx, key)
		info = Info{name, e.Size, e.ModTime}
		return err
	})
	return info, err
}

// Remove removes an object, or gives ErrNotFound.
func (m *Objects) Remove(ctx context.Context, name string) error {
	return m.do(ctx, "remove", name, func(key string) error {
		return m.o.bucket.Remove(ctx, key)
	})
}

// List gives the objects whose names start with namePrefix, ascending; an error
// is the last pair. Memory is bounded by a page of a bucket, or the names in a
// folder.
func (m *Objects) List(ctx context.Context, namePrefix string) iter.Seq2[Info, error] {
	prefix, err := m.prefix()
	if err != nil {
		return func(yield func(Info, error) bool) { yield(Info{}, err) }
	}
	return m.o.infos(ctx, prefix+namePrefix, objectRule.match)
}

// Tenants gives the tenants that have manifests in a root, ascending; an error
// is the last pair.
func (o *Origin) Tenants(ctx context.Context, root string) iter.Seq2[string, error] {
	return o.Children(ctx, "roots/"+root+"/manifests")
}

// Children gives the names one level below a key that have objects below them,
// ascending; an error is the last pair.
func (o *Origin) Children(ctx context.Context, key string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if err := checkKey(key); err != nil {
			yield("", err)
			return
		}
		prefix := key + "/"
		for e, err := range o.bucket.List(ctx, prefix, true) {
			if err != nil {
				yield("", o.fail("list", prefix, err))
				return
			}
			name := strings.TrimSuffix(strings.TrimPrefix(e.Key, prefix), "/")
			if e.Dir && objectRule.match(name) && !yield(name, nil) {
				return
			}
		}
	}
}
