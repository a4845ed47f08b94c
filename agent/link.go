package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What an agent says to its parent.
const (
	wordJailed = "jailed\n"
	wordOK     = "ok\n"
)

// ErrEnded says that an agent has ended without a word: it was killed.
var ErrEnded = errors.New("it ended without a word")

// Files are what an agent gets with its image.
type Files struct {
	FUSE    *os.File // of mount.OpenFUSE
	Control *os.File // a listening unix socket
	Log     *os.File
}

// Link is the parent's end of an agent's socket, until the agent serves an image.
// It is for one goroutine; the caller closes it.
type Link struct {
	conn  *net.UnixConn
	words *bufio.Reader
}

// NewLink makes a link, and the agent's end of it, FDParent, which the caller
// passes on and closes.
func NewLink() (*Link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "agent"), os.NewFile(uintptr(fds[1]), "parent")
	defer ours.Close() // the connection has a copy
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return &Link{conn.(*net.UnixConn), bufio.NewReaderSize(conn, maxAnswer)}, theirs, nil
}

// Close ends the connection, and with it an agent that is blank.
func (l *Link) Close() error { return l.conn.Close() }

// Jailed waits until the agent is in its jail. An error is what keeps it from
// there, in its words, or wraps ErrEnded or the cause of ctx's end.
func (l *Link) Jailed(ctx context.Context) error { return l.await(ctx, wordJailed) }

// Alive tells whether a jailed agent still waits for its image.
func (l *Link) Alive() bool {
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return false
	}
	alive := false
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, perr := unix.Poll(fds, 0)
		alive = n == 0 && perr == nil // it says nothing by itself
	})
	return alive && err == nil
}

// Give makes a jailed agent that of an image, for good, and waits until it
// serves. Errors are as Jailed's. The caller closes its copies of the files.
func (l *Link) Give(ctx context.Context, f Files, s *Setup) error {
	rights := unix.UnixRights(int(f.FUSE.Fd()), int(f.Control.Fd()), int(f.Log.Fd()))
	defer context.AfterFunc(ctx, l.abort)()
	_, _, err := l.conn.WriteMsgUnix([]byte{0}, rights, nil)
	if err == nil {
		err = s.Send(l.conn)
	}
	if err == nil {
		err = l.conn.CloseWrite()
	}
	if word := l.await(ctx, wordOK); word != nil {
		return word // an agent that ends does not hear all
	}
	return err
}

// await waits for a word.
func (l *Link) await(ctx context.Context, want string) error {
	defer context.AfterFunc(ctx, l.abort)()
	got, err := l.words.ReadSlice('\n')
	switch line := string(got); {
	case line == want:
		return nil
	case line != "":
		return errors.New(strings.TrimSpace(line))
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w (%w)", ErrEnded, err)
}

func (l *Link) abort() { _ = l.conn.SetDeadline(time.Unix(1, 0)) }

// takeFiles waits for the files that Give sends, and takes the log. It gives none
// if the parent has ended.
func takeFiles(parent *net.UnixConn) (*Files, error) {
	const count = 3
	oob := make([]byte, unix.CmsgSpace(4*count))
	n, oobn, _, _, err := parent.ReadMsgUnix(make([]byte, 1), oob)
	if n <= 0 {
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil, nil
		}
		return nil, fmt.Errorf("waiting for an image: %w", err)
	}
	files := passed(oob[:oobn], "passed")
	if len(files) != count {
		return nil, fmt.Errorf("%d files came with an image, want %d", len(files), count)
	}
	f := &Files{FUSE: files[0], Control: files[1], Log: files[2]}
	defer f.Log.Close()
	log := int(f.Log.Fd())
	return f, errors.Join(unix.Dup3(log, 1, 0), unix.Dup3(log, 2, 0))
}

// passed gives the files that came along with a message (unix(7), SCM_RIGHTS), and
// calls them by a name.
func passed(oob []byte, name string) (files []*os.File) {
	messages, _ := unix.ParseSocketControlMessage(oob) // from what is none come none
	for i := range messages {
		fds, _ := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), name))
		}
	}
	return files
}
