package functions

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"thaw/cluster"
)

// memory is a backing that keeps records in a map.
type memory struct {
	mu       sync.Mutex // guards all below but the hooks
	records  map[string]cluster.Record
	revision uint64
	// before and after, if set, are called around each write, without the lock.
	// What they return the write returns: it has not been done, or it has.
	before, after func(op, key string) error
	wake          chan struct{} // closed at each change
	ticks         atomic.Int64
	log           []cluster.Change
}

func newMemory() (*Store, *memory) {
	m := &memory{records: map[string]cluster.Record{}, wake: make(chan struct{})}
	return &Store{read: m, write: m, now: m.clock}, m
}

func (m *memory) Get(_ context.Context, key string) (cluster.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[key]
	if !ok {
		return cluster.Record{}, cluster.ErrNotFound
	}
	return r, nil
}

func (m *memory) List(_ context.Context, prefix string) ([]cluster.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []cluster.Record
	for k, r := range m.records {
		if strings.HasPrefix(k, prefix) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b cluster.Record) int { return strings.Compare(a.Key, b.Key) })
	return out, nil
}

func (m *memory) Keys(ctx context.Context, prefix, after string, limit int) (keys []string, err error) {
	all, err := m.List(ctx, prefix)
	for _, r := range all {
		if r.Key > after && len(keys) < limit {
			keys = append(keys, r.Key)
		}
	}
	return keys, err
}

func (m *memory) Watch(ctx context.Context, prefix string, changed func(cluster.Change) error) error {
	for next := 0; ; next++ {
		m.mu.Lock()
		for len(m.log) == next {
			wake := m.wake
			m.mu.Unlock()
			select {
			case <-wake:
			case <-ctx.Done():
				return ctx.Err()
			}
			m.mu.Lock()
		}
		r := m.log[next]
		m.mu.Unlock()
		if strings.HasPrefix(r.Key, prefix) {
			if err := changed(r); err != nil {
				return err
			}
		}
	}
}

// clock is one on which much time passes between any two looks at it.
func (m *memory) clock() time.Time {
	return testTime.Add(time.Duration(m.ticks.Add(1)) * 2 * settling)
}

// around does a write between its hooks.
func (m *memory) around(op, key string, write func() error) error {
	if m.before != nil {
		if err := m.before(op, key); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := write()
	m.mu.Unlock()
	if err == nil && m.after != nil {
		err = m.after(op, key)
	}
	return err
}

// set writes; it is called with the lock held.
func (m *memory) set(key string, value []byte) {
	m.revision++
	r := cluster.Record{Key: key, Value: slices.Clone(value), Revision: m.revision}
	m.records[key] = r
	m.note(cluster.Change{Record: r})
}

func (m *memory) note(r cluster.Change) {
	m.log = append(m.log, r)
	close(m.wake)
	m.wake = make(chan struct{})
}

func (m *memory) Create(_ context.Context, key string, value []byte) (revision uint64, err error) {
	err = m.around("create", key, func() error {
		if _, ok := m.records[key]; ok {
			return cluster.ErrExists
		}
		m.set(key, value)
		revision = m.revision
		return nil
	})
	return revision, err
}

func (m *memory) Update(_ context.Context, key string, value []byte, at uint64) (revision uint64, err error) {
	err = m.around("update", key, func() error {
		if m.records[key].Revision != at {
			return cluster.ErrConflict
		}
		m.set(key, value)
		revision = m.revision
		return nil
	})
	return revision, err
}

func (m *memory) Delete(_ context.Context, key string, revision uint64) error {
	return m.around("delete", key, func() error {
		r, ok := m.records[key]
		switch {
		case !ok && revision == 0:
			return cluster.ErrNotFound
		case revision != 0 && r.Revision != revision:
			return cluster.ErrConflict
		}
		delete(m.records, key)
		m.revision++
		m.note(cluster.Change{Record: cluster.Record{Key: key, Revision: m.revision}, Deleted: true})
		return nil
	})
}

// count tells how many records have a prefix.
func (m *memory) count(prefix string) int {
	r, _ := m.List(context.Background(), prefix)
	return len(r)
}
