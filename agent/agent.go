// Package agent is the process that serves the device of one image version on
// a worker, and holds its keys.
//
// It is started with root's rights, which it has until it has jailed itself,
// and with
//
//	0, 1, 2   /dev/null; 1 and 2 are its log once it has an image
//	3         a socket to its parent
//
// on which these are said:
//
//	agent   "jailed\n": nothing of it depends on an image until then, so that it can be started ahead, blank
//	parent  a byte with three files: /dev/fuse, mounted by the parent, which keeps no copy: the end of the
//	        agent is the end of the file system, and never a hang; a listening unix socket for Control; its log
//	parent  setup: a line of JSON (Setup), the sealed trace of as many bytes as the line says, then the
//	        sealed manifest, to the end
//	agent   "ok\n" once requests are served
//
// and in the place of an agent's word one line that says why not. A blank whose
// parent has gone ends. An agent serves one image in its life.
//
// Its jail is a mount namespace with two folders, the cache's (read-only) and
// the one with the fetcher's socket, and a network namespace with nothing in
// it. It runs as a user of its own without capabilities. It ends when its file
// system is unmounted.
package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"thaw/cache"
	"thaw/device"
	"thaw/manifest"
	"thaw/mount"
	"thaw/trace"
)

// FDParent is the agent's descriptor of the socket to its parent.
const FDParent = 3

// UID is the user and group of agents: a number that no account has and that
// lies outside the ids of containers (1<<30 to 1<<31).
const UID = 1<<30 - 7

// maxManifest bounds what is read of the setup, in bytes. A manifest of 256 GiB
// in chunks of 64 KiB has 300 MB; one of 16 GiB in the default size 3 MB.
const maxManifest = 512 << 20

// maxSetup bounds the line of the setup, in bytes: names of 4096, each byte of
// which may take six in JSON, and some.
const maxSetup = 128 << 10

// gcPercent trades CPU for memory: the heap is small and most of it is buffers
// that live long.
const gcPercent = 50

// Setup is what an agent needs to know of its image. It holds the key of the
// manifest's key table: it travels through a socket, and is never logged or kept.
type Setup struct {
	Image    string        `json:"image"`    // for messages
	Root     string        `json:"root"`     // the origin's root that holds the chunks
	Deadline time.Duration `json:"deadline"` // how long a read may wait for its chunk
	Start    time.Time     `json:"start"`    // when the start that mounts began: reads of older ones come first
	DataKey  []byte        `json:"dataKey"`
	Prefetch int64         `json:"prefetch,omitempty"` // most bytes to fetch ahead, as the trace has it
	Record   bool          `json:"record,omitempty"`   // what is touched, until Conn.Ready

	TraceSize int    `json:"traceSize,omitempty"` // set by Send
	Trace     []byte `json:"-"`                   // sealed; empty if there is none
	Manifest  []byte `json:"-"`                   // sealed
}

// SocketName is the fetcher's socket in its folder.
const SocketName = "sock"

// String hides the key.
func (s Setup) String() string { return "agent setup of image " + s.Image }

// Format hides the key from every verb.
func (s Setup) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// Send writes the setup for an agent.
func (s *Setup) Send(w io.Writer) error {
	s.TraceSize = len(s.Trace)
	line, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, part := range [][]byte{append(line, '\n'), s.Trace, s.Manifest} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// receive reads what Send wrote.
func receive(r io.Reader) (*Setup, error) {
	in := bufio.NewReaderSize(io.LimitReader(r, maxManifest+maxSetup+trace.MaxSize), maxSetup)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return nil, fmt.Errorf("reading the setup: %w", err)
	}
	var s Setup
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, errors.New("the setup is damaged") // its text may hold the key
	}
	clear(line)
	if s.TraceSize < 0 || s.TraceSize > trace.MaxSize {
		return nil, fmt.Errorf("a trace of %d bytes", s.TraceSize)
	}
	s.Trace = make([]byte, s.TraceSize)
	if _, err := io.ReadFull(in, s.Trace); err != nil {
		return nil, fmt.Errorf("reading the trace: %w", err)
	}
	if s.Manifest, err = io.ReadAll(in); err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	return &s, nil
}

// Main is the agent. Its arguments are an empty folder to build the jail on, the
// worker's cache, and the folder with the fetcher's socket, SocketName. It
// returns the exit status.
func Main(args []string) int {
	debug.SetGCPercent(gcPercent)
	parent, err := dialParent()
	if err == nil {
		err = live(parent, jail{place: args[0], cache: args[1], fetcher: args[2]})
	}
	if err == nil {
		return 0
	}
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	if parent != nil {
		_, _ = io.WriteString(parent, line+"\n") // closed if it was ready
	}
	fmt.Fprintln(os.Stderr, "thaw-agent: "+line)
	return 1
}

func dialParent() (*net.UnixConn, error) {
	f := os.NewFile(FDParent, "parent")
	defer f.Close() // the connection has a copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket to the parent: %w", err)
	}
	parent, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("socket to the parent: not a unix socket")
	}
	return parent, nil
}

// live is an agent's life: blank in its jail, then with an image.
func live(parent *net.UnixConn, j jail) error {
	if err := j.enter(); err != nil {
		return fmt.Errorf("entering the jail: %w", err)
	}
	if _, err := io.WriteString(parent, wordJailed); err != nil {
		return fmt.Errorf("telling the parent: %w", err)
	}
	f, err := takeFiles(parent)
	if f == nil || err != nil { // nobody needs it any more
		return err
	}
	setup, err := receive(parent)
	if err != nil {
		return err
	}
	return serve(setup, f, func() {
		_, _ = io.WriteString(parent, wordOK)
		_ = parent.Close()
	})
}

// serve runs the agent until its file system is unmounted.
func serve(setup *Setup, f *Files, ready func()) error {
	m, traces, err := open(setup)
	if err != nil {
		return err
	}
	if traces.warn != "" {
		fmt.Fprintln(os.Stderr, "thaw-agent: starting without a trace: "+traces.warn)
	}
	chunks, err := cache.NewClient(cache.ClientOptions{
		Folder: jailCache, Root: setup.Root, Deadline: setup.Deadline, Start: setup.Start,
		Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", jailFetcher+"/"+SocketName)
		},
	})
	if err != nil {
		return err
	}
	defer chunks.Close()
	defer traces.begin(chunks)()
	dev, err := device.New(m, chunks)
	if err != nil {
		return err
	}
	if setup.Record {
		dev.OnTouch(traces.touch)
	}
	control, err := newControl(f.Control, setup.Image, dev, chunks)
	if err != nil {
		return err
	}
	control.traces = traces
	server, err := mount.NewServer(f.FUSE, dev, control.report)
	if err != nil {
		return err
	}
	control.server = server
	control.start()
	defer control.close()
	ready()
	server.Serve()
	return nil
}

// open opens the manifest and forgets the key of its key table, after deriving
// that of traces.
func open(s *Setup) (*manifest.Manifest, *traces, error) {
	sealed, err := manifest.Parse(s.Manifest)
	if err != nil {
		return nil, nil, err
	}
	key := trace.NewKey(s.DataKey, sealed.ID())
	m, err := sealed.OpenWith(s.DataKey)
	clear(s.DataKey)
	s.DataKey, s.Manifest = nil, nil
	if err != nil {
		return nil, nil, err
	}
	m.Config = nil // environment and labels are the sandbox's, not ours
	return m, newTraces(s, m, key), nil
}
