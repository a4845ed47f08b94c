package chunktest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"thaw/chunk"
)

// Memory is a chunk.Store, chunk.Statter and Planter in memory. The zero value
// is empty and ready; it must not be copied. Safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	objects map[chunk.Name][]byte // guarded by mu; the slices are never modified
}

// Get implements chunk.Source.
func (m *Memory) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	data, err := m.lookup(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(data) > chunk.MaxSize {
		return nil, fmt.Errorf("%w: %s is %d bytes long", chunk.ErrCorrupt, name, len(data))
	}
	return bytes.Clone(data), nil
}

// Stat implements chunk.Statter.
func (m *Memory) Stat(ctx context.Context, name chunk.Name) (int64, error) {
	data, err := m.lookup(ctx, name)
	return int64(len(data)), err
}

func (m *Memory) lookup(ctx context.Context, name chunk.Name) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.objects[name]
	if !ok {
		return nil, fmt.Errorf("%w: %s", chunk.ErrNotFound, name)
	}
	return data, nil
}

// Put implements chunk.Store.
func (m *Memory) Put(ctx context.Context, name chunk.Name, sealed []byte) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.objects[name]; ok && len(old) == len(sealed) {
		return false, nil
	}
	m.set(name, sealed)
	return true, nil
}

// Plant implements Planter.
func (m *Memory) Plant(_ context.Context, name chunk.Name, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(name, data)
	return nil
}

// set needs mu held.
func (m *Memory) set(name chunk.Name, data []byte) {
	if m.objects == nil {
		m.objects = map[chunk.Name][]byte{}
	}
	m.objects[name] = append([]byte{}, data...)
}

// Remove takes the chunk out, if it is there.
func (m *Memory) Remove(name chunk.Name) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
}

// Len tells how many objects are stored.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.objects)
}
