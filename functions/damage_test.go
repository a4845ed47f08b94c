package functions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"thaw/cluster"
)

// spoil damages the record of a key.
func (m *memory) spoil(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(key, []byte(value))
}

// A damaged record is told by name; watches, lists and builds go on without it,
// and it can be deleted.
func TestDamaged(t *testing.T) {
	s, m := newMemory()
	var warned []string
	s.Warn = func(err error) { warned = append(warned, err.Error()) }
	ids := make([]ID, 4)
	for i := range ids {
		ids[i] = ID{testID.Account, fmt.Sprint("f", i)}
		create(t, s, ids[i], true)
	}
	m.spoil(functionKey(ids[1]), `{"Account":`)
	m.spoil(functionKey(ids[2]), string(m.records[functionKey(ids[0])].Value)) // another's
	var told []string
	done := errors.New("done")
	err := s.Watch(t.Context(), func(id ID, f *Function) error {
		told = append(told, fmt.Sprint(id.Name, f != nil))
		if len(told) == 6 {
			return done
		}
		return nil
	})
	if want := "[f0true f1true f2true f3true f1false f2false]"; !errors.Is(err, done) || fmt.Sprint(told) != want {
		t.Errorf("told %v, %v, want %s", told, err, want)
	}
	if len(warned) != 2 || !strings.Contains(warned[0], "f/000000000000/f1 is damaged") || !strings.Contains(warned[1], "f2") {
		t.Errorf("warned of %q", warned)
	}
	page, more, err := s.List(t.Context(), testID.Account, "", 10)
	if err != nil || more != "" || len(page) != 4 || page[0].Damaged != nil || page[1].Damaged == nil || page[2].Damaged == nil || page[3].Damaged != nil {
		t.Errorf("listed %d, %q, %v", len(page), more, err)
	}
	if _, err := s.Get(t.Context(), ids[1]); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("got: %v", err)
	}
	for _, id := range ids[1:3] {
		if err := s.Delete(t.Context(), id); err != nil || m.count("v/"+id.String()) != 0 {
			t.Errorf("delete %s: %v, %d versions are left", id, err, m.count("v/"+id.String()))
		}
	}
	f, err := s.Get(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	m.spoil(versionKey(ids[0], f.Versions["1"]), "{")
	if f = settle(t, s, ids[0], built); f.Latest.State != Active {
		t.Errorf("a damaged version keeps its function from being %s: %s", Active, f.Latest.State)
	}
}

// List reads beyond any number of functions, a page at a time, and what is
// created and deleted meanwhile is no trouble.
func TestListMany(t *testing.T) {
	s, m := newMemory()
	const many = 12_345
	f := NewFunction(testID, Version{}, testTime)
	for i := range many {
		f.Name = fmt.Sprintf("f%05d", i)
		value, err := encode(f)
		if err != nil {
			t.Fatal(err)
		}
		m.records[functionKey(f.ID)] = cluster.Record{Key: functionKey(f.ID), Value: value, Revision: 1}
	}
	seen := 0
	for after, more := "", true; more; more = after != "" {
		page, next, err := s.List(context.Background(), testID.Account, after, 1000)
		if err != nil || len(page) > 1000 {
			t.Fatal(len(page), err)
		}
		for _, f := range page {
			if want := fmt.Sprintf("f%05d", seen); f.Name != want {
				t.Fatalf("%s comes where %s should", f.Name, want)
			}
			seen++
		}
		delete(m.records, functionKey(ID{testID.Account, next}))
		after = next
	}
	if seen != many {
		t.Errorf("%d of %d are listed", seen, many)
	}
}
