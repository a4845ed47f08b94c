package origin

import (
	"context"
	"iter"
	"net/url"
	"time"
)

// Bucket is a driver: keys to bytes. Callers check keys; drivers are safe for
// concurrent use, and give errors of one line without secrets, wrapping this
// package's. A Writer that is an io.Closer is closed with its Origin.
// Package origintest holds drivers to this.
type Bucket struct {
	Reader
	Writer
}

// Reader is the reading half of a driver.
type Reader interface {
	// Get gives the whole object: the caller's bytes. ErrNotFound; ErrCorrupt
	// for one of more than limit bytes.
	Get(ctx context.Context, key string, limit int64) ([]byte, error)
	// Stat gives size and time of an object, or ErrNotFound.
	Stat(ctx context.Context, key string) (Entry, error)
	// List gives the objects whose keys start with prefix, ascending. An error
	// is the last pair. A shallow listing gives the next level in place of what
	// is below a slash, as entries with Dir set and a key that ends in a slash;
	// it may leave out sizes and times, and one of a hundred names shows the
	// state of one moment.
	List(ctx context.Context, prefix string, shallow bool) iter.Seq2[Entry, error]
}

// Writer is the writing half of a driver.
type Writer interface {
	// Create puts an object if there is none, atomically, and durably if it
	// returns nil. Not added means that there is one.
	Create(ctx context.Context, key string, data []byte) (added bool, err error)
	// Replace puts an object, over another if need be, atomically and durably.
	Replace(ctx context.Context, key string, data []byte) error
	// Remove removes an object durably, or gives ErrNotFound.
	Remove(ctx context.Context, key string) error
}

// Entry is one line of a listing.
type Entry struct {
	Key     string
	Size    int64 // bytes
	ModTime time.Time
	Dir     bool
}

// settler is a Writer whose objects can be seen before they are durable.
type settler interface {
	// settle makes an object that was seen durable.
	settle(key string) error
}

// WithDriver has URLs of a scheme opened by open, for so many operations at
// once; it must not reach out. Without a driver a scheme other than file and
// mem is refused.
func WithDriver(scheme string, open func(ctx context.Context, u *url.URL, parallel int) (Bucket, error)) Option {
	return func(s *settings) { s.drivers[scheme] = open }
}
