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
	"unsafe"

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
	began      time.Time    // the last request, or the connection
	spoken     bool         // there was a request
	waiting    atomic.Int64 // for a request, since then in ns since 1970; 0: it does not. The server may close it
	head       []byte       // of an answer
	out        sending
	from       receiving
}

func (c *conn) since() *atomic.Int64 { return &c.waiting }

func (c *conn) cut() { _ = c.tcp.Close() }

// serve answers requests until the connection ends, or brings a request for
// net/http: then it gives foreign, and the rest is not touched.
func (c *conn) serve() parsed {
	var r request
	for {
		p := c.request(&r)
		if p != ours {
			return p
		}
		c.spoken = true
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
	c.waiting.Store(c.began.UnixNano())
	for begun := false; ; {
		if c.end > c.start {
			c.waiting.Store(0)
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
			idle := c.s.n.bounds.idle
			if !c.spoken { // who has something to say does so
				idle = c.s.n.bounds.head
			}
			// Setting a deadline costs as much as parsing the request. From the
			// last one on there was no time worth speaking of.
			if left := c.deadline.Sub(c.began); left < idle/2 || left > idle {
				c.expire(idle)
			}
			if c.s.ending() {
				return partial
			}
		}
		if c.start > 0 && c.end == len(c.in) {
			c.end = copy(c.in[:], c.in[c.start:c.end])
			c.start = 0
		}
		n, err := c.read(c.in[c.end:])
		if err != nil || n == 0 {
			return partial
		}
		c.end += n
	}
}

// expire bounds the reads that follow. An error shows when they are tried.
func (c *conn) expire(d time.Duration) {
	c.deadline = time.Now().Add(d)
	_ = c.tcp.SetReadDeadline(c.deadline)
}

// get answers GET and HEAD, and says whether the connection is still good.
func (c *conn) get(r *request) bool {
	n := c.s.n
	f := found{lend: r.method == 'G'}
	res, err := n.get(r.id, r.ask, c.s.done, &f)
	c.began = f.began
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
	if f.pinned && !f.lent && r.method == 'G' {
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
		n.sent(&f, res)
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
	c.began = time.Now()
	n := c.s.n
	c.expire(c.s.n.bounds.body)
	buf, err := n.buffers.get()
	if err != nil {
		// Nobody wants the rest: whoever connects may have this one's place.
		c.waiting.Store(c.began.UnixNano())
		if !c.skip(r.length) {
			return false
		}
		c.waiting.Store(0)
		return c.fail(r, err)
	}
	defer n.buffers.put(buf)
	buf.used = r.length
	body := buf.b[:r.length]
	have := copy(body, c.in[c.start:c.end])
	c.start += have
	for have < len(body) {
		k, err := c.read(body[have:])
		if err != nil || k == 0 {
			return false
		}
		have += k
	}
	out, err := n.put(r.id, body, r.match)
	n.counts.put.Since(c.began)
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
		n, err = quick(unix.SYS_SENDTO, fd, unsafe.Pointer(&o.head[0]), len(o.head), flags)
		o.head = o.head[n:]
	case o.payload != nil:
		n, err = quick(unix.SYS_SENDTO, fd, unsafe.Pointer(&o.payload[0]), len(o.payload), unix.MSG_NOSIGNAL)
		o.payload = o.payload[n:]
		o.left -= n
	default:
		n, err = sendfile(fd, o.file, &o.off, o.left)
		o.left -= n
	}
	return n, err
}

// The calls below are told to the kernel and not to Go's scheduler. None of them
// waits, and a body of 128 KiB takes 20 µs and more to hand over: for each that
// lasts so long the scheduler would give the processor's work to another thread,
// and its monitor would look for the next 50,000 times a second (a tenth of the
// node's time, as perf sees it).

// quick is a call for n bytes at p, with one argument more.
func quick(call uintptr, fd int, p unsafe.Pointer, n, more int) (int, error) {
	r, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(p), uintptr(n), uintptr(more), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

func sendfile(fd, file int, off *int64, n int) (int, error) {
	r, _, errno := unix.RawSyscall6(unix.SYS_SENDFILE, uintptr(fd), uintptr(file), uintptr(unsafe.Pointer(off)), uintptr(n), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// receiving is a read of a connection that waits until there is something.
type receiving struct {
	into []byte
	n    int
	err  error
	step func(fd uintptr) bool
}

func (r *receiving) read(fd uintptr) bool {
	for {
		r.n, r.err = quick(unix.SYS_RECVFROM, int(fd), unsafe.Pointer(&r.into[0]), len(r.into), 0)
		if r.err != unix.EINTR {
			return r.err != unix.EAGAIN
		}
	}
}

// read reads what is there of in, or waits for it: at the end 0 bytes.
func (c *conn) read(b []byte) (int, error) {
	c.from.into = b
	if err := c.raw.Read(c.from.step); err != nil {
		return 0, err
	}
	return c.from.n, c.from.err
}
