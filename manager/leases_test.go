package manager

import (
	"context"
	"errors"
	"testing"
	"time"

	"thaw/cluster"
)

// The directory against a real cluster.
func TestLeasesInCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	conn, err := cluster.Dial(ctx, s.URL(), token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	bucket, err := conn.Leases(ctx, "fleet", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	d := leases{bucket}
	told := make(chan string, 100)
	watching := make(chan error, 1)
	watch, stop := context.WithCancel(ctx)
	go func() {
		watching <- d.Watch(watch, "owner/", func(key string, value []byte) {
			told <- key + "=" + string(value)
		})
	}()
	if s := <-told; s != "=" {
		t.Fatalf("told %q of nothing", s)
	}
	h, _, err := d.Take(ctx, "owner/0/f", []byte("m1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, value, err := d.Take(ctx, "owner/0/f", []byte("m2")); !errors.Is(err, errTaken) || string(value) != "m1" {
		t.Errorf("taken twice: %q, %v", value, err)
	}
	if err := h.Renew(ctx, []byte("m1")); err != nil {
		t.Error(err)
	}
	await := func(want string) {
		t.Helper()
		for {
			select {
			case s := <-told:
				if s == want {
					return
				}
			case <-ctx.Done():
				t.Fatalf("never told %q", want)
			}
		}
	}
	await("owner/0/f=m1")
	if err := h.Release(ctx); err != nil {
		t.Error(err)
	}
	await("owner/0/f=")
	stop()
	if err := <-watching; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

// A manager on a real cluster registers, and gives everything back.
func TestManagerInCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	s, err := cluster.Serve(ctx, cluster.ServerOptions{Dir: t.TempDir(), Listen: "127.0.0.1:0", Token: token})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	conn, err := cluster.Dial(ctx, s.URL(), token)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	bucket, err := conn.Leases(ctx, "fleet", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	m := New(Options{ID: "m1", Address: "127.0.0.1:1", Token: token, Leases: bucket})
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- m.Run(run) }()
	for {
		if r, err := bucket.Get(ctx, "managers/m1"); err == nil && string(r.Value) == "127.0.0.1:1" {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("never registered")
		}
	}
	if err := m.own(ctx, function{"0", "f"}); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if left, err := bucket.List(ctx, ""); err != nil || len(left) > 0 {
		t.Errorf("left in the cluster: %v, %v", left, err)
	}
}
