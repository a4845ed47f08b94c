package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// errBroken ends a subscription that may have missed something.
var errBroken = errors.New("connection lost")

// stopped carries the error by which a watcher ended its watch.
type stopped struct{ error }

func (b *bucket) list(ctx context.Context, prefix string) ([]Record, error) {
	var found []Record
	err := b.do(ctx, true, func(ctx context.Context) error {
		found = nil
		err := b.follow(ctx, prefix, func(c Change) error {
			switch {
			case c.Synced:
				return stopped{}
			case !c.Deleted:
				found = append(found, c.Record)
			}
			return nil
		})
		if errors.As(err, &stopped{}) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, b.fail("list", prefix, err)
	}
	slices.SortFunc(found, func(a, b Record) int { return cmp.Compare(a.Key, b.Key) })
	return found, nil
}

func (b *bucket) watch(ctx context.Context, prefix string, f func(Change) error) error {
	known := map[string]bool{} // keys that f believes to have values
	for {
		err := b.watchOnce(ctx, prefix, known, f)
		var end stopped
		switch {
		case errors.As(err, &end):
			return end.error
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case final(err):
			return b.fail("watch", prefix, err)
		}
		if b.config.Storage == jetstream.MemoryStorage && b.conn.nats.IsConnected() {
			b.open(ctx) // the next try tells
		}
		wait(ctx, pause)
	}
}

// watchOnce tells f of everything until the connection is lost.
func (b *bucket) watchOnce(ctx context.Context, prefix string, known map[string]bool, f func(Change) error) error {
	tell := func(c Change) error {
		if c.Deleted {
			delete(known, c.Key)
		} else if !c.Synced {
			known[c.Key] = true
		}
		if err := f(c); err != nil {
			return stopped{err}
		}
		return nil
	}
	synced, seen := false, map[string]bool{}
	return b.follow(ctx, prefix, func(c Change) error {
		switch {
		case c.Synced:
			for key := range known {
				if !seen[key] {
					if err := tell(Change{Record: Record{Key: key}, Deleted: true}); err != nil {
						return err
					}
				}
			}
			synced, seen = true, nil
		case !synced && !c.Deleted:
			seen[c.Key] = true
		case c.Deleted && !known[c.Key]:
			return nil // f has never heard of it
		}
		return tell(c)
	})
}

// follow subscribes once and tells f what comes, until f returns an error, ctx
// ends or the connection is lost.
func (b *bucket) follow(ctx context.Context, prefix string, f func(Change) error) (err error) {
	selected, err := filter(prefix)
	if err != nil {
		return errors.Join(errRefused, err)
	}
	lost := b.conn.Lost() // before we subscribe: then nothing is missed
	w, err := b.kv.Watch(context.WithoutCancel(ctx), selected)
	if err != nil {
		return err
	}
	defer func() {
		if w.Stop() == nil { // else the connection is closed
			for range w.Updates() { // its sender must not hang
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-lost:
			return errBroken
		case e, open := <-w.Updates():
			if !open {
				return errBroken
			}
			c, told := change(e, prefix)
			if !told {
				continue
			}
			if err := f(c); err != nil {
				return err
			}
		}
	}
}

// change puts what the server told in our words. Keys that are not ours or not
// asked for are left out.
func change(e jetstream.KeyValueEntry, prefix string) (c Change, told bool) {
	if e == nil {
		return Change{Synced: true}, true
	}
	key, err := decode(e.Key())
	if err != nil || !strings.HasPrefix(key, prefix) {
		return Change{}, false
	}
	if e.Operation() != jetstream.KeyValuePut {
		return Change{Record: Record{Key: key, Revision: e.Revision()}, Deleted: true}, true
	}
	return Change{Record: Record{key, e.Value(), e.Revision()}}, true
}
