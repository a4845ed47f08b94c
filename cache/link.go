package cache

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"thaw/chunk"
)

// sendWithin bounds dialling and the sending of a request, which a fetcher that
// is alive takes at once.
const sendWithin = 10 * time.Second

// links keeps one connection to the fetcher, and makes another when it has
// ended.
type links struct {
	dial    func(context.Context) (net.Conn, error)
	hello   hello
	dialing chan struct{} // holds a token while one dials

	mu      sync.Mutex // guards what follows
	current *link
	closed  bool
	running sync.WaitGroup
}

// answer is what came for a get or a prefetch.
type answer struct {
	tier   Tier
	data   []byte   // of a get
	failed *failure // or this
}

// call sends a request and waits for the answer. An error means that the fetcher
// did not answer; it may be asked again.
func (k *links) call(ctx context.Context, r request) (answer, error) {
	l, err := k.get(ctx)
	if err != nil {
		return answer{}, err
	}
	return l.call(ctx, r)
}

// get gives the connection, or a new one.
func (k *links) get(ctx context.Context) (*link, error) {
	if !take(ctx, k.dialing) {
		return nil, ctx.Err()
	}
	defer func() { <-k.dialing }()
	k.mu.Lock()
	l, closed := k.current, k.closed
	k.mu.Unlock()
	if closed {
		return nil, errClosed
	}
	if l != nil && l.alive() {
		return l, nil
	}
	ctx, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	conn, err := k.dial(ctx)
	if err != nil {
		return nil, err
	}
	l = &link{conn: conn, ended: make(chan struct{}), pending: map[uint32]*pending{}}
	if err := l.write(k.hello.append(nil)); err != nil {
		_ = conn.Close()
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		_ = conn.Close()
		return nil, errClosed
	}
	k.current = l
	k.running.Go(l.read)
	return l, nil
}

// close ends the connection, and waits for its reader.
func (k *links) close() {
	k.mu.Lock()
	k.closed = true
	if k.current != nil {
		_ = k.current.conn.Close()
	}
	k.mu.Unlock()
	k.running.Wait()
}

// link is one connection. Its goroutine hands out the answers.
type link struct {
	conn    net.Conn
	writing sync.Mutex    // held while frames are sent
	ended   chan struct{} // closed once err is set
	err     error         // the reader's, until ended

	mu      sync.Mutex // guards what follows
	last    uint32
	pending map[uint32]*pending
}

type pending struct {
	op     op
	size   uint32      // of the bytes that are to come
	answer chan answer // holds one, so that the reader never waits
}

func (l *link) alive() bool {
	select {
	case <-l.ended:
		return false
	default:
		return true
	}
}

func (l *link) write(b []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(sendWithin))
	_, err := l.conn.Write(b)
	if err != nil {
		_ = l.conn.Close() // half a frame may have been sent
	}
	return err
}

func (l *link) call(ctx context.Context, r request) (answer, error) {
	p := &pending{op: r.op, size: r.size, answer: make(chan answer, 1)}
	if r.op == opPrefetch {
		p.size = 0
	}
	l.mu.Lock()
	for ok := true; ok || l.last == 0; _, ok = l.pending[l.last] {
		l.last++
	}
	r.id = l.last
	l.pending[r.id] = p
	l.mu.Unlock()
	defer l.take(r.id)
	if err := l.write(r.append(nil)); err != nil {
		return answer{}, err
	}
	select {
	case a := <-p.answer:
		return a, nil
	case <-ctx.Done():
		_ = l.write(request{id: r.id, op: opCancel}.append(nil))
		return answer{}, ctx.Err()
	case <-l.ended:
	}
	select {
	case a := <-p.answer: // it came before the end
		return a, nil
	default:
		return answer{}, l.err
	}
}

// take forgets a request, and gives it if it was there.
func (l *link) take(id uint32) *pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.pending[id]
	delete(l.pending, id)
	return p
}

func (l *link) read() {
	in := bufio.NewReader(l.conn)
	for l.err == nil {
		l.err = l.readAnswer(in)
	}
	_ = l.conn.Close()
	close(l.ended)
}

// readAnswer takes one frame. What nobody waits for any more is passed over.
func (l *link) readAnswer(in *bufio.Reader) error {
	h, err := readHeader(in)
	if err != nil {
		return fmt.Errorf("connection ended: %w", err)
	}
	p := l.take(h.id)
	if p == nil && h.id != 0 {
		_, err := in.Discard(int(h.length))
		return err
	}
	if h.status == statusFound && (h.length != p.size || h.tier == 0) {
		return fmt.Errorf("%w: %d bytes of a chunk of %d, from the %s", errProtocol, h.length, p.size, h.tier)
	}
	payload := make([]byte, h.length)
	if _, err := io.ReadFull(in, payload); err != nil {
		return fmt.Errorf("connection ended: %w", err)
	}
	switch {
	case h.id == 0:
		return fmt.Errorf("refused: %s", oneLine(string(payload)))
	case h.status == statusFound:
		p.answer <- answer{tier: h.tier, data: payload}
	default:
		p.answer <- answer{failed: &failure{h.status, h.tier, oneLine(string(payload))}}
	}
	return nil
}

const (
	// touchDelay lets touches come together into one write.
	touchDelay = 5 * time.Second
	// maxTouches are the names kept for sending, 128 KiB; more are dropped.
	maxTouches = 4096
	// lastTouches bounds what Close waits for telling what was used.
	lastTouches = time.Second
)

// touches collects the names of chunks in use, and sends them now and then.
type touches struct {
	send func([]chunk.Name)

	mu      sync.Mutex // guards what follows
	names   []chunk.Name
	timer   *time.Timer
	closed  bool
	running sync.WaitGroup
}

func (t *touches) add(name chunk.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.names) >= maxTouches {
		return
	}
	t.names = append(t.names, name)
	if len(t.names) == 1 {
		t.running.Add(1)
		t.timer = time.AfterFunc(touchDelay, func() {
			defer t.running.Done()
			t.flush()
		})
	}
}

func (t *touches) flush() {
	t.mu.Lock()
	names := t.names
	t.names = nil
	t.mu.Unlock()
	if len(names) > 0 {
		t.send(names)
	}
}

// close sends the last ones.
func (t *touches) close() {
	t.mu.Lock()
	t.closed = true
	if t.timer != nil && t.timer.Stop() {
		t.running.Done()
	}
	t.mu.Unlock()
	t.running.Wait()
	t.flush()
}

// sendTouches tells the fetcher which chunks are in use. It is no matter if
// that is lost.
func (c *Client) sendTouches(names []chunk.Name) {
	ctx, cancel := context.WithTimeout(context.Background(), lastTouches)
	defer cancel()
	l, err := c.links.get(ctx)
	if err != nil {
		return
	}
	for part := range slices.Chunk(names, maxNames) {
		_ = l.write(appendTouch(nil, part))
	}
}
