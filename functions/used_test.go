package functions

import (
	"errors"
	"slices"
	"testing"

	"thaw/cluster"
)

// What $LATEST, what it serves meanwhile, a published version or a build under
// way refers to is needed; all else is not, and nothing once the function is gone.
func TestUnused(t *testing.T) {
	s, m := newMemory()
	ctx := t.Context()
	expect := func(what string, want ...string) {
		t.Helper()
		all := []string{"z1", "z2", "first", "second", testID.Reference("b")}
		got, err := s.Unused(ctx, testID, all)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q are unused, %v, want %q", what, got, err, want)
		}
	}
	const build = "function/f:b"
	expect("before", "z1", "z2", "first", "second", build)
	create(t, s, testID, true)
	if _, err := s.Update(ctx, testID, func(f *Function) error { f.Latest.Build = "b"; f.Latest.Package = Package{Zip: "z1"}; return nil }); err != nil {
		t.Fatal(err)
	}
	expect("building", "z2", "first", "second")
	settle(t, s, testID, Result{Image: "i", Root: "r1", Reference: "first"})
	expect("built", "z2", "second", build)
	if _, err := s.Update(ctx, testID, func(f *Function) error {
		return f.Change(testARN, testTime, func(v *Version) error { v.Package = Package{Zip: "z2"}; return nil })
	}); err != nil {
		t.Fatal(err)
	}
	expect("replacing", "second", build)
	settle(t, s, testID, Result{Image: "i2", Root: "r1", Reference: "second"})
	expect("replaced, and version 1 needs what it was published with", "z1", build)
	f, err := s.Get(ctx, testID)
	if err != nil {
		t.Fatal(err)
	}
	key := versionKey(testID, f.Versions["1"])
	v := m.records[key]
	delete(m.records, key)
	if _, err := s.Unused(ctx, testID, []string{"z1"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("with a version that cannot be read: %v", err)
	}
	m.records[key] = cluster.Record{Key: key, Value: []byte("{"), Revision: v.Revision}
	if _, err := s.Unused(ctx, testID, []string{"z1"}); err == nil {
		t.Error("a damaged version needs nothing")
	}
	m.records[key] = v
	if err := s.DeleteVersion(ctx, testID, "1", noCheck); err != nil {
		t.Fatal(err)
	}
	expect("without version 1", "z1", "first", build)
	if err := s.Delete(ctx, testID); err != nil {
		t.Fatal(err)
	}
	expect("deleted", "z1", "z2", "first", "second", build)
}
