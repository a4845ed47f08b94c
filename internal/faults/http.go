package faults

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// Transport sends requests through base, and breaks those the rule picks. A
// truncated or flipped body is the reply's.
func Transport(base http.RoundTripper, rule Rule) http.RoundTripper {
	return &transport{base: base, rule: rule}
}

type transport struct {
	base  http.RoundTripper
	rule  Rule
	calls atomic.Int64
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	f, ok := t.rule(t.calls.Add(1), r)
	if !ok {
		return t.base.RoundTrip(r)
	}
	switch f.Kind {
	case Delay:
		if err := wait(r, f.Delay); err != nil {
			return nil, err
		}
	case Status:
		return reply(r, f.Status), nil
	case Reset:
		return nil, reset()
	case Fail:
		return nil, f.err()
	}
	res, err := t.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	switch f.Kind {
	case Lose:
		_ = res.Body.Close()
		return nil, reset()
	case Truncate:
		res.Body = body{Reader(res.Body, Fault{Kind: Fail, At: f.At, Err: io.ErrUnexpectedEOF}), res.Body}
	case Flip:
		res.Body = body{Reader(res.Body, f), res.Body}
	}
	return res, nil
}

type body struct {
	io.Reader
	io.Closer
}

// wait waits on a timer, not asleep: a cancelled request goes on at once.
func wait(r *http.Request, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.Context().Done():
		return r.Context().Err()
	}
}

func reset() error { return &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET} }

func reply(r *http.Request, status int) *http.Response {
	return &http.Response{
		Status: http.StatusText(status), StatusCode: status, Request: r,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(nil)),
	}
}

// Handler serves with next, and breaks the exchanges the rule picks. Broken
// connections are real ones: they end in a TCP reset.
func Handler(next http.Handler, rule Rule) http.Handler {
	var calls atomic.Int64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, ok := rule(calls.Add(1), r)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		serveBroken(next, w, r, f)
	})
}

func serveBroken(next http.Handler, w http.ResponseWriter, r *http.Request, f Fault) {
	switch f.Kind {
	case Status:
		w.WriteHeader(f.Status)
	case Reset, Fail:
		hangUp(w)
	case Lose:
		next.ServeHTTP(discard{http.Header{}}, r)
		hangUp(w)
	case Truncate, Flip:
		next.ServeHTTP(&writer{ResponseWriter: w, fault: f}, r)
	default:
		if wait(r, f.Delay) == nil {
			next.ServeHTTP(w, r)
		}
	}
}

// hangUp resets the connection: linger 0 makes the close an RST.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // HTTP/2 has no connection to take over
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// discard takes a reply that nobody is to see.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// writer is a reply with one broken place.
type writer struct {
	http.ResponseWriter
	fault Fault
	off   int64
}

// Unwrap lets http.ResponseController reach the connection.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) Write(p []byte) (int, error) {
	if w.fault.Kind == Truncate && w.off+int64(len(p)) > w.fault.At {
		_, _ = w.ResponseWriter.Write(p[:max(w.fault.At-w.off, 0)])
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	broken := bytes.Clone(p) // Write may not change the caller's bytes
	flip(broken, w.off, []Fault{w.fault})
	n, err := w.ResponseWriter.Write(broken)
	w.off += int64(n)
	return n, err
}
