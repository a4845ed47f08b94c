// Package http1 is an HTTP/1.1 server for a few clients on the same machine: what
// thaw-init needs to serve the Runtime API. net/http would double that program,
// which runs in each instance.
//
// Keep-alive, Expect: 100-continue, chunked bodies and trailers are there; TLS,
// HTTP/2, upgrades and proxying are not. Everything that a client sends is bounded
// but a body, which is its handler's to bound. There are no timeouts: a request may wait
// for days, and a client that stalls stalls itself.
package http1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// MaxConns is how many connections a Server has at once; more are closed as
	// they come. A runtime and ten extensions need two or three each.
	MaxConns = 128
	// maxHead bounds request line and headers in bytes. The largest header in use
	// is an error's cause, of 64 KiB.
	maxHead = 128 << 10
	// maxTrailer bounds trailers in bytes: one of them is an error's JSON as base64.
	maxTrailer = 1 << 20
	// maxFields bounds the headers, and the trailers.
	maxFields = 128
	// maxDrain is how much of a body that nobody wanted is read, so that its sender
	// comes to see the answer.
	maxDrain = 64 << 20
	// drainTime bounds the same.
	drainTime = 5 * time.Second
	// bufferSize holds most heads.
	bufferSize = 4 << 10
)

// Header holds fields by their names in lower case. Repeated ones are joined by ", ".
type Header map[string]string

// Request is one request, for the handler while that runs.
type Request struct {
	Method string
	Path   string // as it was sent, without a query
	Header Header
	// Length of the body in bytes; -1: not known.
	Length int64
	// Body ends with io.EOF once it is whole, and with another error if it is cut
	// short. It need not be read.
	Body io.Reader
	// Trailer is there once Body has ended.
	Trailer Header

	conn *conn
	gone chan struct{}
	wait sync.WaitGroup
}

// Field is a header of an Answer.
type Field struct{ Name, Value string }

// Answer is what a client gets. Values of fields with line ends or other control characters are
// not sent.
type Answer struct {
	Status int
	Header []Field
	Body   []byte
}

// Server answers requests, one after the other for each connection.
type Server struct {
	// Handler is called by several goroutines at once.
	Handler func(*Request) Answer

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]struct{}
	closed bool
}

// Serve accepts connections until l is closed, then ends them all and waits for
// their handlers, which see it by Gone.
func (s *Server) Serve(l net.Listener) error {
	var work sync.WaitGroup
	defer work.Wait()
	defer s.close()
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accepting connections to the Runtime API: %w", err)
		}
		if !s.track(c) {
			_ = c.Close()
			continue
		}
		work.Go(func() {
			serve(c, s.Handler)
			s.untrack(c)
		})
	}
}

func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) >= MaxConns {
		return false
	}
	if s.conns == nil {
		s.conns = map[net.Conn]struct{}{}
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) untrack(c net.Conn) {
	_ = c.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
}

// Gone is closed when the client goes away while the handler runs. It may be
// asked for once the body has been read, or if there is none. A Request that was
// not read from a connection has no client that could.
func (r *Request) Gone() <-chan struct{} {
	if r.gone != nil || r.conn == nil {
		return r.gone
	}
	r.gone = make(chan struct{})
	r.wait.Go(func() {
		// A byte is the next request: it stays in the buffer, and the client is there.
		if _, err := r.conn.in.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			close(r.gone)
		}
	})
	return r.gone
}

// settle ends the watch for the client's end.
func (r *Request) settle() {
	if r.gone == nil {
		return
	}
	_ = r.conn.raw.SetReadDeadline(time.Unix(1, 0)) // long past: a Peek under way returns
	r.wait.Wait()
	_ = r.conn.raw.SetReadDeadline(time.Time{})
}

// conn is one connection.
type conn struct {
	raw net.Conn
	in  *bufio.Reader
	out *bufio.Writer
}

func serve(raw net.Conn, handler func(*Request) Answer) {
	c := &conn{raw: raw, in: bufio.NewReaderSize(raw, bufferSize), out: bufio.NewWriterSize(raw, bufferSize)}
	for {
		r, body, err := c.request()
		if bad := (*badRequest)(nil); errors.As(err, &bad) {
			_ = c.answer(Answer{Status: bad.status, Body: []byte(bad.text + "\n")}, false)
			c.drain(c.in) // else the answer might be lost with what is unread
			return
		}
		if err != nil {
			return
		}
		a := handler(r)
		r.settle()
		if !c.finish(r, body, a) {
			return
		}
	}
}

// finish answers and tells whether the connection goes on.
func (c *conn) finish(r *Request, b *body, a Answer) bool {
	keep := b.keep && (b.ended || !b.expects) // who waits for 100 may send its body or not
	if err := c.answer(a, keep && !b.failed); err != nil {
		return false
	}
	if b.failed {
		c.drain(c.in)
		return false
	}
	if !b.ended && !b.expects {
		b.silent = true
		c.drain(b)
	}
	return keep && b.ended
}

// drain reads what nobody wants, within bounds.
func (c *conn) drain(from io.Reader) {
	_ = c.raw.SetReadDeadline(time.Now().Add(drainTime))
	_, _ = io.CopyN(io.Discard, from, maxDrain)
	_ = c.raw.SetReadDeadline(time.Time{})
}

func (c *conn) answer(a Answer, keep bool) error {
	fmt.Fprintf(c.out, "HTTP/1.1 %d %s\r\n", a.Status, statusText(a.Status))
	for _, f := range a.Header {
		if isValue(f.Value) {
			_, _ = c.out.WriteString(f.Name + ": " + f.Value + "\r\n")
		}
	}
	if !keep {
		_, _ = c.out.WriteString("Connection: close\r\n")
	}
	_, _ = c.out.WriteString("Content-Length: " + strconv.Itoa(len(a.Body)) + "\r\n\r\n")
	_, _ = c.out.Write(a.Body)
	return c.out.Flush() // and what failed before
}

// statusText names the few that are in use.
func statusText(status int) string {
	switch status {
	case 200:
		return "OK"
	case 202:
		return "Accepted"
	case 400:
		return "Bad Request"
	case 403:
		return "Forbidden"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	case 413:
		return "Request Entity Too Large"
	case 431:
		return "Request Header Fields Too Large"
	case 500:
		return "Internal Server Error"
	case 501:
		return "Not Implemented"
	case 505:
		return "HTTP Version Not Supported"
	}
	return "Status " + strconv.Itoa(status)
}

// isValue tells whether s may be a header's value.
func isValue(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}
