package node

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"thaw/zone"
)

// maxHead is the most bytes that a request's head may have: a path takes 100,
// what clients send beside it 500.
const maxHead = 4096

// conn is a connection of plain HTTP/1.1 that asks for stripes. One goroutine
// uses it.
type conn struct {
	s   *server
	tcp *net.TCPConn
	raw syscall.RawConn

	in         [maxHead]byte
	start, end int // what is in in and not used yet
	deadline   time.Time
	waiting    atomic.Bool // for a request; the server may close it
	head       []byte      // of an answer
	out        sending
}

// serve answers requests until the connection ends, or brings a request for
// net/http: then it gives foreign, and the rest is not touched.
func (c *conn) serve() parsed {
	var r request
	for {
		p := c.request(&r)
		if p != ours {
			return p
		}
		var ok bool
		if r.method == 'P' {
			ok = c.put(&r)
		} else {
			ok = c.get(&r)
		}
		if !ok || r.close || c.s.ending() {
			return partial
		}
	}
}

// request reads the next request. It gives partial when there is none.
func (c *conn) request(r *request) parsed {
	c.waiting.Store(true)
	for begun := false; ; {
		if c.end > c.start {
			c.waiting.Store(false)
			p, size := parseRequest(c.in[c.start:c.end], r)
			if p == ours {
				c.start += size
			}
			if p == ours || p == foreign {
				return p
			}
			if c.end-c.start == len(c.in) {
				return foreign // net/http says what is too long
			}
			if !begun { // once: a head that trickles in gets no more time
				begun = true
				c.expire(c.s.n.bounds.head)
			}
		} else {
			c.start, c.end = 0, 0
			// Setting a deadline costs as much as parsing the request.
			if now := time.Now(); c.deadline.Sub(now) < c.s.n.bounds.idle/2 || c.deadline.Sub(now) > c.s.n.bounds.idle {
				c.expire(c.s.n.bounds.idle)
			}
			if c.s.ending() {
				return partial
			}
		}
		if c.start > 0 && c.end == len(c.in) {
			c.end = copy(c.in[:], c.in[c.start:c.end])
			c.start = 0
		}
		n, err := c.tcp.Read(c.in[c.end:])
		c.end += n
		if err != nil && n == 0 {
			return partial
		}
	}
}

// expire bounds the reads that follow. An error shows when they are tried.
func (c *conn) expire(d time.Duration) {
	c.deadline = time.Now().Add(d)
	_ = c.tcp.SetReadDeadline(c.deadline)
}

// get answers GET and HEAD, and says whether the connection is still good.
func (c *conn) get(r *request) bool {
	began := time.Now()
	n := c.s.n
	var f found
	res, err := n.get(r.id, r.ask, c.s.done, &f)
	switch {
	case err != nil:
		return c.fail(r, err)
	case !res.found:
		lease := ""
		if res.asked {
			lease = zone.LeaseHeader + ": " + res.lease.String() + "\r\n"
		}
		return c.reply(r, http.StatusNotFound, lease, "")
	}
	defer n.release(&f)
	if f.pinned && !n.mem.arena.shares && r.method == 'G' {
		if err := n.copyOut(&f); err != nil {
			return c.fail(r, err)
		}
	}
	h := append(c.head[:0], "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nEtag: \""...)
	h = appendHex(h, f.head[8:12])
	h = append(h, "\"\r\nContent-Length: "...)
	h = strconv.AppendInt(h, int64(zone.HeaderSize+f.size), 10)
	if r.close {
		h = append(h, "\r\nConnection: close"...)
	}
	h = append(h, "\r\n\r\n"...)
	if r.method == 'G' {
		h = append(h, f.head[:]...)
		c.out = sending{head: h, payload: f.payload, left: f.size, off: int64(f.slot) * window, file: n.mem.arena.fd, step: c.out.step, tries: true}
	} else {
		c.out = sending{head: h, step: c.out.step, tries: true}
	}
	c.head = h
	if err := c.send(); err != nil {
		return false
	}
	if r.method == 'G' {
		n.sent(&f, res, began)
	}
	return true
}

func appendHex(b, src []byte) []byte {
	const digits = "0123456789abcdef"
	for _, v := range src {
		b = append(b, digits[v>>4], digits[v&15])
	}
	return b
}

// put answers PUT.
func (c *conn) put(r *request) bool {
	began := time.Now()
	n := c.s.n
	c.expire(c.s.n.bounds.body)
	buf, err := n.buffers.get()
	if err != nil {
		if !c.skip(r.length) {
			return false
		}
		return c.fail(r, err)
	}
	defer n.buffers.put(buf)
	buf.used = r.length
	body := buf.b[:r.length]
	have := copy(body, c.in[c.start:c.end])
	c.start += have
	if _, err := io.ReadFull(c.tcp, body[have:]); err != nil {
		return false
	}
	out, err := n.put(r.id, body, r.match)
	n.counts.put.Since(began)
	message, fields := "", ""
	if err != nil {
		message = err.Error() + "\n"
	}
	if out == tooBusy || out == refused {
		fields = "Retry-After: 1\r\n"
	}
	return c.reply(r, out.status(), fields, message)
}

// skip reads a body that nobody wants, so that the client gets to the answer.
func (c *conn) skip(length int) bool {
	have := min(length, c.end-c.start)
	c.start += have
	_, err := io.CopyN(io.Discard, c.tcp, int64(length-have))
	return err == nil
}

// fail says that a bound was reached, or that the node has failed.
func (c *conn) fail(r *request, err error) bool {
	if !errors.Is(err, errBusy) {
		c.s.n.options.Warn(err)
		return c.reply(r, http.StatusInternalServerError, "", err.Error()+"\n")
	}
	c.s.n.counts.busy.Add(1)
	return c.reply(r, http.StatusServiceUnavailable, "Retry-After: 1\r\n", err.Error()+"\n")
}

// reply sends an answer without a stripe.
func (c *conn) reply(r *request, status int, fields, message string) bool {
	h := append(c.head[:0], "HTTP/1.1 "...)
	h = strconv.AppendInt(h, int64(status), 10)
	h = append(append(h, ' '), http.StatusText(status)...)
	h = append(append(h, "\r\n"...), fields...)
	if message != "" {
		h = append(h, "Content-Type: text/plain; charset=utf-8\r\n"...)
	}
	if r.close {
		h = append(h, "Connection: close\r\n"...)
	}
	if r.method == 'H' {
		message = ""
	} else {
		h = append(h, "Content-Length: "...)
		h = append(strconv.AppendInt(h, int64(len(message)), 10), "\r\n"...)
	}
	h = append(append(h, "\r\n"...), message...)
	c.head = h
	c.out = sending{head: h, step: c.out.step, tries: true}
	return c.send() == nil
}

// sending is an answer on its way.
type sending struct {
	head    []byte // what is to be sent of it still
	payload []byte // if it is in memory
	file    int    // else
	off     int64
	left    int // bytes of the payload

	tries bool // it does not wait for the connection
	block bool // it would have had to
	err   error
	step  func(fd uintptr) bool
}

// send sends c.out, within the bound for that.
func (c *conn) send() error {
	if err := c.raw.Write(c.out.step); err != nil {
		return err
	}
	if !c.out.block {
		return c.out.err
	}
	_ = c.tcp.SetWriteDeadline(time.Now().Add(c.s.n.bounds.send)) // an error shows below
	c.out.tries = false
	if err := c.raw.Write(c.out.step); err != nil {
		return err
	}
	_ = c.tcp.SetWriteDeadline(time.Time{})
	return c.out.err
}

// write sends what the socket takes. False: wait for it to take more.
func (o *sending) write(fd uintptr) bool {
	for len(o.head) > 0 || o.left > 0 {
		n, err := o.some(int(fd))
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			o.block = true
			return o.tries
		case err == nil && n == 0:
			o.err = io.ErrUnexpectedEOF
			return true
		case err != nil:
			o.err = os.NewSyscallError("send", err)
			return true
		}
	}
	return true
}

func (o *sending) some(fd int) (n int, err error) {
	switch {
	case len(o.head) > 0:
		flags := unix.MSG_NOSIGNAL
		if o.left > 0 {
			flags |= unix.MSG_MORE
		}
		n, err = unix.SendmsgN(fd, o.head, nil, nil, flags)
		o.head = o.head[max(n, 0):]
	case o.payload != nil:
		n, err = unix.SendmsgN(fd, o.payload, nil, nil, unix.MSG_NOSIGNAL)
		o.payload = o.payload[max(n, 0):]
		o.left -= max(n, 0)
	default:
		n, err = unix.Sendfile(fd, o.file, &o.off, o.left)
		o.left -= max(n, 0)
	}
	return n, err
}
