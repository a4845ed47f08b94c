package manager

import (
	"context"
	"errors"

	"thaw/cluster"
)

// leases is the directory in a cluster.
type leases struct{ bucket *cluster.Leases }

// Take enters a key.
func (l leases) Take(ctx context.Context, key string, value []byte) (hold, []byte, error) {
	h, err := l.bucket.Take(ctx, key, value)
	switch {
	case err == nil:
		return h, nil, nil
	case !errors.Is(err, cluster.ErrExists):
		return nil, nil, err
	}
	r, err := l.bucket.Get(ctx, key)
	if err != nil {
		return nil, nil, err // it has ended meanwhile: the next try takes it
	}
	return nil, r.Value, errTaken
}

// End ends what somebody has held who died. What was renewed since has another
// holder.
func (l leases) End(ctx context.Context, prefix string, died func(key string, value []byte) bool) error {
	all, err := l.bucket.List(ctx, prefix)
	for _, r := range all {
		if died(r.Key, r.Value) {
			if e := l.bucket.End(ctx, r); !errors.Is(e, cluster.ErrConflict) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// Watch tells of keys.
func (l leases) Watch(ctx context.Context, prefix string, tell func(key string, value []byte)) error {
	return l.bucket.Watch(ctx, prefix, func(c cluster.Change) error {
		switch {
		case c.Synced:
			tell("", nil)
		case c.Deleted:
			tell(c.Key, nil)
		default:
			tell(c.Key, append([]byte{}, c.Value...)) // never nil
		}
		return nil
	})
}
