package functions

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"thaw/cluster"
)

// versions gives the words of all records of versions, by function.
func versions(t *testing.T, s *Store) map[ID][]string {
	t.Helper()
	all := map[ID][]string{}
	if err := s.EachVersion(t.Context(), func(id ID, word string) error {
		all[id] = append(all[id], word)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// collect removes what a look at all versions finds to be nobody's.
func collect(t *testing.T, s *Store) {
	t.Helper()
	for id, words := range versions(t, s) {
		unnamed, err := s.Unnamed(t.Context(), id, words)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveUnnamed(t.Context(), id, unnamed); err != nil {
			t.Fatal(err)
		}
	}
}

// On a real server: records of versions whose function is gone, was never made,
// or does not name them, go; those of versions stay, and can be read.
func TestOrphansOnCluster(t *testing.T) {
	s := server(t)
	ctx := t.Context()
	gone, never := ID{testID.Account, "gone"}, ID{"000000000001", "never"}
	create(t, s, testID, true)
	create(t, s, gone, true)
	f := settle(t, s, testID, built)
	left := func(f *Function) { // as whoever is killed before the function has it
		if _, err := s.copyLatest(ctx, f, ""); err != nil {
			t.Fatal(err)
		}
	}
	left(f)
	left(&Function{ID: never})
	deleted, err := s.Get(ctx, gone)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, gone); err != nil {
		t.Fatal(err)
	}
	left(deleted)
	if n := len(slices.Concat(slices.Collect(maps.Values(versions(t, s)))...)); n != 4 {
		t.Fatalf("%d records of versions, want 4", n)
	}
	collect(t, s)
	if all := versions(t, s); len(all) != 1 || !slices.Equal(all[testID], []string{f.Versions["1"]}) {
		t.Errorf("left: %v", all)
	}
	if f, err = s.Get(ctx, testID); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Version(ctx, f, "1"); err != nil || v.State != Active {
		t.Errorf("version 1: %v, %v", v, err)
	}
}

// A publish that stands still between a version's record and its name, while that
// record is removed, at each moment there is: it begins anew, and what it names
// is there.
func TestOrphansAndPublish(t *testing.T) {
	for _, moment := range []string{"create", "update"} {
		s, m := newMemory()
		create(t, s, testID, false)
		settle(t, s, testID, built)
		held := false
		m.before = func(op, key string) error {
			if op == moment && !held {
				held = true
				collect(t, s)
			}
			return nil
		}
		v, err := s.Publish(t.Context(), testID, "", noCheck)
		if err != nil || v.Number != "1" {
			t.Fatalf("held before %s: %v, %v", moment, v, err)
		}
		if f, err := s.Get(t.Context(), testID); err != nil || len(f.Versions) != 1 || m.count("v/") != 1 {
			t.Errorf("held before %s: %v, %v; %d records", moment, f.Versions, err, m.count("v/"))
		}
	}
}

// orphaned makes a function, and a version's record that it does not name.
func orphaned(t *testing.T, s *Store) (word string) {
	t.Helper()
	create(t, s, testID, true)
	word, err := s.copyLatest(t.Context(), settle(t, s, testID, built), "")
	if err != nil {
		t.Fatal(err)
	}
	return word
}

// A removal that stands still, at each moment there is, while what it has seen to
// be nobody's gets a name, is published anew, or is deleted.
func TestOrphansHeld(t *testing.T) {
	for _, moment := range []string{"update", "delete"} {
		for what, meanwhile := range map[string]func(*Store, string) error{
			"named": func(s *Store, word string) error {
				_, err := s.Update(context.Background(), testID, func(f *Function) error { f.published(word); return nil })
				return err
			},
			"published": func(s *Store, _ string) error {
				_, err := s.Publish(context.Background(), testID, "", noCheck)
				return err
			},
			"deleted": func(s *Store, _ string) error { return s.Delete(context.Background(), testID) },
		} {
			if moment == "delete" && what == "named" {
				continue // who would do it has read the function before the removal wrote it: the test above
			}
			s, m := newMemory()
			word := orphaned(t, s)
			if _, err := s.Update(t.Context(), testID, func(f *Function) error { f.PublishedAs = ""; return nil }); err != nil {
				t.Fatal(err)
			}
			held := false
			m.before = func(op, _ string) error {
				if op != moment || held {
					return nil
				}
				held = true
				return meanwhile(s, word)
			}
			if err := s.RemoveUnnamed(t.Context(), testID, []string{word}); err != nil {
				t.Errorf("%s before %s: %v", what, moment, err)
			}
			m.before = nil
			f, err := s.Get(t.Context(), testID)
			if what == "deleted" {
				if !errors.Is(err, ErrNotFound) || m.count("v/") != 0 {
					t.Errorf("%s before %s: %v, %d records of versions", what, moment, err, m.count("v/"))
				}
				continue
			}
			if err != nil || len(f.Versions) != 2 || m.count("v/") != 2 {
				t.Fatalf("%s before %s: %v, %v, %d records", what, moment, f.Versions, err, m.count("v/"))
			}
			for _, n := range f.Numbers() {
				if _, err := s.Version(t.Context(), f, n); err != nil {
					t.Errorf("%s before %s: version %s: %v", what, moment, n, err)
				}
			}
		}
	}
}

// Where it cannot be told what a function names, nothing of it is removed: its
// record is damaged, or cannot be read or written. Keys of others stay too.
func TestOrphansInDoubt(t *testing.T) {
	s, m := newMemory()
	word := orphaned(t, s)
	m.before = func(op, _ string) error {
		if op == "update" {
			return fmt.Errorf("%w: a fault of the test", cluster.ErrUnavailable)
		}
		return nil
	}
	if err := s.RemoveUnnamed(t.Context(), testID, []string{word}); !errors.Is(err, cluster.ErrUnavailable) || m.count("v/") != 2 {
		t.Errorf("without a server: %v, %d records", err, m.count("v/"))
	}
	m.before = nil
	m.spoil(functionKey(testID), "{")
	if _, err := s.Unnamed(t.Context(), testID, []string{word}); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged function: %v", err)
	}
	if err := s.RemoveUnnamed(t.Context(), testID, []string{word}); !errors.Is(err, ErrDamaged) || m.count("v/") != 2 {
		t.Errorf("a damaged function: %v, %d records", err, m.count("v/"))
	}
	m.spoil("v/odd", "{")
	if all := versions(t, s); len(all) != 1 || len(all[testID]) != 2 {
		t.Errorf("found %v", all)
	}
}

// More versions than are in memory at a time are all found, once, together with
// their function's; an error ends the look.
func TestEachVersion(t *testing.T) {
	s, m := newMemory()
	for i := range maxKeys + 10 {
		key := versionKey(ID{testID.Account, fmt.Sprint("f", i%3)}, fmt.Sprintf("%05d", i))
		m.records[key] = cluster.Record{Key: key, Value: []byte("{}"), Revision: 1}
	}
	seen, ended := 0, map[ID]bool{}
	var last ID
	if err := s.EachVersion(t.Context(), func(id ID, _ string) error {
		if id != last {
			ended[last] = true
		}
		if ended[id] {
			t.Fatalf("%v comes again", id)
		}
		last, seen = id, seen+1
		return nil
	}); err != nil || seen != maxKeys+10 {
		t.Errorf("%d are found, %v", seen, err)
	}
	if err := s.EachVersion(t.Context(), func(ID, string) error { return cluster.ErrConflict }); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("ended with %v", err)
	}
}
