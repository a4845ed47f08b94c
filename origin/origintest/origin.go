package origintest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
	"thaw/origin"
)

// originSuite holds an Origin on the driver to its contract.
var originSuite = []check{
	{"objects", testTenants},
	{"chunk lists", testChunkLists},
	{"repair", testRepair},
	{"records one after another", testRecordsInTurn},
	{"records at once", testRecordsAtOnce},
	{"fresh", testFresh},
}

// planter damages chunks for the suite of package chunk.
type planter struct {
	*origin.Chunks
	b origin.Bucket
}

// Plant puts bytes under a chunk's name.
func (p planter) Plant(ctx context.Context, name chunk.Name, data []byte) error {
	s := name.String()
	return p.b.Replace(ctx, "roots/r1/chunks/"+s[:2]+"/"+s, data)
}

func testTenants(t *testing.T, b origin.Bucket) {
	o := on(t, b)
	testObjects(t, o.Manifests("r1", "a"), o.Manifests("r1", "ab"), o.Recipes("r1", "a"), o.Manifests("r2", "a"))
	var tenants []string
	for tenant, err := range o.Tenants(t.Context(), "r1") {
		if err != nil {
			t.Error(err)
		}
		tenants = append(tenants, tenant)
	}
	if !slices.Equal(tenants, []string{"a"}) {
		t.Errorf("tenants %q", tenants)
	}
}

// testObjects works on m; nothing of it may show in the others.
func testObjects(t *testing.T, m *origin.Objects, others ...*origin.Objects) {
	ctx := t.Context()
	for _, name := range []string{"abcd", "abce", "ffff", "sha256:01.v1"} {
		for i, want := range []bool{true, false} {
			added, err := m.Put(ctx, name, []byte(name))
			if added != want || err != nil {
				t.Fatalf("Put %d of %s: %v, %v", i+1, name, added, err)
			}
		}
	}
	if err := m.Replace(ctx, "ffff", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if data, err := m.Get(ctx, "ffff"); err != nil || string(data) != "new" {
		t.Errorf("Get: %q, %v", data, err)
	}
	if info, err := m.Stat(ctx, "abcd"); err != nil || info.Size != 4 || info.Name != "abcd" || info.Time.IsZero() {
		t.Errorf("Stat: %+v, %v", info, err)
	}
	checkNames(t, m, "abc", "abcd", "abce")
	if err := m.Remove(ctx, "abcd"); err != nil {
		t.Fatal(err)
	}
	checkNames(t, m, "", "abce", "ffff", "sha256:01.v1")
	for _, gone := range append(others, m) {
		if _, err := gone.Get(ctx, "abcd"); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("Get: %v", err)
		}
		if _, err := gone.Stat(ctx, "abcd"); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("Stat: %v", err)
		}
		if err := gone.Remove(ctx, "abcd"); !errors.Is(err, origin.ErrNotFound) {
			t.Errorf("Remove: %v", err)
		}
	}
	for _, o := range others {
		checkNames(t, o, "")
	}
}

func checkNames(t *testing.T, m *origin.Objects, prefix string, want ...string) {
	t.Helper()
	var got []string
	for info, err := range m.List(t.Context(), prefix) {
		if err != nil {
			t.Error(err)
		}
		got = append(got, info.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("names from %q: %q, want %q", prefix, got, want)
	}
}

func testChunkLists(t *testing.T, b origin.Bucket) {
	chunks := on(t, b).Chunks("r1")
	var want []string
	for i := range 20 {
		plain := binary.BigEndian.AppendUint64(nil, uint64(i)|1<<63)
		c := chunk.Seal(chunk.Salt{}, append(plain, make([]byte, chunk.MinSize-len(plain))...))
		if _, err := chunks.Put(t.Context(), c.Name, c.Data); err != nil {
			t.Fatal(err)
		}
		want = append(want, c.Name.String())
	}
	slices.Sort(want)
	var got []string
	for info, err := range chunks.List(t.Context()) {
		if err != nil || info.Size != chunk.MinSize {
			t.Errorf("%+v, %v", info, err)
		}
		got = append(got, info.Name)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d names, want %d in order", len(got), len(want))
	}
}

func testRepair(t *testing.T, b origin.Bucket) {
	chunks, c := on(t, b).Chunks("r1"), chunktest.Sample(1, chunk.MinSize)
	bad := bytes.Clone(c.Data)
	bad[7] ^= 1
	if _, err := chunks.Put(t.Context(), c.Name, bad); err != nil {
		t.Fatal(err)
	}
	if added, err := chunks.Put(t.Context(), c.Name, c.Data); added || err != nil {
		t.Fatalf("Put does not compare bytes of one length: %v, %v", added, err)
	}
	if err := chunks.Repair(t.Context(), c.Name, c.Data); err != nil {
		t.Fatal(err)
	}
	got, err := chunks.Get(t.Context(), c.Name)
	if err == nil {
		err = chunk.Check(got, c.Name)
	}
	if err != nil {
		t.Error(err)
	}
}

func numbered(seq uint64) ([]byte, error) { return fmt.Appendf(nil, "record %d", seq), nil }

func testRecordsInTurn(t *testing.T, b origin.Bucket) {
	ctx, o := t.Context(), on(t, b)
	if _, _, err := o.Latest(ctx, "names/t/n"); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("Latest of none: %v", err)
	}
	for want := uint64(1); want <= 7; want++ {
		seq, err := o.PutNext(ctx, "names/t/n", numbered)
		if err != nil || seq != want {
			t.Fatalf("PutNext: %d, %v; want %d", seq, err, want)
		}
		data, seq, err := o.Latest(ctx, "names/t/n")
		if err != nil || seq != want || string(data) != fmt.Sprintf("record %d", want) {
			t.Errorf("Latest: %q, %d, %v", data, seq, err)
		}
	}
	left := slices.Collect(maps.Keys(maps.Collect(b.List(ctx, "names/t/n/", true))))
	if len(left) != 4 {
		t.Errorf("%v are left", left)
	}
	if _, _, err := o.Latest(ctx, "names/t/other"); !errors.Is(err, origin.ErrNotFound) {
		t.Errorf("Latest of another: %v", err)
	}
}

// testRecordsAtOnce has 20 writers and a reader: every writer gets a number of
// its own, and Latest never goes back or fails.
func testRecordsAtOnce(t *testing.T, b origin.Bucket) {
	o := on(t, b)
	if _, err := o.Active(t.Context()); err != nil { // or a folder is taken for one that is not mounted
		t.Fatal(err)
	}
	const writers = 20
	ctx, stop := context.WithCancel(t.Context())
	var reader sync.WaitGroup
	reader.Go(func() {
		last := uint64(0)
		for ctx.Err() == nil {
			_, seq, err := o.Latest(t.Context(), "names/t/n")
			if err != nil && !errors.Is(err, origin.ErrNotFound) || seq < last {
				t.Errorf("Latest: %d after %d, %v", seq, last, err)
			}
			last = seq
		}
	})
	var mu sync.Mutex // guards got
	got := map[uint64]bool{}
	each(writers, func(int) {
		seq, err := o.PutNext(t.Context(), "names/t/n", numbered)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || got[seq] {
			t.Errorf("PutNext: %d, %v", seq, err)
		}
		got[seq] = true
	})
	stop()
	reader.Wait()
	data, seq, err := o.Latest(t.Context(), "names/t/n")
	if err != nil || !got[seq] || seq < writers || string(data) != fmt.Sprintf("record %d", seq) {
		t.Errorf("Latest: %q, %d, %v", data, seq, err)
	}
	if len(got) != writers {
		t.Errorf("%d numbers for %d writers", len(got), writers)
	}
}

func testFresh(t *testing.T, b origin.Bucket) {
	o := on(t, b)
	if roots, err := o.Roots(t.Context()); err != nil || len(roots) != 0 {
		t.Fatalf("roots %v, %v", roots, err)
	}
	each(8, func(int) {
		r, err := o.Active(t.Context())
		if want := (origin.Root{Name: "r1", State: origin.Active}); err != nil || r != want {
			t.Errorf("%+v, %v; want %+v", r, err, want)
		}
	})
	if roots, err := o.Roots(t.Context()); err != nil || len(roots) != 1 {
		t.Errorf("roots %v, %v", roots, err)
	}
}
