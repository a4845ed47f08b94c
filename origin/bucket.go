package origin

import (
	"context"
	"errors"
	"iter"
	"time"
)

// errTooLong says that an object is longer than the reader's bound.
var errTooLong = errors.New("longer than such an object can be")

// bucket is a driver: keys to bytes. Keys are checked by the caller. Drivers
// are safe for concurrent use.
type bucket struct {
	reader
	writer
}

type reader interface {
	// get gives the whole object: the caller's bytes. ErrNotFound; errTooLong
	// for one of more than limit bytes.
	get(ctx context.Context, key string, limit int64) ([]byte, error)
	// stat gives size and time of an object, or ErrNotFound.
	stat(ctx context.Context, key string) (entry, error)
	// list gives the objects whose keys start with prefix, ascending. An error
	// is the last pair. A shallow listing gives the next level in place of what
	// is below a slash, as entries with dir set and a key that ends in a slash;
	// it may leave out sizes and times, and one of a hundred names shows the
	// state of one moment.
	list(ctx context.Context, prefix string, shallow bool) iter.Seq2[entry, error]
}

type writer interface {
	// create puts an object if there is none, atomically, and durably if it
	// returns nil. Not added means that there is one.
	create(ctx context.Context, key string, data []byte) (added bool, err error)
	// replace puts an object, over another if need be, atomically and durably.
	replace(ctx context.Context, key string, data []byte) error
	// remove removes an object durably, or gives ErrNotFound.
	remove(ctx context.Context, key string) error
}

// settler is a bucket whose objects can be seen before they are durable.
type settler interface {
	// settle makes an object that was seen durable.
	settle(key string) error
}

// entry is one line of a listing.
type entry struct {
	key     string
	size    int64
	modTime time.Time
	dir     bool
}
