// Package quiet makes connections whose bytes move without Go's monitor.
//
// Each system call of a Go program that was idle wakes the runtime's monitor
// thread, which looks every 20 µs whether the call takes long, until the program
// is idle again. Of a process that is woken for one small message at a time, as
// all are that an invoke passes, that is the larger part of its context
// switches. Sockets of Go's never block, so nothing needs to be watched: here
// they are read and written by system calls that the monitor is not told of.
package quiet

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// Conn gives a connection that reads and writes without the monitor, and is the
// given one in all else. One that is no socket is returned as it is.
func Conn(c net.Conn) net.Conn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return c
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return c // its use says why
	}
	return &conn{Conn: c, raw: raw}
}

// Listener accepts such connections.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Conn(c), nil
}

// Dialer dials such connections.
type Dialer struct{ net.Dialer }

// DialContext connects as net.Dialer does.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return Conn(c), nil
}

type conn struct {
	net.Conn
	raw syscall.RawConn
}

// Read reads what there is, and waits for a first byte.
func (c *conn) Read(p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	var errno syscall.Errno
	err = c.raw.Read(func(fd uintptr) bool {
		n, errno = move(syscall.SYS_READ, fd, p)
		return errno != syscall.EAGAIN
	})
	switch {
	case err != nil:
		return 0, err // closed, or a deadline
	case errno != 0:
		return 0, c.failed("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes all of p.
func (c *conn) Write(p []byte) (n int, err error) {
	var errno syscall.Errno
	err = c.raw.Write(func(fd uintptr) bool {
		for n < len(p) {
			var k int
			if k, errno = move(syscall.SYS_WRITE, fd, p[n:]); errno != 0 {
				return errno != syscall.EAGAIN
			}
			n += k
		}
		return true
	})
	if err == nil && errno != 0 {
		err = c.failed("write", errno)
	}
	return n, err
}

// Idle tells whether the other side of a connection has neither said anything
// that was not read, nor hung up. Of one that is no socket nobody knows: it is idle.
func Idle(c net.Conn) bool {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = over.NetConn()
	}
	s, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	idle := false
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		idle = errno == syscall.EAGAIN
	})
	return err == nil && idle
}

// Read is read(2) of a descriptor that does not block, without the monitor.
func Read(fd uintptr, p []byte) (int, error) {
	n, errno := move(syscall.SYS_READ, fd, p)
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// move is read(2) or write(2), again when a signal has cut it short.
func move(call, fd uintptr, p []byte) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		switch errno {
		case 0:
			return int(n), 0
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// failed is the error as package net words it.
func (c *conn) failed(op string, errno syscall.Errno) error {
	return &net.OpError{
		Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, errno),
	}
}

// CloseWrite ends what is sent, where that can be done alone.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// SyscallConn gives the socket.
func (c *conn) SyscallConn() (syscall.RawConn, error) { return c.raw, nil }
