package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"thaw/cluster"
	"thaw/invokewire"
)

const (
	// maxErrorBody bounds a function's error in a trailer, in base64.
	maxErrorBody = 512 << 10
	// maxLogLines bounds the log events that one request takes from one worker, but
	// for those of the last one's millisecond, which mostLogLines bounds.
	maxLogLines  = 10_000
	mostLogLines = 10 * maxLogLines
	// maxLogBytes bounds the same in bytes: a line is as long as 256 KiB.
	maxLogBytes = 32 << 20
	// logTime bounds a request for log events to one worker.
	logTime = 10 * time.Second
)

// What a worker may say of an instance.
var (
	errBusy = errors.New("the instance works for somebody else")
	errGone = errors.New("the instance is gone")
	// errNoImage says that the image is not in the origin any more.
	errNoImage = errors.New("the worker does not find the image")
	// errEnded says that the function has ended its sandbox in its init.
	errEnded = errors.New("the function ended its sandbox")
	// errUnsent says that the worker has seen nothing of the request.
	errUnsent = errors.New("the worker cannot be reached")
	// errBroken says that the answer has no end: the worker or its machine died.
	errBroken = errors.New("the worker's answer broke off")
)

// workers knows the workers there are, and speaks to them.
type workers struct {
	client *http.Client
	lanes  *lanes
	token  string

	mu     sync.Mutex
	known  map[string]string    // address by id
	blamed map[string]time.Time // when it was last told that starts fail there; of those that are known
}

func newWorkers(c *http.Client, token string) *workers {
	return &workers{client: c, lanes: newLanes(c), token: token, known: map[string]string{}, blamed: map[string]time.Time{}}
}

// tell takes what the cluster says of workers.
func (w *workers) tell(c cluster.Change) error {
	if c.Synced {
		return nil
	}
	id := strings.TrimPrefix(c.Key, "workers/")
	w.mu.Lock()
	defer w.mu.Unlock()
	var s invokewire.WorkerState
	if c.Deleted || json.Unmarshal(c.Value, &s) != nil || s.Address == "" {
		if address, ok := w.known[id]; ok {
			w.lanes.close(address)
		}
		delete(w.known, id)
		delete(w.blamed, id)
		return nil
	}
	w.known[id] = s.Address
	return nil
}

func (w *workers) addresses() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Values(w.known))
}

// invoke gives an instance one invoke. Of a 200, it returns the answer; else
// errBusy, errGone, errUnsent, or another error after which nobody knows
// whether the function has run.
func (w *workers) invoke(ctx context.Context, l *leased, inv *invocation) (*answer, error) {
	lane, err := w.lanes.take(ctx, l.worker)
	if err != nil {
		return nil, kindOf(err)
	}
	a := &answer{lane: lane, lanes: w.lanes}
	_ = lane.conn.SetDeadline(inv.deadline.Add(graceTime)) // an error shows at once
	a.stop = w.watch(ctx, lane, inv.due)
	a.Response, err = lane.post("/instances/"+l.id+"/invoke", inv.headers(w.token), inv.payload.b)
	if err != nil {
		a.stop()
		_ = lane.conn.Close()
		return nil, kindOf(err)
	}
	switch {
	case a.StatusCode != http.StatusOK:
		err = refusal(a.StatusCode, a)
	case a.Header.Get(invokewire.HeaderRequestID) != inv.requestID: // another program may have the port of a worker that died
		err = fmt.Errorf("%w: %s does not name the invoke that it answers", errBroken, l.worker)
	default:
		return a, nil
	}
	a.close()
	return nil, err
}

// watch has the lane's reads and writes fail once ctx ends, or when the worker does
// not live after the invoke was due. The lane is as it was if stop says so.
func (w *workers) watch(ctx context.Context, l *lane, due time.Time) (stop func() bool) {
	cut := func() { _ = l.conn.SetDeadline(time.Unix(1, 0)) }
	ended := context.AfterFunc(ctx, cut)
	if due.IsZero() {
		return ended
	}
	late := time.AfterFunc(time.Until(due), func() {
		if !w.lives(ctx, l.worker) {
			cut()
		}
	})
	return func() bool {
		unasked := late.Stop()
		return ended() && unasked
	}
}

// lives asks a worker whether it does: one that is stopped, or whose machine is
// away, does not say so.
func (w *workers) lives(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, lifeTime)
	defer cancel()
	resp, err := w.send(ctx, http.MethodGet, address, "/healthz")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return true
}

// started waits until an instance has started, unless the start has not begun
// when nobody needs it any more: errSurplus. errGone is also for what its worker's
// death undid: the function has seen nothing of it.
func (w *workers) started(ctx context.Context, l *leased, s *start) error {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- w.ask(asking, http.MethodGet, l, "/ready") }()
	err := errSurplus
	select {
	case err = <-ready:
	case <-s.surplus:
		if w.ask(ctx, http.MethodDelete, l, "?queued") == nil {
			cancel()
			<-ready
			break
		}
		err = <-ready
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errBroken), errors.Is(err, errUnsent):
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return err
}

// ask sends a request about an instance, which is answered with 204 or an error.
func (w *workers) ask(ctx context.Context, method string, l *leased, path string) error {
	resp, err := w.send(ctx, method, l.worker, "/instances/"+l.id+path)
	if err != nil {
		return kindOf(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return nil
	}
	return refusal(resp.StatusCode, resp.Body)
}

// send sends a worker a request without a body. The caller closes the answer's.
func (w *workers) send(ctx context.Context, method, address, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(invokewire.HeaderToken, w.token)
	return w.client.Do(req)
}

// refusal reads a worker's error.
func refusal(status int, body io.Reader) error {
	var e struct{ Error string }
	text, _ := io.ReadAll(io.LimitReader(body, 4096)) // or it says nothing
	_ = json.Unmarshal(text, &e)
	switch status {
	case http.StatusConflict:
		return errBusy
	case http.StatusGone, http.StatusNotFound, http.StatusTooManyRequests:
		return errGone // or its worker takes nothing more
	case http.StatusBadGateway:
		return fmt.Errorf("%w: %.200q", errNoImage, e.Error)
	case http.StatusUnprocessableEntity:
		return fmt.Errorf("%w: %.200q", errEnded, e.Error)
	case http.StatusGatewayTimeout:
		return fmt.Errorf("%w: %.200q", context.DeadlineExceeded, e.Error)
	}
	return fmt.Errorf("the worker answered %d: %.200q", status, e.Error)
}

// kindOf tells a worker that was not reached from one that broke off.
func kindOf(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%w: %w", errUnsent, err)
	}
	return fmt.Errorf("%w: %w", errBroken, err)
}

// headers of the request to the worker.
func (inv *invocation) headers(token string) http.Header {
	h := http.Header{}
	set := func(name, value string) {
		if value != "" {
			h[name] = []string{value} // the names are canonical
		}
	}
	set(invokewire.HeaderToken, token)
	set(invokewire.HeaderRequestID, inv.requestID)
	set(invokewire.HeaderDeadline, strconv.FormatInt(inv.deadline.UnixMilli(), 10))
	set(http.CanonicalHeaderKey(invokewire.HeaderARN), inv.arn)
	set(invokewire.HeaderTrace, inv.trace)
	set(invokewire.HeaderClientContext, inv.clientContext)
	if inv.tail {
		set(invokewire.HeaderLogType, "Tail")
	}
	if inv.streaming {
		set(invokewire.HeaderStreaming, "1")
	}
	return h
}

// logs asks all workers for a function's log events since a time: each gives its
// last maxLogLines, or, if the query has an end, its first. These are all there
// are to the ms that whole is: beyond it, some worker has more. Workers that do
// not answer are left out, unless none does.
func (w *workers) logs(ctx context.Context, query url.Values) (events []invokewire.LogEvent, whole int64, err error) {
	query.Set("limit", strconv.Itoa(maxLogLines))
	var mu sync.Mutex
	whole = math.MaxInt64
	lists, err := gather(ctx, w, "/logs?"+query.Encode(), func(r *io.LimitedReader) ([]invokewire.LogEvent, error) {
		list, to, err := readLogs(r, query.Has("until"))
		mu.Lock()
		defer mu.Unlock()
		whole = min(whole, to)
		return list, err
	})
	return slices.Concat(lists...), whole, err
}

// readLogs reads a worker's events, and gives the ms up to which they are all. Of
// the first ones, those that are too many bytes may be left to the next request.
func readLogs(r *io.LimitedReader, first bool) (list []invokewire.LogEvent, whole int64, err error) {
	d := json.NewDecoder(r)
	for err == nil && len(list) < mostLogLines {
		var e invokewire.LogEvent
		if err = d.Decode(&e); err == nil {
			list = append(list, e)
		}
	}
	whole = math.MaxInt64
	switch n := len(list); {
	case first && r.N == 0 && n > 0: // what is left may be of the last one's ms
		if whole = list[n-1].Time; list[0].Time < whole {
			whole--
		}
		return list, whole, nil
	case n >= maxLogLines:
		whole = list[n-1].Time
	}
	if err == io.EOF {
		err = nil
	}
	return list, whole, err
}

// streams asks all workers for a function's log streams.
func (w *workers) streams(ctx context.Context, query url.Values) ([]invokewire.LogStream, error) {
	lists, err := gather(ctx, w, "/logs/streams?"+query.Encode(), func(r *io.LimitedReader) (list []invokewire.LogStream, err error) {
		err = json.NewDecoder(r).Decode(&list)
		return list, err
	})
	return slices.Concat(lists...), err
}

// gather asks all workers at once.
func gather[T any](ctx context.Context, w *workers, path string, read func(*io.LimitedReader) ([]T, error)) ([][]T, error) {
	ctx, cancel := context.WithTimeout(ctx, logTime)
	defer cancel()
	addresses := w.addresses()
	lists, errs := make([][]T, len(addresses)), make([]error, len(addresses))
	var wg sync.WaitGroup
	for n, address := range addresses {
		wg.Go(func() {
			resp, err := w.send(ctx, http.MethodGet, address, path)
			if err != nil {
				errs[n] = err
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				errs[n] = fmt.Errorf("status %d", resp.StatusCode)
				return
			}
			lists[n], errs[n] = read(&io.LimitedReader{R: resp.Body, N: maxLogBytes})
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil {
			return lists, nil
		}
	}
	return nil, errors.Join(errs...)
}
