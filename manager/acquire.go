package manager

import (
	"bytes"
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
	// maxWorkersAsked bounds the workers that one request tries.
	maxWorkersAsked = 8
	// startTime is for a worker to admit a start, which is no more than an
	// entry in its queue.
	startTime = 5 * time.Second
	// stateTime is for a worker to tell its state.
	stateTime = 5 * time.Second
	// deleteTime is for an instance to shut down: its extensions have two seconds.
	deleteTime = 15 * time.Second
	// maxState bounds a worker's state: 10,000 instances of half a KiB.
	maxState = 8 << 20
	// maxReply bounds what is read of another answer.
	maxReply = 4 << 10
)

// errNoWorker says that no worker has registered.
var errNoWorker = errors.New("no worker is there to start it: start one, or wait until it has registered")

// acquire gives a frontend an instance. Its errors are *invokewire.Throttle,
// *misdirected, errNoWorker, and those of the cluster.
func (m *Manager) acquire(ctx context.Context, a *invokewire.Acquire) (*invokewire.Lease, error) {
	f := function{a.Spec.Account, a.Spec.Function}
	m.table.touch(f, time.Now())
	if err := m.own(ctx, f); err != nil {
		return nil, err
	}
	select {
	case <-m.settled:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for workers to report: %w", ctx.Err())
	}
	tried := m.table.misfired(a, time.Now())
	for range maxWorkersAsked {
		d := m.table.decide(a, tried, time.Now())
		signal(m.wake) // it may have evicted some
		switch {
		case d.lease != nil:
			return d.lease, nil
		case d.throttle != nil && len(m.table.addresses()) == 0:
			return nil, errNoWorker
		case d.throttle != nil:
			return nil, d.throttle
		}
		o, err := m.workers.start(ctx, d.start, a)
		if err != nil {
			m.options.Log.Warn("starting an instance failed", "worker", d.start.worker, "function", a.Spec.Key(), "error", err)
		}
		if l := m.table.started(d.start, o, time.Now()); l != nil {
			return l, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		tried[d.start.worker] = true
	}
	return nil, &invokewire.Throttle{Reason: invokewire.ReasonRate, RetryAfter: retryCapacity}
}

// own owns a function. If another manager may have owned it before, it looks at
// all workers first, to know of what that one has started.
func (m *Manager) own(ctx context.Context, f function) error {
	taken, err := m.owners.ensure(ctx, f)
	if err != nil {
		return err
	}
	if taken && m.notAlone() {
		m.lookAtAll(ctx)
	}
	return nil
}

// workerClient speaks to workers.
type workerClient struct {
	client *http.Client
	token  string
}

// start asks a worker for an instance.
func (c *workerClient) start(ctx context.Context, s *start, a *invokewire.Acquire) (outcome, error) {
	body, err := json.Marshal(invokewire.Start{ID: s.id, Spec: a.Spec, Force: a.Force})
	if err != nil {
		return forbidden, err
	}
	// Who asked may have gone: whether the instance is there must be known all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	resp, err := c.do(ctx, http.MethodPost, s.address, "/instances", body)
	if err != nil {
		return failed, err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusAccepted:
		return admitted, nil
	case http.StatusTooManyRequests:
		return refused, nil
	}
	return forbidden, answerError(resp)
}

// state asks a worker how it is.
func (c *workerClient) state(ctx context.Context, address string) (invokewire.WorkerState, error) {
	var s invokewire.WorkerState
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, address, "/state", nil)
	if err != nil {
		return s, err
	}
	defer drain(resp)
	if resp.StatusCode != http.StatusOK {
		return s, answerError(resp)
	}
	return s, json.NewDecoder(io.LimitReader(resp.Body, maxState)).Decode(&s)
}

// end has a worker end an idle instance. gone is false if it works.
func (c *workerClient) end(ctx context.Context, t target) (gone bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, deleteTime)
	defer cancel()
	resp, err := c.do(ctx, http.MethodDelete, t.address, "/instances/"+t.instance, nil)
	if err != nil {
		return false, err
	}
	defer drain(resp)
	switch resp.StatusCode {
	case http.StatusNoContent, http.StatusNotFound, http.StatusGone:
		return true, nil
	case http.StatusConflict:
		return false, nil
	}
	return false, answerError(resp)
}

func (c *workerClient) do(ctx context.Context, method, address, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set(invokewire.HeaderToken, c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.client.Do(req)
}

// drain reads the little that is left, so that the connection is used again.
func drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxReply)
	_ = resp.Body.Close()
}

func answerError(resp *http.Response) error {
	var e struct{ Error string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(&e) // or it says nothing
	return fmt.Errorf("%s %s: status %d: %.200q", resp.Request.Method, resp.Request.URL.Path, resp.StatusCode, e.Error)
}
