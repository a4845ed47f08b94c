package main

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"thaw/invokewire"
)

// maxPipe is the most that a pipe holds, should its writer have enlarged it; a
// flush takes no more.
const maxPipe = 1 << 20

// pump takes what one process and its children write, and sends it by whole lines.
// It holds at most MaxLog bytes: if the worker is slow, the writers wait.
type pump struct {
	name string
	file *os.File
	send func(name string, text []byte) error
	buf  []byte
	done chan struct{} // closed at the end: all who could write are gone

	mu      sync.Mutex // guards what follows
	flushes []chan struct{}
}

// newPump gives a pump that is not running, and what is to be written to. One pipe
// takes both outputs, so that their lines stay in order.
func newPump(name string, send func(string, []byte) error) (*pump, *os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	// /dev/stdout is opened anew by those who write to it by that name, as another user.
	if err := write.Chmod(0o622); err != nil {
		return nil, nil, errors.Join(err, read.Close(), write.Close())
	}
	return &pump{name: name, file: read, send: send, buf: make([]byte, 0, invokewire.MaxLog), done: make(chan struct{})}, write, nil
}

// abandon closes a pump that is not going to run.
func (p *pump) abandon() { _ = p.file.Close() }

// run pumps until all writers are gone.
func (p *pump) run() {
	defer close(p.done)
	defer p.file.Close()
	for {
		n, err := p.file.Read(p.buf[len(p.buf):cap(p.buf)])
		p.add(n)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			p.flushed()
			continue
		}
		if err != nil {
			p.rest()
			return
		}
	}
}

// add takes n bytes that were read behind the others, and sends what is whole.
func (p *pump) add(n int) {
	p.buf = p.buf[:len(p.buf)+n]
	whole := bytes.LastIndexByte(p.buf, '\n') + 1
	if whole == 0 && len(p.buf) == cap(p.buf) {
		whole = len(p.buf)
	}
	if whole > 0 {
		p.emit(whole)
	}
}

// rest sends what is left, also if it is no line.
func (p *pump) rest() {
	if len(p.buf) > 0 {
		p.emit(len(p.buf))
	}
}

// emit sends n bytes. What cannot be sent is lost with the connection.
func (p *pump) emit(n int) {
	_ = p.send(p.name, p.buf[:n])
	p.buf = p.buf[:copy(p.buf, p.buf[n:])]
}

// flush waits until all has been sent that was written before, but no more than a
// pipe holds.
func (p *pump) flush() {
	ack := make(chan struct{})
	p.mu.Lock()
	p.flushes = append(p.flushes, ack)
	_ = p.file.SetReadDeadline(time.Unix(1, 0)) // long past: a Read under way returns
	p.mu.Unlock()
	select {
	case <-ack:
	case <-p.done:
	}
}

// flushed does what flush asks for.
func (p *pump) flushed() {
	p.mu.Lock()
	acks := p.flushes
	p.flushes = nil
	_ = p.file.SetReadDeadline(time.Time{})
	p.mu.Unlock()
	for taken := 0; taken < maxPipe; {
		n := p.readNow(p.buf[len(p.buf):cap(p.buf)])
		if n <= 0 {
			break
		}
		taken += n
		p.add(n)
	}
	p.rest()
	for _, ack := range acks {
		close(ack)
	}
}

// readNow reads what is there.
func (p *pump) readNow(buf []byte) (n int) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Read(func(fd uintptr) bool {
		for {
			if n, err = syscall.Read(int(fd), buf); err != syscall.EINTR {
				return true
			}
		}
	})
	if err != nil {
		return 0
	}
	return n
}
