package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"thaw/cache"
)

// askTimeout bounds a request in time: an agent answers from memory.
const askTimeout = 10 * time.Second

// Conn is a connection to an agent's control socket. It is for one goroutine;
// the caller closes it.
type Conn struct {
	conn *net.UnixConn
	in   *bufio.Reader
}

// Dial connects to the control socket at a path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("the agent does not answer: %w", err)
	}
	conn := c.(*net.UnixConn)
	return &Conn{conn, bufio.NewReaderSize(conn, maxAnswer)}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Stats gives what the agent has read so far.
func (c *Conn) Stats() (cache.Stats, error) {
	a, err := c.ask(request{Op: opStats}, nil)
	if err != nil {
		return cache.Stats{}, err
	}
	if a.Stats == nil {
		return cache.Stats{}, errors.New("the agent gave no numbers")
	}
	return *a.Stats, nil
}

// Add makes rw/name, a writable device whose pages go to file, encrypted. The
// caller closes its copy.
func (c *Conn) Add(name string, file *os.File) error {
	_, err := c.ask(request{Op: opAdd, Name: name}, file)
	return err
}

// Remove removes rw/name.
func (c *Conn) Remove(name string) error {
	_, err := c.ask(request{Op: opRemove, Name: name}, nil)
	return err
}

// Ready says that the program is ready: what was touched until now is recorded,
// once, and the image's trace with it goes to file, sealed. The caller closes
// its copy.
func (c *Conn) Ready(file *os.File) error {
	_, err := c.ask(request{Op: opReady}, file)
	return err
}

// ErrLost says that a chunk is not in the origin, or not what it was: that no
// reader of the image will get it.
var ErrLost = errors.New("the image is not whole in the origin")

// Fault gives the last failed read, nil if there was none. It wraps ErrLost if that
// is why.
func (c *Conn) Fault() (fault, err error) {
	a, err := c.ask(request{Op: opFault}, nil)
	switch {
	case err != nil || a.Event == "":
		return nil, err
	case a.Lost:
		return fmt.Errorf("%w: %s", ErrLost, a.Event), nil
	}
	return errors.New(a.Event), nil
}

// Listen has the agent tell of failed reads from now on. The connection is for
// Events alone then.
func (c *Conn) Listen() error {
	_, err := c.ask(request{Op: opEvents}, nil)
	return err
}

// Events calls f with a line for each failed read, until the agent has ended or
// the connection is closed, or, after Finish, all is told.
func (c *Conn) Events(f func(line string)) {
	for {
		var a answer
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return
		}
		if json.Unmarshal(line, &a) == nil && a.Event != "" {
			f(a.Event)
		}
	}
}

// Finish ends Events once it has told what failed until now. It may be called
// while Events runs.
func (c *Conn) Finish() error {
	return errors.Join(c.conn.SetReadDeadline(time.Now().Add(askTimeout)), c.conn.CloseWrite())
}

func (c *Conn) ask(r request, file *os.File) (answer, error) {
	a, err := c.exchange(r, file)
	if err != nil { // a late answer would be taken for the next one's
		_ = c.conn.Close()
		return a, err
	}
	if a.Error != "" {
		return a, errors.New("agent: " + a.Error)
	}
	return a, nil
}

func (c *Conn) exchange(r request, file *os.File) (a answer, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(askTimeout)); err != nil {
		return a, fmt.Errorf("asking the agent: %w", err)
	}
	if err := c.send(r, file); err != nil {
		return a, err
	}
	line, err := c.in.ReadSlice('\n') // an agent that says more is not asked again
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		return a, fmt.Errorf("the agent does not answer: %w", err)
	}
	return a, c.conn.SetDeadline(time.Time{})
}

func (c *Conn) send(r request, file *os.File) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := c.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		return fmt.Errorf("asking the agent: %w", err)
	}
	return nil
}
