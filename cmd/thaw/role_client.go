//go:build cloud

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"thaw/invokewire"
)

const (
	// roleTime bounds a request to a role, in which a worker may end many instances.
	roleTime = time.Minute
	// maxRoleAnswer bounds what a role answers, in bytes: a thousand starts with
	// their stages take some 500 KiB.
	maxRoleAnswer = 16 << 20
	// workerPatience is how long it may take until a worker is known: one that has
	// just come up clears what its predecessor left, and one whose lease has ended
	// on a machine that is busy takes it anew.
	workerPatience = time.Minute
	// workerLook is how often it is looked for.
	workerLook = 100 * time.Millisecond
)

// ask sends a request without a body to a role, and reads its JSON.
func (m *joined) ask(ctx context.Context, method, address, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, roleTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return err
	}
	r.Header.Set(invokewire.HeaderToken, m.token)
	resp, err := m.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in := json.NewDecoder(io.LimitReader(resp.Body, maxRoleAnswer))
	if resp.StatusCode == http.StatusOK {
		return in.Decode(v)
	}
	var e struct{ Error string }
	_ = in.Decode(&e) // or it says nothing
	return fmt.Errorf("%s%s: %s %s", address, path, resp.Status, e.Error)
}

// workers lists those that are there.
func (m *joined) workers(ctx context.Context) (all []invokewire.WorkerState, err error) {
	leases, err := m.leases(ctx)
	if err != nil {
		return nil, err
	}
	list, err := leases.List(ctx, "workers/")
	for _, r := range list {
		var w invokewire.WorkerState
		if jerr := json.Unmarshal(r.Value, &w); jerr != nil {
			return nil, fmt.Errorf("the record of %s: %w", r.Key, jerr)
		}
		all = append(all, w)
	}
	return all, err
}

// someWorkers is workers, and waits until one is there.
func (m *joined) someWorkers(ctx context.Context) (all []invokewire.WorkerState, err error) {
	err = poll(ctx, workerLook, workerPatience, func() (bool, error) {
		var err error
		all, err = m.workers(ctx)
		return len(all) > 0, err
	})
	if errors.Is(err, errLate) {
		err = errNoWorker
	}
	return all, err
}

// poll looks now and then for what is, and gives errLate if it does not come about.
func poll(ctx context.Context, every, within time.Duration, is func() (bool, error)) error {
	look := time.NewTicker(every)
	defer look.Stop()
	for late := time.After(within); ; {
		if ok, err := is(); ok || err != nil {
			return err
		}
		select {
		case <-look.C:
		case <-late:
			return errLate
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errLate says that something has not come about in time.
var errLate = errors.New("not in time")

// errNoWorker says why nothing can be measured or kept.
var errNoWorker = errors.New("no worker is there: is the platform up?")
