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

	"golang.org/x/sync/singleflight"

	"thaw/cluster"
	"thaw/keys"
	"thaw/sigv4"
)

var (
	// ErrNoKey says that there is no such access key.
	ErrNoKey = errors.New("no such access key")
	// ErrDamagedKey is of records that cannot be read. It stands behind their keys.
	ErrDamagedKey = errors.New("is damaged: revoke the key, and create another")
	// ErrOtherKeeper says that an account's access keys were sealed with another
	// key than would seal a new one, which no frontend could open.
	ErrOtherKeeper = errors.New("its access keys were sealed with another key: give the --key that thaw up was given")
)

var accountForm = regexp.MustCompile(`^[0-9]{12}$`)

const (
	// maxNote bounds what an operator writes to a key.
	maxNote = 256
	// maxKnown bounds the keys that a frontend has at hand, some 500 bytes each.
	// Others are read from the records each time.
	maxKnown = 16384
	// maxTried bounds the sealed keys that are tried before one is made: each may be
	// a call of a key service, and one that opens is enough.
	maxTried = 8
)

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

// keyRecord is what is kept of a key. Its account and id are authenticated with
// the secret, so that a record cannot be moved to another account.
type keyRecord struct {
	ID      string
	Account string
	Sealed  []byte // the secret, keys.Seal's
	Note    string `json:",omitempty"`
	Created time.Time
}

// bound is what a secret is sealed for.
func (r *keyRecord) bound() []byte {
	return []byte("thaw access key v1\x00" + r.Account + "\x00" + r.ID)
}

// KeyStore keeps access keys in the cluster's bucket "keys", their secrets sealed
// with the keys of their accounts' tenants. It is safe for concurrent use, and by
// many processes: a key that is revoked here is refused by all frontends as soon
// as they are told.
type KeyStore struct {
	// Warn, if set before the store is used, is told of records that are damaged.
	Warn func(error)

	records *cluster.Records
	keeper  func(ctx context.Context, account string) (keys.Keeper, error)

	opening singleflight.Group // of those that many requests at once are signed with

	mu    sync.RWMutex
	known map[string]*knownKey // guarded by mu
}

// knownKey is a key that is in the records.
type knownKey struct {
	keyRecord
	opened sigv4.Key // guarded by KeyStore.mu; zero until somebody has used it
}

// NewKeyStore opens the keys in a bucket of records. Keeper gives the key of an
// account's tenant, and remembers those that it has given.
func NewKeyStore(r *cluster.Records, keeper func(ctx context.Context, account string) (keys.Keeper, error)) *KeyStore {
	return &KeyStore{records: r, keeper: keeper, known: map[string]*knownKey{}}
}

const keyPrefix = "key/"

// Create makes a new key for an account, of twelve digits. It gives
// ErrOtherKeeper if the account has keys, and none can be opened.
func (s *KeyStore) Create(ctx context.Context, account, note string) (Key, error) {
	if !accountForm.MatchString(account) {
		return Key{}, fmt.Errorf("account %.20q: want twelve digits", account)
	}
	if len(note) > maxNote {
		return Key{}, fmt.Errorf("note: more than %d bytes", maxNote)
	}
	k := Key{ID: "AKIA" + randomText(16), Secret: randomText(40), Account: account, Note: note, Created: time.Now().UTC()}
	keeper, err := s.keeper(ctx, account)
	if err != nil {
		return Key{}, fmt.Errorf("key of account %s: %w", account, err)
	}
	if err := s.agree(ctx, account); err != nil {
		return Key{}, err
	}
	r := keyRecord{ID: k.ID, Account: account, Note: note, Created: k.Created}
	if r.Sealed, err = keys.Seal(ctx, keeper, []byte(k.Secret), r.bound()); err != nil {
		return Key{}, fmt.Errorf("seal an access key: %w", err)
	}
	value, err := json.Marshal(r)
	if err != nil {
		return Key{}, err
	}
	if _, err := s.records.Create(ctx, keyPrefix+k.ID, value); err != nil {
		return Key{}, fmt.Errorf("create an access key: %w", err)
	}
	return k, nil
}

// agree checks that the account's tenant's key is that of its access keys.
func (s *KeyStore) agree(ctx context.Context, account string) error {
	records, err := s.records.List(ctx, keyPrefix)
	if err != nil {
		return fmt.Errorf("list access keys: %w", err)
	}
	var refused error
	tried := 0
	for _, r := range records {
		k, err := readKey(r)
		if err != nil || k.Account != account {
			continue // List tells of those that are damaged
		}
		if _, err = s.open(ctx, &k); err == nil {
			return nil
		}
		if !errors.Is(err, keys.ErrRefused) {
			return err
		}
		refused = fmt.Errorf("account %s: %w", account, ErrOtherKeeper)
		if tried++; tried == maxTried {
			break
		}
	}
	return refused
}

// randomText gives n letters and digits, 5 random bits each.
func randomText(n int) string {
	b := make([]byte, (n*5+7)/8)
	_, _ = rand.Read(b) // never fails
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b)[:n]
}

// List gives an account's keys without their secrets, or all if account is
// empty, in the order of their ids. Warn is told of those that are damaged.
func (s *KeyStore) List(ctx context.Context, account string) ([]Key, error) {
	records, err := s.records.List(ctx, keyPrefix)
	if err != nil {
		return nil, fmt.Errorf("list access keys: %w", err)
	}
	var list []Key
	for _, r := range records {
		k, err := readKey(r)
		if err != nil {
			s.warn(err)
			continue
		}
		if account == "" || k.Account == account {
			list = append(list, Key{ID: k.ID, Account: k.Account, Note: k.Note, Created: k.Created})
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

// Lookup reads a key with its secret, or returns ErrNoKey or ErrDamagedKey.
func (s *KeyStore) Lookup(ctx context.Context, id string) (Key, error) {
	r, err := s.read(ctx, id)
	if err != nil {
		return Key{}, err
	}
	secret, err := s.open(ctx, &r)
	return Key{ID: r.ID, Secret: secret, Account: r.Account, Note: r.Note, Created: r.Created}, err
}

func (s *KeyStore) read(ctx context.Context, id string) (keyRecord, error) {
	r, err := s.records.Get(ctx, keyPrefix+id)
	if errors.Is(err, cluster.ErrNotFound) {
		return keyRecord{}, fmt.Errorf("%w: %.40q", ErrNoKey, id)
	}
	if err != nil {
		return keyRecord{}, fmt.Errorf("read access key: %w", err)
	}
	return readKey(r)
}

// readKey reads a record. What it holds stays out of the error.
func readKey(r cluster.Record) (keyRecord, error) {
	var k keyRecord
	if err := json.Unmarshal(r.Value, &k); err != nil || keyPrefix+k.ID != r.Key || len(k.Sealed) == 0 || !accountForm.MatchString(k.Account) {
		return keyRecord{}, fmt.Errorf("record %s %w", r.Key, ErrDamagedKey)
	}
	return k, nil
}

// open gives a key's secret.
func (s *KeyStore) open(ctx context.Context, r *keyRecord) (string, error) {
	keeper, err := s.keeper(ctx, r.Account)
	if err != nil {
		return "", fmt.Errorf("key of account %s: %w", r.Account, err)
	}
	secret, err := keys.Unseal(ctx, keeper, r.Sealed, r.bound())
	if err != nil {
		return "", fmt.Errorf("open access key %s of account %s: %w", r.ID, r.Account, err)
	}
	return string(secret), nil
}

// find gives a key for a request, and remembers the secrets of those that are
// known. Keys that were made a moment ago, elsewhere, are found in the records.
func (s *KeyStore) find(ctx context.Context, id string) (sigv4.Key, error) {
	s.mu.RLock()
	k := s.known[id]
	if k != nil && k.opened.Secret != "" {
		defer s.mu.RUnlock()
		return k.opened, nil
	}
	s.mu.RUnlock()
	if k == nil {
		if !strings.HasPrefix(id, "AKIA") || len(id) != 20 {
			return sigv4.Key{}, sigv4.ErrUnknownKey
		}
		r, err := s.read(ctx, id)
		if errors.Is(err, ErrNoKey) {
			return sigv4.Key{}, sigv4.ErrUnknownKey
		}
		if err != nil {
			return sigv4.Key{}, err
		}
		k = &knownKey{keyRecord: r}
	}
	opened, err, _ := s.opening.Do(id, func() (any, error) {
		secret, err := s.open(context.WithoutCancel(ctx), &k.keyRecord) // for others too; key services have their own bounds
		return sigv4.Key{Secret: secret, Account: k.Account}, err
	})
	if err != nil {
		return sigv4.Key{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k.opened = opened.(sigv4.Key) // kept only where k is known: it may be revoked by now
	return k.opened, nil
}

// run keeps what find knows as it is in the records, until ctx ends.
func (s *KeyStore) run(ctx context.Context) error {
	return s.records.Watch(ctx, keyPrefix, func(c cluster.Change) error {
		if c.Synced {
			return nil
		}
		r, err := readKey(c.Record)
		if err != nil && !c.Deleted {
			s.warn(err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.known, strings.TrimPrefix(c.Key, keyPrefix))
		if c.Deleted || err != nil {
			return nil
		}
		for other := range s.known {
			if len(s.known) < maxKnown {
				break
			}
			delete(s.known, other) // any
		}
		s.known[r.ID] = &knownKey{keyRecord: r}
		return nil
	})
}

func (s *KeyStore) warn(err error) {
	if s.Warn != nil {
		s.Warn(err)
	}
}
