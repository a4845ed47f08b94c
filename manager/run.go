package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thaw/functions"
	"thaw/invokewire"
)

const (
	// tick is how often leases and idle times are looked at.
	tick = time.Second
	// settleTick is short against what a user waits after a start.
	settleTick = 20 * time.Millisecond
	// parallelEnds and parallelLooks bound requests to workers under way.
	parallelEnds  = 32
	parallelLooks = 32
	// farewell is for giving leases back at the end.
	farewell = 10 * time.Second
)

// Run registers the manager, follows workers and reaps instances until ctx
// ends. It gives its leases back, and waits for what it has started.
func (m *Manager) Run(ctx context.Context) error {
	err := m.run(ctx)
	if ctx.Err() != nil {
		return nil // whatever else came of that
	}
	return err
}

func (m *Manager) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	m.inherit(ctx)
	self, err := m.register(ctx)
	if err != nil {
		return err
	}
	g.Go(func() error { return m.members.Watch(ctx, "workers/", m.tellWorker) })
	g.Go(func() error { return m.members.Watch(ctx, "managers/", m.tellManager) })
	if m.options.Functions != nil {
		g.Go(func() error { return m.options.Functions(ctx, m.tellFunction) })
	}
	g.Go(func() error { m.settle(ctx); return nil })
	g.Go(func() error { m.follow(ctx); return nil })
	g.Go(func() error { m.endAll(ctx); return nil })
	g.Go(func() error { return m.keep(ctx, self) })
	err = g.Wait()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	m.owners.release(last, m.owners.all())
	_ = self.Release(last) // it ends by itself
	return err
}

// inherit ends what the manager at this address held before: it has died, and
// nobody has to wait until that ends by itself.
func (m *Manager) inherit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, directoryTime)
	defer cancel()
	dead := map[string]bool{}
	err := m.members.End(ctx, "managers/", func(key string, value []byte) bool {
		here := string(value) == m.options.Address
		if here {
			dead[key[len("managers/"):]] = true
		}
		return here
	})
	if len(dead) > 0 {
		err = errors.Join(err, m.members.End(ctx, "owner/", func(_ string, value []byte) bool { return dead[string(value)] }))
	}
	if err != nil {
		m.options.Log.Warn("what the former manager owned ends later", "error", err)
	}
}

// register enters the manager in the cluster. What a former process with the
// same id has left there ends by itself.
func (m *Manager) register(ctx context.Context) (hold, error) {
	for {
		h, _, err := m.members.Take(ctx, "managers/"+m.options.ID, []byte(m.options.Address))
		if !errors.Is(err, errTaken) {
			return h, err
		}
		if !sleep(ctx, tick) {
			return nil, fmt.Errorf("manager %s is registered already", m.options.ID)
		}
	}
}

// sleep waits, and says whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// keep renews what the cluster holds for this manager, and looks at the time.
func (m *Manager) keep(ctx context.Context, self hold) error {
	renewed := time.Now()
	for sleep(ctx, tick) {
		now := time.Now()
		for _, f := range m.table.expire(now) {
			m.owners.release(ctx, []function{f})
		}
		m.table.reap(now)
		signal(m.wake)
		if now.Sub(renewed) < m.options.Renew {
			continue
		}
		renewed = now
		c, cancel := context.WithTimeout(ctx, directoryTime)
		_ = self.Renew(c, []byte(m.options.Address)) // Lost tells
		cancel()
		select {
		case <-self.Lost():
			if again, err := m.register(ctx); err == nil {
				self = again
			}
		default:
		}
		m.owners.renew(ctx)
		for _, f := range m.table.orphans(now) {
			_ = m.own(ctx, f) // or its owner is there
		}
	}
	return ctx.Err()
}

// tellWorker takes what the cluster says of a worker.
func (m *Manager) tellWorker(key string, value []byte) {
	if key == "" {
		return
	}
	if value == nil {
		m.table.leave(key[len("workers/"):], time.Now())
		signal(m.look)
		return
	}
	var s invokewire.WorkerState
	if err := json.Unmarshal(value, &s); err != nil || s.ID == "" || "workers/"+s.ID != key {
		m.options.Log.Warn("a worker's registration is not understood", "key", key, "error", err)
		return
	}
	if m.table.join(s, time.Now()) {
		signal(m.look)
	}
}

// tellManager takes what the cluster says of managers.
func (m *Manager) tellManager(key string, value []byte) {
	if key != "" && key != "managers/"+m.options.ID && value != nil {
		m.others.Store(true)
	}
}

// tellFunction takes what the records say of a function; nil: it is gone.
func (m *Manager) tellFunction(id functions.ID, f *functions.Function) error {
	m.table.outdate(function{id.Account, id.Name}, func(i *instance) bool {
		if f == nil {
			return true
		}
		if i.version != functions.Latest {
			_, there := f.Versions[i.version]
			return !there
		}
		now := invokewire.Spec{Account: id.Account, Function: id.Name, Version: i.version, Revision: f.Invoked().Revision}
		return i.key != now.Key()
	})
	signal(m.wake)
	return nil
}

// notAlone says whether there has been another manager.
func (m *Manager) notAlone() bool { return m.others.Load() }

// settle lets the manager admit once workers have reported, or a TTL has passed.
func (m *Manager) settle(ctx context.Context) {
	defer close(m.settled)
	for began := time.Now(); time.Since(began) < m.options.TTL && !m.table.reported(); {
		if !sleep(ctx, settleTick) {
			return
		}
	}
}

// follow looks at workers, each on its own so that a slow one delays no other.
func (m *Manager) follow(ctx context.Context) {
	var under sync.Map // workers that are being asked
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, parallelLooks)
	for {
		for id, address := range m.table.addresses() {
			if _, busy := under.LoadOrStore(id, true); busy {
				continue
			}
			wg.Go(func() {
				defer under.Delete(id)
				slots <- struct{}{}
				defer func() { <-slots }()
				m.lookAt(ctx, id, address)
			})
		}
		select {
		case <-time.After(m.options.Poll):
		case <-m.look:
			if !sleep(ctx, settleTick) { // registrations come often: not each is a reason
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (m *Manager) lookAt(ctx context.Context, id, address string) {
	began := time.Now()
	s, err := m.workers.state(ctx, address)
	switch {
	case ctx.Err() != nil:
	case err != nil || s.ID != id:
		m.options.Log.Debug("a worker does not tell its state", "worker", id, "says", s.ID, "error", err)
		m.table.silent(id, time.Now())
	default:
		m.table.report(id, s, began, time.Now())
	}
}

// lookAtAll looks at all workers now.
func (m *Manager) lookAtAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(parallelLooks)
	for id, address := range m.table.addresses() {
		g.Go(func() error { m.lookAt(ctx, id, address); return nil })
	}
	_ = g.Wait()
}

// endAll deletes the instances that the table has marked.
func (m *Manager) endAll(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(parallelEnds)
	defer func() { _ = g.Wait() }()
	for {
		for _, t := range m.table.takeEndings() {
			g.Go(func() error {
				gone, err := m.workers.end(ctx, t)
				if err != nil && ctx.Err() == nil {
					m.options.Log.Warn("ending an idle instance failed", "instance", t.instance, "error", err)
				}
				m.table.ended(t.instance, gone, time.Now())
				return nil
			})
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
	}
}
