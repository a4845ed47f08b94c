package main

import (
	"errors"
	"net"
	"sync"
	"time"

	"thaw/invokewire"
	"thaw/quiet"
)

var (
	// errOver ends an instance that has been shut down.
	errOver = errors.New("shut down")
	// errLost is what a writer gets whose frame went nowhere.
	errLost = errors.New("the connection to the worker is lost")
	// errGone ends an instance whose worker does not come back.
	errGone = errors.New("the worker is gone")
)

// link is the connection to the worker, the present one.
type link struct {
	dial func() (net.Conn, error)

	mu     sync.Mutex // guards what follows
	conn   net.Conn
	frames *invokewire.Frames // nil: none
}

// serve connects, says hello and gives what the worker says to take, until that
// fails or the worker is gone.
func (l *link) serve(hello func() invokewire.Hello, take func(*invokewire.Frames, invokewire.Frame) error) error {
	for {
		frames, err := l.connect()
		if err != nil {
			return err
		}
		if err := l.sendJSON(invokewire.FrameHello, hello()); err != nil {
			time.Sleep(dialPause)
			continue
		}
		for err == nil {
			var frame invokewire.Frame
			if frame, err = frames.Read(); err != nil {
				err = lost(err)
				break
			}
			err = take(frames, frame)
		}
		if !errors.Is(err, errLost) {
			return err
		}
	}
}

// lost is the error of reading: of a connection that has broken, or of a worker
// that does not say what it should.
func lost(err error) error {
	if errors.Is(err, invokewire.ErrFrame) {
		return err
	}
	return errors.Join(errLost, err)
}

func (l *link) connect() (*invokewire.Frames, error) {
	l.close()
	conn, err := l.dial()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.frames = conn, invokewire.NewFrames(quiet.Conn(conn))
	return l.frames, nil
}

// send writes by f. A frame that cannot be written is lost, and the reader finds
// out that the connection is.
func (l *link) send(f func(*invokewire.Frames) error) error {
	l.mu.Lock()
	conn, frames := l.conn, l.frames
	l.mu.Unlock()
	if frames == nil {
		return errLost
	}
	err := f(frames)
	if err != nil && !errors.Is(err, invokewire.ErrFrame) {
		_ = conn.Close()
		return errors.Join(errLost, err)
	}
	return err
}

// sendJSON writes a frame that holds v.
func (l *link) sendJSON(kind invokewire.Kind, v any) error {
	return l.send(func(f *invokewire.Frames) error { return f.WriteJSON(kind, v) })
}

func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
	l.conn, l.frames = nil, nil
}
