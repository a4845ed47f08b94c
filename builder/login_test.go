package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"thaw/keys"
)

func newLogins(t *testing.T) *Logins {
	t.Helper()
	f := newFleet(t)
	o, closeAll, err := connect(t.Context(), f.url, f.ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closeAll)
	dir := t.TempDir()
	return NewLogins(o.Records, func(ctx context.Context, account string) (keys.Keeper, error) {
		if account == "lost" {
			return nil, errors.New("no such key")
		}
		return keys.Open(ctx, "file://"+dir+"/"+account)
	})
}

func TestLogins(t *testing.T) {
	l, ctx := newLogins(t), t.Context()
	long := strings.Repeat("t", 5000) // as some clouds' tokens are
	for _, c := range [][4]string{
		{"1", "registry.test:5000", "me", "secret"}, {"2", "registry.test:5000", "you", long}, {"1", "Docker.test", "it", "old"}, {"1", "docker.test", "it", "new"},
	} {
		if err := l.Set(ctx, c[0], c[1], c[2], c[3]); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range [][4]string{
		{"1", "registry.test:5000", "me", "secret"}, {"2", "registry.test:5000", "you", long}, {"1", "docker.test", "it", "new"}, {"2", "docker.test", "", ""},
	} {
		if user, password, err := l.Get(ctx, c[0], c[1]); err != nil || user != c[2] || password != c[3] {
			t.Errorf("%s of %s: %s, %v", c[1], c[0], user, err)
		}
	}
	if list, err := l.List(ctx, "1"); err != nil || fmt.Sprint(list) != "[docker.test registry.test:5000]" {
		t.Errorf("%v, %v", list, err)
	}
	for range 2 {
		if err := l.Remove(ctx, "1", "docker.test"); err != nil {
			t.Error(err)
		}
	}
	if user, _, err := l.Get(ctx, "1", "docker.test"); user != "" || err != nil {
		t.Errorf("%s, %v", user, err)
	}
	for _, c := range [][4]string{
		{"1", "", "u", "p"}, {"1", "https://registry.test", "u", "p"}, {"1", "a/b", "u", "p"}, {"1", "registry.test", "", "p"}, {"1", "registry.test", "u", ""},
		{"1", "registry.test", "u", strings.Repeat("p", maxPassword+1)}, {"lost", "registry.test", "u", "p"},
	} {
		if err := l.Set(ctx, c[0], c[1], c[2], c[3]); err == nil || strings.Contains(err.Error(), "pppp") {
			t.Errorf("%q: %v", c[:3], err)
		}
	}
}

// TestLoginsAreSealed looks for the password in what is stored, and moves a
// record to other places.
func TestLoginsAreSealed(t *testing.T) {
	l, ctx := newLogins(t), t.Context()
	if err := l.Set(ctx, "1", "registry.test", "me", "a very secret word"); err != nil {
		t.Fatal(err)
	}
	r, err := l.records.Get(ctx, "1/registry.test")
	if err != nil || strings.Contains(string(r.Value), "secret") {
		t.Fatalf("%s, %v", r.Value, err)
	}
	for _, place := range []string{"2/registry.test", "1/other.test"} {
		if _, err := l.records.Create(ctx, place, r.Value); err != nil {
			t.Fatal(err)
		}
		account, registry, _ := strings.Cut(place, "/")
		if _, password, err := l.Get(ctx, account, registry); !errors.Is(err, keys.ErrRefused) || password != "" {
			t.Errorf("%s: %v", place, err)
		}
	}
	var changed login
	if err := json.Unmarshal(r.Value, &changed); err != nil {
		t.Fatal(err)
	}
	changed.User = "you"
	value, err := json.Marshal(changed)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range [][]byte{value, []byte("{")} {
		old, err := l.records.Get(ctx, "1/registry.test")
		if err == nil {
			_, err = l.records.Update(ctx, old.Key, v, old.Revision)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := l.Get(ctx, "1", "registry.test"); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("got %v", err)
		}
	}
}
