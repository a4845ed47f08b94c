package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"
)

// nonce is the number of bytes before a lease's value that tell its holder.
const nonce = 16

// Leases is a bucket of leases: values in memory that end by themselves. Many
// may use it at a time.
//
// A lease is no fence: where all servers that knew it were restarted, another
// may take it up to one TTL before its former holder knows.
type Leases struct {
	b   *bucket
	ttl time.Duration
}

// Lease is a key that is ours for now. Many may use it at a time.
type Lease struct {
	leases *Leases
	key    string
	holder []byte
	timer  *time.Timer // ends it
	end    func()      // closes lost, once
	lost   chan struct{}

	mu       sync.Mutex // guards revision; held while the server is asked
	revision uint64
}

// Take takes the lease of a key that nobody holds, or returns ErrExists. After
// ErrUnavailable, it may be held by nobody we know until its TTL has passed.
func (l *Leases) Take(ctx context.Context, key string, value []byte) (*Lease, error) {
	since := time.Now()
	e := &Lease{leases: l, key: key, holder: make([]byte, nonce), lost: make(chan struct{})}
	rand.Read(e.holder) // never fails
	e.end = sync.OnceFunc(func() { close(e.lost) })
	revision, err := l.b.create(ctx, key, e.value(value))
	if err != nil {
		return nil, err
	}
	e.revision = revision
	e.timer = time.AfterFunc(l.ttl-time.Since(since), e.end)
	return e, nil
}

// Get reads the value of a lease that somebody holds, or returns ErrNotFound.
func (l *Leases) Get(ctx context.Context, key string) (Record, error) {
	r, err := l.b.get(ctx, key)
	r.Value = shown(r.Value)
	return r, err
}

// End ends a lease whose holder is known to have died, unless it was renewed since
// r was read: then it returns ErrConflict. Others may take it at once.
func (l *Leases) End(ctx context.Context, r Record) error { return l.b.remove(ctx, r.Key, r.Revision) }

// List reads all leases that are held and whose keys begin with prefix, in the
// order of their keys.
func (l *Leases) List(ctx context.Context, prefix string) ([]Record, error) {
	found, err := l.b.list(ctx, prefix)
	for i := range found {
		found[i].Value = shown(found[i].Value)
	}
	return found, err
}

// Watch is as that of Records. Renewals are changes; a lease that was released
// or has ended is deleted. Leases that a restarted server has forgotten are told
// to be deleted only if nobody has renewed them for another TTL.
func (l *Leases) Watch(ctx context.Context, prefix string, f func(Change) error) error {
	return l.b.watch(ctx, prefix, func(c Change) error {
		c.Value = shown(c.Value)
		return f(c)
	})
}

// Renew makes the lease last one TTL from now, and changes its value. ErrLost
// says that it is not ours any more. After ErrUnavailable it still is, until
// Lost says otherwise: renew every third of the TTL.
func (e *Lease) Renew(ctx context.Context, value []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, e.leases.ttl) // later, it is lost anyway
	defer cancel()
	for tries := 0; ; tries++ {
		if e.isLost() {
			return e.fail("renew")
		}
		since := time.Now()
		revision, err := e.leases.b.update(ctx, e.key, e.value(value), e.revision)
		if errors.Is(err, ErrConflict) {
			revision, err = e.reclaim(ctx, value)
		}
		switch {
		case err == nil:
			e.revision = revision
			e.timer.Reset(e.leases.ttl - time.Since(since))
			if e.isLost() { // it ended just before
				return e.fail("renew")
			}
			return nil
		case !errors.Is(err, ErrConflict) || tries == 2:
			return err
		}
	}
}

// reclaim takes the lease again where the server has forgotten it before its
// time, and finds its revision where an answer to us was lost: then, it returns
// ErrConflict, and renewing is to be tried again.
func (e *Lease) reclaim(ctx context.Context, value []byte) (uint64, error) {
	have, err := e.leases.b.get(ctx, e.key)
	switch {
	case errors.Is(err, ErrNotFound):
		revision, err := e.leases.b.create(ctx, e.key, e.value(value))
		if errors.Is(err, ErrExists) {
			e.end()
			return 0, e.fail("renew")
		}
		return revision, err
	case err != nil:
		return 0, err
	case !bytes.HasPrefix(have.Value, e.holder):
		e.end()
		return 0, e.fail("renew")
	}
	e.revision = have.Revision
	return 0, ErrConflict
}

// Release gives the lease back: others may take it at once. It is lost for us
// in any case. That it was lost before is no error.
func (e *Lease) Release(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.timer.Stop()
	e.end()
	for tries := 0; ; tries++ {
		err := e.leases.b.remove(ctx, e.key, e.revision)
		if !errors.Is(err, ErrConflict) || tries == 2 {
			return err
		}
		have, err := e.leases.b.get(ctx, e.key)
		if errors.Is(err, ErrNotFound) || err == nil && !bytes.HasPrefix(have.Value, e.holder) {
			return nil
		}
		if err != nil {
			return err
		}
		e.revision = have.Revision
	}
}

// Lost gives a channel that is closed when the lease is not ours any more: it
// was released, somebody else has it, or its time has passed since the last
// renewal was sent.
func (e *Lease) Lost() <-chan struct{} { return e.lost }

func (e *Lease) isLost() bool {
	select {
	case <-e.lost:
		return true
	default:
		return false
	}
}

func (e *Lease) fail(op string) error {
	return fmt.Errorf("cluster: %s %s %q: %w", op, e.leases.b.config.Bucket, e.key, ErrLost)
}

// value puts the holder before a value.
func (e *Lease) value(v []byte) []byte { return append(e.holder[:nonce:nonce], v...) }

// shown is a lease's value without its holder.
func shown(v []byte) []byte { return v[min(len(v), nonce):] }
