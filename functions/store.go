package functions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"thaw/cluster"
)

// reading and writing are what a Store needs of *cluster.Records.
type reading interface {
	Get(ctx context.Context, key string) (cluster.Record, error)
	Keys(ctx context.Context, prefix, after string, limit int) ([]string, error)
	Watch(ctx context.Context, prefix string, changed func(cluster.Change) error) error
}

type writing interface {
	Create(ctx context.Context, key string, value []byte) (uint64, error)
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	Delete(ctx context.Context, key string, revision uint64) error
}

// NewStore keeps functions in a bucket that has nothing else.
func NewStore(r *cluster.Records) *Store { return &Store{read: r, write: r, now: time.Now} }

// Store keeps functions. It is safe for concurrent use, and by many processes.
// What it returns is the caller's own.
type Store struct {
	// Warn, if set before the store is used, is told of records that are damaged.
	Warn func(error)

	read  reading
	write writing
	now   func() time.Time
}

// attempts bounds how often an update that others got in front of is tried.
const attempts = 32

// Get reads a function, or fails with ErrNotFound.
func (s *Store) Get(ctx context.Context, id ID) (*Function, error) {
	f, _, err := s.get(ctx, id)
	return f, err
}

func (s *Store) get(ctx context.Context, id ID) (*Function, cluster.Record, error) {
	r, err := s.read.Get(ctx, functionKey(id))
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, r, refuse(kindNotFound, "Function not found: %s", id)
	}
	if err != nil {
		return nil, r, fmt.Errorf("read function %s: %w", id, err)
	}
	f, err := decodeFunction(r, id)
	return f, r, err
}

// decodeFunction reads a function's record, which has to be of that function.
func decodeFunction(r cluster.Record, id ID) (*Function, error) {
	f := new(Function)
	if err := decode(r, f); err != nil {
		return nil, err
	}
	if f.ID != id || f.Latest.Number != Latest {
		return nil, damaged(r)
	}
	return f, nil
}

// Create adds a function, as NewFunction made it; with publish its first version
// too. If there is one of that name, it fails with ErrConflict.
func (s *Store) Create(ctx context.Context, f *Function, publish bool) error {
	if publish {
		word, err := s.copyLatest(ctx, f, "")
		if err != nil {
			return err
		}
		f.published(word)
	}
	value, err := encode(f)
	if err != nil {
		return err
	}
	_, err = s.write.Create(ctx, functionKey(f.ID), value)
	if errors.Is(err, cluster.ErrExists) {
		s.discard(ctx, f.ID, slices.Collect(maps.Values(f.Versions)))
		return refuse(kindConflict, "Function already exist: %s", f.Name)
	}
	if err != nil {
		return fmt.Errorf("create function %s: %w", f.ID, err)
	}
	return nil
}

// Update changes a function's record. If others change it meanwhile, change is
// called again with what they left; what it returns as an error ends the update.
func (s *Store) Update(ctx context.Context, id ID, change func(*Function) error) (*Function, error) {
	for range attempts {
		f, r, err := s.get(ctx, id)
		if err != nil {
			return nil, err
		}
		if err := change(f); err != nil {
			return nil, err
		}
		err = s.put(ctx, r, f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, cluster.ErrConflict) {
			return nil, err
		}
	}
	return nil, busy(id)
}

func (s *Store) put(ctx context.Context, r cluster.Record, f *Function) error {
	value, err := encode(f)
	if err != nil {
		return err
	}
	if _, err := s.write.Update(ctx, r.Key, value, r.Revision); err != nil {
		return fmt.Errorf("update function %s: %w", f.ID, err)
	}
	return nil
}

func busy(id ID) error {
	return refuse(kindConflict, "Function %s is being changed by too many at once: try again.", id.Name)
}

// Delete removes a function with all of its versions, or fails with ErrNotFound.
// One whose record is damaged can be removed too.
func (s *Store) Delete(ctx context.Context, id ID) error {
	for range attempts {
		f, r, err := s.get(ctx, id)
		if errors.Is(err, ErrDamaged) {
			f, err = s.wreck(ctx, id)
		}
		if err != nil {
			return err
		}
		err = s.write.Delete(ctx, r.Key, r.Revision)
		if errors.Is(err, cluster.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete function %s: %w", id, err)
		}
		s.discard(ctx, id, slices.Collect(maps.Values(f.Versions)))
		return s.claim(ctx, id, nil)
	}
	return busy(id)
}

// discard removes records of versions that no function has any more. What it
// cannot remove is left, and never read: RemoveUnnamed does it.
func (s *Store) discard(ctx context.Context, id ID, words []string) {
	for _, w := range words {
		_ = s.write.Delete(ctx, versionKey(id, w), 0)
	}
}

// wreck gives what is known of a function whose record is damaged: its versions'
// words.
func (s *Store) wreck(ctx context.Context, id ID) (*Function, error) {
	keys, err := s.read.Keys(ctx, versionKey(id, ""), "", maxVersions)
	f := &Function{ID: id, Versions: map[string]string{}}
	for n, key := range keys {
		f.Versions[strconv.Itoa(n)] = strings.TrimPrefix(key, versionKey(id, ""))
	}
	return f, err
}

// List reads an account's functions in order of their names: at most limit,
// those after a name. More is the last name if there are more. Memory is that of
// limit functions. Of one whose record is damaged there are ID and Damaged.
func (s *Store) List(ctx context.Context, account, after string, limit int) (page []*Function, more string, err error) {
	prefix := "f/" + account + "/"
	keys, err := s.read.Keys(ctx, prefix, prefix+after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list functions of %s: %w", account, err)
	}
	for n, key := range keys {
		if n == limit {
			return page, strings.TrimPrefix(keys[n-1], prefix), nil
		}
		id := ID{Account: account, Name: strings.TrimPrefix(key, prefix)}
		f, err := s.Get(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound): // deleted just now
			continue
		case errors.Is(err, ErrDamaged):
			f = &Function{ID: id, Damaged: err}
		case err != nil:
			return nil, "", err
		}
		page = append(page, f)
	}
	return page, "", nil
}

// Watch tells of all functions of all accounts, then, with no ID, that it has
// told all, then of each that changes; nil: it has been deleted, or its record is
// damaged, which Warn is told. It may begin anew, see cluster.Records. It returns when ctx has ended or changed fails.
func (s *Store) Watch(ctx context.Context, changed func(ID, *Function) error) error {
	return s.read.Watch(ctx, "f/", func(r cluster.Change) error {
		if r.Synced {
			return changed(ID{}, nil)
		}
		account, name, ok := strings.Cut(strings.TrimPrefix(r.Key, "f/"), "/")
		if !ok {
			return nil
		}
		id := ID{Account: account, Name: name}
		if r.Deleted {
			return changed(id, nil)
		}
		f, err := decodeFunction(r.Record, id)
		if err != nil {
			s.warn(err)
		}
		return changed(id, f)
	})
}

func functionKey(id ID) string             { return "f/" + id.Account + "/" + id.Name }
func versionKey(id ID, word string) string { return "v/" + id.Account + "/" + id.Name + "/" + word }
func accountKey(account string) string     { return "a/" + account }
func number(s string) (n int)              { n, _ = strconv.Atoi(s); return n }
func byNumber(a, b string) int             { return number(a) - number(b) }

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	if len(b) > maxRecord {
		return nil, refuse(kindParameter, "All that belongs to this function takes %d bytes, more than %d: remove versions, aliases or permissions.", len(b), maxRecord)
	}
	return b, nil
}

// decode reads a record of this package. Its content is secret, and stays out of the error.
func decode(r cluster.Record, to any) error {
	if err := json.Unmarshal(r.Value, to); err != nil {
		return damaged(r)
	}
	return nil
}

// ErrDamaged is of records that cannot be read. It stands behind their keys.
var ErrDamaged = errors.New("is damaged: delete it, or restore it from a backup")

func damaged(r cluster.Record) error { return fmt.Errorf("record %s %w", r.Key, ErrDamaged) }

func (s *Store) warn(err error) {
	if s.Warn != nil {
		s.Warn(err)
	}
}
