package frontend

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"thaw/cluster"
	"thaw/sigv4"
)

// ErrNoKey says that there is no such access key.
var ErrNoKey = errors.New("no such access key")

var accountForm = regexp.MustCompile(`^[0-9]{12}$`)

// maxNote bounds what an operator writes to a key.
const maxNote = 256

// Key is an access key of an account. No verb prints its secret.
type Key struct {
	ID      string
	Secret  string
	Account string // twelve digits
	Note    string `json:",omitempty"` // the operator's
	Created time.Time
}

// Format hides the secret.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, "frontend.Key{"+k.ID+" of "+k.Account+"}") }

// KeyStore keeps access keys in the cluster's bucket "keys". It is safe for
// concurrent use, and by many processes: a key that is revoked here is refused
// by all frontends as soon as they are told.
type KeyStore struct {
	records *cluster.Records

	mu    sync.RWMutex
	known map[string]sigv4.Key
}

// NewKeyStore opens the keys in a bucket of records.
func NewKeyStore(r *cluster.Records) *KeyStore {
	return &KeyStore{records: r, known: map[string]sigv4.Key{}}
}

const keyPrefix = "key/"

// Create makes a new key for an account, of twelve digits.
func (s *KeyStore) Create(ctx context.Context, account, note string) (Key, error) {
	if !accountForm.MatchString(account) {
		return Key{}, fmt.Errorf("account %.20q: want twelve digits", account)
	}
	if len(note) > maxNote {
		return Key{}, fmt.Errorf("note: more than %d bytes", maxNote)
	}
	k := Key{ID: "AKIA" + randomText(16), Secret: randomText(40), Account: account, Note: note, Created: time.Now().UTC()}
	value, err := json.Marshal(k)
	if err != nil {
		return Key{}, err
	}
	if _, err := s.records.Create(ctx, keyPrefix+k.ID, value); err != nil {
		return Key{}, fmt.Errorf("create an access key: %w", err)
	}
	return k, nil
}

// randomText gives n letters and digits, 5 random bits each.
func randomText(n int) string {
	b := make([]byte, (n*5+7)/8)
	_, _ = rand.Read(b) // never fails
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)[:n]
}

// List gives an account's keys without their secrets, or all if account is
// empty, in the order of their ids.
func (s *KeyStore) List(ctx context.Context, account string) ([]Key, error) {
	records, err := s.records.List(ctx, keyPrefix)
	if err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	var list []Key
	for _, r := range records {
		k, err := readKey(r)
		if err != nil {
			return nil, err
		}
		if account == "" || k.Account == account {
			k.Secret = ""
			list = append(list, k)
		}
	}
	return list, nil
}

// Revoke ends a key, or returns ErrNoKey.
func (s *KeyStore) Revoke(ctx context.Context, id string) error {
	err := s.records.Delete(ctx, keyPrefix+id, 0)
	if errors.Is(err, cluster.ErrNotFound) {
		return fmt.Errorf("%w: %.40q", ErrNoKey, id)
	}
	s.mu.Lock()
	delete(s.known, id)
	s.mu.Unlock()
	return err
}

// Lookup reads a key with its secret, or returns ErrNoKey.
func (s *KeyStore) Lookup(ctx context.Context, id string) (Key, error) {
	r, err := s.records.Get(ctx, keyPrefix+id)
	if errors.Is(err, cluster.ErrNotFound) {
		return Key{}, fmt.Errorf("%w: %.40q", ErrNoKey, id)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read access key: %w", err)
	}
	return readKey(r)
}

// readKey reads a record. What it holds stays out of the error.
func readKey(r cluster.Record) (Key, error) {
	var k Key
	if err := json.Unmarshal(r.Value, &k); err != nil || keyPrefix+k.ID != r.Key || k.Secret == "" || !accountForm.MatchString(k.Account) {
		return Key{}, fmt.Errorf("record %s is damaged: revoke the key, and create another", r.Key)
	}
	return k, nil
}

// find gives a key for a request. Keys that were made a moment ago, elsewhere,
// are found in the records.
func (s *KeyStore) find(ctx context.Context, id string) (sigv4.Key, error) {
	s.mu.RLock()
	k, ok := s.known[id]
	s.mu.RUnlock()
	if ok {
		return k, nil
	}
	if !strings.HasPrefix(id, "AKIA") || len(id) != 20 {
		return sigv4.Key{}, sigv4.ErrUnknownKey
	}
	found, err := s.Lookup(ctx, id)
	if errors.Is(err, ErrNoKey) {
		return sigv4.Key{}, sigv4.ErrUnknownKey
	}
	return sigv4.Key{Secret: found.Secret, Account: found.Account}, err
}

// run keeps what find knows as it is in the records, until ctx ends.
func (s *KeyStore) run(ctx context.Context) error {
	return s.records.Watch(ctx, keyPrefix, func(c cluster.Change) error {
		if c.Synced {
			return nil
		}
		id := strings.TrimPrefix(c.Key, keyPrefix)
		s.mu.Lock()
		defer s.mu.Unlock()
		k, err := readKey(c.Record)
		if c.Deleted || err != nil {
			delete(s.known, id) // Lookup tells of damage
			return nil
		}
		s.known[id] = sigv4.Key{Secret: k.Secret, Account: k.Account}
		return nil
	})
}
