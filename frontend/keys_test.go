package frontend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"thaw/invokewire"
	"thaw/sigv4"
)

func TestKeys(t *testing.T) {
	d := newDoor(t)
	ctx, s := t.Context(), d.options.Keys
	k := must(s.Create(ctx, testAccount, "laptop"))
	if len(k.ID) != 20 || len(k.Secret) != 40 || k.Account != testAccount {
		t.Errorf("key %s of %d and %d characters", k.Account, len(k.ID), len(k.Secret))
	}
	if text := fmt.Sprintf("%v %+v %s %#v", k, k, k, k); strings.Contains(text, k.Secret) {
		t.Errorf("the secret is printed: %s", text)
	}
	if got := must(s.Lookup(ctx, k.ID)); got.Secret != k.Secret || got.Note != "laptop" {
		t.Error("looked up: another key")
	}
	if _, err := s.find(ctx, k.ID); err != nil {
		t.Errorf("find: %v", err)
	}
	must(s.Create(ctx, "111111111111", ""))
	for account, want := range map[string]int{"": 3, testAccount: 2, "111111111111": 1, "222222222222": 0} {
		list := must(s.List(ctx, account))
		if len(list) != want {
			t.Errorf("%q has %d keys, want %d", account, len(list), want)
		}
		for _, k := range list {
			if k.Secret != "" {
				t.Error("a secret is listed")
			}
		}
	}
	// Revoked by another process, it is refused here.
	d.until("the key is known", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.known[k.ID].Secret != "" })
	if err := NewKeyStore(s.records).Revoke(ctx, k.ID); err != nil {
		t.Fatal(err)
	}
	d.until("the key is refused", func() bool { _, err := s.find(ctx, k.ID); return errors.Is(err, sigv4.ErrUnknownKey) })
	if err := s.Revoke(ctx, k.ID); !errors.Is(err, ErrNoKey) {
		t.Errorf("revoked twice: %v", err)
	}
	if _, err := s.Lookup(ctx, k.ID); !errors.Is(err, ErrNoKey) {
		t.Errorf("looked up: %v", err)
	}
	for _, account := range []string{"", "1", "00000000000x"} {
		if _, err := s.Create(ctx, account, ""); err == nil {
			t.Errorf("account %q was taken", account)
		}
	}
	if _, err := s.Create(ctx, testAccount, strings.Repeat("x", 257)); err == nil {
		t.Error("a long note was taken")
	}
}

func TestDamagedKey(t *testing.T) {
	d := newDoor(t)
	if _, err := d.options.Keys.records.Create(t.Context(), keyPrefix+"AKIA0000000000000000", []byte(`{"Secret":"hush"}`)); err != nil {
		t.Fatal(err)
	}
	_, err := d.options.Keys.find(t.Context(), "AKIA0000000000000000")
	if err == nil || errors.Is(err, sigv4.ErrUnknownKey) || strings.Contains(err.Error(), "hush") {
		t.Errorf("got %v", err)
	}
}

func FuzzSessionToken(f *testing.F) {
	s := newSessions(testToken)
	k := s.issue(testAccount, time.Unix(2e9, 0))
	f.Add(k.ID, k.Token)
	f.Add("", ".")
	f.Add("ASIA", "MSAw.MA")
	f.Fuzz(func(t *testing.T, id, token string) {
		got, err := s.find(id, token)
		if err == nil && (id != k.ID || token != k.Token || got.Account != testAccount || got.Secret != k.Secret) {
			t.Errorf("%q %q was taken", id, token)
		}
	})
}

// Each instance gets keys of its own, good for longer than it lives.
func TestSessionsDiffer(t *testing.T) {
	s := newSessions(testToken)
	end := time.Now().Add(defaultSession).Truncate(time.Second)
	a, b := s.issue(testAccount, end), s.issue(testAccount, end)
	if a.ID == b.ID || a.Secret == b.Secret || a.Token == b.Token {
		t.Error("two are alike")
	}
	got, err := s.find(a.ID, a.Token)
	if err != nil || !got.Expires.Equal(end) || got.Account != testAccount || got.Token != a.Token {
		t.Errorf("got %v of %s, %v", got.Expires, got.Account, err)
	}
	if text := fmt.Sprint(invokewire.Spec{Keys: a}); strings.Contains(text, a.Secret) {
		t.Error("a spec prints its keys")
	}
}

// Keys that cannot be read are no reason to say that there are none.
func TestKeysUnavailable(t *testing.T) {
	d := newDoor(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.options.Keys.find(ctx, "AKIA0000000000000000"); err == nil || errors.Is(err, sigv4.ErrUnknownKey) {
		t.Errorf("got %v", err)
	}
}
