package cluster

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Records is a bucket of durable records. Many may use it at a time.
//
// A change that returns without an error is on disk, on a majority of the
// servers if there are several. From then on Get sees it; List and Watch do a
// moment later if there are several servers. All methods wait up to 15 s for a server that
// can answer, or until ctx ends.
type Records struct{ b *bucket }

// Get reads a record, or returns ErrNotFound.
func (r *Records) Get(ctx context.Context, key string) (Record, error) { return r.b.get(ctx, key) }

// Create stores a value under a key that has none and returns its revision, or
// ErrExists.
func (r *Records) Create(ctx context.Context, key string, value []byte) (uint64, error) {
	return r.b.create(ctx, key, value)
}

// Update replaces the value that has this revision and returns the new one, or
// ErrConflict, also if there is no value any more.
func (r *Records) Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	return r.b.update(ctx, key, value, revision)
}

// Delete removes the value that has this revision, or returns ErrConflict.
// Revision 0 removes any value, and returns ErrNotFound if there is none.
func (r *Records) Delete(ctx context.Context, key string, revision uint64) error {
	for tries := 0; ; tries++ {
		at := revision
		if at == 0 {
			have, err := r.b.get(ctx, key)
			if err != nil {
				return err
			}
			at = have.Revision
		}
		err := r.b.remove(ctx, key, at)
		if revision != 0 || !errors.Is(err, ErrConflict) || tries == 100 { // nobody loses so often
			return err
		}
	}
}

// List reads all records whose keys begin with prefix, in the order of their
// keys. It is quickest if the prefix ends with a slash or is empty.
func (r *Records) List(ctx context.Context, prefix string) ([]Record, error) {
	return r.b.list(ctx, prefix)
}

// Keys gives the first keys that begin with prefix and come after another key, in
// order, limit of them at most. It looks at all keys, and keeps those alone.
func (r *Records) Keys(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	return r.b.keys(ctx, prefix, after, limit)
}

// Watch calls f for each record whose key begins with prefix, in the order of
// revisions, then with Synced, then for each change, one call at a time. It
// returns when f has returned an error, with that error, or when ctx ends, with
// its cause. After a lost connection, it begins anew: values may be told again,
// values in between may not be told, and what has been deleted meanwhile is told
// before Synced.
func (r *Records) Watch(ctx context.Context, prefix string, f func(Change) error) error {
	return r.b.watch(ctx, prefix, f)
}

// bucket is what records and leases have in common.
type bucket struct {
	conn   *Conn
	config jetstream.KeyValueConfig
	kv     jetstream.KeyValue // holds names only, and serves for ever
}

// open finds the bucket, or makes it.
func (b *bucket) open(ctx context.Context) (jetstream.KeyValue, error) {
	kv, err := b.conn.js.KeyValue(ctx, b.config.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		config := b.config
		config.Replicas = b.conn.Replicas()
		kv, err = b.conn.js.CreateKeyValue(ctx, config)
		if errors.Is(err, jetstream.ErrBucketExists) { // somebody was quicker
			kv, err = b.conn.js.KeyValue(ctx, b.config.Bucket)
		}
	}
	if err != nil {
		return nil, err
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, err
	}
	s, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return nil, fmt.Errorf("%w: its state is a %T", errRefused, status)
	}
	config := s.StreamInfo().Config
	if config.Storage != b.config.Storage {
		return nil, fmt.Errorf("%w: it is there, and is of the other kind; records and leases need names of their own", errRefused)
	}
	if have := status.TTL(); have != b.config.TTL {
		return nil, fmt.Errorf("%w: it keeps values for %v, and %v was asked for; end all that use it, and the server, and start again", errRefused, have, b.config.TTL)
	}
	if config.Replicas == 1 || !config.AllowDirect {
		return kv, nil
	}
	// With direct gets, any of several servers answers, also one that has not seen
	// yet what the leader has acknowledged.
	config.AllowDirect = false
	if _, err := b.conn.js.UpdateStream(ctx, config); err != nil {
		return nil, err
	}
	return b.conn.js.KeyValue(ctx, b.config.Bucket)
}

// do runs an operation on the bucket. A bucket in memory is made again if the
// server that had it has been restarted.
func (b *bucket) do(ctx context.Context, again bool, op func(context.Context) error) error {
	return b.conn.do(ctx, again, func(ctx context.Context) error {
		err := op(ctx)
		if err != nil && unseen(err) && b.config.Storage == jetstream.MemoryStorage && b.conn.nats.IsConnected() {
			if _, failed := b.open(ctx); failed != nil {
				return fmt.Errorf("%w; %v", err, failed)
			}
		}
		return err
	})
}

func (b *bucket) fail(op, key string, err error) error {
	return fmt.Errorf("cluster: %s %s %q: %w", op, b.config.Bucket, key, err)
}

func (b *bucket) get(ctx context.Context, key string) (Record, error) {
	name, err := encode(key)
	if err != nil {
		return Record{}, err
	}
	var e jetstream.KeyValueEntry
	err = b.do(ctx, true, func(ctx context.Context) error {
		var err error
		e, err = b.kv.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) { // deleted ones too
			return ErrNotFound
		}
		return err
	})
	if err != nil {
		return Record{}, b.fail("get", key, err)
	}
	return Record{key, e.Value(), e.Revision()}, nil
}

// check refuses what cannot be stored and gives the key's name.
func (b *bucket) check(op, key string, value []byte) (string, error) {
	if len(value) > MaxValue {
		return "", fmt.Errorf("cluster: %s %s %q: the value has %d bytes, more than %d", op, b.config.Bucket, key, len(value), MaxValue)
	}
	return encode(key)
}

func (b *bucket) create(ctx context.Context, key string, value []byte) (revision uint64, err error) {
	name, err := b.check("create", key, value)
	if err != nil {
		return 0, err
	}
	err = b.do(ctx, false, func(ctx context.Context) error {
		revision, err = b.kv.Create(ctx, name, value)
		if errors.Is(err, jetstream.ErrKeyExists) || conflict(err) {
			return ErrExists
		}
		return err
	})
	if err != nil {
		return 0, b.fail("create", key, err)
	}
	return revision, nil
}

func (b *bucket) update(ctx context.Context, key string, value []byte, at uint64) (revision uint64, err error) {
	name, err := b.check("update", key, value)
	if err != nil {
		return 0, err
	}
	if at == 0 { // the server would take it as: there is no value
		return 0, b.fail("update", key, ErrConflict)
	}
	err = b.do(ctx, false, func(ctx context.Context) error {
		revision, err = b.kv.Update(ctx, name, value, at)
		if conflict(err) {
			return ErrConflict
		}
		return err
	})
	if err != nil {
		return 0, b.fail("update", key, err)
	}
	return revision, nil
}

func (b *bucket) remove(ctx context.Context, key string, at uint64) error {
	name, err := encode(key)
	if err != nil {
		return err
	}
	err = b.do(ctx, false, func(ctx context.Context) error {
		err := b.kv.Purge(ctx, name, jetstream.LastRevision(at), jetstream.PurgeTTL(markers))
		if conflict(err) {
			return ErrConflict
		}
		return err
	})
	if err != nil {
		return b.fail("delete", key, err)
	}
	return nil
}

// conflict tells of an answer that the value has another revision. Servers with
// copies give another code.
func conflict(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}
