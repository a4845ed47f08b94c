package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"thaw/cluster"
)

const token = "a token of a fleet for tests"

// suite is what every cluster does, however many servers it has.
func suite(t *testing.T, c *cluster.Conn) {
	for name, f := range parts() {
		t.Run(name, func(t *testing.T) { f(t, c) })
	}
}

// parts are those of suite.
func parts() map[string]func(*testing.T, *cluster.Conn) {
	return map[string]func(*testing.T, *cluster.Conn){
		"compare and swap": testSwap, "keys of any bytes": testKeys, "list": testList, "first keys": testFirstKeys, "large values": testLarge,
		"watch": testWatch, "races": testRaces, "own writes": testOwnWrites, "leases": testLeases, "leases end": testLeasesEnd,
	}
}

// bucket is the name of a test's bucket.
func bucket(test string) string { return strings.NewReplacer("/", "-", " ", "_").Replace(test) }

// records gives a bucket of its own to a test.
func records(t *testing.T, c *cluster.Conn) *cluster.Records {
	t.Helper()
	r, err := c.Records(t.Context(), bucket(t.Name()))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func leases(t *testing.T, c *cluster.Conn, ttl time.Duration) *cluster.Leases {
	t.Helper()
	l, err := c.Leases(t.Context(), bucket(t.Name())+"-leases", ttl)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 3 minutes: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func testSwap(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	_, err := r.Get(ctx, "k")
	is(t, err, cluster.ErrNotFound)
	_, err = r.Update(ctx, "k", []byte("x"), 7)
	is(t, err, cluster.ErrConflict)
	_, err = r.Update(ctx, "k", []byte("x"), 0)
	is(t, err, cluster.ErrConflict)
	is(t, r.Delete(ctx, "k", 0), cluster.ErrNotFound)
	first, err := r.Create(ctx, "k", []byte("one"))
	is(t, err, nil)
	_, err = r.Create(ctx, "k", []byte("two"))
	is(t, err, cluster.ErrExists)
	second, err := r.Update(ctx, "k", []byte("two"), first)
	is(t, err, nil)
	_, err = r.Update(ctx, "k", []byte("three"), first)
	is(t, err, cluster.ErrConflict)
	is(t, r.Delete(ctx, "k", first), cluster.ErrConflict)
	got, err := r.Get(ctx, "k")
	if err != nil || got.Key != "k" || string(got.Value) != "two" || got.Revision != second || second <= first {
		t.Fatalf("got %+v, %v", got, err)
	}
	is(t, r.Delete(ctx, "k", second), nil)
	_, err = r.Get(ctx, "k")
	is(t, err, cluster.ErrNotFound)
	_, err = r.Update(ctx, "k", []byte("x"), second)
	is(t, err, cluster.ErrConflict)
	third, err := r.Create(ctx, "k", nil)
	is(t, err, nil)
	got, err = r.Get(ctx, "k")
	if err != nil || len(got.Value) != 0 || got.Revision != third || third <= second {
		t.Fatalf("got %+v, %v", got, err)
	}
	is(t, r.Delete(ctx, "k", 0), nil)
	is(t, r.Delete(ctx, "k", 0), cluster.ErrNotFound)
}

// What was acknowledged is there for who asks next, whichever server answers.
func testOwnWrites(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	for i := range 40 {
		key := strconv.Itoa(i)
		revision, err := r.Create(ctx, key, []byte("one"))
		is(t, err, nil)
		_, err = r.Get(ctx, key)
		is(t, err, nil)
		_, err = r.Update(ctx, key, []byte("two"), revision)
		is(t, err, nil)
		if got, err := r.Get(ctx, key); err != nil || string(got.Value) != "two" {
			t.Fatalf("key %s has %q, %v", key, got.Value, err)
		}
	}
}

func testKeys(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	keys := []string{"a", "a/", "/", "//", "a//b", "A", "a.b", "*", ">", "_", " \x00\xff", "größe/ü", strings.Repeat("/", cluster.MaxKey), strings.Repeat("\xfe", cluster.MaxKey)}
	for _, k := range keys {
		_, err := r.Create(ctx, k, []byte(k))
		is(t, err, nil)
	}
	for _, k := range keys {
		got, err := r.Get(ctx, k)
		if err != nil || got.Key != k || string(got.Value) != k {
			t.Errorf("key %.20q: %.20q, %v", k, got.Value, err)
		}
	}
	eventually(t, "all keys are listed", func() bool {
		all, err := r.List(ctx, "")
		is(t, err, nil)
		return len(all) == len(keys)
	})
	for _, k := range []string{"", strings.Repeat("a", cluster.MaxKey+1)} {
		if _, err := r.Get(ctx, k); err == nil {
			t.Errorf("took a key of %d bytes", len(k))
		}
	}
}

func testList(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	for _, k := range []string{"f/1/b", "f/1/a", "f/1/ab", "f/2/a", "f/1", "g", "f/1/gone"} {
		_, err := r.Create(ctx, k, []byte("of "+k))
		is(t, err, nil)
	}
	is(t, r.Delete(ctx, "f/1/gone", 0), nil)
	for prefix, want := range map[string]string{
		"": "f/1 f/1/a f/1/ab f/1/b f/2/a g", "f/1/": "f/1/a f/1/ab f/1/b", "f/1": "f/1 f/1/a f/1/ab f/1/b", "f/1/a": "f/1/a f/1/ab", "x": "", "f/3/": "",
	} {
		eventually(t, "below "+prefix+": "+want, func() bool {
			got, err := r.List(ctx, prefix)
			is(t, err, nil)
			var keys []string
			for _, e := range got {
				keys = append(keys, e.Key)
				if string(e.Value) != "of "+e.Key {
					t.Errorf("%q has %q", e.Key, e.Value)
				}
			}
			return strings.Join(keys, " ") == want
		})
	}
}

// testFirstKeys pages through keys, in order, without their values.
func testFirstKeys(t *testing.T, c *cluster.Conn) {
	r := records(t, c)
	var want []string
	for i := range 25 {
		key := fmt.Sprintf("p/%02d", i*7%25)
		want = append(want, fmt.Sprintf("p/%02d", i))
		if _, err := r.Create(t.Context(), key, []byte("value")); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"o/1", "p/gone", "q/1"} {
		if _, err := r.Create(t.Context(), key, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Delete(t.Context(), "p/gone", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all keys, page by page", func() bool {
		var got []string
		for after := ""; ; after = got[len(got)-1] {
			page, err := r.Keys(t.Context(), "p/", after, 10)
			if err != nil || len(page) > 10 {
				t.Fatal(len(page), err)
			}
			if got = append(got, page...); len(page) == 0 {
				return slices.Equal(got, want)
			}
		}
	})
}

func testLarge(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	v := bytes.Repeat([]byte("\x00ab\xff"), cluster.MaxValue/4)
	_, err := r.Create(ctx, strings.Repeat("k", cluster.MaxKey), v)
	is(t, err, nil)
	got, err := r.Get(ctx, strings.Repeat("k", cluster.MaxKey))
	if err != nil || !bytes.Equal(got.Value, v) {
		t.Errorf("%d bytes, %v", len(got.Value), err)
	}
	if _, err := r.Create(ctx, "more", append(v, 1)); err == nil || errors.Is(err, cluster.ErrUnavailable) {
		t.Errorf("one byte more: %v", err)
	}
}

// tape collects what a watch tells.
type tape struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (p *tape) add(c cluster.Change) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case c.Synced:
		p.lines = append(p.lines, "synced")
	case c.Deleted:
		p.lines = append(p.lines, "-"+c.Key)
	default:
		p.lines = append(p.lines, fmt.Sprintf("%s=%s", c.Key, c.Value))
	}
	return nil
}

func (p *tape) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, " ")
}

// state is what a follower of the tape has at its end, and whether it was synced.
func (p *tape) state() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	have, synced := map[string]string{}, ""
	for _, line := range p.lines {
		key, _, isSet := strings.Cut(line, "=")
		switch gone, isGone := strings.CutPrefix(line, "-"); {
		case isSet:
			have[key] = line + " "
		case isGone:
			delete(have, gone)
		default:
			synced = line
		}
	}
	all := ""
	for _, key := range slices.Sorted(maps.Keys(have)) {
		all += have[key]
	}
	return all + synced
}

// watch runs f, a watch, until the test ends.
func watch(t *testing.T, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the watch ended with %v", err)
		}
	})
}

func testWatch(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	put := func(k, v string) uint64 {
		rev, err := r.Create(ctx, k, []byte(v))
		is(t, err, nil)
		return rev
	}
	rev := put("a/1", "x")
	put("a/2", "y")
	put("b", "z")
	put("a/gone", "z")
	is(t, r.Delete(ctx, "a/gone", 0), nil)
	var seen tape
	watch(t, func(ctx context.Context) error { return r.Watch(ctx, "a/", seen.add) })
	want := func(state, told string) {
		t.Helper()
		eventually(t, state, func() bool { return seen.state() == state })
		if s := seen.String(); s != told && c.Replicas() == 1 { // one of several may be a moment behind when the watch begins
			t.Errorf("told %q, want %q", s, told)
		}
	}
	want("a/1=x a/2=y synced", "a/1=x a/2=y synced")
	_, err := r.Update(ctx, "a/1", []byte("xx"), rev)
	is(t, err, nil)
	put("bb", "")
	is(t, r.Delete(ctx, "a/2", 0), nil)
	put("a/3", "")
	want("a/1=xx a/3= synced", "a/1=x a/2=y synced a/1=xx -a/2 a/3=")

	full := errors.New("enough")
	is(t, r.Watch(ctx, "nothing/", func(c cluster.Change) error {
		if !c.Synced {
			t.Errorf("told %+v", c)
		}
		return full
	}), full)
}

func testRaces(t *testing.T, c *cluster.Conn) {
	r, ctx := records(t, c), t.Context()
	_, err := r.Create(ctx, "n", nil)
	is(t, err, nil)
	const writers, each = 4, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				have, err := r.Get(ctx, "n")
				if err == nil {
					_, err = r.Update(ctx, "n", append(have.Value, 1), have.Revision)
				}
				if err == nil {
					done++
				} else if !errors.Is(err, cluster.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if have, err := r.Get(ctx, "n"); err != nil || len(have.Value) != writers*each {
		t.Errorf("%d of %d changes are there, %v", len(have.Value), writers*each, err)
	}
}

func testLeases(t *testing.T, c *cluster.Conn) {
	l, ctx := leases(t, c, time.Hour), t.Context()
	mine, err := l.Take(ctx, "w/1", []byte("me"))
	is(t, err, nil)
	_, err = l.Take(ctx, "w/1", []byte("you"))
	is(t, err, cluster.ErrExists)
	is(t, mine.Renew(ctx, []byte("me still")), nil)
	is(t, mine.Renew(ctx, []byte("me again")), nil)
	eventually(t, "the lease is listed", func() bool {
		all, err := l.List(ctx, "w/")
		is(t, err, nil)
		return len(all) == 1 && all[0].Key == "w/1" && string(all[0].Value) == "me again"
	})
	var seen tape
	watch(t, func(ctx context.Context) error { return l.Watch(ctx, "", seen.add) })
	eventually(t, "synced", func() bool { return seen.state() == "w/1=me again synced" })
	begun := seen.String()
	select {
	case <-mine.Lost():
		t.Fatal("lost")
	default:
	}
	is(t, mine.Release(ctx), nil)
	told := func(s string) { // one after the other: of changes in a row, the last may be told alone
		t.Helper()
		begun += s
		eventually(t, "told"+s, func() bool { return seen.String() == begun })
	}
	told(" -w/1")
	<-mine.Lost()
	is(t, mine.Release(ctx), nil)
	is(t, mine.Renew(ctx, nil), cluster.ErrLost)
	_, err = l.Get(ctx, "w/1")
	is(t, err, cluster.ErrNotFound)
	yours, err := l.Take(ctx, "w/1", []byte("you"))
	is(t, err, nil)
	is(t, mine.Release(ctx), nil) // takes nothing away
	got, err := l.Get(ctx, "w/1")
	if err != nil || string(got.Value) != "you" {
		t.Fatalf("got %+v, %v", got, err)
	}
	told(" w/1=you")
	is(t, yours.Release(ctx), nil)
	told(" -w/1")
}

func testLeasesEnd(t *testing.T, c *cluster.Conn) {
	const ttl = 2 * time.Second
	l, ctx := leases(t, c, ttl), t.Context()
	dying, err := l.Take(ctx, "dying", nil)
	is(t, err, nil)
	kept, err := l.Take(ctx, "kept", nil)
	is(t, err, nil)
	last := time.Now()
	var seen tape
	watch(t, func(ctx context.Context) error { return l.Watch(ctx, "dying", seen.add) })
	eventually(t, "end of a lease that nobody renews", func() bool {
		asked := time.Now()
		err := kept.Renew(ctx, nil)
		slow := errors.Is(err, cluster.ErrLost) || errors.Is(err, cluster.ErrUnavailable) // it waits for one TTL
		if slow && time.Since(last) > ttl/2 {                                             // this machine was too slow to renew it
			var again *cluster.Lease
			if again, err = l.Take(ctx, "kept", nil); errors.Is(err, cluster.ErrExists) {
				return false // it is about to end there
			}
			kept = again
		}
		is(t, err, nil)
		last = asked
		return strings.HasSuffix(seen.String(), "-dying")
	})
	<-dying.Lost()
	is(t, dying.Renew(ctx, nil), cluster.ErrLost)
	next, err := l.Take(ctx, "dying", []byte("next"))
	is(t, err, nil)
	is(t, next.Release(ctx), nil)
	is(t, kept.Release(ctx), nil)
}
