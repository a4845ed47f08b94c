package functions

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"thaw/cluster"
)

// Version reads one version of a function: Latest, or a published one by its number.
func (s *Store) Version(ctx context.Context, f *Function, number string) (*Version, error) {
	if number == Latest {
		return clone(&f.Latest)
	}
	w, ok := f.Versions[number]
	if !ok {
		return nil, refuse(kindNotFound, "Function not found: %s:%s", f.ID, number)
	}
	v, _, err := s.version(ctx, f.ID, w)
	if r, ok := f.Revisions[number]; ok && err == nil {
		v.RevisionID = r
	}
	return v, err
}

func (s *Store) version(ctx context.Context, id ID, word string) (*Version, cluster.Record, error) {
	r, err := s.read.Get(ctx, versionKey(id, word))
	if errors.Is(err, cluster.ErrNotFound) { // deleted since the function was read
		return nil, r, refuse(kindNotFound, "Function not found: %s", id)
	}
	if err != nil {
		return nil, r, fmt.Errorf("read a version of %s: %w", id, err)
	}
	v := new(Version)
	return v, r, decode(r, v)
}

// Numbers gives the published versions that are there, in order.
func (f *Function) Numbers() []string {
	return slices.SortedFunc(maps.Keys(f.Versions), byNumber)
}

// Publish makes a version of $LATEST, which change may change before, or refuse;
// it is called again if others change the function meanwhile. If $LATEST has not
// changed since it was published last, and that version is still there, that
// version is returned instead. A $LATEST of which the last build has failed is
// refused. An empty description means that of $LATEST.
func (s *Store) Publish(ctx context.Context, id ID, description string, change func(*Function) error) (*Version, error) {
	for range attempts {
		f, r, err := s.get(ctx, id)
		if err != nil {
			return nil, err
		}
		if err := change(f); err != nil {
			return nil, err
		}
		if _, there := f.Versions[f.Published]; there && f.PublishedAs == f.Latest.Revision {
			return s.Version(ctx, f, f.Published)
		}
		if v := &f.Latest; v.Build == "" && (v.State == Failed || v.LastUpdateStatus == Failed) {
			return nil, refuse(kindConflict, "The operation cannot be performed at this time. The last update of the function has failed: %s", v.LastUpdateReason)
		}
		if len(f.Versions) >= maxVersions {
			return nil, refuse(kindStorage, "The function has %d published versions, and may not have more: delete some.", len(f.Versions))
		}
		word, err := s.copyLatest(ctx, f, description)
		if err != nil {
			return nil, err
		}
		number := f.published(word)
		f.Latest.RevisionID = uuid()
		err = s.put(ctx, r, f)
		if err == nil {
			return s.Version(ctx, f, number)
		}
		if !errors.Is(err, cluster.ErrConflict) {
			return nil, err // the function may have the version: its record stays
		}
		s.discard(ctx, id, []string{word})
	}
	return nil, busy(id)
}

// copyLatest writes $LATEST as the record of the next version, which is there
// once the function has its word.
func (s *Store) copyLatest(ctx context.Context, f *Function, description string) (string, error) {
	v, err := clone(&f.Latest)
	if err != nil {
		return "", err
	}
	v.Number = fmt.Sprint(f.Next)
	v.RevisionID = uuid()
	if description != "" {
		v.Description = description
	}
	if v.Build != "" { // it becomes what the build becomes
		v.State, v.StateReason, v.StateReasonCode = Pending, creatingReason, creatingCode
		v.LastUpdateStatus, v.LastUpdateReason, v.LastUpdateReasonCode = "", "", ""
	}
	value, err := encode(v)
	if err != nil {
		return "", err
	}
	word := word()
	if _, err := s.write.Create(ctx, versionKey(f.ID, word), value); err != nil {
		return "", fmt.Errorf("write version %s of %s: %w", v.Number, f.ID, err)
	}
	return word, nil
}

// published notes that the next version's record is there.
func (f *Function) published(word string) (number string) {
	number = fmt.Sprint(f.Next)
	f.Next++
	if f.Versions == nil {
		f.Versions = map[string]string{}
	}
	f.Versions[number] = word
	f.Published, f.PublishedAs = number, f.Latest.Revision
	if f.Latest.Build != "" {
		f.Unsettled = append(f.Unsettled, number)
	}
	return number
}

// DeleteVersion removes a published version, and what is set for it alone;
// check may refuse. That there is none is not an error.
func (s *Store) DeleteVersion(ctx context.Context, id ID, number string, check func(*Function) error) error {
	var word string
	_, err := s.Update(ctx, id, func(f *Function) error {
		if err := check(f); err != nil {
			return err
		}
		word = f.Versions[number]
		f.forget(number)
		delete(f.Versions, number)
		f.Unsettled = slices.DeleteFunc(f.Unsettled, func(n string) bool { return n == number })
		return nil
	})
	if err == nil && word != "" {
		s.discard(ctx, id, []string{word})
	}
	return err
}

// forget drops what is set for one qualifier.
func (f *Function) forget(qualifier string) {
	delete(f.Policies, qualifier)
	delete(f.Revisions, qualifier)
	delete(f.Events, qualifier)
	delete(f.URLs, qualifier)
	delete(f.RuntimeUpdates, qualifier)
}

// Resolve notes, before a build has ended, which digest an image's tag stands
// for: a builder that starts over keeps to it. A build that is no longer wanted
// is refused with ErrConflict.
func (s *Store) Resolve(ctx context.Context, id ID, build, resolved string) error {
	return s.building(ctx, id, build, func(f *Function) { f.Latest.Package.ResolvedURI = resolved })
}

// Progress shows users how far a build has come, in StateReason or
// LastUpdateStatusReason: a sentence.
func (s *Store) Progress(ctx context.Context, id ID, build, sentence string) error {
	return s.building(ctx, id, build, func(f *Function) { f.Latest.report(sentence) })
}

func (s *Store) building(ctx context.Context, id ID, build string, change func(*Function)) error {
	_, err := s.Update(ctx, id, func(f *Function) error {
		if f.Latest.Build != build {
			return refuse(kindConflict, "build %s of %s is not wanted any more", build, id)
		}
		change(f)
		return nil
	})
	return err
}

// Settle ends a build: $LATEST, and the versions published with it, become
// Active or Failed. A build that is no longer wanted is refused with
// ErrConflict. After a failure it may be called again, with the same result.
func (s *Store) Settle(ctx context.Context, id ID, build string, r Result) error {
	for range attempts {
		f, rec, err := s.get(ctx, id)
		if err != nil {
			return err
		}
		if f.Latest.Build != build {
			return refuse(kindConflict, "build %s of %s is not wanted any more", build, id)
		}
		for _, n := range f.Unsettled {
			if err := s.settleVersion(ctx, id, f.Versions[n], r); err != nil {
				return err
			}
		}
		f.Latest.settle(r)
		if r.Code == "" {
			f.Serving = nil
		}
		f.Unsettled = nil
		err = s.put(ctx, rec, f)
		if !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return busy(id)
}

func (s *Store) settleVersion(ctx context.Context, id ID, word string, r Result) error {
	for range attempts {
		v, rec, err := s.version(ctx, id, word)
		if errors.Is(err, ErrNotFound) || err == nil && v.State != Pending {
			return nil // deleted meanwhile, or settled by a builder that was killed after
		}
		if errors.Is(err, ErrDamaged) { // nothing can settle it, and all else shall be
			s.warn(err)
			return nil
		}
		if err != nil {
			return err
		}
		v.settle(r)
		value, err := encode(v)
		if err != nil {
			return err
		}
		_, err = s.write.Update(ctx, rec.Key, value, rec.Revision)
		if !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
	return busy(id)
}
