package frontend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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
	// maxLogLines bounds the log events that one request takes from one worker.
	maxLogLines = 10_000
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
	// errUnsent says that the worker has seen nothing of the request.
	errUnsent = errors.New("the worker cannot be reached")
	// errBroken says that the answer has no end: the worker or its machine died.
	errBroken = errors.New("the worker's answer broke off")
)

// workers knows the workers there are, and speaks to them.
type workers struct {
	client *http.Client
	token  string

	mu    sync.Mutex
	known map[string]string // address by id
}

func newWorkers(c *http.Client, token string) *workers {
	return &workers{client: c, token: token, known: map[string]string{}}
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
		delete(w.known, id)
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

// sent is the body of a request, which tells when its bytes are not needed any more.
type sent struct {
	io.Reader
	once sync.Once
	done chan struct{}
}

// Close tells that nothing more is read.
func (s *sent) Close() error { s.once.Do(func() { close(s.done) }); return nil }

// answer is a function's answer as it comes. Its body must be read to the end, or closed.
type answer struct {
	body   io.ReadCloser
	header http.Header
	resp   *http.Response
	sent   *sent
	cancel context.CancelFunc
}

// invoke gives an instance one invoke. Of a 200, it returns the answer; else
// errBusy, errGone, errUnsent, or another error after which nobody knows
// whether the function has run.
func (w *workers) invoke(ctx context.Context, l *leased, inv *invocation) (*answer, error) {
	ctx, cancel := context.WithDeadline(ctx, inv.deadline.Add(graceTime))
	body := &sent{Reader: newBytes(inv.payload.b), done: make(chan struct{})}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+l.worker+"/instances/"+l.id+"/invoke", body)
	if err != nil {
		cancel()
		return nil, err
	}
	req.ContentLength = int64(len(inv.payload.b))
	req.GetBody = func() (io.ReadCloser, error) { // for a connection that had been closed
		body = &sent{Reader: newBytes(inv.payload.b), done: make(chan struct{})}
		return body, nil
	}
	req.Header = inv.headers(w.token)
	resp, err := w.client.Do(req)
	if err != nil {
		cancel()
		<-body.done
		return nil, kindOf(err)
	}
	if resp.StatusCode == http.StatusOK {
		return &answer{body: resp.Body, header: resp.Header, resp: resp, sent: body, cancel: cancel}, nil
	}
	defer cancel()
	err = refusal(resp)
	_ = resp.Body.Close()
	<-body.done
	return nil, err
}

// refusal reads a worker's error.
func refusal(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusConflict:
		return errBusy
	case http.StatusGone, http.StatusNotFound, http.StatusTooManyRequests:
		return errGone // or its worker takes nothing more
	case http.StatusBadGateway:
		return errNoImage
	case http.StatusGatewayTimeout:
		return context.DeadlineExceeded
	}
	var e struct{ Error string }
	_ = json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&e) // or it says nothing
	return fmt.Errorf("the worker answered %d: %.200q", resp.StatusCode, e.Error)
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
// last maxLogLines. Workers that do not answer are left out, unless none does.
func (w *workers) logs(ctx context.Context, query url.Values) ([]invokewire.LogEvent, error) {
	lists, err := gather(ctx, w, "/logs?"+query.Encode(), func(r io.Reader) ([]invokewire.LogEvent, error) {
		var list []invokewire.LogEvent
		d := json.NewDecoder(r)
		for len(list) < maxLogLines {
			var e invokewire.LogEvent
			if err := d.Decode(&e); err == io.EOF {
				break
			} else if err != nil {
				return list, err
			}
			list = append(list, e)
		}
		return list, nil
	})
	return slices.Concat(lists...), err
}

// streams asks all workers for a function's log streams.
func (w *workers) streams(ctx context.Context, query url.Values) ([]invokewire.LogStream, error) {
	lists, err := gather(ctx, w, "/logs/streams?"+query.Encode(), func(r io.Reader) (list []invokewire.LogStream, err error) {
		err = json.NewDecoder(r).Decode(&list)
		return list, err
	})
	return slices.Concat(lists...), err
}

// gather asks all workers at once.
func gather[T any](ctx context.Context, w *workers, path string, read func(io.Reader) ([]T, error)) ([][]T, error) {
	ctx, cancel := context.WithTimeout(ctx, logTime)
	defer cancel()
	addresses := w.addresses()
	lists, errs := make([][]T, len(addresses)), make([]error, len(addresses))
	var wg sync.WaitGroup
	for n, address := range addresses {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
			if err != nil {
				errs[n] = err
				return
			}
			req.Header.Set(invokewire.HeaderToken, w.token)
			resp, err := w.client.Do(req)
			if err != nil {
				errs[n] = err
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				errs[n] = fmt.Errorf("status %d", resp.StatusCode)
				return
			}
			lists[n], errs[n] = read(io.LimitReader(resp.Body, maxLogBytes))
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
