package frontend

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"thaw/functions"
	"thaw/invokewire"
)

const (
	// maxViewed bounds the functions that are kept at hand.
	maxViewed = 8192
	// distrustTime is for the cluster to tell of a change that was made through
	// this door: until then, the function is read from the records.
	distrustTime = time.Second
)

// view keeps the functions at hand that are being invoked, as the cluster tells
// of their changes. What is not at hand, or does not look settled, is read from
// the records: who has been told that an update is done gets what it did.
type view struct {
	store *functions.Store

	mu        sync.Mutex
	functions map[functions.ID]*viewed
	distrust  map[functions.ID]time.Time
	urls      map[string]urlRef // by id
	urlIDs    map[functions.ID][]string
	told      chan struct{} // closed and replaced at each change
	changes   uint64
}

// viewed is a function and those of its versions that were invoked. The
// function never changes.
type viewed struct {
	function *functions.Function
	mu       sync.Mutex
	versions map[string]*target
}

// urlRef is what a function URL leads to.
type urlRef struct {
	id    functions.ID
	alias string
}

// target is a version that can be invoked, or cannot yet.
type target struct {
	version *functions.Version
	spec    invokewire.Spec // without keys
	key     string          // of the spec
}

func newView(s *functions.Store) *view {
	return &view{
		store: s, functions: map[functions.ID]*viewed{}, distrust: map[functions.ID]time.Time{},
		urls: map[string]urlRef{}, urlIDs: map[functions.ID][]string{}, told: make(chan struct{}),
	}
}

// run follows the records until ctx ends.
func (v *view) run(ctx context.Context) error {
	return v.store.Watch(ctx, func(id functions.ID, f *functions.Function) error {
		v.change(id, f)
		return nil
	})
}

func (v *view) change(id functions.ID, f *functions.Function) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.functions[id] != nil {
		delete(v.functions, id)
		if f != nil {
			v.functions[id] = &viewed{function: f, versions: map[string]*target{}}
		}
	}
	for _, u := range v.urlIDs[id] {
		delete(v.urls, u)
	}
	delete(v.urlIDs, id)
	if f != nil {
		for alias, u := range f.URLs {
			v.urls[u.ID] = urlRef{id, alias}
			v.urlIDs[id] = append(v.urlIDs[id], u.ID)
		}
	}
	v.changes++
	close(v.told)
	v.told = make(chan struct{})
}

// changed notes that a function is being changed through this door.
func (v *view) changed(id functions.ID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	if len(v.distrust) > maxViewed {
		maps.DeleteFunc(v.distrust, func(_ functions.ID, until time.Time) bool { return now.After(until) })
	}
	v.distrust[id] = now.Add(distrustTime)
	delete(v.functions, id)
}

// get gives a function, which nobody may change. fresh reads it from the records.
func (v *view) get(ctx context.Context, id functions.ID, fresh bool) (*viewed, error) {
	v.mu.Lock()
	f := v.functions[id]
	until, doubted := v.distrust[id]
	if doubted && time.Now().After(until) {
		delete(v.distrust, id)
		doubted = false
	}
	changes := v.changes
	v.mu.Unlock()
	if f != nil && !fresh && !doubted {
		return f, nil
	}
	read, err := v.store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	f = &viewed{function: read, versions: map[string]*target{}}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, doubted := v.distrust[id]; doubted || changes != v.changes {
		return f, nil // what was read may be old already
	}
	if len(v.functions) >= maxViewed {
		for other := range v.functions { // any
			delete(v.functions, other)
			break
		}
	}
	v.functions[id] = f
	return f, nil
}

// find gives the version that a qualifier stands for.
func (v *view) find(ctx context.Context, id functions.ID, qualifier string, spec specMaker) (*functions.Function, *target, error) {
	for _, fresh := range []bool{false, true} {
		f, err := v.get(ctx, id, fresh)
		if err != nil {
			return nil, nil, err
		}
		number, err := f.function.Qualified(qualifier, rand.Float64())
		if err != nil && !fresh {
			continue // it may be new
		}
		if err != nil {
			return nil, nil, err
		}
		t, err := f.target(ctx, v.store, number, spec)
		if err == nil && (fresh || t.settled() && (number != functions.Latest || f.function.Latest.Build == "")) || err != nil && (fresh || !errors.Is(err, functions.ErrNotFound)) {
			return f.function, t, err
		}
	}
	panic("frontend: unreachable")
}

// settled says whether nothing more is to come of what was asked for.
func (t *target) settled() bool {
	return t.version.State == functions.Active && t.version.Package.Image != "" && t.version.Build == ""
}

// specMaker makes the spec of a version.
type specMaker func(context.Context, *functions.Function, *functions.Version) (invokewire.Spec, error)

// target gives a version of the function.
func (f *viewed) target(ctx context.Context, s *functions.Store, number string, spec specMaker) (*target, error) {
	f.mu.Lock()
	t := f.versions[number]
	f.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t = new(target)
	if number == functions.Latest {
		t.version = f.function.Invoked()
	} else {
		v, err := s.Version(ctx, f.function, number)
		if err != nil {
			return nil, err
		}
		t.version = v
	}
	var err error
	if t.spec, err = spec(ctx, f.function, t.version); err != nil {
		return nil, err
	}
	t.key = t.spec.Key()
	if t.settled() || number == functions.Latest { // the state of others changes without the function's record
		f.mu.Lock()
		f.versions[number] = t
		f.mu.Unlock()
	}
	return t, nil
}

// url gives what a function URL leads to. One made a moment ago is waited for.
func (v *view) url(ctx context.Context, id string) (urlRef, bool) {
	patience := time.After(distrustTime)
	for {
		v.mu.Lock()
		ref, ok := v.urls[id]
		told := v.told
		v.mu.Unlock()
		if ok {
			return ref, true
		}
		select {
		case <-told:
		case <-patience:
			return urlRef{}, false
		case <-ctx.Done():
			return urlRef{}, false
		}
	}
}

// group is where some functions' logs go.
type group struct {
	functions []string  // sorted
	created   time.Time // when the first of them was: nothing has been logged before
}

// groups gives those of an account by their names.
func (v *view) groups(ctx context.Context, account string) (map[string]group, error) {
	byGroup := map[string]group{}
	for after := ""; ; {
		page, more, err := v.store.List(ctx, account, after, pageAtHand)
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			if f.Damaged != nil {
				continue
			}
			g := byGroup[f.Latest.LogGroup]
			if g.created.IsZero() || f.Created.Before(g.created) {
				g.created = f.Created
			}
			g.functions = append(g.functions, f.Name)
			byGroup[f.Latest.LogGroup] = g
		}
		if more == "" {
			for _, g := range byGroup {
				slices.Sort(g.functions)
			}
			return byGroup, nil
		}
		after = more
	}
}
