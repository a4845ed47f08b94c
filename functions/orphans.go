package functions

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"thaw/cluster"
)

// maxKeys is how many keys of versions are in memory at a time, some 100 bytes each.
const maxKeys = 10_000

// EachVersion calls f for each record of a version, also those that no function
// names, by the word that is its key's end: those of a function one after the
// other. It ends with f's error.
func (s *Store) EachVersion(ctx context.Context, f func(id ID, word string) error) error {
	for after := ""; ; {
		keys, err := s.read.Keys(ctx, "v/", after, maxKeys)
		if err != nil {
			return fmt.Errorf("list versions: %w", err)
		}
		for _, after = range keys {
			parts := strings.Split(after, "/")
			if len(parts) != 4 {
				continue // versionKey has not made it
			}
			if err := f(ID{Account: parts[1], Name: parts[2]}, parts[3]); err != nil {
				return err
			}
		}
		if len(keys) < maxKeys {
			return nil
		}
	}
}

// Unnamed gives those of some versions' words that the function does not name;
// all of them if there is no such function. Where it cannot tell, it gives an
// error. A word that is not named is one that is about to be, by a request under
// way, or never will be.
func (s *Store) Unnamed(ctx context.Context, id ID, words []string) ([]string, error) {
	f, _, err := s.get(ctx, id)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return f.unnamed(words), nil
}

// unnamed gives the words that a function does not name; f may be nil.
func (f *Function) unnamed(words []string) []string {
	if f == nil {
		return words
	}
	named := map[string]bool{}
	for _, w := range f.Versions {
		named[w] = true
	}
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return named[w] })
}

// RemoveUnnamed removes the records of versions that Unnamed has given for longer
// than any request takes; those that are named after all stay. It first writes
// the function's record again as it is: a request that was held up for so long,
// and still means to name one of them, then finds that others were quicker, and
// begins anew. Only a function that such a request creates has nothing that can
// be in its way.
func (s *Store) RemoveUnnamed(ctx context.Context, id ID, words []string) error {
	revisions := map[string]uint64{} // as they were before the function was looked at
	for _, w := range words {
		r, err := s.read.Get(ctx, versionKey(id, w))
		if err != nil && !errors.Is(err, cluster.ErrNotFound) {
			return fmt.Errorf("read a version of %s: %w", id, err)
		}
		if err == nil {
			revisions[w] = r.Revision
		}
	}
	f, err := s.bar(ctx, id)
	if err != nil {
		return err
	}
	for _, w := range f.unnamed(slices.Collect(maps.Keys(revisions))) {
		err := s.write.Delete(ctx, versionKey(id, w), revisions[w])
		if err != nil && !errors.Is(err, cluster.ErrConflict) { // gone, or changed: who changes it has a name for it
			return fmt.Errorf("remove a version of %s that nothing names: %w", id, err)
		}
	}
	return nil
}

// bar gives a function, nil if there is none, and has all fail that would write
// what they made of an earlier reading of its record.
func (s *Store) bar(ctx context.Context, id ID) (*Function, error) {
	for range attempts {
		f, r, err := s.get(ctx, id)
		if errors.Is(err, ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		_, err = s.write.Update(ctx, r.Key, r.Value, r.Revision)
		if !errors.Is(err, cluster.ErrConflict) {
			return f, err
		}
	}
	return nil, busy(id)
}
