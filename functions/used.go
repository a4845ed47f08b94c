package functions

import (
	"context"
	"errors"
	"slices"
)

// Unused gives those of some keys, of packages and of references in the origin,
// that no version of a function refers to and no build of it is about to; all of
// them if there is no such function. Where it cannot tell, it gives an error.
//
// A key that has been referred to, and is not any more, never is again. One that
// is to be referred to for the first time is known to nobody else before.
func (s *Store) Unused(ctx context.Context, id ID, keys []string) ([]string, error) {
	f, err := s.Get(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return keys, nil
	}
	if err != nil {
		return nil, err
	}
	keys = slices.Clone(keys)
	without := func(used ...string) {
		keys = slices.DeleteFunc(keys, func(key string) bool { return slices.Contains(used, key) })
	}
	without(f.Latest.Package.keys()...)
	without(id.Reference(f.Latest.Build))
	if f.Serving != nil {
		without(f.Serving.Package.keys()...)
	}
	for _, number := range f.Numbers() {
		if len(keys) == 0 {
			return nil, nil
		}
		v, err := s.Version(ctx, f, number)
		if err != nil { // also if it has been deleted since: the next look tells
			return nil, err
		}
		without(v.Package.keys()...)
	}
	return keys, nil
}

// keys are those of what a package has in the origin.
func (p Package) keys() []string { return []string{p.Zip, p.Reference} }
