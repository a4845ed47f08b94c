package functions

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"thaw/cluster"
)

// seen is what can be seen of one function; it is all that the model knows of it.
type seen struct {
	state    string
	memory   int // of $LATEST
	invoked  int // memory of what invokes of $LATEST run
	update   string
	versions map[string]string // number → memory and state
	next     int
	clean    bool // nothing has changed since the last version was published
	aliases  map[string]string
	reserved int // -1: nothing
}

func (s *seen) copy() *seen {
	if s == nil {
		return nil
	}
	c := *s
	c.versions, c.aliases = maps.Clone(s.versions), maps.Clone(s.aliases)
	return &c
}

func (s *seen) String() string {
	if s == nil {
		return "nothing"
	}
	return fmt.Sprintf("%+v", *s)
}

// machine drives a store and the model side by side. A write may fail: undone,
// or done and not known to be.
type machine struct {
	t      *rapid.T
	store  *Store
	memory *memory
	model  map[string]*seen
	fault  int // writes until the next that fails; negative: none does
	done   bool
	failed bool
}

var names = []string{"a", "b", "c"}

func (m *machine) id(name string) ID { return ID{testID.Account, name} }

// look reads what can be seen of a function.
func (m *machine) look(name string) *seen {
	f, err := m.store.Get(m.t.Context(), m.id(name))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		m.t.Fatal(err)
	}
	s := &seen{
		state: f.Latest.State, memory: f.Latest.Memory, invoked: f.Invoked().Memory, update: f.Latest.LastUpdateStatus,
		versions: map[string]string{}, next: f.Next, aliases: map[string]string{}, reserved: -1,
	}
	for _, n := range f.Numbers() {
		v, err := m.store.Version(m.t.Context(), f, n)
		if err != nil {
			m.t.Fatalf("version %s of %s: %v", n, name, err)
		}
		s.versions[n] = fmt.Sprint(v.Memory, " ", v.State)
	}
	_, there := f.Versions[f.Published]
	s.clean = there && f.PublishedAs == f.Latest.Revision
	for a, to := range f.Aliases {
		s.aliases[a] = to.Version
	}
	if f.Reserved != nil {
		s.reserved = *f.Reserved
	}
	return s
}

// do runs an operation that the model says makes after of a function, or is
// refused. If one of its writes fails, before and after are both right.
func (m *machine) do(name string, after *seen, refused bool, op func() error) {
	m.fault, m.done = rapid.IntRange(-6, 3).Draw(m.t, "writes until a fault"), rapid.Bool().Draw(m.t, "done")
	m.failed = false
	before := m.model[name]
	err := op()
	m.fault = -1
	got := m.look(name)
	switch {
	case m.failed:
		if got.String() != before.String() && got.String() != after.String() {
			m.t.Fatalf("after a fault %s is %v\nbefore it was %v\nwithout it would be %v", name, got, before, after)
		}
	case refused:
		var e *Error
		if !errors.As(err, &e) || got.String() != before.String() {
			m.t.Fatalf("%s: %v, want a refusal; it is %v and was %v", name, err, got, before)
		}
	case err != nil:
		m.t.Fatalf("%s: %v", name, err)
	case got.String() != after.String():
		m.t.Fatalf("%s is %v\nshould be %v", name, got, after)
	}
	m.model[name] = got
}

func (m *machine) strike(done bool) error {
	if m.fault < 0 || m.done != done {
		return nil
	}
	if m.fault--; m.fault >= 0 {
		return nil
	}
	m.failed = true
	return fmt.Errorf("%w: a fault of the test", cluster.ErrUnavailable)
}

func (m *machine) create(name string, publish bool, memory int) {
	after := &seen{state: Pending, memory: memory, invoked: memory, versions: map[string]string{}, next: 1, aliases: map[string]string{}, reserved: -1}
	if publish {
		after.versions["1"], after.next, after.clean = fmt.Sprint(memory, " Pending"), 2, true
	}
	m.do(name, after, m.model[name] != nil, func() error {
		return m.store.Create(m.t.Context(), NewFunction(m.id(name), Version{Config: Config{Memory: memory}}, testTime), publish)
	})
}

func (m *machine) building(s *seen) bool { return s.state == Pending || s.update == inProgress }

func (m *machine) change(name string, publish bool, memory int) {
	after := m.model[name].copy()
	refused := after == nil || m.building(after)
	if !refused {
		if after.state == Failed {
			after.state, after.invoked = Pending, memory
		}
		after.memory, after.update, after.clean = memory, inProgress, false
		if publish {
			m.published(after, Pending)
		}
	}
	change := func(f *Function) error {
		return f.Change(testARN, testTime, func(v *Version) error { v.Memory = memory; return nil })
	}
	m.do(name, after, refused, func() error {
		if publish {
			_, err := m.store.Publish(m.t.Context(), m.id(name), "", change)
			return err
		}
		_, err := m.store.Update(m.t.Context(), m.id(name), change)
		return err
	})
}

func (m *machine) published(s *seen, state string) {
	s.versions[fmt.Sprint(s.next)] = fmt.Sprint(s.memory, " ", state)
	s.next++
	s.clean = true
}

func (m *machine) publish(name string) {
	after := m.model[name].copy()
	refused := after == nil || m.building(after) || !after.clean && after.update == Failed
	if !refused && !after.clean {
		m.published(after, after.state)
	}
	m.do(name, after, refused, func() error {
		_, err := m.store.Publish(m.t.Context(), m.id(name), "", func(f *Function) error { return f.Idle(testARN) })
		return err
	})
}

// settle ends a build, again and again until no fault is in the way, as builders do.
func (m *machine) settle(name string, well bool) {
	f, err := m.store.Get(m.t.Context(), m.id(name))
	if err != nil || f.Latest.Build == "" {
		return
	}
	after := m.model[name].copy()
	state, result := Active, built
	after.update = successful
	if !well {
		state, result = Failed, Result{Code: "InvalidImage", Reason: "No."}
		after.update = Failed
	}
	for n, v := range after.versions {
		after.versions[n] = strings.Replace(v, Pending, state, 1)
	}
	if after.state == Pending {
		after.state = state
	}
	if well {
		after.invoked = after.memory
	}
	m.fault = rapid.IntRange(-3, 2).Draw(m.t, "writes until a fault")
	for range 3 {
		err = m.store.Settle(m.t.Context(), m.id(name), f.Latest.Build, result)
		if err == nil || errors.Is(err, ErrConflict) { // it had been done
			break
		}
	}
	m.fault = -1
	if got := m.look(name); got.String() != after.String() {
		m.t.Fatalf("%s is settled as %v\nshould be %v", name, got, after)
	}
	m.model[name] = after
}

func (m *machine) reserve(name string, n int) {
	after := m.model[name].copy()
	sum := n
	for other, s := range m.model {
		if other != name && s != nil && s.reserved > 0 {
			sum += s.reserved
		}
	}
	refused := after == nil || n > after.reserved && sum > 900
	if after != nil && !refused {
		after.reserved = n
	}
	m.do(name, after, refused, func() error {
		if n < 0 {
			return m.store.Reserve(m.t.Context(), m.id(name), nil)
		}
		return m.store.Reserve(m.t.Context(), m.id(name), &n)
	})
}

// alone changes a function in ways that need no more than its record.
func (m *machine) alone(name, alias string) {
	after := m.model[name].copy()
	number := Latest
	if after != nil {
		if keys := slices.Sorted(maps.Keys(after.versions)); len(keys) > 0 {
			number = rapid.SampledFrom(keys).Draw(m.t, "version")
		}
		after.aliases[alias] = number
	}
	m.do(name, after, after == nil, func() error {
		_, err := m.store.Update(m.t.Context(), m.id(name), func(f *Function) error {
			f.SetAlias(alias, Alias{Version: number})
			return nil
		})
		return err
	})
}

func (m *machine) deleteVersion(name, number string) {
	after := m.model[name].copy()
	if after != nil {
		delete(after.versions, number)
		if number == fmt.Sprint(after.next-1) {
			after.clean = false
		}
	}
	m.do(name, after, after == nil, func() error {
		return m.store.DeleteVersion(m.t.Context(), m.id(name), number, noCheck)
	})
}

// check compares what lists show with the model, and looks for leftovers.
func (m *machine) check() {
	var want, got []string
	for name, s := range m.model {
		if s != nil {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	for after := ""; ; {
		page, more, err := m.store.List(m.t.Context(), testID.Account, after, 2)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, f := range page {
			got = append(got, f.Name)
		}
		if after = more; more == "" {
			break
		}
	}
	if !slices.Equal(got, want) {
		m.t.Fatalf("listed %v, want %v", got, want)
	}
	reserved := 0
	for _, s := range m.model {
		if s != nil {
			reserved += max(s.reserved, 0)
		}
	}
	if _, free, err := m.store.Concurrency(m.t.Context(), testID.Account); err != nil || 1000-free < reserved || reserved > 900 {
		m.t.Fatalf("%d reserved, %d unreserved, %v", reserved, free, err)
	}
}

// The store does what a map would, and a write that fails leaves what was before
// or what should be after.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store, memory := newMemory()
		m := &machine{t: t, store: store, memory: memory, model: map[string]*seen{}, fault: -1}
		memory.before = func(string, string) error { return m.strike(false) }
		memory.after = func(string, string) error { return m.strike(true) }
		name := func() string { return rapid.SampledFrom(names).Draw(t, "name") }
		size := func() int { return rapid.IntRange(1, 3).Draw(t, "memory") * 128 }
		flip := func() bool { return rapid.Bool().Draw(t, "flip") }
		t.Repeat(map[string]func(*rapid.T){
			"create":  func(*rapid.T) { m.create(name(), flip(), size()) },
			"change":  func(*rapid.T) { m.change(name(), flip(), size()) },
			"settle":  func(*rapid.T) { m.settle(name(), flip()) },
			"publish": func(*rapid.T) { m.publish(name()) },
			"reserve": func(*rapid.T) { m.reserve(name(), rapid.SampledFrom([]int{-1, 0, 1, 300, 450, 900}).Draw(t, "n")) },
			"alias":   func(*rapid.T) { m.alone(name(), rapid.SampledFrom([]string{"x", "y"}).Draw(t, "alias")) },
			"delete version": func(*rapid.T) {
				m.deleteVersion(name(), fmt.Sprint(rapid.IntRange(1, 4).Draw(t, "number")))
			},
			"delete": func(*rapid.T) {
				n := name()
				m.do(n, nil, m.model[n] == nil, func() error { return m.store.Delete(t.Context(), m.id(n)) })
			},
			"": func(*rapid.T) { m.check() },
		})
	})
}
