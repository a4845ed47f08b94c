package origin

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"time"

	"thaw/chunk"
)

// Chunks are the sealed chunks of one root. It is a chunk.Store and a
// chunk.Statter, and safe for concurrent use.
type Chunks struct {
	o    *Origin
	root string
}

// Info is one object of a listing.
type Info struct {
	Name string
	Size int64 // bytes as stored
	Time time.Time
}

// Chunks gives the chunks of a root. A name that no root can have fails at
// use.
func (o *Origin) Chunks(root string) *Chunks { return &Chunks{o, root} }

func (c *Chunks) prefix() string { return "roots/" + c.root + "/chunks/" }

// do runs f on the chunk's key and gives errors in package chunk's words.
func (c *Chunks) do(ctx context.Context, verb string, name chunk.Name, f func(key string) error) error {
	if err := check(rootRule, "root", c.root); err != nil {
		return err
	}
	s := name.String()
	key := c.prefix() + s[:2] + "/" + s
	return c.o.do(ctx, verb, key, func() error {
		err := f(key)
		switch {
		case errors.Is(err, ErrNotFound):
			return chunk.ErrNotFound
		case errors.Is(err, ErrCorrupt): // too long, or no file but something else
			return fmt.Errorf("%w: %w", chunk.ErrCorrupt, err)
		}
		return err
	})
}

// Get gives a chunk's sealed bytes, which are the caller's and not verified:
// whoever opens them does that.
func (c *Chunks) Get(ctx context.Context, name chunk.Name) (data []byte, err error) {
	err = c.do(ctx, "get", name, func(key string) error {
		data, err = c.o.bucket.Get(ctx, key, chunk.MaxSize)
		return err
	})
	return data, err
}

// Stat tells a chunk's stored length in bytes, or chunk.ErrNotFound.
func (c *Chunks) Stat(ctx context.Context, name chunk.Name) (size int64, err error) {
	err = c.do(ctx, "look up", name, func(key string) error {
		e, err := c.o.bucket.Stat(ctx, key)
		size = e.Size
		return err
	})
	return size, err
}

// Put stores a chunk unless one of its name and length is there; one of another
// length is replaced. The caller answers for name being the hash of sealed:
// Put does not hash. Whether or not it added, the chunk is durable once it
// returns nil. When a bucket's reply is lost and the request is sent again,
// added may be false for what this call has written.
func (c *Chunks) Put(ctx context.Context, name chunk.Name, sealed []byte) (added bool, err error) {
	err = c.do(ctx, "put", name, func(key string) error {
		added, err = c.put(ctx, key, sealed)
		return err
	})
	return added, err
}

func (c *Chunks) put(ctx context.Context, key string, sealed []byte) (bool, error) {
	b := c.o.bucket
	e, err := b.Stat(ctx, key)
	if errors.Is(err, ErrNotFound) {
		added, err := b.Create(ctx, key, sealed)
		if added || err != nil {
			return added, err
		}
		e, err = b.Stat(ctx, key) // another process was faster
		if err != nil {
			return false, err
		}
	} else if err != nil {
		return false, err
	}
	if e.Size != int64(len(sealed)) {
		return true, b.Replace(ctx, key, sealed)
	}
	if s, ok := b.Writer.(settler); ok {
		return false, s.settle(key)
	}
	return false, nil
}

// Repair puts a chunk in place of a damaged one, or of none. The caller answers
// for the bytes.
func (c *Chunks) Repair(ctx context.Context, name chunk.Name, sealed []byte) error {
	return c.do(ctx, "repair", name, func(key string) error {
		return c.o.bucket.Replace(ctx, key, sealed)
	})
}

// List gives all chunks of the root in ascending order of their names, which
// chunk.ParseName reads; an error is the last pair. Memory is bounded by a page
// of a bucket, or one of a folder's 256 folders. Objects that are no chunks are
// passed over: they are not Thaw's.
func (c *Chunks) List(ctx context.Context) iter.Seq2[Info, error] {
	if err := check(rootRule, "root", c.root); err != nil {
		return func(yield func(Info, error) bool) { yield(Info{}, err) }
	}
	return c.o.infos(ctx, c.prefix(), func(name string) bool {
		_, err := chunk.ParseName(name)
		return err == nil
	})
}

// infos lists objects by the last part of their keys, those that keep takes.
func (o *Origin) infos(ctx context.Context, prefix string, keep func(name string) bool) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		for e, err := range o.bucket.List(ctx, prefix, false) {
			if err != nil {
				yield(Info{}, o.fail("list", prefix, err))
				return
			}
			name := path.Base(e.Key)
			if keep(name) && !yield(Info{name, e.Size, e.ModTime}, nil) {
				return
			}
		}
	}
}
