package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
	"thaw/chunk"
	"thaw/device"
	"thaw/mount"
)

// Control is how those who use a mounted image talk to its agent: requests and
// answers are lines of JSON over a unix socket that only root can open.
//
//	{"op":"stats"}                     → {"stats":{…}}
//	{"op":"fault"}                     → {"event":"…"}: the last failed read, or {}; "lost":true if a chunk
//	                                     is not in the origin, or wrong there
//	{"op":"events"}                    → {}, then {"event":"…"} for failed reads; nothing is asked any
//	                                     more, and the end of the asking side ends the connection,
//	                                     once all events until then are told
//	{"op":"add","name":N} + a file     → {}: rw/N is there, its writes go to that file
//	{"op":"remove","name":N}           → {}
//	{"op":"ready"} + a file            → {}: the program is ready; the image's trace with what was touched
//	                                     until now is in the file, sealed, and nothing is recorded any more
//
// An answer with "error" says what went wrong.
const (
	opStats  = "stats"
	opFault  = "fault"
	opEvents = "events"
	opAdd    = "add"
	opRemove = "remove"
	opReady  = "ready"
)

const (
	// maxControls bounds the connections: one for each instance and command.
	maxControls = 4096
	// maxLine bounds a request in bytes.
	maxLine = 4096
	// acceptPause is how soon a connection is accepted for which something was
	// missing. It holds up close as long.
	acceptPause = 50 * time.Millisecond
	// maxText bounds a cause in bytes: it is told on one line.
	maxText = 2000
	// maxAnswer bounds an answer in bytes: a text, each byte of which may take
	// six in JSON.
	maxAnswer = 16 << 10
	// eventQueue is how many failed reads wait for a listener; more are dropped.
	eventQueue = 64
	// eventGap is the least time between two events of one cause for one
	// listener: a dead origin fails thousands of reads, and people want one line.
	eventGap = time.Second
	// maxCauses bounds the causes that are told in that time: what fails for ever
	// new reasons is not told all of them.
	maxCauses = 16
)

var errNoFile = errors.New("no file came with the request")

type request struct {
	Op   string `json:"op"`
	Name string `json:"name,omitempty"`
}

type answer struct {
	Error string       `json:"error,omitempty"`
	Event string       `json:"event,omitempty"`
	Lost  bool         `json:"lost,omitempty"`
	Stats *cache.Stats `json:"stats,omitempty"`
}

// told is when a listener was told of each cause last.
type told map[string]time.Time

// due reports whether a failure is to be told, and notes that it is. The
// cause of each chunk is another only by the chunk's name.
func (t told) due(cause error, now time.Time) bool {
	text := strings.Map(func(r rune) rune { // without names of chunks, and numbers
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'f' {
			return -1
		}
		return r
	}, bounded(cause.Error()))
	if at, ok := t[text]; ok && now.Sub(at) < eventGap {
		return false
	}
	if len(t) >= maxCauses {
		maps.DeleteFunc(t, func(_ string, at time.Time) bool { return now.Sub(at) >= eventGap })
	}
	if len(t) >= maxCauses {
		return false
	}
	t[text] = now
	return true
}

// control serves Control.
type control struct {
	image  string
	dev    *device.Device
	chunks *cache.Client
	server *mount.Server
	traces *traces

	listener *net.UnixListener
	work     sync.WaitGroup
	slots    chan struct{}
	now      func() time.Time // tests: in place of time.Now

	mu        sync.Mutex // guards what follows
	listeners map[chan string]told
	conns     map[net.Conn]struct{}
	files     map[string]*os.File // what instances write to, by their names
	fault     answer              // the last
	closed    bool
}

func newControl(f *os.File, image string, dev *device.Device, chunks *cache.Client) (*control, error) {
	defer f.Close() // the listener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.New("control socket: not a unix socket")
	}
	u.SetUnlinkOnClose(false)
	return &control{
		image: image, dev: dev, chunks: chunks, listener: u, slots: make(chan struct{}, maxControls), traces: new(traces), now: time.Now,
		listeners: map[chan string]told{}, conns: map[net.Conn]struct{}{}, files: map[string]*os.File{},
	}, nil
}

// start accepts connections until close.
func (c *control) start() {
	c.work.Go(func() {
		for {
			conn, err := c.listener.AcceptUnix()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // no descriptor or memory is left: others may end
				time.Sleep(acceptPause)
				continue
			}
			select {
			case c.slots <- struct{}{}:
			default:
				_ = conn.Close()
				continue
			}
			if !c.track(conn) {
				return
			}
			c.work.Go(func() {
				c.talk(conn)
				c.untrack(conn)
				<-c.slots
			})
		}
	})
}

func (c *control) track(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *control) untrack(conn net.Conn) {
	_ = conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// close ends all connections and waits for them.
func (c *control) close() {
	_ = c.listener.Close()
	c.mu.Lock()
	c.closed = true
	for conn := range c.conns {
		_ = conn.Close()
	}
	for l := range c.listeners {
		close(l)
		delete(c.listeners, l)
	}
	c.mu.Unlock()
	c.work.Wait()
}

// talk answers one connection's requests.
func (c *control) talk(conn *net.UnixConn) {
	in := &passing{conn: conn}
	defer in.drop()
	lines := bufio.NewReaderSize(in, maxLine)
	out := json.NewEncoder(conn)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		var r request
		if json.Unmarshal(line, &r) != nil {
			_ = out.Encode(answer{Error: "not a request"})
			return
		}
		if r.Op == opEvents {
			c.events(conn, out)
			return
		}
		if out.Encode(c.handle(r, in)) != nil {
			return
		}
	}
}

func (c *control) handle(r request, in *passing) answer {
	var err error
	switch r.Op {
	case opStats:
		s := c.chunks.Stats()
		s.Decrypt = c.dev.Decrypts()
		return answer{Stats: &s}
	case opFault:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.fault
	case opAdd:
		err = c.add(r.Name, in.take())
	case opRemove:
		err = c.remove(r.Name)
	case opReady:
		err = c.ready(in.take())
	default:
		err = fmt.Errorf("no request %.20q", r.Op)
	}
	if err != nil {
		return answer{Error: bounded(err.Error())}
	}
	return answer{}
}

// bounded cuts a text to maxText.
func bounded(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "")
}

// ready ends the recording, and leaves the trace in file.
func (c *control) ready(file *os.File) error {
	if file == nil {
		return errNoFile
	}
	return errors.Join(c.traces.finish(file), file.Close())
}

// add gives an instance a writable device of its own.
func (c *control) add(name string, file *os.File) error {
	if file == nil {
		return errNoFile
	}
	// Before it can be removed, or nobody would close it.
	c.mu.Lock()
	_, taken := c.files[name]
	if !taken {
		c.files[name] = file
	}
	c.mu.Unlock()
	if taken {
		return errors.Join(fmt.Errorf("file rw/%s: %w", name, os.ErrExist), file.Close())
	}
	overlay, err := device.NewOverlay(c.dev, punchable{file}, c.dev.Size())
	if err == nil {
		err = c.server.AddFile(name, overlay)
	}
	if err != nil {
		return errors.Join(err, c.forget(name))
	}
	return nil
}

// remove forgets an instance's device and what was written to it.
func (c *control) remove(name string) error {
	if err := c.server.RemoveFile(name); err != nil {
		return err
	}
	return c.forget(name)
}

// forget closes the file of an instance whose device is not there.
func (c *control) forget(name string) error {
	c.mu.Lock()
	file := c.files[name]
	delete(c.files, name)
	c.mu.Unlock()
	return file.Close()
}

// report tells those who listen of a failed read or write.
func (c *control) report(f mount.Fault) {
	text := bounded(fmt.Sprintf("image %s: %s of %s: %v", c.image, f.Op, f.File, f.Err))
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = answer{Event: text, Lost: errors.Is(f.Err, chunk.ErrNotFound) || errors.Is(f.Err, chunk.ErrCorrupt)}
	for l, last := range c.listeners {
		if !last.due(f.Err, now) {
			continue
		}
		select {
		case l <- text:
		default:
		}
	}
}

// events sends what report tells until the other side asks no more or the agent
// ends.
func (c *control) events(conn net.Conn, out *json.Encoder) {
	l := make(chan string, eventQueue)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.listeners[l] = told{}
	c.mu.Unlock()
	c.work.Go(func() {
		_, _ = conn.Read(make([]byte, 1)) // there is nothing to read but the end
		c.unlisten(l)
	})
	err := out.Encode(answer{})
	for text := range l {
		if err == nil {
			err = out.Encode(answer{Event: text})
		}
		if err != nil {
			_ = conn.Close() // ends the reading, and so this
		}
	}
}

// unlisten ends a listener, who still gets what it was told.
func (c *control) unlisten(l chan string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.listeners[l]; ok {
		delete(c.listeners, l)
		close(l)
	}
}

// passing reads a connection's bytes and keeps the last file that came along.
type passing struct {
	conn *net.UnixConn
	file *os.File
}

// Read is io.Reader's.
func (p *passing) Read(b []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := p.conn.ReadMsgUnix(b, oob)
	for _, f := range passed(oob[:oobn], "overlay") {
		p.drop()
		p.file = f
	}
	if n == 0 && err == nil {
		err = net.ErrClosed // the other side has ended
	}
	return max(n, 0), err // it is -1 with an error
}

func (p *passing) take() *os.File {
	f := p.file
	p.file = nil
	return f
}

func (p *passing) drop() {
	if f := p.take(); f != nil {
		_ = f.Close()
	}
}

// punchable is a file in which an overlay can free what it forgets.
type punchable struct{ *os.File }

// PunchHole is device.HolePuncher's. A file system without holes keeps the
// bytes, which nobody reads.
func (f punchable) PunchHole(off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
