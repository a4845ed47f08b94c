package cluster_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"thaw/cluster"
)

// filled serves a cluster that has records, a lease and a stream with a
// consumer, and gives its backup.
func filled(t *testing.T) (keys []string, backup []byte) {
	t.Helper()
	s := serve(t, t.TempDir())
	defer func() { is(t, s.Close(), nil) }()
	c := dial(t, s.URL())
	defer c.Close()
	ctx := t.Context()
	r, err := c.Records(ctx, "r")
	is(t, err, nil)
	for n := range 50 {
		key := fmt.Sprintf("k/%d", n)
		_, err := r.Create(ctx, key, []byte(key))
		is(t, err, nil)
		keys = append(keys, key)
	}
	large, err := c.Records(ctx, "large")
	is(t, err, nil)
	_, err = large.Create(ctx, "v", bytes.Repeat([]byte{1, 2, 3, 4}, cluster.MaxValue/4))
	is(t, err, nil)
	l, err := c.Leases(ctx, "l", time.Minute)
	is(t, err, nil)
	_, err = l.Take(ctx, "mine", nil)
	is(t, err, nil)
	js := c.JetStream()
	q, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "Q", Subjects: []string{"q"}, Retention: jetstream.WorkQueuePolicy})
	is(t, err, nil)
	worker, err := q.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "w", AckPolicy: jetstream.AckExplicitPolicy})
	is(t, err, nil)
	for _, s := range []string{"done", "waits"} {
		_, err = js.Publish(ctx, "q", []byte(s))
		is(t, err, nil)
	}
	m, err := worker.Next()
	is(t, err, nil)
	is(t, m.DoubleAck(ctx), nil)
	var b bytes.Buffer
	is(t, s.Backup(ctx, &b), nil)
	return keys, b.Bytes()
}

func TestBackup(t *testing.T) {
	t.Parallel()
	keys, backup := filled(t)
	dir := filepath.Join(t.TempDir(), "restored")
	is(t, cluster.Restore(t.Context(), dir, bytes.NewReader(backup)), nil)
	if err := cluster.Restore(t.Context(), dir, bytes.NewReader(backup)); err == nil {
		t.Error("restored over a folder that is in use")
	}
	s := serve(t, dir)
	c := dial(t, s.URL())
	t.Cleanup(func() { c.Close(); is(t, s.Close(), nil) })
	restored(t, c, keys)
	if err := c.Restore(t.Context(), bytes.NewReader(backup)); err == nil {
		t.Error("restored over what is there")
	}
}

// TestBackupIntoThree: one server becomes three.
func TestBackupIntoThree(t *testing.T) {
	t.Parallel()
	keys, backup := filled(t)
	c := dial(t, startThree(t).url())
	is(t, c.Restore(t.Context(), bytes.NewReader(backup)), nil)
	restored(t, c, keys)
	r, err := c.JetStream().Stream(t.Context(), "KV_r")
	is(t, err, nil)
	if n := r.CachedInfo().Config.Replicas; n != 3 {
		t.Errorf("%d copies are kept", n)
	}
}

// restored fails unless all is as filled left it.
func restored(t *testing.T, c *cluster.Conn, keys []string) {
	t.Helper()
	ctx := t.Context()
	r, err := c.Records(ctx, "r")
	is(t, err, nil)
	has(t, r, keys)
	got, err := r.Get(ctx, keys[0])
	is(t, err, nil)
	_, err = r.Update(ctx, keys[0], []byte("new"), got.Revision)
	is(t, err, nil)
	large, err := c.Records(ctx, "large")
	is(t, err, nil)
	if v, err := large.Get(ctx, "v"); err != nil || len(v.Value) != cluster.MaxValue {
		t.Errorf("the large value: %d bytes, %v", len(v.Value), err)
	}
	l, err := c.Leases(ctx, "l", time.Minute)
	is(t, err, nil)
	_, err = l.Take(ctx, "mine", nil)
	is(t, err, nil)
	w, err := c.JetStream().Consumer(ctx, "Q", "w")
	is(t, err, nil)
	m, err := w.Next()
	if err != nil || string(m.Data()) != "waits" {
		t.Errorf("the stream gives %v, %v", m, err)
	}
}

// TestBackupDamaged: no part of a backup is taken for a whole one, and nothing
// is left of it.
func TestBackupDamaged(t *testing.T) {
	t.Parallel()
	_, backup := filled(t)
	flipped := bytes.Clone(backup)
	flipped[bytes.Index(flipped, []byte("/00000001"))+600] ^= 1
	for name, b := range map[string][]byte{
		"empty": nil, "cut": backup[:len(backup)/2], "cut at an entry": backup[:len(backup)-2048], "flipped": flipped, "noise": bytes.Repeat([]byte("noise"), 1000),
	} {
		dir := filepath.Join(t.TempDir(), "restored")
		if err := cluster.Restore(t.Context(), dir, bytes.NewReader(b)); !errors.Is(err, cluster.ErrBackup) {
			t.Errorf("%s: %v", name, err)
		}
		if found, _ := filepath.Glob(dir + "*"); len(found) > 0 {
			t.Errorf("%s: left %v", name, found)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := cluster.Restore(ctx, filepath.Join(t.TempDir(), "x"), bytes.NewReader(backup)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended early: %v", err)
	}
}

// TestBackupWhileWriting: what was there before a backup is in it.
func TestBackupWhileWriting(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "writer", cluster.ServerOptions{Dir: t.TempDir(), Token: token})
	var before []string
	for range 100 {
		line, err := p.out.ReadString('\n')
		is(t, err, nil)
		before = append(before, line[:len(line)-1])
	}
	go p.out.WriteTo(discard{}) // it goes on until the process ends
	var b bytes.Buffer
	is(t, dial(t, p.url).Backup(t.Context(), &b), nil)
	dir := filepath.Join(t.TempDir(), "restored")
	is(t, cluster.Restore(t.Context(), dir, &b), nil)
	s := serve(t, dir)
	c := dial(t, s.URL())
	t.Cleanup(func() { c.Close(); is(t, s.Close(), nil) })
	r, err := c.Records(t.Context(), "r")
	is(t, err, nil)
	has(t, r, before)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v, %v", info, err)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }
