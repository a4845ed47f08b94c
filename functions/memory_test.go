package functions

import (
	"context"
	"slices"
	"strings"
	"sync"

	"thaw/cluster"
)

// memory is a backing that keeps records in a map.
type memory struct {
	mu       sync.Mutex // guards all below
	records  map[string]cluster.Record
	revision uint64
	// before, if set, is called ahead of each write, without the lock.
	before func(op, key string) error
	wake   chan struct{} // closed at each change
	log    []cluster.Change
}

func newMemory() (*Store, *memory) {
	m := &memory{records: map[string]cluster.Record{}, wake: make(chan struct{})}
	return &Store{read: m, write: m}, m
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

func (m *memory) hook(op, key string) error {
	m.mu.Lock()
	before := m.before
	m.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(op, key)
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

func (m *memory) Create(_ context.Context, key string, value []byte) (uint64, error) {
	if err := m.hook("create", key); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[key]; ok {
		return 0, cluster.ErrExists
	}
	m.set(key, value)
	return m.revision, nil
}

func (m *memory) Update(_ context.Context, key string, value []byte, revision uint64) (uint64, error) {
	if err := m.hook("update", key); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[key].Revision != revision {
		return 0, cluster.ErrConflict
	}
	m.set(key, value)
	return m.revision, nil
}

func (m *memory) Delete(_ context.Context, key string, revision uint64) error {
	if err := m.hook("delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
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
}

// count tells how many records have a prefix.
func (m *memory) count(prefix string) int {
	r, _ := m.List(context.Background(), prefix)
	return len(r)
}
