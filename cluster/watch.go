package cluster

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

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
		err := b.follow(ctx, prefix, nil, func(c Change) error {
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

func (b *bucket) keys(ctx context.Context, prefix, after string, limit int) ([]string, error) {
	var first []string
	err := b.do(ctx, true, func(ctx context.Context) error {
		first = nil
		err := b.follow(ctx, prefix, nil, func(c Change) error {
			if c.Synced {
				return stopped{}
			}
			at, told := slices.BinarySearch(first, c.Key) // told: it has changed meanwhile
			if !told && !c.Deleted && c.Key > after && at < limit {
				first = slices.Insert(first, at, c.Key)
				first = first[:min(len(first), limit)]
			}
			return nil
		}, jetstream.MetaOnly(), jetstream.IgnoreDeletes())
		if errors.As(err, &stopped{}) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, b.fail("list keys", prefix, err)
	}
	return first, nil
}

// watcher is one watch, over all connections.
type watcher struct {
	f     func(Change) error
	known map[string]bool // keys that f believes to have values
	// doubt has those of them that the server has forgotten, and until when
	// their holders may renew them.
	doubt map[string]time.Time
	ttl   time.Duration // of leases
}

func (b *bucket) watch(ctx context.Context, prefix string, f func(Change) error) error {
	w := &watcher{f: f, known: map[string]bool{}, doubt: map[string]time.Time{}, ttl: b.config.TTL}
	var tick <-chan time.Time
	if w.ttl > 0 {
		t := time.NewTicker(w.ttl / 4)
		defer t.Stop()
		tick = t.C
	}
	for {
		err := b.follow(ctx, prefix, tick, w.begin())
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

// tell passes a change on.
func (w *watcher) tell(c Change) error {
	if !c.Synced {
		delete(w.doubt, c.Key)
		if c.Deleted && !w.known[c.Key] {
			return nil // f has never heard of it
		}
		w.known[c.Key] = true
		if c.Deleted {
			delete(w.known, c.Key)
		}
	}
	if err := w.f(c); err != nil {
		return stopped{err}
	}
	return nil
}

// begin starts over: it returns what is to be told of all changes over a
// connection, those present first.
func (w *watcher) begin() func(Change) error {
	synced, seen := false, map[string]bool{}
	return func(c Change) error {
		switch {
		case c.Key == "" && !c.Synced:
			return w.expire()
		case c.Synced:
			if err := w.miss(seen); err != nil {
				return err
			}
			synced, seen = true, nil
		case !synced && !c.Deleted:
			seen[c.Key] = true
		}
		return w.tell(c)
	}
}

// miss tells of known keys that are not there any more. A lease may only be
// forgotten by a server in whose memory it was: its holder has time to renew it.
func (w *watcher) miss(seen map[string]bool) error {
	for key := range w.known {
		if !seen[key] && w.doubt[key].IsZero() {
			w.doubt[key] = time.Now().Add(w.ttl)
		}
	}
	return w.expire()
}

// expire tells of keys that have been in doubt for too long.
func (w *watcher) expire() error {
	for key, until := range w.doubt {
		if time.Now().Before(until) {
			continue
		}
		if err := w.tell(Change{Record: Record{Key: key}, Deleted: true}); err != nil {
			return err
		}
	}
	return nil
}

// follow subscribes once and tells f what comes, and nothing at each tick, until
// f returns an error, ctx ends or the connection is lost.
func (b *bucket) follow(ctx context.Context, prefix string, tick <-chan time.Time, f func(Change) error, how ...jetstream.WatchOpt) error {
	selected, err := filter(prefix)
	if err != nil {
		return errors.Join(errRefused, err)
	}
	ctx, forget := b.conn.Alive(ctx) // before we subscribe: then nothing is missed
	defer forget()
	w, err := b.kv.Watch(ctx, selected, how...)
	if err != nil {
		return err
	}
	defer b.conn.unsubscribe(w)
	for {
		var c Change
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick:
		case e, open := <-w.Updates():
			if !open {
				return errBroken
			}
			told := false
			if c, told = change(e, prefix); !told {
				continue
			}
		}
		if err := f(c); err != nil {
			return err
		}
	}
}

// unsubscribe ends a subscription, and has the server forget it. If there is
// none, that is done when there is one again.
func (c *Conn) unsubscribe(w jetstream.KeyWatcher) {
	stop := func() {
		for !c.nats.IsConnected() && !c.nats.IsClosed() {
			wait(context.Background(), pause)
		}
		w.Stop() // fails if the server has forgotten it already
		for !c.nats.IsClosed() {
			select {
			case _, open := <-w.Updates(): // its sender must not hang
				if !open {
					return
				}
			case <-time.After(pause):
			}
		}
	}
	if c.nats.IsConnected() {
		stop()
	} else {
		c.stops.Go(stop)
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
