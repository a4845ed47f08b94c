package main

import (
	"bytes"
	"errors"
	"os"
	"sync"
	"syscall"

	"thaw/invokewire"
	"thaw/quiet"
)

// maxPipe is the most that a pipe holds, should its writer have enlarged it; a
// flush takes no more.
const maxPipe = 1 << 20

// pump takes what one process and its children write, and sends it by whole lines.
// It holds at most MaxLog bytes: if the worker is slow, the writers wait.
type pump struct {
	name string
	file *os.File
	raw  syscall.RawConn
	send func(name string, text []byte) error
	done chan struct{} // closed at the end: all who could write are gone

	mu  sync.Mutex // guards buf, and is held while it is read to and sent
	buf []byte
}

// newPump gives a pump that is not running, and what is to be written to. One pipe
// takes both outputs, so that their lines stay in order.
func newPump(name string, send func(string, []byte) error) (*pump, *os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	// /dev/stdout is opened anew by those who write to it by that name, as another
	// user. gVisor has no modes of pipes.
	_ = write.Chmod(0o622)
	raw, err := read.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(err, read.Close(), write.Close())
	}
	return &pump{name: name, file: read, raw: raw, send: send, buf: make([]byte, 0, invokewire.MaxLog), done: make(chan struct{})}, write, nil
}

// abandon closes a pump that is not going to run.
func (p *pump) abandon() { _ = p.file.Close() }

// run pumps until all writers are gone.
func (p *pump) run() {
	defer close(p.done)
	defer p.file.Close()
	for n := 1; n > 0; {
		err := p.raw.Read(func(fd uintptr) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			n = p.read(fd)
			return n >= 0 // else when there is something
		})
		if err != nil {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest()
}

// read takes what is there, once: 0 bytes are the end, and -1 says that there is
// nothing now.
func (p *pump) read(fd uintptr) int {
	n, err := quiet.Read(fd, p.buf[len(p.buf):cap(p.buf)])
	switch {
	case err == syscall.EAGAIN:
		return -1
	case err != nil:
		return 0
	}
	p.add(n)
	return n
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

// flush sends all that was written before, but no more than a pipe holds.
func (p *pump) flush() {
	_ = p.raw.Control(func(fd uintptr) { // not after the end
		p.mu.Lock()
		defer p.mu.Unlock()
		for taken := 0; taken < maxPipe; {
			n := p.read(fd)
			if n <= 0 {
				break
			}
			taken += n
		}
		p.rest()
	})
}
