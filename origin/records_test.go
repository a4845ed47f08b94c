package origin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
)

func text(s string) func(uint64) ([]byte, error) {
	return func(uint64) ([]byte, error) { return []byte(s), nil }
}

func numbered(seq uint64) ([]byte, error) { return fmt.Appendf(nil, "record %d", seq), nil }

// hooked is a bucket whose listings or puts meet something on the way.
type hooked struct {
	Bucket
	listed  func()                 // after a listing
	creates func(key string) error // before a put
}

func hook(h *hooked) Bucket { return Bucket{h, h} }

func (h *hooked) List(ctx context.Context, prefix string, shallow bool) iter.Seq2[Entry, error] {
	all := slices.Collect(func(yield func(Entry) bool) {
		for e, err := range h.Bucket.List(ctx, prefix, shallow) {
			if err != nil || !yield(e) {
				return
			}
		}
	})
	if h.listed != nil {
		h.listed()
	}
	return func(yield func(Entry, error) bool) {
		for _, e := range all {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (h *hooked) Create(ctx context.Context, key string, data []byte) (bool, error) {
	if h.creates != nil {
		if err := h.creates(key); err != nil {
			return false, err
		}
	}
	return h.Bucket.Create(ctx, key, data)
}

// TestPutNextAfterAStall: between a writer's listing and its put, others write
// so many records that the next number was used and removed again. The writer
// must not end with a number that somebody else got.
func TestPutNextAfterAStall(t *testing.T) {
	o := open(t, "mem://")
	if _, err := o.PutNext(t.Context(), "k", numbered); err != nil {
		t.Fatal(err)
	}
	plain := &Origin{bucket: o.bucket, slots: o.slots}
	used := map[uint64]bool{}
	var once sync.Once
	o.bucket = hook(&hooked{Bucket: o.bucket, listed: func() {
		once.Do(func() {
			for range 9 {
				seq, err := plain.PutNext(t.Context(), "k", numbered)
				if err != nil {
					t.Error(err)
				}
				used[seq] = true
			}
		})
	}})
	seq, err := o.PutNext(t.Context(), "k", numbered)
	if err != nil || used[seq] || seq != 11 {
		t.Errorf("got %d, %v; others got %v", seq, err, used)
	}
	if data, seq, err := o.Latest(t.Context(), "k"); err != nil || seq != 11 || string(data) != "record 11" {
		t.Errorf("Latest: %q, %d, %v", data, seq, err)
	}
}

// TestLatestWhilePruned: the record that a reader has just seen as the highest
// is pruned before it gets it.
func TestLatestWhilePruned(t *testing.T) {
	o := open(t, "mem://")
	plain := &Origin{bucket: o.bucket, slots: o.slots}
	times := 3
	o.bucket = hook(&hooked{Bucket: o.bucket, listed: func() {
		if times--; times < 0 {
			return
		}
		for range keepRecords {
			if _, err := plain.PutNext(t.Context(), "k", numbered); err != nil {
				t.Error(err)
			}
		}
	}})
	if _, err := plain.PutNext(t.Context(), "k", numbered); err != nil {
		t.Fatal(err)
	}
	if data, seq, err := o.Latest(t.Context(), "k"); err != nil || string(data) != fmt.Sprintf("record %d", seq) || seq != 13 {
		t.Errorf("%q, %d, %v", data, seq, err)
	}
}

func TestPutNextGivesUp(t *testing.T) {
	o := open(t, "mem://")
	inner := o.bucket
	o.bucket = hook(&hooked{Bucket: inner, creates: func(key string) error {
		_, err := inner.Create(t.Context(), key, nil) // always faster
		return err
	}})
	if _, err := o.PutNext(t.Context(), "k", numbered); !errors.Is(err, ErrConflict) {
		t.Errorf("%v", err)
	}
}

func TestPutNextAtTheEnd(t *testing.T) {
	o := open(t, "mem://")
	mustCreate(t, o.bucket, recordKey("k", math.MaxUint64), []byte("last"))
	if _, err := o.PutNext(t.Context(), "k", numbered); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if _, seq, err := o.Latest(t.Context(), "k"); err != nil || seq != math.MaxUint64 {
		t.Errorf("%d, %v", seq, err)
	}
}

func TestRecordsPassOverOthers(t *testing.T) {
	o := open(t, "mem://")
	for _, key := range []string{"k/7", "k/00000000000000000000", "k/0000000000000000000x", "k/sub/00000000000000000009", "kk/00000000000000000009"} {
		mustCreate(t, o.bucket, key, []byte("not a record"))
	}
	if seq, err := o.PutNext(t.Context(), "k", numbered); err != nil || seq != 1 {
		t.Errorf("%d, %v", seq, err)
	}
	mustCreate(t, o.bucket, recordKey("long", 1), make([]byte, maxRecord+1))
	if _, _, err := o.Latest(t.Context(), "long"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a long record: %v", err)
	}
	for _, key := range []string{"", "a//b", "../x", "a/.tmp", "a/" + strings.Repeat("x", 256), "a/b c"} {
		if _, err := o.PutNext(t.Context(), key, text("x")); err == nil {
			t.Errorf("%q was taken as a key", key)
		}
		if _, _, err := o.Latest(t.Context(), key); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%q was taken as a key: %v", key, err)
		}
	}
}

func TestPutNextStopsWhenTheRecordFails(t *testing.T) {
	o, boom := open(t, "mem://"), errors.New("boom")
	_, err := o.PutNext(t.Context(), "k", func(uint64) ([]byte, error) { return nil, boom })
	if !errors.Is(err, boom) {
		t.Errorf("%v", err)
	}
	if _, _, err := o.Latest(t.Context(), "k"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestRoots(t *testing.T) {
	o := open(t, "mem://")
	set := func(name string, s State, epoch uint32) {
		t.Helper()
		if err := o.SetRoot(t.Context(), Root{Name: name, State: s, Epoch: epoch, Placement: "z", Class: "hot"}); err != nil {
			t.Fatal(err)
		}
	}
	active := func(want string) {
		t.Helper()
		r, err := o.Active(t.Context())
		if want == "" && !errors.Is(err, ErrNotFound) || want != "" && (err != nil || r.Name != want) {
			t.Errorf("active is %+v, %v; want %q", r, err, want)
		}
	}
	active("r1")
	set("r10", Active, 10)
	active("r10")
	set("r9", Active, 9)
	active("r10")
	set("r10", Retired, 10)
	active("r9")
	set("r9", Deleted, 9)
	set("r1", Expired, 0)
	active("")
	mustCreate(t, o.bucket, "roots/stray/chunks/x", nil) // has no state: no root
	roots, err := o.Roots(t.Context())
	want := []Root{{"r1", Expired, 0, "z", "hot"}, {"r9", Deleted, 9, "z", "hot"}, {"r10", Retired, 10, "z", "hot"}}
	if err != nil || !slices.Equal(roots, want) {
		t.Errorf("%+v, %v", roots, err)
	}
	for _, bad := range []Root{{Name: "r2"}, {Name: "r2", State: "aktiv"}, {Name: "../r", State: Active}, {State: Active}} {
		if err := o.SetRoot(t.Context(), bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// goodState is the one form of r1's record.
const goodState = `{"state":"active","epoch":0,"placement":"","class":""}`

var badStates = []string{
	"", "{}", "null", "[]", "active", goodState + "\n", goodState + goodState, " " + goodState,
	strings.Replace(goodState, "active", "asleep", 1),
	strings.Replace(goodState, `"epoch":0,`, "", 1),
	strings.Replace(goodState, `"epoch":0`, `"epoch":-1`, 1),
	strings.Replace(goodState, `"epoch":0`, `"epoch":4294967296`, 1),
	strings.Replace(goodState, `"epoch":0`, `"epoch":0,"epoch":1`, 1),
	strings.Replace(goodState, `"epoch"`, `"Epoch"`, 1),
	strings.Replace(goodState, `"class":""`, `"class":"","more":1`, 1),
}

func TestDamagedState(t *testing.T) {
	if _, err := decodeRoot("r1", []byte(goodState)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range badStates {
		o := open(t, "mem://")
		mustCreate(t, o.bucket, recordKey(stateKey("r1"), 1), []byte(bad))
		if _, err := o.Active(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "root r1") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzState: what decodes has one form.
func FuzzState(f *testing.F) {
	f.Add([]byte(goodState))
	for _, bad := range badStates {
		f.Add([]byte(bad))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeRoot("r1", data)
		if err != nil {
			return
		}
		if again, err := r.encode(); err != nil || string(again) != string(data) {
			t.Errorf("%q came back as %q, %v", data, again, err)
		}
	})
}

// TestForget leaves nothing of a key, and of a forgetter that is stopped the
// highest record at least.
func TestForget(t *testing.T) {
	o, err := Open(t.Context(), "mem://")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := o.PutNext(t.Context(), "names/a/b", numbered); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.Forget(t.Context(), "../b"); err == nil {
		t.Error("a key that is none")
	}
	ctx, cancel := context.WithCancel(t.Context())
	whole := o.bucket
	o.bucket = Bucket{whole, &leaver{whole, cancel}}
	if err := o.Forget(ctx, "names/a/b"); err == nil {
		t.Error("it goes on after its context has ended")
	}
	o.bucket = whole
	if data, seq, err := o.Latest(t.Context(), "names/a/b"); err != nil || seq != 3 || string(data) != "record 3" {
		t.Errorf("half forgotten: %q %d %v", data, seq, err)
	}
	for range 2 {
		if err := o.Forget(t.Context(), "names/a/b"); err != nil {
			t.Error(err)
		}
	}
	if _, _, err := o.Latest(t.Context(), "names/a/b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("forgotten: %v", err)
	}
}

// leaver ends its user after one removal.
type leaver struct {
	Writer
	leave func()
}

func (l *leaver) Remove(ctx context.Context, key string) error {
	err := l.Writer.Remove(ctx, key)
	l.leave()
	return err
}
