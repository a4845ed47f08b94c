package frontend

import (
	"context"
	"net"
	"sync"
	"syscall"
)

// wire is a client's connection. Clients learn from it where an event stream
// ends, and aws-sdk-go-v2 takes one that is closed in the middle for one that has
// ended (smithy-go 1.28, internal/eventstream: io.ErrUnexpectedEOF is an end). So
// a connection is reset, not closed, if the frontend dies while it carries one.
type wire struct {
	raw syscall.RawConn

	mu      sync.Mutex
	streams int // HTTP/2 carries many
}

type wireKey struct{}

// ConnContext is what the http.Server of Handler needs as its own, so that
// clients of streams see when the process is killed.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if over, ok := c.(interface{ NetConn() net.Conn }); ok { // TLS
		c = over.NetConn()
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return context.WithValue(ctx, wireKey{}, &wire{raw: raw})
		}
	}
	return ctx
}

// carry begins (by 1) or ends (by -1) a stream on a request's connection.
func carry(ctx context.Context, by int) {
	w, ok := ctx.Value(wireKey{}).(*wire)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.streams > 0
	w.streams += by
	if after := w.streams > 0; after != before {
		l := syscall.Linger{} // socket(7): with a time of 0, closing resets
		if after {
			l.Onoff = 1
		}
		_ = w.raw.Control(func(fd uintptr) { // it fails once the connection is closed
			_ = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &l)
		})
	}
}
