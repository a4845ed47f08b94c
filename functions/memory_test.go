package functions

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"
)

// memory is a backing that keeps records in a map.
type memory struct {
	mu       sync.Mutex // guards all below
	records  map[string]record
	revision uint64
	// before, if set, is called ahead of each write, without the lock.
	before func(op, key string) error
	wake   chan struct{} // closed at each change
	log    []record
}

func newMemory() (*Store, *memory) {
	m := &memory{records: map[string]record{}, wake: make(chan struct{})}
	return &Store{read: m, write: m, now: func() time.Time { return time.Unix(1_700_000_000, 0).UTC() }}, m
}

func (m *memory) Get(_ context.Context, key string) (record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[key]
	if !ok {
		return record{}, errMissing
	}
	return r, nil
}

func (m *memory) List(_ context.Context, prefix string) ([]record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []record
	for k, r := range m.records {
		if strings.HasPrefix(k, prefix) {
			out = append(out, r)
		}
	}
	return out, nil
}

func (m *memory) Watch(ctx context.Context, prefix string, changed func(record) error) error {
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
		if strings.HasPrefix(r.key, prefix) {
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
	r := record{key: key, value: slices.Clone(value), revision: m.revision}
	m.records[key] = r
	m.note(r)
}

func (m *memory) note(r record) {
	m.log = append(m.log, r)
	close(m.wake)
	m.wake = make(chan struct{})
}

func (m *memory) Create(_ context.Context, key string, value []byte) error {
	if err := m.hook("create", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[key]; ok {
		return errExists
	}
	m.set(key, value)
	return nil
}

func (m *memory) Update(_ context.Context, r record) error {
	if err := m.hook("update", r.key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.records[r.key].revision != r.revision {
		return errChanged
	}
	m.set(r.key, r.value)
	return nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	if err := m.hook("delete", key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[key]; ok {
		delete(m.records, key)
		m.revision++
		m.note(record{key: key, revision: m.revision})
	}
	return nil
}

// count tells how many records have a prefix.
func (m *memory) count(prefix string) int {
	r, _ := m.List(context.Background(), prefix)
	return len(r)
}
