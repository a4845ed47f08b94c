package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"thaw/chunk"
)

const (
	// helloWithin is how long a new connection may say nothing.
	helloWithin = 10 * time.Second
	// writeWithin bounds the sending of one frame: a peer that does not read
	// would keep its chunk's bytes from others.
	writeWithin = 30 * time.Second
	// warnEvery is how often somebody is told what peers do wrong: an agent that
	// was taken over does so without end, and what is told is kept in a log.
	warnEvery = time.Minute
)

// seldom warns of one kind of thing, at most once in warnEvery.
type seldom struct {
	mu     sync.Mutex // guards what follows
	last   time.Time
	untold int
}

func (s *seldom) warn(tell func(error), err error) {
	s.mu.Lock()
	untold, now := s.untold, time.Now()
	quiet := !s.last.IsZero() && now.Sub(s.last) < warnEvery
	if quiet {
		s.untold++
	} else {
		s.last, s.untold = now, 0
	}
	s.mu.Unlock()
	switch {
	case quiet:
	case untold > 0:
		tell(fmt.Errorf("%w (and %d others before)", err, untold))
	default:
		tell(err)
	}
}

// peer is one agent's connection.
type peer struct {
	conn net.Conn
	hello

	writing sync.Mutex // held while a frame is sent

	mu   sync.Mutex // guards what follows
	gets map[uint32]context.CancelFunc
}

// begin gives a get its context.
func (p *peer) begin(ctx context.Context, r request) context.Context {
	ctx, cancel := context.WithTimeout(ctx, r.wait)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gets[r.id] = cancel
	return ctx
}

// end ends a get: it is answered, or cancelled.
func (p *peer) end(id uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if cancel := p.gets[id]; cancel != nil {
		cancel()
		delete(p.gets, id)
	}
}

// serveConn reads requests until the connection ends, and waits for the work
// that it began.
func (f *Fetcher) serveConn(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer conn.Close()
	if err := f.checkPeer(conn); err != nil {
		f.refused.warn(f.o.Warn, fmt.Errorf("cache: connection refused: %w", err))
		return
	}
	f.now.connections.Add(1)
	defer f.now.connections.Add(-1)
	p := &peer{conn: conn, gets: map[uint32]context.CancelFunc{}}
	err := f.readRequests(ctx, p, &running)
	if errors.Is(err, errProtocol) {
		p.send(header{status: statusInternal}, []byte(oneLine(err.Error())))
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, io.EOF) {
		f.ended.warn(f.o.Warn, fmt.Errorf("cache: connection ended: %w", err))
	}
}

func (f *Fetcher) readRequests(ctx context.Context, p *peer, running *sync.WaitGroup) (err error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(helloWithin))
	in := bufio.NewReader(p.conn)
	if p.hello, err = readHello(in); err != nil {
		return err
	}
	_ = p.conn.SetReadDeadline(time.Time{})
	slots, behind, touching := make(chan struct{}, perConnection), make(chan struct{}, perPrefetch), make(chan struct{}, 1)
	for {
		r, err := readRequest(in)
		if err != nil {
			return err
		}
		switch r.op {
		case opTouch:
			if err := f.touch(ctx, in, r.size, touching, running); err != nil {
				return err
			}
			continue
		case opStats:
			f.tell(p, r)
			continue
		case opCancel:
			p.end(r.id)
			continue
		}
		if p.root == "" {
			return fmt.Errorf("%w: a get without a root", errProtocol)
		}
		slots, answer := slots, f.answer
		if r.op == opPrefetch {
			slots, answer = behind, f.prefetch
		}
		if !take(ctx, slots) { // not for long: a client keeps to the number
			return ctx.Err()
		}
		get := p.begin(ctx, r)
		running.Go(func() {
			defer func() { p.end(r.id); <-slots }()
			answer(get, p, r)
		})
	}
}

// touch reads the names of chunks in use, and notes that behind the requests
// that follow.
func (f *Fetcher) touch(ctx context.Context, in io.Reader, size uint32, slot chan struct{}, running *sync.WaitGroup) error {
	names := make([]chunk.Name, size/uint32(len(chunk.Name{})))
	for i := range names {
		if _, err := io.ReadFull(in, names[i][:]); err != nil {
			return err
		}
	}
	if !take(ctx, slot) {
		return ctx.Err()
	}
	running.Go(func() {
		defer func() { <-slot }()
		for _, name := range names {
			f.o.Folder.Touch(name)
		}
		f.now.touched.Add(int64(len(names)))
	})
	return nil
}

// take waits for a slot; false: ctx ended before.
func take(ctx context.Context, slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// answer gets a chunk and sends it, or why not.
func (f *Fetcher) answer(ctx context.Context, p *peer, r request) {
	f.now.requests.Add(1)
	defer f.now.requests.Add(-1)
	if take(ctx, f.requests) { // else flights.do says so
		defer func() { <-f.requests }()
	}
	w := wanted{p.root, r.name, int(r.size)}
	f.queue.join(w, p.start, false)
	defer f.queue.leave(w)
	got, err := f.flights.do(ctx, w, f.get(w))
	if err != nil {
		p.refuse(ctx, r, err)
		return
	}
	defer got.hold.drop()
	p.send(header{id: r.id, status: statusFound, tier: got.tier}, got.data)
}

// refuse sends why a request fails, unless it was cancelled.
func (p *peer) refuse(ctx context.Context, r request, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return // nobody listens
	}
	h, text := refusal(err)
	h.id = r.id
	p.send(h, text)
}

// refusal says in a frame why there is no chunk.
func refusal(err error) (header, []byte) {
	var cause *failure
	h := header{status: statusInternal}
	text := err.Error()
	switch {
	case errors.As(err, &cause):
		h.status, h.tier, text = cause.status, cause.tier, cause.text
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errClosed):
		h.status, text = statusUnavailable, "no answer from any tier"
	}
	return h, []byte(oneLine(text))
}

// send writes one frame. A failure ends the connection: its reader notices.
func (p *peer) send(h header, payload []byte) {
	p.writing.Lock()
	defer p.writing.Unlock()
	h.length = uint32(len(payload))
	_ = p.conn.SetWriteDeadline(time.Now().Add(writeWithin))
	frame := net.Buffers{h.append(nil), payload}
	if _, err := frame.WriteTo(p.conn); err != nil {
		_ = p.conn.Close()
	}
}
