package frontend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"thaw/cluster"
	"thaw/invokewire"
	"thaw/keys"
	"thaw/sigv4"
)

// A key's record that an earlier build wrote is read.
func TestKeyOfOld(t *testing.T) {
	const old = `{"ID":"AKIDEXAMPLE","Account":"000000000000","Sealed":"c2VhbGVk","Note":"laptop","Created":"2023-11-14T22:13:20Z"}`
	k, err := readKey(cluster.Record{Key: "key/AKIDEXAMPLE", Value: []byte(old)})
	want := keyRecord{ID: "AKIDEXAMPLE", Account: "000000000000", Sealed: []byte("sealed"), Note: "laptop", Created: time.Unix(1_700_000_000, 0).UTC()}
	if err != nil || !reflect.DeepEqual(k, want) || string(k.bound()) != "thaw access key v1\x00000000000000\x00AKIDEXAMPLE" {
		t.Errorf("%+v bound to %q, %v", k, k.bound(), err)
	}
}

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
	d.until("the key is known", func() bool {
		_, err := s.find(ctx, k.ID)
		s.mu.RLock()
		defer s.mu.RUnlock()
		return err == nil && s.known[k.ID] != nil && s.known[k.ID].opened.Secret == k.Secret
	})
	if err := NewKeyStore(s.records, s.keeper).Revoke(ctx, k.ID); err != nil {
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

// One that is damaged is told by name, and the others are there.
func TestDamagedKey(t *testing.T) {
	d := newDoor(t)
	ctx, s := t.Context(), d.options.Keys
	told := make(chan error, 100)
	other := NewKeyStore(s.records, s.keeper)
	other.Warn = func(err error) { told <- err }
	const id = "AKIA0000000000000000"
	if _, err := s.records.Create(ctx, keyPrefix+id, []byte(`{"ID":"`+id+`","Account":"000000000000","Secret":"hush"}`)); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{second(s.find(ctx, id)), second(s.Lookup(ctx, id))} {
		if !errors.Is(err, ErrDamagedKey) || errors.Is(err, sigv4.ErrUnknownKey) || strings.Contains(err.Error(), "hush") {
			t.Errorf("got %v", err)
		}
	}
	if list := must(other.List(ctx, "")); len(list) != 1 || list[0].ID != d.key.ID {
		t.Errorf("listed %v", list)
	}
	d.running(func(ctx context.Context) error {
		if err := other.run(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
	for range 2 { // by List, and by what it follows
		if err := <-told; !strings.Contains(err.Error(), id) || strings.Contains(err.Error(), "hush") {
			t.Errorf("told: %v", err)
		}
	}
}

// holding counts the files of a folder that have a text.
func holding(t *testing.T, dir, text string) (n int) {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the server writes meanwhile, and renames
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if bytes.Contains(data, []byte(text)) {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func second[T any](_ T, err error) error { return err }

// Neither the records' folder nor a backup has a secret in clear, and who has the
// records without the tenants' keys, or moves them, has nothing.
func TestKeysSealed(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	server := must(cluster.Serve(ctx, cluster.ServerOptions{Dir: dir, Listen: "127.0.0.1:0", Token: testToken}))
	t.Cleanup(func() { _ = server.Close() })
	conn := must(cluster.Dial(ctx, server.URL(), testToken))
	t.Cleanup(conn.Close)
	records := must(conn.Records(ctx, "keys"))
	s := NewKeyStore(records, testKeeper(t))
	k := must(s.Create(ctx, testAccount, "a note"))
	var backup bytes.Buffer
	restored := filepath.Join(t.TempDir(), "restored")
	if err := errors.Join(conn.Backup(ctx, &backup), cluster.Restore(ctx, restored, bytes.NewReader(backup.Bytes()))); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{dir, restored} { // a backup is compressed
		if holding(t, dir, k.Secret) > 0 || holding(t, dir, "a note") == 0 {
			t.Error("the secret is there in clear, or the record is not there")
		}
	}
	if _, err := NewKeyStore(records, testKeeper(t)).find(ctx, k.ID); !errors.Is(err, keys.ErrRefused) || strings.Contains(err.Error(), k.Secret) {
		t.Errorf("with other tenants' keys: %v", err)
	}
	if _, err := NewKeyStore(records, testKeeper(t)).Create(ctx, testAccount, ""); !errors.Is(err, ErrOtherKeeper) {
		t.Errorf("a key is made that no frontend can open: %v", err)
	}
	must(NewKeyStore(records, testKeeper(t)).Create(ctx, "111111111111", "")) // it has none
	must(s.Create(ctx, testAccount, "another"))
	stolen := bytes.ReplaceAll(must(records.Get(ctx, keyPrefix+k.ID)).Value, []byte(testAccount), []byte("111111111111"))
	must(records.Create(ctx, keyPrefix+"AKIA0000000000000000", bytes.ReplaceAll(stolen, []byte(k.ID), []byte("AKIA0000000000000000"))))
	if _, err := s.Lookup(ctx, "AKIA0000000000000000"); !errors.Is(err, keys.ErrRefused) {
		t.Errorf("moved to another account: %v", err)
	}
}

// waiting is a key whose service answers when it is let.
type waiting struct {
	keys.Keeper
	calls atomic.Int64
	let   chan struct{}
}

func (w *waiting) Unwrap(ctx context.Context, wrapped []byte) ([]byte, error) {
	w.calls.Add(1)
	<-w.let
	return w.Keeper.Unwrap(ctx, wrapped)
}

// Many requests signed with a key that is not at hand have its service asked once.
func TestKeyIsOpenedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &knownKey{}
		local := must(testKeeper(t)(t.Context(), testAccount))
		w := &waiting{Keeper: local, let: make(chan struct{})}
		k.ID, k.Account = "AKIA0000000000000000", testAccount
		k.Sealed = must(keys.Seal(t.Context(), local, []byte("secret"), k.bound()))
		s := &KeyStore{known: map[string]*knownKey{k.ID: k}, keeper: func(context.Context, string) (keys.Keeper, error) { return w, nil }}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if got, err := s.find(t.Context(), k.ID); err != nil || got.Secret != "secret" {
					t.Errorf("found %s, %v", got.Account, err)
				}
			})
		}
		synctest.Wait()
		close(w.let)
		all.Wait()
		if n := w.calls.Load(); n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

// A frontend has so many keys at hand, and reads others each time.
func TestKnownKeysAreBounded(t *testing.T) {
	d := newDoor(t)
	ctx, s := t.Context(), d.options.Keys
	d.until("the first key is known", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.known[d.key.ID] != nil })
	s.mu.Lock()
	for n := range maxKnown {
		s.known[fmt.Sprint(n)] = &knownKey{}
	}
	s.mu.Unlock()
	k := must(s.Create(ctx, testAccount, ""))
	d.until("another is known", func() bool { s.mu.RLock(); defer s.mu.RUnlock(); return s.known[k.ID] != nil })
	s.mu.Lock()
	delete(s.known, d.key.ID)
	n := len(s.known)
	s.mu.Unlock()
	if n > maxKnown {
		t.Errorf("%d are known", n)
	}
	if got := must(s.find(ctx, d.key.ID)); got.Secret != d.key.Secret {
		t.Error("one that is not known is not found")
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
