package functions

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

var testID = ID{Account: "000000000000", Name: "f"}

var testTime = time.Unix(1_700_000_000, 0).UTC()

const testARN = "arn:aws:lambda:us-east-1:000000000000:function:f"

func create(t *testing.T, s *Store, id ID, publish bool) *Function {
	t.Helper()
	f := NewFunction(id, Version{Config: Config{Memory: 128, Timeout: 3, Env: []byte("sealed")}, Package: Package{ImageURI: "r/f:latest"}}, testTime)
	if err := s.Create(t.Context(), f, publish); err != nil {
		t.Fatal(err)
	}
	return f
}

func settle(t *testing.T, s *Store, id ID, r Result) *Function {
	t.Helper()
	f, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Settle(t.Context(), id, f.Latest.Build, r); err != nil {
		t.Fatal(err)
	}
	f, err = s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var built = Result{Image: "i1", Root: "r1", ResolvedURI: "r/f@sha256:1", CodeSha256: "1", CodeSize: 7}

func noCheck(*Function) error { return nil }

func TestCreateSettle(t *testing.T) {
	s, _ := newMemory()
	f := create(t, s, testID, true)
	if f.Latest.State != Pending || f.Latest.Build == "" || f.Latest.LastUpdateStatus != "" {
		t.Fatalf("created: %+v", f.Latest)
	}
	if err := s.Create(t.Context(), NewFunction(testID, Version{}, testTime), true); !errors.Is(err, ErrConflict) {
		t.Fatalf("created twice: %v", err)
	}
	revision := f.Latest.RevisionID
	if err := s.Resolve(t.Context(), testID, f.Latest.Build, "r/f@sha256:1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Progress(t.Context(), testID, f.Latest.Build, "Half of it is there."); err != nil {
		t.Fatal(err)
	}
	f, _ = s.Get(t.Context(), testID)
	if f.Latest.StateReason != "Half of it is there." || f.Latest.Package.ResolvedURI != "r/f@sha256:1" {
		t.Fatalf("progress: %+v", f.Latest)
	}
	f = settle(t, s, testID, built)
	v, err := s.Version(t.Context(), f, "1")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*Version{&f.Latest, v} {
		if v.State != Active || v.StateReason != "" || v.LastUpdateStatus != successful || v.Build != "" || v.Package.Image != "i1" || v.CodeSize != 7 || v.RevisionID == revision {
			t.Errorf("settled: %+v", v)
		}
	}
	if err := s.Settle(t.Context(), testID, "other", built); !errors.Is(err, ErrConflict) {
		t.Errorf("a build that nobody wants: %v", err)
	}
	// Nothing has changed since: it is the same version.
	if v, err := s.Publish(t.Context(), testID, "", noCheck); err != nil || v.Number != "1" {
		t.Errorf("published again: %v, %v", v, err)
	}
}

// Until an update has been built, and after its build has failed, invokes run what was there before.
func TestServing(t *testing.T) {
	s, _ := newMemory()
	create(t, s, testID, false)
	update := func(memory int) error {
		_, err := s.Update(t.Context(), testID, func(f *Function) error {
			return f.Change(testARN, testTime, func(v *Version) error { v.Memory = memory; return nil })
		})
		return err
	}
	if err := update(1); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "following state: Pending") {
		t.Errorf("update while Pending: %v", err)
	}
	settle(t, s, testID, built)
	if err := update(256); err != nil {
		t.Fatal(err)
	}
	if err := update(512); err == nil || !strings.Contains(err.Error(), "An update is in progress for resource: "+testARN) {
		t.Errorf("update while InProgress: %v", err)
	}
	f, _ := s.Get(t.Context(), testID)
	if f.Invoked().Memory != 128 || f.Latest.Memory != 256 || f.Latest.State != Active || f.Latest.LastUpdateStatus != inProgress {
		t.Errorf("in progress: serves %d, latest %+v", f.Invoked().Memory, f.Latest)
	}
	f = settle(t, s, testID, Result{Code: "InvalidImage", Reason: "No."})
	if f.Invoked().Memory != 128 || f.Latest.LastUpdateStatus != Failed || f.Latest.LastUpdateReason != "No." || f.Latest.State != Active {
		t.Errorf("failed: serves %d, latest %+v", f.Invoked().Memory, f.Latest)
	}
	if err := update(1024); err != nil {
		t.Fatal(err)
	}
	if f, _ = s.Get(t.Context(), testID); f.Invoked().Memory != 128 {
		t.Errorf("a second update serves %d", f.Invoked().Memory)
	}
	if f = settle(t, s, testID, built); f.Invoked().Memory != 1024 || f.Latest.LastUpdateStatus != successful {
		t.Errorf("built: serves %d", f.Invoked().Memory)
	}
}

func TestFailedCreateCanBeUpdated(t *testing.T) {
	s, _ := newMemory()
	create(t, s, testID, false)
	f := settle(t, s, testID, Result{Code: "InvalidImage", Reason: "It is for arm64."})
	if f.Latest.State != Failed || f.Latest.StateReasonCode != "InvalidImage" || f.Latest.LastUpdateStatus != Failed {
		t.Fatalf("failed: %+v", f.Latest)
	}
	if _, err := s.Update(t.Context(), testID, func(f *Function) error {
		return f.Change(testARN, testTime, func(*Version) error { return nil })
	}); err != nil {
		t.Fatal(err)
	}
	if f = settle(t, s, testID, built); f.Latest.State != Active || f.Serving != nil {
		t.Errorf("built: %+v", f.Latest)
	}
}

func TestDeleteLeavesNothing(t *testing.T) {
	s, m := newMemory()
	create(t, s, testID, true)
	settle(t, s, testID, built)
	five := 5
	if err := s.Reserve(t.Context(), testID, &five); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), testID); err != nil {
		t.Fatal(err)
	}
	if m.count("f/") != 0 || m.count("v/") != 0 {
		t.Errorf("left: %v", m.records)
	}
	if _, free, _ := s.Concurrency(t.Context(), testID.Account); free != 1000 {
		t.Errorf("%d of 1000 unreserved", free)
	}
	if err := s.Delete(t.Context(), testID); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
}

// Concurrent updates are all done, each once.
func TestUpdatesAtOnce(t *testing.T) {
	s, _ := newMemory()
	create(t, s, testID, false)
	settle(t, s, testID, built)
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := s.Update(context.Background(), testID, func(f *Function) error {
				if f.Tags == nil {
					f.Tags = map[string]string{}
				}
				f.Tags[fmt.Sprint(i)] = "x"
				return nil
			}); err != nil {
				t.Error(err)
			}
			if _, err := s.Publish(context.Background(), testID, "", noCheck); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	f, _ := s.Get(t.Context(), testID)
	if len(f.Tags) != n || len(f.Versions) != 1 {
		t.Errorf("%d of %d tags, versions %v", len(f.Tags), n, f.Numbers())
	}
}

func TestReserve(t *testing.T) {
	s, _ := newMemory()
	for i, c := range []struct {
		name    string
		n       int
		refused bool
	}{{"a", 600, false}, {"b", 301, true}, {"b", 300, false}, {"a", 601, true}, {"a", 500, false}, {"b", 400, false}, {"c", 1, true}, {"c", 0, false}} {
		id := ID{testID.Account, c.name}
		if _, err := s.Get(t.Context(), id); err != nil {
			create(t, s, id, false)
		}
		err := s.Reserve(t.Context(), id, &c.n)
		if (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "below its minimum value of [100].") {
			t.Errorf("step %d: %v", i, err)
		}
	}
	if _, free, err := s.Concurrency(t.Context(), testID.Account); free != 100 || err != nil {
		t.Errorf("%d unreserved, %v", free, err)
	}
	if err := s.Reserve(t.Context(), ID{testID.Account, "a"}, nil); err != nil {
		t.Fatal(err)
	}
	if _, free, _ := s.Concurrency(t.Context(), testID.Account); free != 600 {
		t.Errorf("%d unreserved", free)
	}
}

// No verb prints a function's variables.
func TestVariablesAreHidden(t *testing.T) {
	s, _ := newMemory()
	f := create(t, s, testID, false)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		for _, v := range []any{*f, f, f.Latest, f.Latest.Env, &f.Latest} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "hush") || strings.Contains(text, "SECRET") {
				t.Errorf("%s of %T: %s", verb, v, text)
			}
		}
	}
}

// What would not fit is refused, and what is damaged is not taken for what it is not.
func TestLimits(t *testing.T) {
	s, m := newMemory()
	create(t, s, testID, true)
	settle(t, s, testID, built)
	_, err := s.Update(t.Context(), testID, func(f *Function) error {
		f.Tags = map[string]string{"k": strings.Repeat("v", maxRecord)}
		return nil
	})
	var e *Error
	if !errors.As(err, &e) || e.Kind != kindParameter {
		t.Errorf("a record too long: %v", err)
	}
	if _, err := s.Update(t.Context(), testID, func(f *Function) error {
		for n := len(f.Versions); n < maxVersions; n++ {
			f.Versions[fmt.Sprint("1", n)] = "none"
		}
		f.PublishedAs = ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Publish(t.Context(), testID, "", noCheck); !errors.As(err, &e) || e.Kind != kindStorage {
		t.Errorf("too many versions: %v", err)
	}
	m.mu.Lock()
	m.set(functionKey(testID), []byte(`{"Latest": "hush`))
	m.mu.Unlock()
	if _, err := s.Get(t.Context(), testID); err == nil || !strings.Contains(err.Error(), "damaged") || strings.Contains(err.Error(), "hush") {
		t.Errorf("a damaged record: %v", err)
	}
}

func TestPick(t *testing.T) {
	f := &Function{ID: testID, Aliases: map[string]Alias{"live": {Version: "1", Second: "2", Weight: 0.25}, "one": {Version: "1"}}}
	for _, c := range []struct {
		qualifier string
		random    float64
		want      string
	}{{"", 0, Latest}, {Latest, 0, Latest}, {"7", 0, "7"}, {"live", 0, "2"}, {"live", 0.2499, "2"}, {"live", 0.25, "1"}, {"live", 0.99, "1"}, {"one", 0, "1"}} {
		if got, err := f.Qualified(c.qualifier, c.random); got != c.want || err != nil {
			t.Errorf("%q at %v: %s, %v", c.qualifier, c.random, got, err)
		}
	}
	if _, err := f.Qualified("none", 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("no alias: %v", err)
	}
}
