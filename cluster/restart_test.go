package cluster_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"thaw/cluster"
)

// TestRestart: clients get over a restart of the server. Records are there, a
// lease is still its holder's, watches go on, and what is asked meanwhile waits.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	listen := ports(t, 1)[0]
	start := func() *cluster.Server {
		s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: dir, Listen: listen, Token: token})
		is(t, err, nil)
		return s
	}
	s := start()
	t.Cleanup(func() { is(t, s.Close(), nil) }) // whichever it is then
	c := dial(t, s.URL())
	r, l := records(t, c), leases(t, c, time.Hour)
	revision, err := r.Create(ctx, "k", []byte("v"))
	is(t, err, nil)
	_, err = r.Create(ctx, "gone", nil)
	is(t, err, nil)
	mine, err := l.Take(ctx, "mine", []byte("before"))
	is(t, err, nil)
	taken, err := l.Take(ctx, "taken", nil)
	is(t, err, nil)
	var seen, held tape
	watch(t, func(ctx context.Context) error { return r.Watch(ctx, "", seen.add) })
	watch(t, func(ctx context.Context) error { return l.Watch(ctx, "", held.add) })
	eventually(t, "watches", func() bool { return seen.String() == "k=v gone= synced" && strings.HasSuffix(held.String(), "synced") })

	alive, cancel := c.Alive(ctx)
	defer cancel()
	is(t, s.Close(), nil)
	<-alive.Done()
	waited := make(chan error, 1)
	go func() {
		_, err := r.Update(ctx, "k", []byte("vv"), revision)
		waited <- err
	}()
	s = start()
	is(t, <-waited, nil)
	is(t, r.Delete(ctx, "gone", 0), nil)
	got, err := r.Get(ctx, "k")
	if err != nil || string(got.Value) != "vv" {
		t.Errorf("got %q, %v", got.Value, err)
	}
	other, err := l.Take(ctx, "taken", []byte("other")) // nobody remembers who had it
	is(t, err, nil)
	is(t, taken.Renew(ctx, nil), cluster.ErrLost)
	<-taken.Lost()
	is(t, mine.Renew(ctx, []byte("after")), nil)
	is(t, mine.Renew(ctx, []byte("after")), nil)
	eventually(t, "watches of the new server", func() bool {
		return strings.Contains(seen.String(), "k=vv") && strings.Contains(seen.String(), "-gone") && strings.Contains(held.String(), "mine=after")
	})
	is(t, other.Release(ctx), nil)
	eventually(t, "a release", func() bool { return strings.Contains(held.String(), "-taken") })
	if strings.Contains(held.String(), "-mine") {
		t.Errorf("a lease is told to be gone that its holder renewed in time: %s", &held)
	}
}

// TestLostAnswer: a renewal that was done, but whose answer was lost, does not
// cost the lease.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	c := dial(t, s.URL())
	t.Cleanup(func() { c.Close(); is(t, s.Close(), nil) })
	l, ctx := leases(t, c, time.Minute), t.Context()
	mine, err := l.Take(ctx, "m", []byte("v"))
	is(t, err, nil)
	kv, err := c.JetStream().KeyValue(ctx, "TestLostAnswer-leases")
	is(t, err, nil)
	again := func() {
		e, err := kv.Get(ctx, "6d")
		is(t, err, nil)
		_, err = kv.Put(ctx, "6d", e.Value())
		is(t, err, nil)
	}
	again()
	is(t, mine.Renew(ctx, []byte("w")), nil)
	got, err := l.Get(ctx, "m")
	if err != nil || string(got.Value) != "w" {
		t.Errorf("got %q, %v", got.Value, err)
	}
	again()
	is(t, mine.Release(ctx), nil)
	_, err = l.Get(ctx, "m")
	is(t, err, cluster.ErrNotFound)
}

// TestUnavailable: without a server, operations end, and say so.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	s := serve(t, t.TempDir())
	c := dial(t, s.URL())
	r, l := records(t, c), leases(t, c, time.Second)
	mine, err := l.Take(t.Context(), "mine", nil)
	is(t, err, nil)
	is(t, s.Close(), nil)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = r.Get(ctx, "k")
	is(t, err, cluster.ErrUnavailable)
	is(t, err, context.DeadlineExceeded)
	_, err = r.Create(ctx, "k", nil)
	is(t, err, cluster.ErrUnavailable)
	_, err = r.List(ctx, "")
	is(t, err, cluster.ErrUnavailable)
	<-mine.Lost()
	_, err = cluster.Dial(ctx, s.URL(), token)
	is(t, err, cluster.ErrUnavailable)
	is(t, r.Watch(ctx, "", func(cluster.Change) error { return errors.New("told") }), context.DeadlineExceeded)
}
