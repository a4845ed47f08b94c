package frontend

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"thaw/quiet"
)

const (
	// laneIdle is how long a lane is kept without an invoke: less than workers keep theirs.
	laneIdle = time.Minute
	// maxLanes bounds those to one worker that are idle.
	maxLanes = 256
	// laneBuffer holds a short invoke, and the trailers of an answer.
	laneBuffer = 16 << 10
)

// lanes are kept-alive HTTP connections to workers, for invokes: one at a time on
// each. Who has a lane writes and reads itself, which saves an invoke the two
// goroutines that net/http's client hands each request to, and back.
type lanes struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	idle map[string][]*lane // by worker, the one used last at the end
}

// lane is one connection. One goroutine uses it.
type lane struct {
	worker string
	conn   net.Conn
	in     *bufio.Reader
	out    *bufio.Writer
	since  time.Time // idle
}

// newLanes connects as a client does: whether that is with TLS is its dialer's.
func newLanes(c *http.Client) *lanes {
	l := &lanes{dial: new(quiet.Dialer).DialContext, idle: map[string][]*lane{}}
	if t, ok := c.Transport.(*http.Transport); ok && t.DialContext != nil {
		l.dial = t.DialContext
	}
	return l
}

// take gives an idle lane whose worker has not hung up, or a new one.
func (s *lanes) take(ctx context.Context, worker string) (*lane, error) {
	for {
		l := s.last(worker)
		if l == nil {
			break
		}
		if time.Since(l.since) < laneIdle && quiet.Idle(l.conn) {
			return l, nil
		}
		_ = l.conn.Close()
	}
	conn, err := s.dial(ctx, "tcp", worker)
	if err != nil {
		return nil, err
	}
	return &lane{worker: worker, conn: conn, in: bufio.NewReaderSize(conn, laneBuffer), out: bufio.NewWriterSize(conn, laneBuffer)}, nil
}

// last takes out the idle lane that was used last.
func (s *lanes) last(worker string) *lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.idle[worker]
	if len(list) == 0 {
		return nil
	}
	l := list[len(list)-1]
	s.idle[worker] = slices.Delete(list, len(list)-1, len(list))
	return l
}

// put takes a lane back whose answer was read to its end.
func (s *lanes) put(l *lane) {
	l.since = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := append(s.idle[l.worker], l)
	if len(list) > maxLanes || l.since.Sub(list[0].since) > laneIdle {
		_ = list[0].conn.Close()
		list = slices.Delete(list, 0, 1)
	}
	s.idle[l.worker] = list
}

// run ends lanes that nobody has taken for too long, until ctx ends.
func (s *lanes) run(ctx context.Context) {
	tick := time.NewTicker(laneIdle)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.expire(time.Now())
		case <-ctx.Done():
			return
		}
	}
}

// expire ends the lanes that were idle for too long by now, also those of workers
// that had gone before their last answer was read.
func (s *lanes) expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, list := range s.idle {
		list = slices.DeleteFunc(list, func(l *lane) bool {
			old := now.Sub(l.since) > laneIdle
			if old {
				_ = l.conn.Close()
			}
			return old
		})
		if s.idle[w] = list; len(list) == 0 {
			delete(s.idle, w)
		}
	}
}

// close ends the idle lanes to a worker that has gone; of all if it has no name.
func (s *lanes) close(worker string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w, list := range s.idle {
		if worker != "" && w != worker {
			continue
		}
		for _, l := range list {
			_ = l.conn.Close()
		}
		delete(s.idle, w)
	}
}

// post sends a request and reads the head of the answer.
func (l *lane) post(path string, h http.Header, body []byte) (*http.Response, error) {
	line := func(parts ...string) {
		for _, p := range parts {
			_, _ = l.out.WriteString(p) // an error stays
		}
	}
	line("POST ", path, " HTTP/1.1\r\nHost: ", l.worker, "\r\nContent-Length: ", strconv.Itoa(len(body)), "\r\n")
	_ = h.Write(l.out)
	line("\r\n")
	_, _ = l.out.Write(body)
	err := l.out.Flush()
	resp, rerr := http.ReadResponse(l.in, nil)
	if rerr != nil && err == nil { // else a worker that reads no further may have said why
		err = rerr
	}
	if rerr != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode < http.StatusOK: // the answer proper would be the next invoke's
		return nil, errInterim
	case resp.ContentLength < 0 && len(resp.TransferEncoding) == 0: // a worker's death would end it
		return nil, errUnbounded
	}
	resp.Close = resp.Close || err != nil
	return resp, nil
}

var (
	// errInterim says that a worker has answered what nobody asked.
	errInterim = errors.New("the worker answered with an interim status")
	// errUnbounded says that nobody could tell whether the answer is whole.
	errUnbounded = errors.New("the worker's answer does not say where it ends")
)

// answer is a function's answer as it comes. It must be closed.
type answer struct {
	*http.Response
	lane  *lane
	lanes *lanes
	stop  func() bool // of what watches the context
	whole bool
}

// Read gives the answer's bytes; at its end, the trailers are there.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.Body.Read(p)
	a.whole = a.whole || err == io.EOF
	return n, err
}

// close lets the lane have another invoke, if the answer was read to its end and
// nothing follows: that would be taken for the next one's.
func (a *answer) close() {
	if a.stop() && a.whole && !a.Response.Close && a.lane.in.Buffered() == 0 {
		a.lanes.put(a.lane)
		return
	}
	_ = a.lane.conn.Close()
}
