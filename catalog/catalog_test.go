package catalog

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/internal/faults"
	"thaw/origin"
)

// keeper is AES-256-GCM under a key of its own, as package keys' file driver.
type keeper struct {
	gcm   cipher.AEAD
	fails *faults.Calls // of Wrap and Unwrap
}

var errRefused = errors.New("not this key")

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{gcm, &faults.Calls{}}
}

func (k *keeper) Wrap(_ context.Context, plain []byte) ([]byte, error) {
	return k.gcm.Seal(nil, nil, plain, nil), k.fails.Next()
}

func (k *keeper) Unwrap(_ context.Context, wrapped []byte) ([]byte, error) {
	if err := k.fails.Next(); err != nil {
		return nil, err
	}
	plain, err := k.gcm.Open(nil, nil, wrapped, nil)
	if err != nil {
		return nil, errRefused
	}
	return plain, nil
}

func memory(t *testing.T) *origin.Origin { return at(t, "mem://") }

func at(t *testing.T, url string) *origin.Origin {
	t.Helper()
	o, err := origin.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = o.Close() })
	return o
}

// each runs a test on every kind of origin that needs no server.
func each(t *testing.T, f func(t *testing.T, o *origin.Origin)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) { f(t, memory(t)) })
	t.Run("folder", func(t *testing.T) { f(t, at(t, "file://"+t.TempDir())) })
}

// id gives an image id that starts with the digits.
func id(start string) string { return start + strings.Repeat("0", 64-len(start)) }

func mustSet(t *testing.T, c *Catalog, name, image string) Reference {
	t.Helper()
	ref, err := c.Set(t.Context(), name, image, "r1")
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestSetGetRemove(t *testing.T) {
	each(t, func(t *testing.T, o *origin.Origin) {
		c, ctx := New(o, "tenant", newKeeper(t)), t.Context()
		names := []string{"debian:12", "host:5000/a/b@sha256:" + id("ab"), "A", "x/../y", strings.Repeat("n/", 127) + "n"}
		for i, name := range names {
			if _, err := c.Get(ctx, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get before Set: %v", err)
			}
			if err := c.Remove(ctx, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("Remove before Set: %v", err)
			}
			for seq := range uint64(3) {
				set := mustSet(t, c, name, id(fmt.Sprintf("%d%d", i, seq)))
				got, err := c.Get(ctx, name)
				want := Reference{name, id(fmt.Sprintf("%d%d", i, seq)), "r1", seq + 1, set.Time}
				if err != nil || got != want || got != set || time.Since(got.Time).Abs() > time.Hour {
					t.Errorf("Get: %+v, %v; want %+v", got, err, want)
				}
			}
		}
		checkNames(t, c, names...)
		for _, name := range names[1:] {
			if err := c.Remove(ctx, name); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Get(ctx, name); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get after Remove: %v", err)
			}
		}
		checkNames(t, c, names[0])
		if ref := mustSet(t, c, "A", id("1")); ref.Seq != 5 {
			t.Errorf("set again as number %d: the removal's number was lost", ref.Seq)
		}
	})
}

func checkNames(t *testing.T, c *Catalog, want ...string) {
	t.Helper()
	refs, err := c.List(t.Context())
	if err != nil {
		t.Error(err)
	}
	var got []string
	for _, r := range refs {
		got = append(got, r.Name)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
}

func TestSetAtOnce(t *testing.T) {
	each(t, func(t *testing.T, o *origin.Origin) {
		const writers = 20
		c := New(o, "tenant", newKeeper(t))
		var mu sync.Mutex // guards got
		got := map[uint64]Reference{}
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				ref, err := c.Set(t.Context(), "n", id(fmt.Sprintf("%02d", i)), "r1")
				mu.Lock()
				defer mu.Unlock()
				if _, twice := got[ref.Seq]; err != nil || twice {
					t.Errorf("Set: %+v, %v", ref, err)
				}
				got[ref.Seq] = ref
			})
		}
		wg.Wait()
		last, err := c.Get(t.Context(), "n")
		if err != nil || last != got[last.Seq] || last.Seq < writers || len(got) != writers {
			t.Errorf("Get: %+v, %v; %d numbers", last, err, len(got))
		}
	})
}

// TestRemoveRacesSet: both may win, and what is read is one of the two.
func TestRemoveRacesSet(t *testing.T) {
	each(t, func(t *testing.T, o *origin.Origin) {
		c := New(o, "tenant", newKeeper(t))
		for range 20 {
			mustSet(t, c, "n", id("aa"))
			var set Reference
			var wg sync.WaitGroup
			wg.Go(func() { set = mustSet(t, c, "n", id("bb")) })
			wg.Go(func() {
				if err := c.Remove(t.Context(), "n"); err != nil {
					t.Errorf("Remove: %v", err)
				}
			})
			wg.Wait()
			got, err := c.Get(t.Context(), "n")
			if !errors.Is(err, ErrNotFound) && (err != nil || got != set) {
				t.Errorf("Get: %+v, %v", got, err)
			}
		}
	})
}

// latest gives the newest record of a name, to be changed by a test.
func latest(t *testing.T, o *origin.Origin, key string) []byte {
	t.Helper()
	data, _, err := o.Latest(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// plant makes data the newest record of a key, as a stranger would who can
// write to the origin.
func plant(t *testing.T, o *origin.Origin, key string, data []byte) {
	t.Helper()
	if _, err := o.PutNext(t.Context(), key, func(uint64) ([]byte, error) { return data, nil }); err != nil {
		t.Fatal(err)
	}
}

// TestTampering changes every field of a record, and moves whole ones.
func TestTampering(t *testing.T) {
	edit := func(f func(r *record)) func(data []byte) []byte {
		return func(data []byte) []byte {
			var r record
			if err := json.Unmarshal(data, &r); err != nil {
				t.Fatal(err)
			}
			f(&r)
			changed, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			return changed
		}
	}
	replace := func(old, with string) func([]byte) []byte {
		return func(data []byte) []byte { return bytes.Replace(data, []byte(old), []byte(with), 1) }
	}
	cases := map[string]struct {
		change func(data []byte) []byte
		want   error
	}{
		"another number": {func(data []byte) []byte { return data }, ErrCorrupt},
		"image":          {edit(func(r *record) { r.Image = id("b") }), ErrCorrupt},
		"root":           {edit(func(r *record) { r.Root = "r2" }), ErrCorrupt},
		"removed":        {edit(func(r *record) { r.Removed = true }), ErrCorrupt},
		"time":           {edit(func(r *record) { r.Time = "2001-01-01T00:00:00Z" }), ErrCorrupt},
		"version":        {edit(func(r *record) { r.Version = 2 }), ErrCorrupt},
		"seal":           {edit(func(r *record) { r.Seal[20] ^= 1 }), errRefused},
		"no seal":        {edit(func(r *record) { r.Seal = nil }), errRefused},
		"empty":          {func([]byte) []byte { return nil }, ErrCorrupt},
		"cut":            {func(data []byte) []byte { return data[:len(data)-1] }, ErrCorrupt},
		"more after it":  {func(data []byte) []byte { return append(data, '\n') }, ErrCorrupt},
		"a field more":   {replace(`{"version"`, `{"more":1,"version"`), ErrCorrupt},
		"a field twice":  {replace(`"root"`, `"root":"r1","root"`), ErrCorrupt},
		"a field's case": {replace(`"root"`, `"Root"`), ErrCorrupt},
		"no JSON":        {func([]byte) []byte { return []byte("debian") }, ErrCorrupt},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			o, ctx := memory(t), t.Context()
			cat := New(o, "tenant", newKeeper(t))
			mustSet(t, cat, "good", id("c"))
			mustSet(t, cat, "a/b", id("a"))
			plant(t, o, "names/tenant/a!b", c.change(latest(t, o, "names/tenant/a!b")))
			_, err := cat.Get(ctx, "a/b")
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), "record 2 of name a/b") {
				t.Errorf("Get: %v", err)
			}
			if _, err := cat.Resolve(ctx, "a/b"); !errors.Is(err, c.want) {
				t.Errorf("Resolve: %v", err)
			}
			refs, err := cat.List(ctx)
			if !errors.Is(err, c.want) || len(refs) != 1 || refs[0].Name != "good" {
				t.Errorf("List: %+v, %v", refs, err)
			}
			// The owner can go on: set it anew, or remove what is corrupt.
			if err := cat.Remove(ctx, "a/b"); errors.Is(c.want, ErrCorrupt) && err != nil {
				t.Errorf("Remove: %v", err)
			}
			if ref := mustSet(t, cat, "a/b", id("d")); ref.Seq < 3 {
				t.Errorf("Set: %+v", ref)
			}
			if _, err := cat.Get(ctx, "a/b"); err != nil {
				t.Errorf("Get after Set: %v", err)
			}
		})
	}
}

// TestTransplants puts good records in other places.
func TestTransplants(t *testing.T) {
	o, k := memory(t), newKeeper(t)
	a := New(o, "a", k)
	mustSet(t, a, "n", id("a"))
	good := latest(t, o, "names/a/n")
	plant(t, o, "names/a/other", good)
	plant(t, o, "names/b/n", good)
	for _, c := range []struct {
		cat  *Catalog
		name string
		want error
	}{
		{a, "other", ErrCorrupt},
		{New(o, "b", k), "n", ErrCorrupt},                 // one key for both tenants
		{New(o, "b", newKeeper(t)), "n", errRefused},      // a key of its own
		{New(o, "a", newKeeper(t)), "n", errRefused},      // the right place, the wrong key
		{New(o, "a", k), "missing", ErrNotFound},          // and nothing at all
		{New(o, "../a", k), "n", nil}, {a, "../a/n", nil}, // not names
	} {
		_, err := c.cat.Get(t.Context(), c.name)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s of %s: %v, want %v", c.name, c.cat.tenant, err, c.want)
		}
	}
}

func TestKeeperFails(t *testing.T) {
	k := newKeeper(t)
	c := New(memory(t), "tenant", k)
	mustSet(t, c, "n", id("a"))
	k.fails = &faults.Calls{From: 1, To: 2}
	if _, err := c.Get(t.Context(), "n"); !errors.Is(err, faults.ErrInjected) || errors.Is(err, ErrCorrupt) {
		t.Errorf("Get: %v", err)
	}
	if _, err := c.Set(t.Context(), "n", id("b"), "r1"); !errors.Is(err, faults.ErrInjected) {
		t.Errorf("Set: %v", err)
	}
	if ref, err := c.Get(t.Context(), "n"); err != nil || ref.Image != id("a") || ref.Seq != 1 {
		t.Errorf("Get: %+v, %v", ref, err)
	}
}

func TestNamesThatAreNone(t *testing.T) {
	c := New(memory(t), "tenant", newKeeper(t))
	for _, name := range []string{"", ".", "/a", "a b", "a!b", "a\x00", "-x", "ä", "a%2F", strings.Repeat("a", 256)} {
		_, err := c.Set(t.Context(), name, id("a"), "r1")
		_, gerr := c.Get(t.Context(), name)
		_, rerr := c.Resolve(t.Context(), name)
		for _, err := range []error{err, gerr, rerr, c.Remove(t.Context(), name), Check(name)} {
			if err == nil || errors.Is(err, ErrNotFound) {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	for _, image := range []string{"", "ab", strings.ToUpper(id("a")), id("a") + "0"} {
		if _, err := c.Set(t.Context(), "n", image, "r1"); err == nil {
			t.Errorf("%q is an image", image)
		}
	}
	if _, err := c.Set(t.Context(), "n", id("a"), ""); err == nil {
		t.Error("no root is a root")
	}
	if _, err := New(memory(t), "Tenant", newKeeper(t)).List(t.Context()); err == nil {
		t.Error("Tenant is a tenant")
	}
}

func TestResolve(t *testing.T) {
	each(t, func(t *testing.T, o *origin.Origin) {
		ctx := t.Context()
		c := New(o, "tenant", newKeeper(t))
		if _, err := o.Active(ctx); err != nil {
			t.Fatal(err)
		}
		if err := o.SetRoot(ctx, origin.Root{Name: "r2", State: origin.Active}); err != nil {
			t.Fatal(err)
		}
		for _, m := range []struct{ root, tenant, image string }{
			{"r1", "tenant", id("abcd01")}, {"r1", "tenant", id("abcd02")}, {"r1", "tenant", id("ef00")},
			{"r2", "tenant", id("ef00")}, {"r2", "tenant", id("1234")}, {"r1", "other", id("9999")}, {"r1", "tenant", "77777-no-id"},
		} {
			if _, err := o.Manifests(m.root, m.tenant).Put(ctx, m.image, nil); err != nil {
				t.Fatal(err)
			}
		}
		mustSet(t, c, "debian:12", id("abcd01"))
		mustSet(t, c, "1234", id("abcd02")) // looks like an id
		for what, want := range map[string]struct {
			image, root, name string
			err               error
		}{
			"debian:12":  {id("abcd01"), "r1", "debian:12", nil},
			id("abcd01"): {id("abcd01"), "r1", "", nil},
			"abcd01":     {id("abcd01"), "r1", "", nil},
			"abcd":       {err: ErrAmbiguous},
			"abc":        {err: ErrNotFound}, // too short to be a prefix
			"1234":       {id("abcd02"), "r1", "1234", nil},
			"12340":      {id("1234"), "r2", "", nil},
			"ef00":       {id("ef00"), "r2", "", nil}, // in both roots
			"9999":       {err: ErrNotFound},          // another tenant's
			"77777":      {err: ErrNotFound},
			id("5"):      {err: ErrNotFound},
			"fedora":     {err: ErrNotFound},
		} {
			got, err := c.Resolve(ctx, what)
			if !errors.Is(err, want.err) || got.Image != want.image || got.Root != want.root || got.Name != want.name {
				t.Errorf("%s: %+v, %v; want %+v", what, got, err, want)
			}
			if err != nil && !strings.Contains(err.Error(), what) {
				t.Errorf("%s is not in %q", what, err)
			}
		}
	})
}

// FuzzRecord feeds records to the reader: none may pass that was not sealed
// here, and none may do worse than fail.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"image":"` + id("a") + `","root":"r1","removed":false,"time":"2026-01-02T03:04:05Z","seal":"AAAA"}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := New(nil, "t", newKeeper(t))
		if r, err := c.open(t.Context(), place{"t", "n", 1}, data); err == nil {
			t.Errorf("%q passed as %+v", data, r)
		}
	})
}

// A forgotten name leaves nothing in the origin, also if it has meant nothing, or
// nobody can read it.
func TestForget(t *testing.T) {
	o, ctx := memory(t), t.Context()
	c := New(o, "acme", newKeeper(t))
	id := strings.Repeat("a", 64)
	for _, name := range []string{"f/x:1", "f/x:2", "f/x:3"} {
		if _, err := c.Set(ctx, name, id, "r1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Remove(ctx, "f/x:2"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.PutNext(ctx, "names/acme/f!x:3", func(uint64) ([]byte, error) { return []byte("{"), nil }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f/x:1", "f/x:2", "f/x:3", "f/x:4", "f/x:1"} {
		if err := c.Forget(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range o.Children(ctx, "names/acme") {
		t.Errorf("%s is left, %v", name, err)
	}
	if err := c.Forget(ctx, " "); err == nil {
		t.Error("a name that is none")
	}
}
