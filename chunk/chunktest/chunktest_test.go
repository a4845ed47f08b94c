package chunktest_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"thaw/chunk"
	"thaw/chunk/chunktest"
)

func TestMemory(t *testing.T) {
	chunktest.Store(t, func(*testing.T) chunk.Store { return new(chunktest.Memory) })
}

func TestMemoryAsSource(t *testing.T) {
	chunktest.Source(t, func(t *testing.T, objects map[chunk.Name][]byte) chunk.Source {
		m := new(chunktest.Memory)
		for name, data := range objects {
			if err := m.Plant(t.Context(), name, data); err != nil {
				t.Fatal(err)
			}
		}
		if m.Len() != len(objects) {
			t.Fatalf("holds %d objects, want %d", m.Len(), len(objects))
		}
		return m
	})
}

func TestMemoryRemove(t *testing.T) {
	var m chunktest.Memory
	c := chunktest.Sample(1, 10)
	if _, err := m.Put(t.Context(), c.Name, c.Data); err != nil {
		t.Fatal(err)
	}
	m.Remove(c.Name)
	m.Remove(c.Name)
	if m.Len() != 0 {
		t.Error("still there")
	}
}

func TestSampleRepeats(t *testing.T) {
	a, b, c := chunktest.Sample(1, 1000), chunktest.Sample(1, 1000), chunktest.Sample(2, 1000)
	if a.Name != b.Name || a.Name == c.Name {
		t.Errorf("names %s, %s, %s: want two equal and one other", a.Name, b.Name, c.Name)
	}
}

// broken is a Memory with one fault.
type broken struct {
	chunktest.Memory
	fault string
	gets  atomic.Int32 // Gets so far

	mu   sync.Mutex
	last map[chunk.Name][]byte // guarded by mu
}

// faults maps each way to break a Store to the subtest that must find it.
var faults = map[string]string{
	"missing is empty":        "missing_is_not_found",
	"missing is corrupt":      "missing_is_not_found",
	"shared slice":            "the_slice_is_the_caller's",
	"keeps the given slice":   "the_caller_keeps_the_slice",
	"everyone added":          "one_of_many_putters_adds",
	"ignores the context":     "ended_context",
	"put ignores the context": "ended_context_on_put",
	"stat is always one":      "gives_the_bytes",
	"never replaces":          "wrong_length_is_replaced",
	"always replaces":         "same_length_is_left",
	"no upper bound":          "over-long_object",
	"torn":                    "readers_see_a_whole_chunk",
}

func (b *broken) Get(ctx context.Context, name chunk.Name) ([]byte, error) {
	if b.fault == "ignores the context" {
		ctx = context.WithoutCancel(ctx)
	}
	defer b.gets.Add(1)
	data, err := b.Memory.Get(ctx, name)
	size, _ := b.Memory.Stat(ctx, name)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.fault == "missing is empty" && err != nil:
		return nil, nil
	case b.fault == "missing is corrupt" && err != nil:
		return nil, fmt.Errorf("%w: missing", chunk.ErrCorrupt)
	case b.fault == "no upper bound" && size > chunk.MaxSize:
		return make([]byte, size), nil
	case b.fault == "shared slice" && err == nil, b.fault == "keeps the given slice" && b.last[name] != nil:
		if b.last[name] == nil {
			b.last[name] = data
		}
		return b.last[name], nil
	}
	return data, err
}

func (b *broken) Stat(ctx context.Context, name chunk.Name) (int64, error) {
	size, err := b.Memory.Stat(ctx, name)
	if b.fault == "stat is always one" {
		return 1, err
	}
	return size, err
}

func (b *broken) Put(ctx context.Context, name chunk.Name, sealed []byte) (bool, error) {
	size, missing := b.Memory.Stat(context.WithoutCancel(ctx), name)
	switch b.fault {
	case "put ignores the context":
		ctx = context.WithoutCancel(ctx)
	case "never replaces":
		if missing == nil && size <= chunk.MaxSize {
			return false, nil
		}
	case "always replaces":
		return true, b.Plant(ctx, name, sealed)
	case "torn":
		_ = b.Plant(ctx, name, sealed[:len(sealed)/2])
		before := b.gets.Load()
		for range 100_000 { // a reader comes by, or there is none in this subtest
			if runtime.Gosched(); b.gets.Load() > before+2 {
				break
			}
		}
	case "keeps the given slice":
		b.mu.Lock()
		b.last[name] = sealed
		b.mu.Unlock()
	}
	added, err := b.Memory.Put(ctx, name, sealed)
	return added || b.fault == "everyone added" && err == nil, err
}

// TestBrokenStore is the body of TestSuiteFindsFaults's subprocesses.
func TestBrokenStore(t *testing.T) {
	fault := os.Getenv("CHUNKTEST_FAULT")
	if fault == "" {
		return // run by TestSuiteFindsFaults only
	}
	chunktest.Store(t, func(*testing.T) chunk.Store {
		return &broken{fault: fault, last: map[chunk.Name][]byte{}}
	})
}

// TestSuiteFindsFaults breaks a Store in each way and wants the suite to fail
// in the subtest that is about it. A failing testing.T cannot be caught, hence
// the subprocesses.
func TestSuiteFindsFaults(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for fault, subtest := range faults {
		t.Run(fault, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestBrokenStore$")
			cmd.Env = append(os.Environ(), "CHUNKTEST_FAULT="+fault)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err == nil {
				t.Error("the suite passes")
			}
			if !strings.Contains(out.String(), "--- FAIL: TestBrokenStore/"+subtest) {
				t.Errorf("not found by %s:\n%s", subtest, out.String())
			}
		})
	}
	if err := exec.CommandContext(t.Context(), self, "-test.run=^TestMemory$").Run(); err != nil {
		t.Errorf("a store without a fault does not pass: %v", err)
	}
}
