package origin

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"
)

// memory keeps objects in a map: the driver of mem://, for tests.
type memory struct {
	mu      sync.Mutex // guards objects
	objects map[string]object
}

// object is immutable.
type object struct {
	data []byte
	time time.Time
}

func (m *memory) look(key string) (object, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return o, ErrNotFound
	}
	return o, nil
}

// Get implements Reader.
func (m *memory) Get(_ context.Context, key string, limit int64) ([]byte, error) {
	o, err := m.look(key)
	if err == nil && int64(len(o.data)) > limit {
		err = tooLong(limit)
	}
	if err != nil {
		return nil, err
	}
	return bytes.Clone(o.data), nil
}

// Stat implements Reader.
func (m *memory) Stat(_ context.Context, key string) (Entry, error) {
	o, err := m.look(key)
	return Entry{Key: key, Size: int64(len(o.data)), ModTime: o.time}, err
}

// List implements Reader. It shows the state of one moment.
func (m *memory) List(ctx context.Context, prefix string, shallow bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for _, e := range m.entries(prefix, shallow) {
			if err := ctx.Err(); err != nil {
				yield(Entry{}, err)
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (m *memory) entries(prefix string, shallow bool) []Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Entry
	for key, o := range m.objects {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok {
			continue
		}
		if level, _, below := strings.Cut(rest, "/"); below && shallow {
			found = append(found, Entry{Key: prefix + level + "/", Dir: true})
			continue
		}
		found = append(found, Entry{Key: key, Size: int64(len(o.data)), ModTime: o.time})
	}
	slices.SortFunc(found, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return slices.CompactFunc(found, func(a, b Entry) bool { return a.Key == b.Key })
}

// Create implements Writer.
func (m *memory) Create(_ context.Context, key string, data []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.objects[key]; taken {
		return false, nil
	}
	m.objects[key] = object{bytes.Clone(data), time.Now()}
	return true, nil
}

// Replace implements Writer.
func (m *memory) Replace(_ context.Context, key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key] = object{bytes.Clone(data), time.Now()}
	return nil
}

// Remove implements Writer.
func (m *memory) Remove(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[key]; !ok {
		return ErrNotFound
	}
	delete(m.objects, key)
	return nil
}

// tooLong is the error of an object that its reader did not expect so long.
func tooLong(limit int64) error { return fmt.Errorf("%w: longer than %d bytes", ErrCorrupt, limit) }
